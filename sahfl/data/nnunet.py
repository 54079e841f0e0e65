"""Scans in nnU-Net's raw folder.

    dataset.json              channel_names {"0": "CT"}, labels {"background": 0, name: value}, numTraining, file_ending
                              (a label with a list of values is a region, and a value may lie in several)
    imagesTr/CASE_0000.nii.gz one CT channel
    labelsTr/CASE.nii.gz
    splits_final.json         optional: [{"train": [CASE, ...], "val": [CASE, ...]}, ...]; a case's fold is the split
                              that holds it in ``val``
    patients.json             optional, of sahfl alone: {CASE: patient}, for every case

Source: nnU-Net, documentation/dataset_format.md (version 2); splits as nnU-Net keeps them in ``nnUNet_preprocessed``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sahfl.data.json_lists import read_json
from sahfl.data.labels import choose_blood
from sahfl.data.manifest import MOST_NAMED, Blood, Case, is_text, listed, patient_of
from sahfl.errors import DataError
from sahfl.problems import MOST_SHOWN, shown

CHANNEL = "_0000"
FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
"""What nnU-Net's readers of medical images take and is read here."""


def read_nnunet(folder: Path, site: str, blood: Blood = None) -> tuple[Case, ...]:
    """The cases of a raw folder, in the order of their names.

    The patient is that of ``patients.json``, or without this file taken from the case's name
    (``manifest.patient_of``). A case without an image or without a label is included: its check reports what is
    missing. Only the values that dataset.json declares count: all of them, or those that ``blood`` names.

    Raises:
        DataError: dataset.json, the folders, the splits or the patients have problems; the message lists all of them.
    """
    settings = _read_json(folder / "dataset.json", dict)
    problems = list(_problems(settings))
    values, declared, odd = _labels(settings.get("labels"), blood)
    problems += odd
    ending = settings.get("file_ending") if settings.get("file_ending") in FILE_ENDINGS else ".nii.gz"
    names, odd = _case_names(folder, ending)
    problems += odd
    if settings.get("numTraining") != len(names):
        found = f"numTraining: got {shown(settings.get('numTraining'))}, found {len(names)} case(s)"
        problems.append(f"{found}; correct it in dataset.json")
    folds: dict[str, int] = {}
    if _is_there(folder / "splits_final.json"):
        folds, odd = _folds(_read_json(folder / "splits_final.json", list), names)
        problems += odd
    patients = {name: patient_of(name) for name in names}
    if _is_there(folder / "patients.json"):
        listed_patients = _read_json(folder / "patients.json", dict)
        problems += _patient_problems(listed_patients, names)
        patients = {name: (patient, False) for name, patient in listed_patients.items()}
    if problems:
        texts = [*problems[:MOST_NAMED], *(["..."] if len(problems) > MOST_NAMED else [])]
        lines = "\n".join(f"  {text}" for text in texts)
        raise DataError(f"nnU-Net folder {folder}: {len(problems)} problem(s)\n{lines}")
    cases = []
    for index, name in enumerate(names):
        image, label = folder / "imagesTr" / f"{name}{CHANNEL}{ending}", folder / "labelsTr" / f"{name}{ending}"
        patient, from_name = patients[name]
        case = Case(f"{site}-{index:04d}", image, label, patient, folds.get(name), from_name, values, declared)
        cases.append(replace(case, by_value=True))
    return tuple(cases)


def _is_there(path: Path) -> bool:
    """Whether a file is there, or a link that leads nowhere, which is no reason to go without the file."""
    return path.is_symlink() or path.exists()


def _read_json(path: Path, kind: type) -> Any:
    content = read_json(path, f"{path}")
    if not isinstance(content, kind):
        raise DataError(f"{path}: got {type(content).__name__}, expected {kind.__name__}")
    return content


def _problems(settings: dict[str, Any]) -> Iterator[str]:
    """All problems of dataset.json."""
    channels = settings.get("channel_names")
    if channels is None:
        yield "channel_names: missing; is this nnU-Net version 1? (nnUNetv2_convert_old_nnUNet_dataset converts it)"
    elif not isinstance(channels, dict) or [is_text(name) and name.upper() for name in channels.values()] != ["CT"]:
        yield f"channel_names: got {shown(channels)}, expected one channel, CT"
    if settings.get("file_ending") not in FILE_ENDINGS:
        yield f"file_ending: got {shown(settings.get('file_ending'))}, expected one of {', '.join(FILE_ENDINGS)}"
    if "dataset" in settings:
        yield "dataset: files listed in dataset.json are not read, expected imagesTr and labelsTr"


