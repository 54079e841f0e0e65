"""Where one site's scans come from: a path is recognised by what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sahfl.data import dicom
from sahfl.data.manifest import Case, read_datalist, scan_files
from sahfl.data.nnunet import read_nnunet
from sahfl.errors import DataError

Source = Literal["datalist", "nnU-Net", "DICOM"]


def recognise(path: Path, site: str) -> Source:
    """What lies at a site's path: a datalist (a JSON file), an nnU-Net raw folder, or a folder of DICOM series.

    Reads as little as it takes to say so; the cases themselves are read by ``read_cases``.

    Raises:
        DataError: it is none of these three, or a datalist that is wrong or names other sites than this one.
    """
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
        DataError: it cannot be recognised, or what it lists is wrong.
    """
    readers = {"datalist": read_datalist, "nnU-Net": read_nnunet, "DICOM": dicom.read_patients}
    return readers[recognise(path, site)](path, site)
