"""The audit log of a site: one line for everything that was asked, refused and sent, each chained to the one before.

``audit.jsonl`` in the site's folder. A line is JSON in one fixed form, with ``hash``, the SHA-256 of all its other
fields, among them ``previous``, the hash of the line before. A line that is edited, removed, added or moved breaks the
chain there. Whoever can write the file can also forge all of it from some line on, or cut off its end: against that,
note the head (``sahfl audit verify`` prints it, the log of the site's process holds it) in another place.

A crash can leave the beginning of a line. It stays as evidence: the next line has event ``torn`` and says how many
bytes, with their hash, and the chain goes on from the last whole line. The log is one file and is never rotated: a line
is about 1 kB, a round one line.
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

FILE = "audit.jsonl"
START = "0" * 64
"""``previous`` of the first line."""
LONGEST = 1_000_000
"""Bytes of a line at most; far more than any has."""
Line = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What a whole audit log is."""

    n: int
    """Number of the last line."""
    head: str
    """Its hash; the log up to here is unchanged as long as this is."""
    torn: tuple[int, ...]
    """Places in the file of lines that a crash left unfinished."""


class AuditLog:
    """The log in a site's folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def append(self, event: str, words: str, **details: Any) -> str:
        """Write a line and flush it to the disk; the head comes back.

        Guarantees: when this returns, the line is on the disk; lines of several processes never mix.

        Raises:
            StorageError: it cannot be written, and whatever it tells of must not leave.
        """
        try:
            with locked(self.path), self.path.open("a+b") as stream:
                return self._append(stream, event, words, details)
        except OSError as error:
            text = f"{self.path}: cannot be written ({error.strerror}); nothing leaves that is not in it: make room"
            raise StorageError(text) from error

    def _append(self, stream: BinaryIO, event: str, words: str, details: Mapping[str, Any]) -> str:
        size = stream.seek(0, os.SEEK_END)
        last, torn = _last_line(stream, size)
        lines = []
        if whole := _parse(torn):  # only its end of line is missing
            last = whole
        elif torn:
            rest = {"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}
            last = _line(last, "torn", "The line above was cut off, by a crash or a power cut.", rest)
            lines = [last]
        lines.append(_line(last, event, words, details))
        content = (b"\n" if torn else b"") + b"".join(_text(line) + b"\n" for line in lines)
        try:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        except OSError:
            os.ftruncate(stream.fileno(), size)
            raise
        return str(lines[-1]["hash"])

    def head(self) -> str:
        """The hash of the last whole line."""
        try:
            with self.path.open("rb") as stream:
                return str((_last_line(stream, stream.seek(0, os.SEEK_END))[0] or {"hash": START})["hash"])
        except FileNotFoundError:
            return START


def read_lines(path: Path) -> Iterator[Line]:
    """Every line that can be read, the oldest first; ``verify`` says whether they are what was written.

    Raises:
        AuditBroken: there is no log.
    """
    for text in _raw_lines(path):
        if (line := _parse(text)) is not None:
            yield line


def verify(path: Path, *, head: str | None = None) -> Verdict:
    """Read a log from its first line to its last.

    Args:
        path: the file.
        head: the hash of a line, noted elsewhere: the log must still hold that line.

    Raises:
        AuditBroken: naming the first line that is not what was written, or that is missing.
    """
    previous: Line | None = None
    torn: list[int] = []
    unread: bytes | None = None
    seen = head is None
    for place, text in enumerate(_raw_lines(path), start=1):
        line = _parse(text)
        if unread is not None and (line is None or not _tells_of(line, unread)):
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


def _parse(text: bytes) -> Line | None:
    """A line of the log; None for anything else."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    kinds = {"n": int, "at": str, "event": str, "words": str, "details": dict, "previous": str, "hash": str}
    fits = isinstance(line, dict) and line.keys() == kinds.keys()
    return line if fits and all(type(line[name]) is kind for name, kind in kinds.items()) else None


def _problem(line: Line, text: bytes, previous: Line | None) -> str | None:
    rest = {name: value for name, value in line.items() if name != "hash"}
    if _text(line) != text.rstrip(b"\n") or hashlib.sha256(_text(rest)).hexdigest() != line["hash"]:
        return "was changed; its hash is another one"
    n, before = (previous["n"], previous["hash"]) if previous else (0, START)
    if (line["n"], line["previous"]) != (n + 1, before):
        return f"does not follow line number {n}: a line was removed, added or moved here (this is number {line['n']})"
    return None


def _tells_of(line: Line, torn: bytes) -> bool:
    told = {"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}
    return line["event"] == "torn" and line["details"] == told


def _raw_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            while text := stream.readline(LONGEST):
                yield text
    except OSError as error:
        raise AuditBroken(f"{path}: cannot be read ({error.strerror}); expected a site's audit log") from error


def _last_line(stream: BinaryIO, size: int) -> tuple[Line | None, bytes]:
    """The last whole line, and what a crash left behind it; reads the end of the file only."""
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
    if (line := _parse(text)) is None:
        raise OSError(None, "its last line is damaged; move it away for whoever looks into that, and a new one begins")
    return line
