"""The patients below a site's folder of DICOM series."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sahfl.data.dicom.foreign import known_by_name, list_files, listed
from sahfl.data.dicom.header import is_dicom, private, read_elements
from sahfl.data.dicom.survey import foreign_only
from sahfl.data.manifest import Case
from sahfl.errors import DataError, ScanProblem

_HASH_ROUNDS = 50_000
"""Patient ids are short numbers: a fast hash could be reversed by trying all of them."""
MOST_OF_A_SITE, FEWEST_FOLDERS = 0.5, 3
"""An id in more than this share of a site's folders, and in at least as many, is no id of one person."""
_PLACEHOLDER = re.compile(
    r"anon\w*|an[o0]nym\w*|de-?ident\w*|pseudonym\w*|removed|deleted|hidden|masked|unknown|unbekannt|none|null|nil"
    r"|n/?a|no ?(id|name|patient)|not ?available|patient(_?id)?|test|dummy|default|id|pid|subject|[0x#*?.\-_ ]+",
    re.IGNORECASE,
)
"""Ids that anonymisers write for everybody."""


def read_patients(folder: Path, site: str) -> tuple[Case, ...]:
    """One case per patient's folder directly below ``folder``, in the order of their names.

    A patient's id makes several folders one patient, unless it stands in more than half of the site's folders or is a
    word such as ``ANONYMOUS``: then each of these folders is a patient (``Case.n_same_id``). Problems inside a folder
    are found when the case is read, and become findings of that case.

    Raises:
        DataError: the folder cannot be read, or contains DICOM files directly, whose patient is then unknown.
    """
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"DICOM folder {folder}: {error.strerror}") from error
    if loose := sum(is_dicom(path) and path.name != "DICOMDIR" for path in entries if path.is_file()):
        raise DataError(f"DICOM folder {folder}: got {loose} DICOM file(s) in it, expected one folder per patient")
    folders, left_out = patient_folders(folder)
    keys = patient_keys(folders)
    return tuple(
        Case(f"{site}-{i:04d}", path, path, key, n_same_id=n, left_out=() if i else left_out)
        for i, (path, (key, n)) in enumerate(zip(folders, keys, strict=True))
    )


def patient_folders(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The patients' folders in a site's folder, and a text for each folder that has no scan, such as a viewer's.

    A folder without files stays a patient's: its scan may be lost.

    Raises:
        OSError: the folder cannot be read.
    """
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    kept, left_out = [], []
    for number, path in enumerate(inside, 1):
        if foreign := foreign_only(path):
            text = f"folder {number} of {len(inside)} in the order of names has {listed(foreign)}"
            left_out.append(f"{text}, and no scan")
        else:
            kept.append(path)
    return kept, tuple(left_out)


def patient_keys(folders: Sequence[Path]) -> list[tuple[str, int]]:
    """For each patient's folder a key (32 hex digits), and in how many folders its id stands if that is no real id.

    The key is the hash of the patient id, so that a patient who was scanned twice, or at two sites, is one patient; or
    the hash of the folder's name, if no file has an id or the id is no real one. Ids are only read and hashed here.
    """
    ids = [_patient_id(folder) for folder in folders]
    counts = Counter(ids)
    found = []
    for folder, name in zip(folders, ids, strict=True):
        n = counts[name]
        everywhere = n >= FEWEST_FOLDERS and n > MOST_OF_A_SITE * len(folders)
        shared = bool(name) and n > 1 and (everywhere or bool(_PLACEHOLDER.fullmatch(name)))
        found.append((_key(name if name and not shared else f"folder {folder.name}"), n if shared else 0))
    return found


def keys_of(name: str) -> tuple[str, ...]:
    """What ``patient_key`` gives for a patient id, and for a folder of this name whose files have none."""
    return _key(name), _key(f"folder {name}")


def _key(name: str) -> str:
    return hashlib.pbkdf2_hmac("sha256", name.encode(), b"sahfl patient", _HASH_ROUNDS, 16).hex()


def _patient_id(folder: Path) -> str:
    try:
        paths = [path for path in list_files(folder) if not known_by_name(path)]
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
