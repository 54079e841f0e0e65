"""Which scans a path stands for: one, or many with a name for each."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sahfl import csv_table
from sahfl.data import dicom
from sahfl.data.dicom.disc import NAME, is_disc, study_folders
from sahfl.data.dicom.header import private, read_elements
from sahfl.data.formats.names import is_volume, stem
from sahfl.data.json_lists import read_json
from sahfl.data.manifest import is_text, listed_path, scan_files
from sahfl.data.sources.csv_list import COLUMNS
from sahfl.data.sources.pairs import find_pairs
from sahfl.data.sources.zipped import is_zip
from sahfl.errors import DataError, ScanProblem

MOST_SCANS = 100_000
SPLITS = ("training", "validation", "test", "testing")
"""Lists of scans in a MONAI datalist."""
IMAGE = (*COLUMNS["image"], "path")
"""Names of the column of a CSV that has the scans; the first that is there counts."""


@dataclass(frozen=True)
class Wish:
    """One scan to segment."""

    case: str
    """Name of its row and of its folder below the results: letters, digits, ``.``, ``_`` and ``-``."""
    path: Path
    problem: str = ""
    """Why it is no scan, if the list shows that already."""

    def stamp(self) -> str:
        """Stands for the state of the scan's files: their sizes and times of change, without names; 16 hex digits."""
        paths = scan_files(self.path) if self.path.is_dir() else (self.path,)
        states = [(stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, paths)]
        return hashlib.sha256(repr(states).encode()).hexdigest()[:16]


def list_scans(path: Path, *, each: bool = False) -> tuple[Wish, ...] | None:
    """The scans that a path stands for; None if it is a single one.

    A JSON file is a datalist, of this project or of MONAI, and a CSV file has a column ``image``. A folder stands for
    many scans if series of several studies lie in its folders, or if there is no DICOM and volumes lie in it. Otherwise
    it is one scan. A mask beside its image is left out (``masks_in``). A disc stands for its studies, and a folder that
    holds one folder and nothing else for the inner one.

    Args:
        path: a file or folder.
        each: take every volume and every folder in a folder for a scan, whatever is in them.

    Raises:
        DataError: the list is faulty or empty, or has more than ``MOST_SCANS`` scans, or the path is a zip.
    """
    kind = path.suffix.lower()
    if path.is_file() and kind == ".json":
        found: Iterable[tuple[str, Path]] = _of_datalist(path)
    elif path.is_file() and kind in csv_table.ENDINGS:
        found = _of_table(path)
    elif not each and (disc := _disc_of(path)) is not None:
        places = study_folders(disc)
        if len(places) == 1 and path == disc:
            return None
        found = [("", place) for place in places]
    elif path.is_dir():
        path = path if each else _inner(path)
        inside = _of_folder(path)
        if not each:
            masks = masks_in(path)
            inside = [item for item in inside if item not in masks and not _are_masks(item, masks)]
            if not _are_many(path, inside):
                return None
        found = map(_scan_in, inside)
    elif is_zip(path):
        raise DataError(f"{path}: is a zip, expected scans; unpack it, and predict the folder")
    elif each:
        got = "a file" if path.exists() else "nothing (no such file or folder)"
        raise DataError(f"{path}: got {got}, expected a folder of scans or a list")
    else:
        return None
    pairs = list(found)
    if not 0 < len(pairs) <= MOST_SCANS:
        raise DataError(f"{path}: got {len(pairs)} scans, expected 1 to {MOST_SCANS}")
    return _named(pairs)


def _disc_of(path: Path) -> Path | None:
    """The folder of the disc that a path names, by itself or by its file DICOMDIR."""
    folder = path.parent if path.name.upper() == NAME and path.is_file() else path
    return folder if is_disc(folder) else None


