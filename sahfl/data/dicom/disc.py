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
from dataclasses import dataclass, field
from pathlib import Path

from sahfl.atomic import make_folder
from sahfl.data.dicom.header import code, is_dicom, private, read_elements
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
    """One case per study with CT, in the order of patients and studies; a mask belongs to the study around it.

    Args:
        folder: of the disc.
        site: the site's name.
        into: the site's folder, for studies that share a folder.

    Raises:
        DataError: the folder cannot be read, or holds no CT with a study.
        StorageError: there is no room for studies that share a folder.
    """
    studies = _studies(folder)
    with_ct = sorted(study for study, found in studies.items() if found.has_ct)
    places = [studies[study].place or _sorted(studies[study].paths, study, into) for study in with_ct]
    n_other = len(studies) - len(with_ct)
    left_out = (f"{n_other} of {len(studies)} studies of the disc hold no CT",) if n_other else ()
    return tuple(
        Case(f"{site}-{index:04d}", place, place, key, n_same_id=n, left_out=() if index else left_out)
        for index, (place, (key, n)) in enumerate(zip(places, patient_keys(places), strict=True))
    )


def study_folders(folder: Path) -> tuple[Path, ...]:
    """The folder of each study with CT on a disc, in the order of patients and studies.

    Raises:
        DataError: as ``read_disc``, or studies share a folder.
    """
    studies = _studies(folder)
    places = [studies[study].place for study in sorted(studies) if studies[study].has_ct]
    if shared := sum(place is None for place in places):
        text = f"{shared} studies share a folder; write each as a scan of its own (sahfl convert), and use these"
        raise DataError(f"disc {folder}: {text}")
    return tuple(place for place in places if place is not None)


@dataclass
class _Found:
    """The files of one study."""

    paths: list[Path] = field(default_factory=list)
    has_ct: bool = False
    """Whether a file is CT, or does not say what it is."""
    place: Path | None = None
    """The largest folder that holds no file of another study; None if there is none."""


def _studies(folder: Path) -> dict[Study, _Found]:
    try:
        files = [path for path in scan_files(folder) if path.name.upper() != NAME]
    except OSError as error:
        raise DataError(f"disc {folder}: {error.strerror}") from error
    studies: dict[Study, _Found] = defaultdict(_Found)
    below: dict[Path, set[Study]] = defaultdict(set)
    for path in filter(is_dicom, files):
        study, modality = _study_of(path)
        if study is not None:
            studies[study].paths.append(path)
            studies[study].has_ct |= modality in ("CT", "unknown")
            for parent in _between(path.parent, folder):
                below[parent].add(study)
    if not studies:
        raise DataError(f"disc {folder}: its files name no study; copy the whole disc, not only its {NAME}")
    if not any(found.has_ct for found in studies.values()):
        raise DataError(f"disc {folder}: got {len(studies)} studies without CT, expected head CT")
    for found in studies.values():
        own = Path(os.path.commonpath([path.parent for path in found.paths]))
        alone = [place for place in _between(own, folder) if len(below[place]) == 1]
        found.place = alone[-1] if alone else None
    return dict(studies)


def _between(place: Path, folder: Path) -> list[Path]:
    """A folder and those around it, up to the disc's."""
    return [place, *(parent for parent in place.parents if parent.is_relative_to(folder))]


def _study_of(path: Path) -> tuple[Study | None, str]:
    """The study and the modality of a file; None if it is damaged, which the check of its case reports."""
    try:
        with private():
            header = read_elements(path, ("PatientID", "StudyInstanceUID", "Modality"))
            study = str(header.get("StudyInstanceUID") or "")
            patient = str(header.get("PatientID") or "").strip()
            return ((patient, study) if study else None), code(header, "Modality")
    except ScanProblem:
        return None, "unknown"


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
