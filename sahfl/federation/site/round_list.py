"""A list of rounds on disk, one for each study: a line for each round of a training, with what happened once in it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from sahfl.atomic import make_folder, write_atomic, writing
from sahfl.errors import StorageError
from sahfl.payload import Header
from sahfl.process import locked
from sahfl.regular_files import RESULTS_BYTES, append_whole, open_to_append, read_text


@dataclass(frozen=True)
class Line:
    """A round of a training."""

    training: str
    """Hash of study, stage, method and fold (``Header.training``)."""
    method: str
    fold: int
    round: int
    asked: str
    """Hash (hex) of what the round was about: the request that was answered, or the start that was confirmed."""

    @classmethod
    def of(cls, header: Header, asked: str) -> Line:
        """The line of the round that a header names."""
        return cls(header.training, header.method, header.fold, header.round, asked)


class RoundList:
    """The rounds in a file, whose lines are written one after the other; ``safely`` waits for the disk.

    Raises, in each function:
        StorageError: the file cannot be read or written.
    """

    def __init__(self, path: Path, *, safely: bool = True) -> None:
        self.path, self._safely, self._lock = path, safely, path.with_suffix(".lock")

    @classmethod
    def of_study(cls, folder: Path, study: str, *, safely: bool = True) -> RoundList:
        """The list of a study, by its fingerprint; ``folder`` holds the lists of all studies."""
        return cls(folder / f"{hashlib.sha256(study.encode()).hexdigest()[:16]}.jsonl", safely=safely)

    def lines(self) -> list[Line]:
        """All whole lines; a crash may have left a part of the last one, of something that never left."""
        try:
            text = read_text(self.path, most=RESULTS_BYTES, errors="replace")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be read ({error.strerror})") from error
        return list(_read(text))

    def add(self, line: Line, *, alone: bool = False) -> bool:
        """Write a line, unless the list has it; with ``alone`` also unless it has another line of this round.

        Returns whether the list has the line now.
        """
        with writing(self.path), locked(self._lock):
            lines = self.lines()
            if alone and any((one.training, one.round) == (line.training, line.round) for one in lines if one != line):
                return False
            if line not in lines:
                self._append(line)
            return True

    def count(self, training: str, round_: int) -> int:
        """The number of lines of a round of a training and of all rounds after it."""
        return sum(line.training == training and line.round >= round_ for line in self.lines())

    def forget(self, training: str, round_: int) -> None:
        """Remove a round of a training and all rounds after it."""
        with writing(self.path), locked(self._lock):
            lines = self.lines()
            left = [line for line in lines if line.training != training or line.round < round_]
            if len(left) < len(lines):
                write_atomic(self.path, "".join(_text(line) for line in left))

    def _append(self, line: Line) -> None:
        make_folder(self.path.parent)
        with open_to_append(self.path) as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - 1))
            torn = stream.read(1) not in (b"", b"\n")  # a crash left the beginning of a line
            append_whole(stream, b"\n" * torn + _text(line).encode(), safely=self._safely)


_format = TypeAdapter(Line)


def _text(line: Line) -> str:
    return json.dumps(asdict(line), sort_keys=True) + "\n"


def _read(text: str) -> Iterator[Line]:
    for part in text.split("\n")[:-1]:
        with suppress(ValidationError):
            yield _format.validate_json(part, strict=True)
