"""A disc of DICOM files (a folder with a file DICOMDIR), which sorts patients and studies in a way of its own.

Each study is a case. The files' own headers say which study they belong to: a DICOMDIR that was copied from elsewhere
does no harm, and no path in it is followed. A study is read from the largest folder that holds no file of another one,
with what else lies there, such as a mask. Studies that share a folder are linked or copied into the site's folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from sahfl.atomic import make_folder
from sahfl.data.dicom.header import is_dicom, private, read_elements
from sahfl.data.dicom.patients import patient_keys
from sahfl.data.manifest import Case, scan_files
from sahfl.errors import DataError, ScanProblem, StorageError

NAME = "DICOMDIR"
SORTED = "sorted"
"""In the site's folder."""
Study = tuple[str, str]
"""PatientID and StudyInstanceUID; both stay in this module."""


def is_disc(folder: Path) -> bool:
    """Test whether a folder is one of a disc: it has a file named DICOMDIR."""
    try:
        return any(path.name.upper() == NAME and path.is_file() for path in folder.iterdir())
    except OSError:
        return False


def read_disc(folder: Path, site: str, into: Path) -> tuple[Case, ...]:
    """One case per study, in the order of patients and studies; a mask belongs to the study around it.

    Args:
        folder: of the disc.
        site: the site's name.
        into: the site's folder, for studies that share a folder.

    Raises:
        DataError: the folder cannot be read, or holds no DICOM file with a study.
        StorageError: there is no room for studies that share a folder.
    """
    try:
        files = [path for path in scan_files(folder) if path.name.upper() != NAME]
    except OSError as error:
        raise DataError(f"disc {folder}: {error.strerror}") from error
    studies: dict[Study, list[Path]] = defaultdict(list)
    below: dict[Path, set[Study]] = defaultdict(set)
    for path in filter(is_dicom, files):
        if (study := _study_of(path)) is not None:
            studies[study].append(path)
            for parent in _between(path.parent, folder):
                below[parent].add(study)
    if not studies:
        raise DataError(f"disc {folder}: its files name no study; copy the whole disc, not only its {NAME}")
    places = []
    for study in sorted(studies):
        own = Path(os.path.commonpath([path.parent for path in studies[study]]))
        alone = [place for place in _between(own, folder) if len(below[place]) == 1]
        places.append(alone[-1] if alone else _sorted(studies[study], study, into))
    return tuple(
        Case(f"{site}-{index:04d}", place, place, key, n_same_id=n)
        for index, (place, (key, n)) in enumerate(zip(places, patient_keys(places), strict=True))
    )


def _between(place: Path, folder: Path) -> list[Path]:
    """A folder and those around it, up to the disc's."""
    return [place, *(parent for parent in place.parents if parent.is_relative_to(folder))]


def _study_of(path: Path) -> Study | None:
    """The study of a file; None if it is damaged, which the check of its case reports."""
    try:
        with private():
            header = read_elements(path, ("PatientID", "StudyInstanceUID"))
            study = str(header.get("StudyInstanceUID") or "")
            return (str(header.get("PatientID") or "").strip(), study) if study else None
    except ScanProblem:
        return None


def _sorted(paths: Sequence[Path], study: Study, into: Path) -> Path:
    """A folder with a study's files, as links to the same content or as copies; its name is a hash."""
    target = into / SORTED / hashlib.sha256("\0".join(study).encode("utf-8", "replace")).hexdigest()[:16]
    shutil.rmtree(target, ignore_errors=True)
    try:
        make_folder(target, new=True)
        for index, path in enumerate(paths):
            try:
                (target / f"{index:05d}.dcm").hardlink_to(path)
            except OSError:  # another disk, or a file system without links
                shutil.copyfile(path, target / f"{index:05d}.dcm")
    except OSError as error:
        raise StorageError(f"{target}: cannot be written ({error.strerror}); make room, then go on") from error
    return target
