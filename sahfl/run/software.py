"""Versions of the software that determines results, at server and sites: sahfl's own code and numerical libraries."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path

import sahfl
from sahfl.regular_files import LIST_BYTES, read_bytes

LIBRARIES = ("torch", "monai", "numpy", "scipy")
"""Packages that compute: another version can give other numbers."""
ONLY_SHOWN = ("commands", "doctor", "export", "prediction", "report", "results")
"""Folders of sahfl whose code does not affect a cell's result."""


def software() -> dict[str, str]:
    """The hash of sahfl's code, and the version of each library."""
    return {"sahfl": code_of(Path(sahfl.__file__).parent)} | {name: version(name) for name in LIBRARIES}


def software_hash() -> str:
    """Hash of ``software``, 16 hex digits: equal at two machines that compute with the same software."""
    return hashlib.sha256(json.dumps(software(), sort_keys=True).encode()).hexdigest()[:16]


@cache
def code_of(package: Path) -> str:
    """SHA-256 (hex) of sahfl's code without ``ONLY_SHOWN``; in a checkout it changes while the version does not."""
    whole = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        if name.parts[0] not in ONLY_SHOWN:
            code = hashlib.sha256(read_bytes(path, most=LIST_BYTES)).hexdigest()
            whole.update(f"{name.as_posix()}\0{code}\n".encode())
    return whole.hexdigest()
