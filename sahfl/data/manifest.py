"""The cases of a site: files, patient and fold of each."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sahfl.data.formats.names import stem
from sahfl.data.json_lists import place_in_json, read_json
from sahfl.data.labels import choose_blood
from sahfl.data.series_choice import SeriesChoice
from sahfl.errors import DataError
from sahfl.problems import MOST_SHOWN, shown

MOST_NAMED = 20
"""Names that a message lists, and problems."""
NO_SCAN = {
    *(".txt", ".json", ".xml", ".csv", ".tsv", ".pdf", ".html", ".htm", ".md"),
    *(".jpg", ".jpeg", ".png", ".db", ".ini"),
}
"""Endings of files that lie beside scans but are not scans."""


PATIENTS_FROM = "PatientID of DICOM files, 'patient' of a list, or the names of files and folders"
"""What shows which scans are of one patient."""
Blood = Sequence[int | str] | None
"""The labels that a site names as blood, by name or value; None if it names none."""


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
    blood: tuple[int | str, ...] | None = None
    """The label values that the site names as blood, or names of segments; None if every value above 0 counts."""
    declared: tuple[int, ...] | None = None
    """The label values that the list of cases declares, if it does."""
    by_value: bool = False
    """Whether the values of the annotation count even if its file names its segments, as in nnU-Net."""
    series: SeriesChoice | None = None
    """Which of several DICOM series the site wants, if it says so."""
    n_same_id: int = 0
    """Folders whose files hold the patient id of this one, though each counts as a patient; 0 for a real id."""
    left_out: tuple[str, ...] = ()
    """Of a site's first case: what beside its cases was taken for no scan, without names."""

    def files(self) -> tuple[Path, ...]:
        """All files that the case is read from, the image first, each once.

        Raises:
            OSError: a folder cannot be read.
        """
        from sahfl.data.formats.volume import files_of  # not needed where a site only waits

        both = (scan_files(path) if path.is_dir() else files_of(path) for path in (self.image, self.label))
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


MONAI_LISTS = "training", "validation"
"""The lists of a MONAI datalist whose cases are annotated."""


def read_datalist(path: Path, site: str, blood: Blood = None) -> tuple[Case, ...]:
    """The cases of one site, in the datalist's order.

    The file is JSON, with image and label relative to its folder: ``{"sites": {site: [{"image", "label", "patient",
    "fold"?}, ...]}, "labels"?: {name: value}}``, or one site's MONAI datalist ``{"training": [{"image", "label",
    "patient"?, "fold"?}, ...], "validation"?: [...]}``. If a MONAI entry has no patient, the patient is taken from the
    image's name (``patient_of``). ``blood`` has the labels that are blood, by name or value.

    Raises:
        DataError: the file cannot be read, has no such site, or an entry lacks a key; the message names the entry.
    """
    content = read_json(path, f"datalist {path}")
    values, declared = _labels(content, blood, path)
    entries: list[tuple[Any, bool, tuple[str | int, ...]]] = []
    for keys, found in _lists(content, site, path):
        if not isinstance(found, list) or not found:
            where = place_in_json(path, *keys)
            raise DataError(f"datalist {path}, site {site!r}: expected a list with at least one case{where}")
        monai = keys[0] != "sites"
        entries += [
            (*(_with_patient(entry) if monai else (entry, False)), (*keys, at)) for at, entry in enumerate(found)
        ]
    cases = (_case(entry, path, site, index, keys, by_name) for index, (entry, by_name, keys) in enumerate(entries))
    return tuple(replace(case, blood=values, declared=declared) for case in cases)


def _lists(content: Any, site: str, path: Path) -> list[tuple[tuple[str, ...], Any]]:
    """The lists of a site's cases, each with the keys that lead to it."""
    sites = content.get("sites") if isinstance(content, dict) else None
    if sites is None and isinstance(content, dict) and "training" in content:
        # An empty list of validation is common, an empty list of training is a mistake.
        return [((key,), content[key]) for key in MONAI_LISTS if key == "training" or content.get(key)]
    if not isinstance(sites, dict) or site not in sites:
        known = listed(sorted(sites)) if isinstance(sites, dict) else "no 'sites' mapping"
        raise DataError(f"datalist {path}: has no site {site!r} (it has: {known})")
    return [(("sites", site), sites[site])]


