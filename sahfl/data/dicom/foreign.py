"""Files in a patient's folder that are no scan: left out and counted, unless one may be a lost slice."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path

from sahfl.errors import ScanProblem

_KINDS = {
    "program": ".exe .dll .jar .bat .cmd .com .msi .app .sh .so .dylib .ocx .class",
    "archive": ".zip .7z .rar .tar .gz .tgz .bz2 .xz .mrb .iso .cab",
    "picture": ".jpg .jpeg .jpe .png .gif .bmp .tif .tiff .ico .svg .webp .heic",
    "film": ".avi .mp4 .mpg .mpeg .mov .wmv",
    "text or table": ".txt .md .rtf .doc .docx .odt .csv .tsv .xls .xlsx .html .htm .css .js .xml .json .yaml .log",
    "PDF": ".pdf",
    "system file": ".inf .ini .db .lnk .url .cfg .config .plist .idx .md5 .sha256 .tmp .bak .lock .crc",
    "scene of a viewer": ".mrml .osirixsr .roi .vtk .stl .obj .ply .mat .xnat",
    "NRRD or MetaImage": ".nrrd .nhdr .mha .mhd",
    "gradient table": ".bval .bvec",
}
KNOWN = {ending: kind for kind, endings in _KINDS.items() for ending in endings.split()}
_MAGIC = {
    b"MZ": "program",
    b"\x7fELF": "program",
    b"PK\x03\x04": "archive",
    b"\x1f\x8b": "archive",
    b"7z\xbc\xaf": "archive",
    b"Rar!": "archive",
    b"%PDF": "PDF",
    b"\xff\xd8\xff": "picture",
    b"\x89PNG": "picture",
    b"GIF8": "picture",
    b"II*\0": "picture",
    b"MM\0*": "picture",
    b"NRRD0": "NRRD or MetaImage",
    b"{\\rtf": "text or table",
    b"\xd0\xcf\x11\xe0": "system file",
}
_SLICE_ENDINGS = {".dcm", ".dicom", ".dic", ".ima", ".acr"}
_LIKE_NUMBER = re.compile(r"\.?[0-9a-f.]*", re.IGNORECASE)
NAMED = {"dicomdir": "DICOMDIR", "lockfile": "system file", "version": "text or table"}


def list_files(folder: Path, *, below: bool = True, most: float = math.inf) -> tuple[Path, ...]:
    """All files in a folder and, with ``below``, in the folders below it, in the order of their paths.

    Raises:
        OSError: a folder cannot be read.
        ScanProblem: there are more than ``most``.
    """

    def refuse(error: OSError) -> None:  # by default os.walk skips an unreadable folder silently
        raise error

    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        found += (Path(parent, name) for name in names)
        if len(found) > most:
            raise ScanProblem("unreadable", f"the folder has more than {most} files, expected those of one patient")
        if not below:
            folders.clear()
    return tuple(sorted(found))


def known_by_name(path: Path) -> str | None:
    """The kind of a file that its name shows to be no scan; None for any other, which has to be opened."""
    if path.name.startswith("."):
        return "hidden file"
    if _SLICE_ENDINGS.intersection(map(str.lower, path.suffixes)):
        return None
    return NAMED.get(path.name.lower()) or KNOWN.get(path.suffix.lower())


def known_by_content(path: Path, start: bytes) -> str | None:
    """The kind of a file that is not DICOM; None if it may be a lost slice: empty or of unknown bytes.

    A file whose ending is a word that no slice has, such as ``.lbl``, is none, whatever its content.
    """
    if _SLICE_ENDINGS.intersection(map(str.lower, path.suffixes)):
        return None
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            return kind
    if start and _is_text(start):
        return "text or table"
    return None if _LIKE_NUMBER.fullmatch(path.suffix) else "other file"


def named_alike(path: Path, others: Iterable[Path]) -> bool:
    """Test whether a file is named as slices of its folder are, numbers aside: ``IM0007`` beside ``IM0001``."""
    return shape_of(path) in {shape_of(other) for other in others}


def shape_of(path: Path) -> tuple[Path, str]:
    """A file's folder, and its name without its numbers."""
    return path.parent, re.sub(r"\d+", "#", path.name.lower())


def listed(counts: dict[str, int]) -> str:
    """Kinds with their numbers, for a message; no name of a file is in it."""
    return ", ".join(f"{n} x {kind}" for kind, n in sorted(counts.items()))


def _is_text(start: bytes) -> bool:
    for encoding in ("utf-8", "utf-16") if start[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8",):
        try:
            text = start.decode(encoding)
        except UnicodeDecodeError as error:
            if error.start < len(start) - 4:  # a cut last letter is no fault
                continue
            text = start[: error.start].decode(encoding)
        return "\0" not in text and sum(c.isprintable() or c.isspace() for c in text) >= 0.9 * len(text)
    return False
