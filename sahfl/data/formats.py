"""The formats of scans on disk; the format is recognised from the files at a path."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sahfl.data.manifest import Case, read_datalist, scan_files
from sahfl.data.nnunet import read_nnunet
from sahfl.errors import DataError

Format = Literal["datalist", "nnU-Net", "DICOM"]


def recognise(path: Path, site: str) -> Format:
    """The format at a site's path: a datalist (JSON), an nnU-Net raw folder, or a folder of DICOM series.

    It reads only what is needed to decide; ``read_cases`` reads the cases.

    Raises:
        DataError: the path is none of these three, or its datalist is faulty or does not contain this site.
    """
    from sahfl.data import dicom

    try:
        if path.is_file() and path.suffix == ".json":
            read_datalist(path, site)
            return "datalist"
        if (path / "dataset.json").is_file():
            return "nnU-Net"
        if path.is_dir() and any(dicom.is_dicom(file) for file in scan_files(path)):
            return "DICOM"
        found = "nothing" if not path.exists() else "a folder" if path.is_dir() else "a file"
    except OSError as error:
        raise DataError(f"site {site}: {path}: {error.strerror}") from error
    expected = "a datalist (.json), an nnU-Net raw folder (with dataset.json) or a folder of DICOM series"
    raise DataError(f"site {site}: {path}: got {found}, expected {expected}")


def read_cases(path: Path, site: str) -> tuple[Case, ...]:
    """The cases at a site's path.

    Raises:
        DataError: the source is not recognised, or its list of cases is faulty.
    """
    from sahfl.data import dicom

    readers = {"datalist": read_datalist, "nnU-Net": read_nnunet, "DICOM": dicom.read_patients}
    return readers[recognise(path, site)](path, site)


def glance_at_cases(path: Path, site: str) -> tuple[Case, ...]:
    """The cases at a site's path; for a DICOM export only its folders, because patient ids are inside its files.

    Raises:
        DataError: as in ``read_cases``.
    """
    if recognise(path, site) != "DICOM":
        return read_cases(path, site)
    folders = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    return tuple(Case(f"{site}-{i:04d}", child, child, "") for i, child in enumerate(folders) if scan_files(child))