def _labels(content: Any, blood: Blood, path: Path) -> tuple[tuple[int | str, ...] | None, tuple[int, ...] | None]:
    """The values that are blood, and those that the datalist declares."""
    found = content.get("labels") if isinstance(content, dict) else None
    if found is None:
        if names := [name for name in blood or () if isinstance(name, str)]:
            text = f"blood: {names[0][:MOST_SHOWN]!r} is a name, and the datalist has no 'labels' ({{name: value}})"
            raise DataError(f"datalist {path}: {text}; give the values")
        return (tuple(blood) if blood is not None else None), None
    if isinstance(found, dict) and all(re.fullmatch(r"\d{1,3}", key) for key in found):  # {"1": "ICH"}, as in MSD
        by_name = {name: int(value) for value, name in found.items() if isinstance(name, str)}
        found = by_name if len(by_name) == len(found) else found  # a name of two values would lose one of them
    values = found.values() if isinstance(found, dict) else ()
    if not values or any(isinstance(value, bool) or not isinstance(value, int) for value in values):
        where = place_in_json(path, "labels")
        raise DataError(f"datalist {path}: labels: got {shown(found)}, expected {{name: value}}{where}")
    labels = {name: value for name, value in found.items() if value != 0}
    chosen, problems = choose_blood({name: [value] for name, value in labels.items()}, blood, "the datalist")
    if problems:
        raise DataError(f"datalist {path}: " + "; ".join(problems[:MOST_NAMED]) + place_in_json(path, "labels"))
    return chosen, tuple(labels.values())


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
    if not isinstance(entry, dict):
        return entry, False
    single = {key: entry[key][0] for key in ("image", "label") if _is_single(entry.get(key))}
    entry = entry | single
    if not isinstance(entry.get("image"), str) or "patient" in entry:
        return entry, False
    patient, from_name = patient_of(case_name(Path(entry["image"])))
    return entry | {"patient": patient}, from_name


def _is_single(value: Any) -> bool:
    """Whether a value is a list of one text, as MONAI writes for one channel."""
    return isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)


def case_name(path: Path) -> str:
    """The name of a volume's file without its ending."""
    return stem(path)


def patient_of(name: str) -> tuple[str, bool]:
    """The patient of a case of which only the name is known, and whether it is the whole name.

    A BIDS name contains the patient (``sub-012_ses-2`` is patient ``sub-012``). Any other name counts as a patient of
    its own. If a patient has several scans, these may be in different folds: ``repeat_scans`` finds likely ones.
    """
    match = re.match(r"sub-[A-Za-z0-9]+(?=_|$)", name)
    return (match[0], False) if match else (name, True)


def _case(entry: Any, path: Path, site: str, index: int, keys: tuple[str | int, ...], from_name: bool) -> Case:
    where = f"datalist {path}, site {site!r}, case {index}"
    if not isinstance(entry, dict):
        found = f"got {type(entry).__name__}, expected a mapping with image, label and patient"
        raise DataError(f"{where}: {found}{place_in_json(path, *keys)}")
    if missing := [key for key in ("image", "label", "patient") if not is_text(entry.get(key))]:
        raise DataError(f"{where}: expected text under {', '.join(missing)}{place_in_json(path, *keys)}")
    fold = entry.get("fold")
    if fold is not None and (not isinstance(fold, int) or isinstance(fold, bool)):
        at = place_in_json(path, *keys, "fold")
        raise DataError(f"{where}: fold must be a whole number, got {shown(fold)}{at}")
    image, label = (listed_path(path.parent, entry[key]) for key in ("image", "label"))
    return Case(f"{site}-{index:04d}", image, label, entry["patient"], fold, from_name)


def listed_path(folder: Path, text: str) -> Path:
    """A path that a list in ``folder`` names; of a relative one Windows' separators are read too."""
    return folder / (text if text.startswith("/") else text.replace("\\", "/"))


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


def ordered_by_chance(patients: Iterable[str], *, salt: str) -> list[str]:
    """Order patients by a salted hash, so that the first ones are a random choice of any number of them."""
    return sorted(patients, key=lambda patient: pseudonym(patient, f"{salt} most"))


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
