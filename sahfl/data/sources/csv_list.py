"""A table of cases: CSV as spreadsheets write it, one row per case.

    image,mask,patient,fold
    a.nii.gz,a_mask.nii.gz,P7,0

``csv_table`` reads it. Paths are relative to the table's folder and stay in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path, PureWindowsPath

from sahfl.csv_table import Row, read_table
from sahfl.data.formats.names import stem
from sahfl.data.manifest import MOST_NAMED, Case, is_text, listed_path, patient_of
from sahfl.errors import DataError
from sahfl.problems import shown

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "images", "img", "scan", "ct", "image_path", "image_file"),
    "label": ("label", "mask", "seg", "segmentation", "annotation", "label_path", "mask_path", "mask_file"),
    "patient": ("patient", "patient_id", "patientid", "subject", "subject_id", "participant_id"),
    "fold": ("fold",),
}
"""By the meaning of a column, the names that it can have, in lower case."""


def lists_files(path: Path) -> bool:
    """Test whether a file is a table of images and masks: one of its first rows names two files that are there.

    A table of diagnoses has such columns too, but no files in them.
    """
    try:
        columns, rows = _read(path)
    except DataError:
        return False
    names = [columns[meaning] for meaning in ("image", "label") if meaning in columns]
    texts = [[row.fields.get(name, "") for name in names] for row in rows[:MOST_NAMED]]
    return len(names) == 2 and any(all(map(_is_there(path.parent), two)) for two in texts)


def _is_there(folder: Path) -> Callable[[str], bool]:
    return lambda text: is_text(text) and os.path.exists(listed_path(folder, text))


def read_csv(path: Path, site: str) -> tuple[Case, ...]:
    """The cases of a table, in its order; all are of this site.

    A case without a patient has the one of its image's name (``manifest.patient_of``).

    Raises:
        DataError: the table cannot be read, lacks a column, or rows have problems; the message names up to
            ``MOST_NAMED`` of them by their line.
    """
    where = f"site {site}: {path}"
    columns, rows = _read(path)
    if missing := [name for name in ("image", "label") if name not in columns]:
        expected = " and ".join(f"{name!r} (or {', '.join(COLUMNS[name][1:4])})" for name in missing)
        raise DataError(f"{where}: its first row has no column {expected}; name the columns in the first row")
    cases: list[Case] = []
    problems = []
    for row in rows:
        try:
            fields = {meaning: row.fields[name] for meaning, name in columns.items()}
            cases.append(_case(path, fields, f"{site}-{len(cases):04d}"))
        except (ValueError, KeyError) as error:
            problems.append(f"  line {row.line}: {error if type(error) is ValueError else 'has too few fields'}")
    if problems:
        more = ["  ..."] if len(problems) > MOST_NAMED else []
        raise DataError("\n".join([f"{where}: {len(problems)} problem(s)", *problems[:MOST_NAMED], *more]))
    if not cases:
        raise DataError(f"{where}: expected at least one case below the names of the columns")
    return tuple(cases)


def _read(path: Path) -> tuple[dict[str, str], tuple[Row, ...]]:
    """Name of each column with a known meaning, and the rows."""
    table = read_table(path)
    columns = {meaning: [name for name in table.columns if name in known] for meaning, known in COLUMNS.items()}
    if twice := [meaning for meaning, names in columns.items() if len(names) > 1]:
        raise DataError(f"{path}: its first row has several columns for {', '.join(twice)}, expected one of each")
    return {meaning: names[0] for meaning, names in columns.items() if names}, table.rows


def _case(path: Path, row: Mapping[str, str], name: str) -> Case:
    """A row's case; a ValueError has its problem, without what may name a patient."""
    image, label = (_inside(path.parent, row[which], which) for which in ("image", "label"))
    fold = row.get("fold", "")
    if fold and not (fold.isascii() and fold.isdigit()):
        raise ValueError(f"fold: got {shown(fold)}, expected a whole number from 0, or nothing")
    patient, from_name = (row["patient"], False) if row.get("patient") else patient_of(stem(image))
    return Case(name, image, label, patient, int(fold) if fold else None, from_name)


def _inside(folder: Path, text: str, which: str) -> Path:
    """A path in the table's folder; Windows' separators are read too."""
    if not is_text(text):
        raise ValueError(f"{which}: is empty, expected a path")
    path = Path(os.path.normpath(listed_path(folder, text)))
    if PureWindowsPath(text).drive or not path.is_relative_to(os.path.normpath(folder)):
        raise ValueError(
            f"{which}: leads out of the table's folder; put the table above its scans, with paths below it"
        )
    return path
