"""Install PyTorch into the environment that runs this file, and print first how much is downloaded.

Example: .venv/bin/python tools/install_torch.py

On Linux, PyPI's build of PyTorch brings CUDA along, which a machine without an NVIDIA GPU does not need.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
OWN_SOURCE = ("index-url", "extra-index-url", "find-links", "no-index")
"""Settings of pip that name another source of packages than PyPI."""


def choose(system: str, *, has_gpu: bool, settings: str, environment: Mapping[str, str]) -> tuple[list[str], str]:
    """The options of pip, and a line that says what is downloaded.

    Args:
        system: ``platform.system()``.
        has_gpu: whether the machine has an NVIDIA GPU.
        settings: what ``pip config list`` prints.
        environment: environment variables.
    """
    known = set(re.findall(r"\.([a-z-]+)=", settings))
    named = [name for name in OWN_SOURCE if name in known or f"PIP_{name.upper().replace('-', '_')}" in environment]
    if named:
        return [], f"PyTorch comes from where pip is set to look ({', '.join(named)})"
    if system != "Linux":
        return [], "PyTorch is downloaded from PyPI, about 100 MB"
    if has_gpu:
        return [], "this machine has an NVIDIA GPU: PyTorch is downloaded with CUDA from PyPI, about 3 GB"
    return ["--index-url", CPU_BUILDS], f"PyTorch for the processor is downloaded from {CPU_BUILDS}, about 200 MB"


def install(options: list[str]) -> bool:
    """Run pip, and return whether it succeeded."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS), *options, "torch"]
    return subprocess.run(command, check=False).returncode == 0


def main() -> None:
    """Install PyTorch unless it is there."""
    if importlib.util.find_spec("torch"):
        return
    settings = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    has_gpu = bool(shutil.which("nvidia-smi")) or Path("/proc/driver/nvidia/version").exists()
    options, text = choose(platform.system(), has_gpu=has_gpu, settings=settings.stdout, environment=os.environ)
    print(f"{text}; with all other libraries it takes some minutes", flush=True)
    if not install(options):
        if not options:
            sys.exit("error: pip could not install PyTorch; its messages are above")
        print("that failed; PyTorch is downloaded with CUDA from PyPI, about 3 GB (Ctrl-C stops it)", flush=True)
        if not install([]):
            sys.exit("error: pip could not install PyTorch; its messages are above")


if __name__ == "__main__":
    main()