def _of_folder(folder: Path) -> list[Path]:
    """Volumes and folders directly in a folder, sorted."""
    try:
        inside = sorted(item for item in folder.iterdir() if not item.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from error
    if (folder / "dataset.json").is_file():  # nnU-Net: the annotations lie in folders beside the images
        return [
            item for name in ("imagesTr", "imagesTs") if (folder / name).is_dir() for item in _of_folder(folder / name)
        ]
    return [item for item in inside if item.is_dir() or is_volume(item)]


def masks_in(folder: Path) -> frozenset[Path]:
    """The annotations below a folder: masks that lie beside the image that they belong to, by their names.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        return frozenset(mask for _, mask in find_pairs(folder).pairs)
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from error


def _are_masks(item: Path, masks: Collection[Path]) -> bool:
    """Whether a folder holds nothing but annotations of images in other folders."""
    found = scan_files(item) if masks and item.is_dir() else ()
    return bool(found) and all(path in masks for path in found)


def _inner(folder: Path) -> Path:
    """The folder, or the only one in it where nothing else lies beside it, and so on."""
    try:
        inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from error
    return _inner(inside[0]) if len(inside) == 1 and inside[0].is_dir() and not inside[0].is_symlink() else folder


def _are_many(folder: Path, inside: list[Path]) -> bool:
    """Whether the things in a folder are several scans, and not the parts of one patient's folder.

    Volumes beside the slices or the folder of one study are its annotations.
    """
    if any(dicom.is_dicom(item) for item in folder.iterdir() if item.is_file()):
        return False
    folders = [item for item in inside if item.is_dir()]
    studies = {study for item in folders if (study := _study_of(item))}
    if studies:
        return len(studies) > 1
    return len(inside) > len(folders) or sum(bool(_volumes(item)) for item in folders) > 1


def _scan_in(item: Path) -> tuple[str, Path]:
    """Name and path of the scan in a folder: its only volume, or all of it, which its reader judges."""
    found = _volumes(item) if item.is_dir() and not _study_of(item) else []
    return (item.name, found[0]) if len(found) == 1 else ("", item)


def _volumes(folder: Path) -> list[Path]:
    """The volumes below a folder without the masks of others."""
    try:
        masks = masks_in(folder)
        return [path for path in scan_files(folder) if is_volume(path) and path not in masks]
    except (OSError, DataError):
        return []


def _study_of(folder: Path) -> str:
    """StudyInstanceUID of the first DICOM file below a folder; empty if there is none."""
    try:
        first = next(filter(dicom.is_dicom, scan_files(folder)), None)
        if first is None:
            return ""
        with private():
            return str(read_elements(first, ("StudyInstanceUID",)).get("StudyInstanceUID", ""))
    except (OSError, ScanProblem):
        return ""


def _of_datalist(path: Path) -> Iterator[tuple[str, Path]]:
    content = read_json(path, f"datalist {path}")
    if not isinstance(content, dict):
        raise DataError(f"datalist {path}: got {type(content).__name__}, expected a mapping")
    sites = content.get("sites")
    lists = list(sites.values()) if isinstance(sites, dict) else [content[name] for name in SPLITS if name in content]
    if not lists or not all(isinstance(part, list) for part in lists):
        expected = f"lists under 'sites', or one of {', '.join(SPLITS)}"
        raise DataError(f"datalist {path}: got no lists of scans, expected {expected}")
    for number, entry in enumerate(entry for part in lists for entry in part):
        yield "", listed_path(path.parent, _image_of(entry, f"datalist {path}, case {number}"))


def _image_of(entry: Any, where: str) -> str:
    image = entry.get("image") if isinstance(entry, dict) else entry
    if isinstance(image, list) and len(image) == 1:  # MONAI allows a list of channels
        image = image[0]
    if not is_text(image):
        raise DataError(f"{where}: got no text under image, expected the path of one scan")
    return str(image)


def _of_table(path: Path) -> Iterator[tuple[str, Path]]:
    table = csv_table.read_table(path)
    column = next((name for name in IMAGE if name in table.columns), None)
    if column is None:
        expected = "one named image, scan or path"
        raise DataError(f"{path}: got the columns {', '.join(table.columns)[:80]!r}, expected {expected}")
    for row in table.rows:
        image = row.fields.get(column, "")
        if not is_text(image):
            raise DataError(f"{path}: line {row.line} has no text under {column}, expected the path of a scan")
        yield row.fields.get("case", ""), listed_path(path.parent, image)


def _named(pairs: list[tuple[str, Path]]) -> tuple[Wish, ...]:
    """Give each scan a name of its own: as given or of its file, then its folder, then a hash of its path."""
    twice = {path for path, n in Counter(path for _, path in pairs).items() if n > 1}
    if twice:
        raise DataError(
            f"{len(twice)} scan(s) are listed more than once, for example {sorted(twice)[0]}; remove a line"
        )
    names = [_clean(given or stem(path)) for given, path in pairs]
    names = _apart(names, [_clean(f"{path.parent.name}_{name}") for name, (_, path) in zip(names, pairs, strict=True)])
    digests = [hashlib.sha256(str(path).encode()).hexdigest()[:8] for _, path in pairs]
    names = _apart(names, [f"{name}-{digest}" for name, digest in zip(names, digests, strict=True)])
    return tuple(Wish(name, path, _problem(path)) for name, (_, path) in zip(names, pairs, strict=True))


def _problem(path: Path) -> str:
    if not os.path.isdir(path) or _study_of(path) or (n := len(_volumes(path))) < 2:
        return ""
    return (
        f"got a folder of {n} volumes without DICOM, expected one scan; predict this folder, or list the scans in a CSV"
    )


def _apart(names: list[str], longer: list[str]) -> list[str]:
    """The names, with a longer one for each that occurs twice; some file systems do not know small letters."""
    n_of = Counter(name.lower() for name in names)
    return [long if n_of[name.lower()] > 1 else name for name, long in zip(names, longer, strict=True)]


def _clean(name: str) -> str:
    """A name that is a folder's on every system, and no way out of one."""
    return re.sub(r"[^\w.-]", "_", name, flags=re.ASCII).strip(".")[:100] or "scan"
