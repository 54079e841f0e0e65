"""The audit log of a site: one line for every request, refusal and answer, chained to the line before by a hash.

The file is ``audit.jsonl`` in the site's folder. A line is JSON in one fixed form. Its ``hash`` is the SHA-256 of its
other fields, and ``previous`` is the hash of the line before: an edited, removed, added or moved line breaks the chain.
Someone who can write the file can still forge all lines after some point, or cut off the end. To detect that, note the
head in another place (``sahfl audit verify`` prints it, and the log of the site's process contains it).

A crash can leave the beginning of a line, which stays as evidence. The next line then has event ``torn`` with the
number of these bytes and their hash, and continues the chain from the last whole line. The log is one file and is never
rotated: a round adds one line of about 1 kB.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sahfl.errors import AuditBroken, StorageError
from sahfl.process import locked, now_text
from sahfl.regular_files import LOG_BYTES, append_whole, open_regular, open_to_append

FILE = "audit.jsonl"
START = "0" * 64
"""``previous`` of the first line."""
RESTORE = "restore the whole folder from its newest backup (docs/keeping.md)"
"""The remedy for a file of a site's folder that lacks something."""
LONGEST = 1_000_000
"""Limit on the bytes of a line, far above those of any real line."""
Line = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """The result of verifying an audit log."""

    n: int
    """Number of the last line."""
    head: str
    """Hash of the last line; the same hash at a later time proves that the log up to this line is unchanged."""
    torn: tuple[int, ...]
    """Positions of the lines that a crash left unfinished; the first line of the file is 1."""


