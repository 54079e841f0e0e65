"""Tables as spreadsheets write them: one reader for every CSV that a person makes.

The first row names the columns, in any order and among others. Fields are separated by commas, semicolons or tabs; the
text is UTF-8, UTF-16 with its mark, or else Windows-1252.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sahfl.errors import DataError
from sahfl.regular_files import DATALIST_BYTES, read_bytes

ENDINGS = (".csv", ".tsv")
DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Row:
    """One row that is not empty."""

    line: int
    """Its last line in the file, counted from 1."""
    fields: Mapping[str, str]
    """By the name of the column, without blanks around them; a short row lacks the last ones."""


@dataclass(frozen=True)
class Table:
    """The rows of a table."""

    columns: tuple[str, ...]
    """Names of the columns in lower case, with ``_`` for a blank."""
    rows: tuple[Row, ...]


def read_table(path: Path) -> Table:
    """Read a table.

    Raises:
        DataError: it cannot be read, is no text, or a line is no row; the message quotes nothing of it.
    """
    try:
        text = _decoded(read_bytes(path, most=DATALIST_BYTES), path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    delimiter = max(DELIMITERS, key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        rows = [(reader.line_num, row) for row in reader if any(field.strip() for field in row)]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: is no row of a table ({error})") from error
    columns = tuple(name.strip().lower().replace(" ", "_") for name in rows[0][1]) if rows else ()
    named = [Row(line, dict(zip(columns, map(str.strip, row), strict=False))) for line, row in rows[1:]]
    return Table(columns, tuple(named))


def _decoded(content: bytes, path: Path) -> str:
    encodings = ["utf-16"] if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise DataError(f"{path}: is no text in UTF-8, UTF-16 or Windows-1252; save it as CSV (UTF-8)")
