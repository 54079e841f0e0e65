"""A Python in which some packages do not exist, sahfl among them: what a colleague has who is given an export."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

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

    def keep_only(self, packages: Iterable[str]) -> None:
        """Leave what ``pip install PACKAGES`` would install: these packages, and what they need."""
        kept = {Path(str(file)).parts[0] for name in _needed(packages) for file in distribution(name).files or ()}
        for path in self.packages.iterdir():
            if path.name not in kept:
                path.unlink()

    def run(self, *arguments: object, cwd: Path) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of ``python ARGUMENTS``, in the folder ``cwd``."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        environment = {**kept, "PYTHONPATH": str(self.packages), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-S", *map(str, arguments)]  # -S: no .pth file adds sahfl's folder again
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr


def _needed(packages: Iterable[str]) -> set[str]:
    """Names of the installed packages that these need, and of these themselves."""
    found: set[str] = set()
    waiting = list(packages)
    while waiting:
        name = waiting.pop()
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:  # of another system
            continue
        if name not in found:
            found.add(name)
            wanted = map(Requirement, requires)
            waiting += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found
