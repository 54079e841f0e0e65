"""The cases of a site: files, patient and fold of each."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sahfl import regular_files
from sahfl.data.series_choice import SeriesChoice
from sahfl.errors import DataError
from sahfl.problems import MOST_SHOWN, shown
from sahfl.regular_files import DATALIST_BYTES

MOST_NAMED = 20
"""Names that a message lists, and problems."""
NO_SCAN = {
    *(".txt", ".json", ".xml", ".csv", ".tsv", ".pdf", ".html", ".htm", ".md"),
    *(".jpg", ".jpeg", ".png", ".db", ".ini"),
}
"""Endings of files that lie beside scans but are not scans."""


@dataclass(frozen=True)
class Case:
    """One CT volume with its annotation. Logs show the ``id`` only; the patient and the paths stay in this process."""

    id: str
    """``<site>-0007``: the number is the position in the site's datalist or folder."""
    image: Path
    """NIfTI file, or folder of a DICOM series."""
    label: Path
    """NIfTI file, DICOM segmentation, or the folder that holds one of them."""
    patient: str
    fold: int | None = None
    """The fold that the datalist assigns to this case, if any."""
    patient_from_name: bool = False
    """Whether nothing but the whole name of the case stands for the patient, so that a second scan would be missed."""
    series: SeriesChoice | None = None
    """Which of several DICOM series the site wants, if it says so."""
    blood: tuple[str | int, ...] = ()
    """Labels or values that are blood, if the site names them."""
    n_same_id: int = 0
    """Folders whose files hold the patient id of this one, though each counts as a patient; 0 for a real id."""

    def files(self) -> tuple[Path, ...]:
        """All files that the case is read from, the image first, each once.

        Raises:
            OSError: a folder cannot be read.
        """
        both = (scan_files(path) if path.is_dir() else (path,) for path in (self.image, self.label))
        return tuple(dict.fromkeys(path for paths in both for path in paths))


def scan_files(folder: Path) -> tuple[Path, ...]:
    """All files below a folder that may be scans, sorted; without hidden files, texts, tables and pictures.

    Raises:
        OSError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:  # by default os.walk, like Path.rglob, skips an unreadable folder silently
        raise error

    found = (Path(parent, name) for parent, _, names in os.walk(folder, onerror=refuse) for name in names)
    return tuple(sorted(p for p in found if not p.name.startswith(".") and p.suffix.lower() not in NO_SCAN))


def read_json(path: Path, where: str) -> Any:
    """The content of a JSON file; a DataError that begins with ``where`` if it cannot be read."""
    try:
        return regular_files.read_json(path, most=DATALIST_BYTES, strict=True)
    except (OSError, ValueError) as error:
        found = error.strerror if isinstance(error, OSError) else f"is not JSON ({error})"
        raise DataError(f"{where}: {found}") from error


def read_datalist(path: Path, site: str) -> tuple[Case, ...]:
    """The cases of one site, in the datalist's order.

    The file is JSON, with image and label relative to its folder: ``{"sites": {site: [{"image", "label", "patient",
    "fold"?}, ...]}}``, or one site's MONAI datalist ``{"training": [{"image", "label", "patient"?, "fold"?}, ...]}``.
    If a MONAI entry has no patient, the patient is taken from the image's name (``patient_of``).

    Raises:
        DataError: the file cannot be read, has no such site, or an entry lacks a key; the message names the entry.
    """
    content = read_json(path, f"datalist {path}")
    sites, monai = content.get("sites") if isinstance(content, dict) else None, False
    if sites is None and isinstance(content, dict) and "training" in content:
        sites, monai = {site: content["training"]}, True
    if not isinstance(sites, dict) or site not in sites:
        known = listed(sorted(sites)) if isinstance(sites, dict) else "no 'sites' mapping"
        raise DataError(f"datalist {path}: has no site {site!r} (it has: {known})")
    if not isinstance(sites[site], list) or not sites[site]:
        raise DataError(f"datalist {path}, site {site!r}: expected a list with at least one case")
    entries = [_with_patient(entry) if monai else (entry, False) for entry in sites[site]]
    return tuple(_case(entry, path, site, index, by_name) for index, (entry, by_name) in enumerate(entries))


def datalist_sites(path: Path) -> tuple[str, ...]:
    """Names of the sites in a datalist, without reading the cases.

    Raises:
        DataError: the file cannot be read or has no ``sites``.
    """
    content = read_json(path, f"datalist {path}")
    sites = content.get("sites") if isinstance(content, dict) else None
    if not isinstance(sites, dict):
        raise DataError(f"datalist {path}: expected JSON with a 'sites' mapping")
    return tuple(sites)


def listed(names: Sequence[str]) -> str:
    """Names for a message: the first ``MOST_NAMED``, each cut, and the number of the others."""
    first = ", ".join(name[:MOST_SHOWN] for name in names[:MOST_NAMED])
    return first if len(names) <= MOST_NAMED else f"{first} and {len(names) - MOST_NAMED} more"


def _with_patient(entry: Any) -> tuple[Any, bool]:
    """A MONAI entry with a patient, and whether that is the image's whole name; ``_case`` reports a faulty entry."""
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or "patient" in entry:
        return entry, False
    patient, from_name = patient_of(case_name(Path(entry["image"])))
    return entry | {"patient": patient}, from_name


