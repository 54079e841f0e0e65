"""A Python in which some packages do not exist, sahfl among them: what a colleague has who is given an export."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

TORCH = ("torch", "torchgen", "functorch", "monai", "safetensors")


class Elsewhere:
    """Runs Python with the installed packages but sahfl, the names in ``hidden``, and what only sahfl needs."""

    def __init__(self, folder: Path, *, hidden: tuple[str, ...] = ()) -> None:
        gone = ("sahfl", "__editable__", "flwr", "pydantic", "typer", "matplotlib", *hidden)
        self.packages = folder / "packages"
        self.packages.mkdir()
        for path in Path(sysconfig.get_path("purelib")).iterdir():
            if not path.name.startswith(gone) and path.suffix != ".pth":
                (self.packages / path.name).symlink_to(path)

    def run(self, *arguments: object, cwd: Path) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of ``python ARGUMENTS``, in the folder ``cwd``."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        environment = {**kept, "PYTHONPATH": str(self.packages), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-S", *map(str, arguments)]  # -S: no .pth file adds sahfl's folder again
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr
