"""JSON files that people write: lists of cases, splits and patients, in the encodings that editors and scripts use."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sahfl import regular_files
from sahfl.errors import DataError
from sahfl.regular_files import DATALIST_BYTES

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_BOM = "\ufeff"
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_SPACE = re.compile(r"[ \t\r\n]*")


def read_json(path: Path, where: str) -> Any:
    """The content of a JSON file in UTF-8 or UTF-16; a DataError that begins with ``where`` if it cannot be read."""
    try:
        content = regular_files.read_bytes(path, most=DATALIST_BYTES)
        text = _text(content)
        return regular_files.parse_json(text.encode(), strict=True)
    except (OSError, ValueError) as error:
        found = error.strerror if isinstance(error, OSError) else f"is not JSON ({error})"
        raise DataError(f"{where}: {found}") from error


def starts_like_json(path: Path) -> bool:
    """Test whether a regular file begins with a mapping of JSON, whatever its name.

    Raises:
        OSError: it cannot be opened.
    """
    with regular_files.open_regular(path, most=DATALIST_BYTES) as stream:
        start = stream.read(4096)
    text = start[: len(start) // 2 * 2].decode("utf-16" if start.startswith(_UTF_16) else "latin-1")
    return text.removeprefix("\xef\xbb\xbf").lstrip(" \t\r\n").startswith("{")


def place_in_json(path: Path, *keys: str | int) -> str:
    """Where a value stands, such as `` (line 7, column 5)``: its keys and indices lead to it; empty if it is not there.

    It is for messages about a file that was read before, so that it reads the file again.
    """
    try:
        text = _text(regular_files.read_bytes(path, most=DATALIST_BYTES))
        at = _place(text, keys)
    except (OSError, ValueError, LookupError, RecursionError):
        return ""
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    return f" (line {line}, column {column})"


def _text(content: bytes) -> str:
    """The text of a file.

    Raises:
        ValueError: its encoding is neither UTF-8 nor UTF-16; the message names what it probably is.
    """
    if content.startswith(_UTF_16):
        return content.decode("utf-16")
    if b"\0" in content[:4]:
        raise ValueError("it has bytes of zero, as UTF-16 and UTF-32 without a mark do; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        text = f"byte {error.start} is not UTF-8 (line {line}, 0x{content[error.start]:02x})"
        if not _CONTROL.search(content, 0, 1 << 16):
            text += "; the text looks like Latin-1 or Windows-1252, save it as UTF-8"
        raise ValueError(text) from error


def _place(text: str, keys: tuple[str | int, ...]) -> int:
    """Index in ``text`` of the value to which ``keys`` lead.

    Raises:
        LookupError: there is none.
        ValueError: the text is not JSON.
    """
    decoder = json.JSONDecoder()
    at = _after_space(text, len(_BOM) if text.startswith(_BOM) else 0)
    for wanted in keys:
        is_mapping = isinstance(wanted, str)
        if text[at] != ("{" if is_mapping else "["):
            raise LookupError(wanted)
        at, index = _after_space(text, at + 1), 0
        while True:
            if text[at] in "]}":
                raise LookupError(wanted)
            key: Any = index
            if is_mapping:
                key, at = decoder.raw_decode(text, at)
                at = _after_space(text, _after_space(text, at) + 1)  # after the colon
            if key == wanted:
                break
            _, at = decoder.raw_decode(text, at)
            at, index = _after_space(text, at), index + 1
            if text[at] == ",":
                at = _after_space(text, at + 1)
    return at


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at
