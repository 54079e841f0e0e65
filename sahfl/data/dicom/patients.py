"""The patients below a site's folder of DICOM series."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sahfl.data.dicom.header import is_dicom, private, read_elements
from sahfl.data.manifest import Case, scan_files
from sahfl.errors import DataError, ScanProblem

_HASH_ROUNDS = 50_000
"""Patient ids are short numbers: a fast hash could be reversed by trying all of them."""


def read_patients(folder: Path, site: str) -> tuple[Case, ...]:
    """One case per folder directly below ``folder``, in the order of their names.

    Problems inside a patient's folder are found when the case is read, and become findings of that case.

    Raises:
        DataError: the folder cannot be read, or contains DICOM files directly, whose patient is then unknown.
    """
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"DICOM folder {folder}: {error.strerror}") from error
    if loose := sum(is_dicom(path) and path.name != "DICOMDIR" for path in entries if path.is_file()):
        raise DataError(f"DICOM folder {folder}: got {loose} DICOM file(s) in it, expected one folder per patient")
    patients = [path for path in entries if path.is_dir()]
    return tuple(Case(f"{site}-{i:04d}", path, path, patient_key(path)) for i, path in enumerate(patients))


def patient_key(folder: Path) -> str:
    """Hash of the patient id in a patient's folder (32 hex digits); of the folder's name if no file contains an id.

    The id is only read and hashed here. The same id gives the same key at every site, so a patient who was scanned
    twice, or at two sites, is one patient. If an export gives all patients the same id (``ANON``), they count as one
    patient and never land in different folds: give each patient an id, or list the folders in a datalist.
    """
    return _key(_patient_id(folder) or f"folder {folder.name}")


def keys_of(name: str) -> tuple[str, ...]:
    """What ``patient_key`` gives for a patient id, and for a folder of this name whose files have none."""
    return _key(name), _key(f"folder {name}")


def _key(name: str) -> str:
    return hashlib.pbkdf2_hmac("sha256", name.encode(), b"sahfl patient", _HASH_ROUNDS, 16).hex()


def _patient_id(folder: Path) -> str:
    try:
        paths = scan_files(folder)
    except OSError:
        return ""
    for path in filter(is_dicom, paths):
        try:
            with private():
                if found := str(read_elements(path, ("PatientID",)).get("PatientID") or "").strip():
                    return found
        except ScanProblem:
            continue  # the case's own check reports the file
    return ""
