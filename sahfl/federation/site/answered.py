"""The rounds that a site has answered, each once: the same request gets the same answer again, another one none.

Two answers for one round would be two sums over the same patients, from a start of the server's choice; their
difference says more than any one of them. The folder ``answered`` of a site has a file for each study, with a line for
each answered round: its training, and the hash of the request. The last answer of a training is kept until the next
round or the evaluation. If it is no longer there, the same request is worked on again, with the same result.

A simulated site notes its rounds and refuses none, because all is on one machine.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from flwr.app import RecordDict

from sahfl.atomic import OWNER_ONLY, write_atomic
from sahfl.config import SiteConfig
from sahfl.errors import RoundAlreadyAnswered, StorageError
from sahfl.federation.flower import parcels
from sahfl.payload import Header

FOLDER = "answered"
MOST_BYTES = 500_000_000
"""Most bytes of kept answers; the oldest go first."""


@dataclass(frozen=True)
class Line:
    """An answered round."""

    training: str
    """Hash of study, stage, method and fold (``Header.training``)."""
    method: str
    fold: int
    round: int
    asked: str
    """SHA-256 (hex) of the request without its signature."""


class Answered:
    """The answered rounds of a site in one study.

    Args:
        path: the file of the study; ``of_study`` names it.
        simulated: whether the site is one of a simulation.
    """

    def __init__(self, path: Path, *, simulated: bool) -> None:
        self._path, self._folder, self._simulated = path, path.parent, simulated

    @classmethod
    def of_study(cls, config: SiteConfig, study: str) -> Answered:
        """The rounds that a site answered in the study with this fingerprint."""
        name = hashlib.sha256(study.encode()).hexdigest()[:16]
        return cls(config.folder / FOLDER / f"{name}.jsonl", simulated=config.simulated)

    def find(self, header: Header, asked: bytes) -> RecordDict | None:
        """The answer that a request has got before; None if it has none, or if it is no longer kept.

        Raises:
            RoundAlreadyAnswered: another request was answered for this round.
            StorageError: the list of rounds cannot be read.
        """
        if self._simulated:
            return None
        earlier = [line for line in self._lines() if (line.training, line.round) == (header.training, header.round)]
        if not earlier:
            return None
        if any(line.asked != asked.hex() for line in earlier):
            what = f"{header.method}, fold {header.fold + 1}, round {header.round}"
            text = "round_already_answered: another request was answered for"
            release = f"sahfl-client forget-round SITE_FILE {header.training} {header.round}"
            raise RoundAlreadyAnswered(f"{text} {what}; this one gets no answer. To release the round: {release}")
        try:
            return parcels.from_bytes(self._kept(header).read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{self._kept(header)}: cannot be read ({error.strerror})") from error

    def keep(self, header: Header, asked: bytes, answer: RecordDict) -> None:
        """Note an answered round, and keep its answer in the place of that of the round before.

        Raises:
            StorageError: the disk is full; the answer must not leave.
        """
        line = Line(header.training, header.method, header.fold, header.round, asked.hex())
        try:
            if not self._simulated:
                self.close(header.training)
                write_atomic(self._kept(header), parcels.to_bytes(answer), mode=OWNER_ONLY)
                self._make_room()
            if line not in self._lines():
                self._append(line)
        except OSError as error:
            raise StorageError(f"{self._path}: cannot be written ({error.strerror}); make room") from error

    def close(self, training: str) -> None:
        """Delete the kept answer of a training (``Header.training``), which is over or goes on with the next round."""
        for path in self._folder.glob(f"{training}-*.reply"):
            path.unlink(missing_ok=True)

    def took_part(self, header: Header) -> bool:
        """Whether this site answered a round of a training."""
        return any(line.training == header.training for line in self._lines())

    def forget(self, training: str, round_: int) -> int:
        """Release a round of a training and all rounds after it; returns the number of released rounds."""
        lines = self._lines()
        left = [line for line in lines if line.training != training or line.round < round_]
        if len(left) < len(lines):
            write_atomic(self._path, "".join(_text(line) for line in left), mode=OWNER_ONLY)
            self.close(training)
        return len(lines) - len(left)

    def _kept(self, header: Header) -> Path:
        return self._folder / f"{header.training}-{header.round:05d}.reply"

    def _lines(self) -> list[Line]:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"{self._path}: cannot be read ({error.strerror})") from error
        return list(_read(text))

    def _append(self, line: Line) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, OWNER_ONLY)
        with os.fdopen(descriptor, "r+b") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - 1))
            torn = stream.read(1) not in (b"", b"\n")  # a crash left the beginning of a line
            stream.write(b"\n" * torn + _text(line).encode())
            stream.flush()
            if not self._simulated:
                os.fsync(stream.fileno())

    def _make_room(self) -> None:
        kept = sorted(self._folder.glob("*.reply"), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in kept)
        for path in kept[:-1]:
            if total > MOST_BYTES:
                total -= path.stat().st_size
                path.unlink(missing_ok=True)


def forget_round(config: SiteConfig, training: str, round_: int) -> int:
    """Release a round in whichever study it is, and all rounds of its training after it.

    Returns the number of released rounds.
    """
    paths = sorted((config.folder / FOLDER).glob("*.jsonl"))
    return sum(Answered(path, simulated=config.simulated).forget(training, round_) for path in paths)


def _text(line: Line) -> str:
    return json.dumps(asdict(line), sort_keys=True) + "\n"


def _read(text: str) -> Iterator[Line]:
    """The whole lines of a file; a crash may have left a part of the last one, whose answer never left."""
    for part in text.split("\n")[:-1]:
        try:
            yield Line(**json.loads(part))
        except (ValueError, TypeError):
            continue