def case_name(path: Path) -> str:
    """A NIfTI file's name without its ending."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def patient_of(name: str) -> tuple[str, bool]:
    """The patient of a case of which only the name is known, and whether it is the whole name.

    A BIDS name contains the patient (``sub-012_ses-2`` is patient ``sub-012``). Any other name counts as a patient of
    its own. If a patient has several scans, these may be in different folds: ``repeat_scans`` finds likely ones.
    """
    match = re.match(r"sub-[A-Za-z0-9]+(?=_|$)", name)
    return (match[0], False) if match else (name, True)


def _case(entry: Any, path: Path, site: str, index: int, from_name: bool) -> Case:
    where = f"datalist {path}, site {site!r}, case {index}"
    if not isinstance(entry, dict):
        raise DataError(f"{where}: got {type(entry).__name__}, expected a mapping with image, label and patient")
    if missing := [key for key in ("image", "label", "patient") if not is_text(entry.get(key))]:
        raise DataError(f"{where}: expected text under {', '.join(missing)}")
    fold = entry.get("fold")
    if fold is not None and (not isinstance(fold, int) or isinstance(fold, bool)):
        raise DataError(f"{where}: fold must be a whole number, got {shown(fold)}")
    image, label = path.parent / entry["image"], path.parent / entry["label"]
    return Case(f"{site}-{index:04d}", image, label, entry["patient"], fold, from_name)


def is_text(value: Any) -> bool:
    """Test for text that is not blank and can be a file name: without NUL and surrogates."""
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\0\ud800-\udfff]", value)


def pseudonym(patient: str, salt: str) -> str:
    """Salted hash of the patient id, 16 hex digits; it differs from study to study."""
    return hashlib.sha256(f"{salt}\x1f{patient}".encode()).hexdigest()[:16]


def assign_folds(volumes_ml: Mapping[str, float], *, n_folds: int, salt: str) -> dict[str, int]:
    """Assign every patient to a fold, stratified by annotated volume (mL, summed over the patient's scans).

    Patients are ordered by volume and cut into blocks of ``n_folds``. Within a block, the salted hash of the patient id
    decides the fold of each patient.

    Guarantees: every patient has exactly one fold; the folds' sizes differ by at most one; the result depends only on
    the patients and the study's salt, not on their order.
    """
    ordered = sorted(volumes_ml, key=lambda patient: (volumes_ml[patient], pseudonym(patient, salt)))
    folds: dict[str, int] = {}
    for start in range(0, len(ordered), n_folds):
        block = ordered[start : start + n_folds]
        shuffled = sorted(block, key=lambda patient: pseudonym(patient, f"{salt} fold"))
        places = list(range(n_folds))
        if len(block) < n_folds:  # the last block; a fixed order would make fold 0 the largest at every site
            places.sort(key=lambda fold: pseudonym(f"{fold} {ordered[-len(block)]}", salt))
        folds |= dict(zip(shuffled, places, strict=False))
    return folds


def declared_folds(cases: Iterable[Case], *, n_folds: int) -> dict[str, int] | None:
    """The folds that the datalist assigns, or None if it assigns none.

    Raises:
        DataError: only some cases have a fold, a fold is outside the study's, or a patient would be in two folds.
    """
    cases = tuple(cases)
    if all(case.fold is None for case in cases):
        return None
    folds: dict[str, int] = {}
    for case in cases:
        if case.fold is None or not 0 <= case.fold < n_folds:
            raise DataError(f"case {case.id}: got fold {case.fold}, expected 0 to {n_folds - 1} for every case or none")
        if folds.setdefault(case.patient, case.fold) != case.fold:
            raise DataError(f"case {case.id}: its patient is also in fold {folds[case.patient]}, expected one fold")
    return folds
