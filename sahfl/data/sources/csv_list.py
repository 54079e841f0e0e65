"""A table of cases: CSV as spreadsheets write it, one row per case.

    image,mask,patient,fold
    a.nii.gz,a_mask.nii.gz,P7,0

The first row names the columns, in any order and among others. Fields are separated by commas, semicolons or tabs; the
text is UTF-8, UTF-16 with its mark, or else Windows-1252. Paths are relative to the table's folder and stay in it.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from sahfl.data.formats.names import stem
from sahfl.data.manifest import MOST_NAMED, Case, is_text, patient_of
from sahfl.errors import DataError
from sahfl.problems import shown
from sahfl.regular_files import DATALIST_BYTES, read_bytes

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "images", "img", "scan", "ct", "image_path", "image_file"),
    "label": ("label", "mask", "seg", "segmentation", "annotation", "label_path", "mask_path", "mask_file"),
    "patient": ("patient", "patient_id", "patientid", "subject", "subject_id", "participant_id"),
    "fold": ("fold",),
}
"""By the meaning of a column, the names that it can have, in lower case."""
DELIMITERS = ",;\t"
ENDINGS = (".csv", ".tsv")


def lists_files(path: Path) -> bool:
    """Test whether a file is a table of images and masks: one of its first rows names two files that are there.

    A table of diagnoses has such columns too, but no files in them.
    """
    try:
        columns, rows = _read(path)
    except (OSError, DataError):
        return False
    places = [columns[name] for name in ("image", "label") if name in columns]
    texts = [[row[at].strip() for at in places if at < len(row)] for _, row in rows[:MOST_NAMED]]
    return len(places) == 2 and any(len(two) == 2 and all(map(_is_there(path.parent), two)) for two in texts)


def _is_there(folder: Path) -> Callable[[str], bool]:
    return lambda text: is_text(text) and os.path.exists(folder / text.replace("\\", "/"))


def read_csv(path: Path, site: str) -> tuple[Case, ...]:
    """The cases of a table, in its order; all are of this site.

    A case without a patient has the one of its image's name (``manifest.patient_of``).

    Raises:
        DataError: the table cannot be read, lacks a column, or rows have problems; the message names up to
            ``MOST_NAMED`` of them by their line.
    """
    where = f"site {site}: {path}"
    try:
        columns, rows = _read(path)
    except OSError as error:
        raise DataError(f"{where}: {error.strerror}") from error
    if missing := [name for name in ("image", "label") if name not in columns]:
        expected = " and ".join(f"{name!r} (or {', '.join(COLUMNS[name][1:4])})" for name in missing)
        raise DataError(f"{where}: its first row has no column {expected}; name the columns in the first row")
    cases: list[Case] = []
    problems = []
    for line, row in rows:
        try:
            cases.append(
                _case(path, {name: row[at].strip() for name, at in columns.items()}, f"{site}-{len(cases):04d}")
            )
        except (ValueError, IndexError) as error:
            problems.append(f"  line {line}: {error if type(error) is ValueError else 'has too few fields'}")
    if problems:
        more = ["  ..."] if len(problems) > MOST_NAMED else []
        raise DataError("\n".join([f"{where}: {len(problems)} problem(s)", *problems[:MOST_NAMED], *more]))
    if not cases:
        raise DataError(f"{where}: expected at least one case below the names of the columns")
    return tuple(cases)


def _read(path: Path) -> tuple[dict[str, int], list[tuple[int, list[str]]]]:
    """Place of each known column, and the rows that are not empty, each with its line."""
    content = read_bytes(path, most=DATALIST_BYTES)
    text = _decoded(content, path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(text))
    try:
        rows = [(reader.line_num, row) for row in reader if any(field.strip() for field in row)]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: is no row of a table ({error})") from error
    names = [name.strip().lower().replace(" ", "_") for name in rows[0][1]] if rows else []
    columns = {meaning: [at for at, name in enumerate(names) if name in known] for meaning, known in COLUMNS.items()}
    if twice := [meaning for meaning, places in columns.items() if len(places) > 1]:
        raise DataError(f"{path}: its first row has several columns for {', '.join(twice)}, expected one of each")
    return {meaning: places[0] for meaning, places in columns.items() if places}, rows[1:]


def delimiter_of(text: str) -> str:
    """What separates the fields of a table: of the known delimiters, the one that its first line has most often."""
    return max(DELIMITERS, key=text.partition("\n")[0].count)


def _decoded(content: bytes, path: Path) -> str:
    encodings = ["utf-16"] if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise DataError(f"{path}: is no text in UTF-8, UTF-16 or Windows-1252; save it as CSV (UTF-8)")


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
    text = text.replace("\\", "/") if not PurePosixPath(text).is_absolute() else text
    path = Path(os.path.normpath(folder / text))
    if PureWindowsPath(text).drive or not path.is_relative_to(os.path.normpath(folder)):
        raise ValueError(
            f"{which}: leads out of the table's folder; put the table above its scans, with paths below it"
        )
    return path