class AuditLog:
    """The audit log in a site's folder, or another chained log of this name."""

    def __init__(self, folder: Path, name: str = FILE) -> None:
        self.path = folder / name

    def append(self, event: str, words: str, **details: Any) -> str:
        """Write a line, flush it to the disk, and return the new head.

        Guarantees: when this returns, the line is on the disk; lines of several processes never mix.

        Raises:
            StorageError: the line cannot be written; the answer that it describes must not leave.
        """
        try:
            with locked(self.path), open_to_append(self.path) as stream:
                return self._append(stream, event, words, details)
        except OSError as error:
            text = f"{self.path}: cannot be written ({error.strerror}); nothing leaves that is not in it: make room"
            raise StorageError(text) from error

    def _append(self, stream: BinaryIO, event: str, words: str, details: Mapping[str, Any]) -> str:
        size = stream.seek(0, os.SEEK_END)
        last, torn = _last_line(stream, size)
        lines = []
        if whole := parse(torn):  # the line is complete but for its newline
            last = whole
        elif torn:
            rest = {"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}
            last = _line(last, "torn", "The line above was cut off, by a crash or a power cut.", rest)
            lines = [last]
        lines.append(_line(last, event, words, details))
        append_whole(stream, (b"\n" if torn else b"") + b"".join(_text(line) + b"\n" for line in lines))
        return str(lines[-1]["hash"])

    def head(self) -> str:
        """The hash of the last whole line."""
        try:
            with open_regular(self.path, most=LOG_BYTES) as stream:
                return str((_last_line(stream, stream.seek(0, os.SEEK_END))[0] or {"hash": START})["hash"])
        except FileNotFoundError:
            return START


def read_lines(path: Path) -> Iterator[Line]:
    """Yield every line that can be parsed, the oldest first; ``verify`` checks that they are unchanged.

    Raises:
        AuditBroken: the file cannot be read.
    """
    for text in _raw_lines(path):
        if (line := parse(text)) is not None:
            yield line


def lines_so_far(path: Path) -> Iterator[Line]:
    """As ``read_lines``; no line if the log has not begun."""
    if path.exists():
        yield from read_lines(path)


def verify(path: Path, *, head: str | None = None) -> Verdict:
    """Check the chain of a log from its first line to its last.

    Args:
        path: file of the log.
        head: hash of a line, noted earlier in another place; the log must still contain this line.

    Raises:
        AuditBroken: names the first line that was changed or is missing.
    """
    previous: Line | None = None
    torn: list[int] = []
    unread: bytes | None = None
    seen = head is None
    for place, text in enumerate(_raw_lines(path), start=1):
        line = parse(text)
        if unread is not None and (line is None or not _records_cut(line, unread)):
            raise AuditBroken(f"{path}, line {place - 1}: was changed; it is no line of an audit log")
        if line is None:
            unread = text.rstrip(b"\n")
            torn.append(place)
            continue
        unread = None
        if problem := _problem(line, text, previous):
            raise AuditBroken(f"{path}, line {place}: {problem}")
        previous, seen = line, seen or line["hash"] == head
    if unread is not None and text.endswith(b"\n"):
        raise AuditBroken(f"{path}, line {torn[-1]}: was changed; it is no line of an audit log")
    if not seen:
        n = previous["n"] if previous else 0
        raise AuditBroken(f"{path}, after line {n}: lines are missing, no line has the hash {str(head)[:16]}...")
    return Verdict(previous["n"], previous["hash"], tuple(torn)) if previous else Verdict(0, START, tuple(torn))


def _line(previous: Line | None, event: str, words: str, details: Mapping[str, Any]) -> Line:
    n, before = (previous["n"], previous["hash"]) if previous else (0, START)
    at = now_text("milliseconds")
    line = {"n": n + 1, "at": at, "event": event, "words": words, "details": dict(details), "previous": before}
    return line | {"hash": hashlib.sha256(_text(line)).hexdigest()}


def _text(line: Line) -> bytes:
    return json.dumps(line, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def parse(text: bytes) -> Line | None:
    """Parse a line of the log; None if the text is no such line."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    kinds = {"n": int, "at": str, "event": str, "words": str, "details": dict, "previous": str, "hash": str}
    fits = isinstance(line, dict) and line.keys() == kinds.keys()
    return line if fits and all(type(line[name]) is kind for name, kind in kinds.items()) else None


def _problem(line: Line, text: bytes, previous: Line | None) -> str | None:
    rest = {name: value for name, value in line.items() if name != "hash"}
    try:
        whole = _text(line) == text.rstrip(b"\n") and hashlib.sha256(_text(rest)).hexdigest() == line["hash"]
    except ValueError:  # NaN or infinity, which no line is written with
        whole = False
    if not whole:
        return "was changed; its hash is another one"
    n, before = (previous["n"], previous["hash"]) if previous else (0, START)
    if (line["n"], line["previous"]) != (n + 1, before):
        return f"does not follow line number {n}: a line was removed, added or moved here (this is number {line['n']})"
    return None


def _records_cut(line: Line, torn: bytes) -> bool:
    details = {"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}
    return line["event"] == "torn" and line["details"] == details


def _raw_lines(path: Path) -> Iterator[bytes]:
    try:
        with open_regular(path, most=LOG_BYTES) as stream:
            while text := stream.readline(LONGEST):
                yield text
    except OSError as error:
        raise AuditBroken(f"{path}: cannot be read ({error.strerror}); expected a site's audit log") from error


def _last_line(stream: BinaryIO, size: int) -> tuple[Line | None, bytes]:
    """The last whole line and the bytes that a crash left after it, from reading only the end of the file."""
    start = size
    while start > 0:
        start = max(0, start - 8192)
        stream.seek(start)
        end = stream.read(size - start)
        whole, newline, torn = end.rpartition(b"\n")
        last = whole.rpartition(b"\n")
        if newline and (last[1] or not start):
            return _whole(last[2]), torn
        if not start:
            return None, torn if newline else end
    return None, b""


def _whole(text: bytes) -> Line:
    if (line := parse(text)) is None:
        raise OSError(None, f"its last line is damaged; {RESTORE}")
    return line
