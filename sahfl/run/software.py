"""The software that computes, at the server as at a site: sahfl's own code and the libraries that numbers come from."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path

import sahfl

LIBRARIES = ("torch", "monai", "numpy", "scipy")
"""Packages that compute: another version of one can give other numbers."""
ONLY_SHOWN = ("commands", "doctor", "export", "prediction", "report", "results")
"""Folders of sahfl whose code comes after a cell, or beside it."""


def software() -> dict[str, str]:
    """The hash of sahfl's code, and the version of each library."""
    return {"sahfl": code_of(Path(sahfl.__file__).parent)} | {name: version(name) for name in LIBRARIES}


def software_hash() -> str:
    """All of ``software`` as 16 hex digits: equal at two ends that compute with the same."""
    return hashlib.sha256(json.dumps(software(), sort_keys=True).encode()).hexdigest()[:16]


@cache
def code_of(package: Path) -> str:
    """SHA-256 (hex) of sahfl's own code but ``ONLY_SHOWN``: in a checkout it changes while the version does not."""
    whole = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        if name.parts[0] not in ONLY_SHOWN:
            whole.update(f"{name.as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()