def _labels(labels: Any, blood: Blood) -> tuple[tuple[int, ...] | None, tuple[int, ...], list[str]]:
    """The values that are blood, all values that dataset.json declares, and all problems of its labels."""
    problems = list(_label_problems(labels))
    if problems:
        return None, (), problems
    others = {name: _values(value) for name, value in labels.items() if name != "background"}
    values, problems = choose_blood(others, blood, "dataset.json")
    return values, tuple(dict.fromkeys(value for found in others.values() for value in found)), problems


def _values(label: Any) -> list[Any]:
    """The values of a label, or of a region, which is a list of values."""
    return label if isinstance(label, list) else [label]


def _label_problems(labels: Any) -> Iterator[str]:
    if not isinstance(labels, dict) or labels.get("background") != 0 or len(labels) < 2:
        yield f"labels: got {shown(labels)}, expected {{'background': 0, name: value, ...}}"
        return
    blood = {name: value for name, value in labels.items() if name != "background"}
    known: Counter[tuple[int, ...]] = Counter()
    for name, value in blood.items():
        where = f"labels.{name[:MOST_SHOWN]}"
        if not _values(value) or not all(type(one) is int and 1 <= one <= 255 for one in _values(value)):
            yield f"{where}: got {shown(value)}, expected a whole number from 1 to 255, or a list of some (a region)"
        else:
            known[tuple(sorted({*_values(value)}))] += 1
    if twice := [shown(list(one) if len(one) > 1 else one[0]) for one, n in known.items() if n > 1]:
        yield f"labels: value {listed(twice)} is given twice"


def _case_names(folder: Path, ending: str) -> tuple[tuple[str, ...], list[str]]:
    """Sorted names of all images and labels, and all problems of the folders."""
    names, problems = set(), []
    for part, tail in (("imagesTr", f"{CHANNEL}{ending}"), ("labelsTr", ending)):
        try:
            files = [path.name for path in (folder / part).iterdir() if not path.name.startswith(".")]
        except OSError as error:
            problems.append(f"{part}: {error.strerror}")
            continue
        names |= {name.removesuffix(tail) for name in files if name.endswith(tail)}
        if others := sum(not name.endswith(tail) for name in files):
            problems.append(f"{part}: {others} file(s) do not end in {tail}")
    if not names and not problems:
        problems.append("imagesTr: holds no case")
    return tuple(sorted(names)), problems


def _patient_problems(patients: dict[str, Any], names: tuple[str, ...]) -> Iterator[str]:
    """All problems of patients.json."""
    if odd := patients.keys() ^ set(names):
        without, unknown = len(odd & set(names)), len(odd - set(names))
        yield f"patients.json: {without} case(s) have no patient, {unknown} are not in the folder"
    if n := sum(not is_text(patient) for patient in patients.values()):
        yield f"patients.json: {n} case(s) have something else than a text as patient"


def _folds(splits: list[Any], names: tuple[str, ...]) -> tuple[dict[str, int], list[str]]:
    """Fold of each case, and all problems of the splits."""
    folds: dict[str, int] = {}
    problems = []
    for fold, split in enumerate(splits):
        held_out, trained = (split.get(key) if isinstance(split, dict) else None for key in ("val", "train"))
        if not isinstance(held_out, list) or not isinstance(trained, list):
            problems.append(f"splits_final.json, split {fold}: expected lists 'train' and 'val'")
            continue
        if not all(map(is_text, [*held_out, *trained])):
            problems.append(f"splits_final.json, split {fold}: expected names of cases in 'train' and 'val'")
            continue
        if both := {*held_out} & {*trained}:
            problems.append(f"splits_final.json, split {fold}: {len(both)} case(s) are in train and in val")
        for name in held_out:
            if folds.setdefault(name, fold) != fold:
                problems.append(f"splits_final.json: case {shown(name)} is in val of splits {folds[name]} and {fold}")
    if odd := folds.keys() ^ set(names):
        without, unknown = len(odd & set(names)), len(odd - set(names))
        problems.append(f"splits_final.json: {without} case(s) are in no val list, {unknown} are not in the folder")
    return folds, problems
