"""Names of volumes in files, for what lists them; what a file is shows its content (``volume``)."""

from __future__ import annotations

from pathlib import Path

ENDINGS = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Endings of volumes."""
DETACHED = (".nhdr", ".mhd")
"""Endings of headers whose voxels lie in another file."""


def is_volume(path: Path) -> bool:
    """Whether a file is named as volumes are, and is not hidden."""
    return path.name.lower().endswith(ENDINGS) and not path.name.startswith(".")


def stem(path: Path) -> str:
    """A file's name without the ending of a volume."""
    name = path.name
    ending = next((ending for ending in ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]
