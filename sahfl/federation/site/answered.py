"""The rounds that a site has answered, each once: the same request gets the same answer again, another one none.

Two answers for one round would be two sums over the same patients, from a start of the server's choice; their
difference says more than any one of them. The folder ``answered`` of a site has a file for each study, with a line for
each answered round: its training, and the hash of the request. The last answer of a training is kept until the next
round or the evaluation. If it is no longer there, the same request is worked on again, with the same result.

Beside it, ``confirmed`` has the start of each round that the site signed, and ``trainings`` each training's settings.

A simulated site notes its rounds and refuses none, because all is on one machine.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

from flwr.app import RecordDict

from sahfl.atomic import write_atomic, writing
from sahfl.config import SiteConfig
from sahfl.errors import PayloadError, PolicyRefused, RoundAlreadyAnswered, StorageError
from sahfl.federation.flower import parcels
from sahfl.federation.site.audit import AuditLog
from sahfl.federation.site.round_list import Line, RoundList
from sahfl.payload import Header
from sahfl.regular_files import TENSORS_BYTES, read_bytes
from sahfl.task import Task

FOLDER, CONFIRMED, TRAININGS = "answered", "confirmed", "trainings"
MASKED = "masked"
"""The folder with the notes of masked rounds (``masked``)."""
TRAINING = re.compile(r"[0-9a-f]{16}")
MOST_BYTES = 500_000_000
"""Most bytes of kept answers; the oldest go first."""


class Answered:
    """The answered rounds of a site in one study, by its fingerprint."""

    def __init__(self, config: SiteConfig, study: str) -> None:
        self._folder, self._simulated = config.folder / FOLDER, config.simulated
        self._rounds = RoundList.of_study(self._folder, study, safely=not config.simulated)

    def find(self, header: Header, asked: bytes) -> RecordDict | None:
        """The answer that a request has got before; None if it has none, or if it is no longer kept.

        Raises:
            RoundAlreadyAnswered: another request was answered for this round.
            StorageError: the list of rounds cannot be read, or the kept answer is damaged.
        """
        if self._simulated:
            return None
        mine = [line for line in self._rounds.lines() if line.training == header.training]
        earlier = [line for line in mine if line.round == header.round]
        if not earlier:
            if any(line.round > header.round for line in mine):
                text = f"round_already_answered: a later round than {_named(header)}, was answered"
                raise RoundAlreadyAnswered(f"{text}; this one gets no answer. {how_to_release(header)}")
            return None
        if any(line.asked != asked.hex() for line in earlier):
            text = "round_already_answered: another request was answered for"
            raise RoundAlreadyAnswered(f"{text} {_named(header)}; this one gets no answer. {how_to_release(header)}")
        try:
            return parcels.from_bytes(read_bytes(self._kept(header), most=TENSORS_BYTES))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{self._kept(header)}: cannot be read ({error.strerror})") from error
        except PayloadError as error:
            remedy = "delete it, and the same request is worked on again"
            raise StorageError(f"{self._kept(header)}: is damaged; {remedy}") from error

    def keep(self, header: Header, asked: bytes, answer: RecordDict) -> None:
        """Note an answered round, and keep its answer in the place of that of the round before.

        Raises:
            RoundAlreadyAnswered: as ``note``.
            StorageError: the disk is full; the answer must not leave.
        """
        if not self._simulated:
            with writing(self._folder):
                self.close(header.training)
                write_atomic(self._kept(header), parcels.to_bytes(answer))
                self._make_room()
        self.note(header, asked)

    def note(self, header: Header, asked: bytes) -> None:
        """Note a round as answered, by itself if its answer was held back: another request for it gets no answer.

        Raises:
            RoundAlreadyAnswered: another process answered another request for this round meanwhile.
            StorageError: the list cannot be written.
        """
        if not self._rounds.add(Line.of(header, asked.hex()), alone=not self._simulated):
            text = f"round_already_answered: another process answered {_named(header)}"
            raise RoundAlreadyAnswered(f"{text}; this answer does not leave. {how_to_release(header)}")

    def close(self, training: str) -> None:
        """Delete the kept answer of a training (``Header.training``), which is over or goes on with the next round."""
        for path in self._folder.glob(f"{training}-*.reply"):
            path.unlink(missing_ok=True)

    def took_part(self, header: Header) -> bool:
        """Whether this site answered a round of a training."""
        return any(line.training == header.training for line in self._rounds.lines())

    def _kept(self, header: Header) -> Path:
        return self._folder / f"{header.training}-{header.round:05d}.reply"

    def _make_room(self) -> None:
        kept = sorted(self._folder.glob("*.reply"), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in kept)
        for path in kept[:-1]:
            if total > MOST_BYTES:
                total -= path.stat().st_size
                path.unlink(missing_ok=True)


class Confirmed:
    """The starts of rounds that a site confirmed in one study, each once: for itself, or for other sites."""

    def __init__(self, config: SiteConfig, study: str) -> None:
        self._rounds = RoundList.of_study(config.folder / CONFIRMED, study)

    def confirm(self, header: Header, start: str) -> None:
        """Note the start of the round that a header names; ``start`` is the hash of its tensors.

        Raises:
            RoundAlreadyAnswered: another start was confirmed for this round.
            StorageError: the list cannot be read or written.
        """
        if not self._rounds.add(Line.of(header, start), alone=True):
            text = "round_already_answered: another start was confirmed for"
            raise RoundAlreadyAnswered(f"{text} {_named(header)}; this one is not. {how_to_release(header)}")


class Trainings:
    """The settings of each training that a site began in one study, which must not change from round to round."""

    def __init__(self, config: SiteConfig, study: str) -> None:
        self._simulated = config.simulated
        self._rounds = RoundList.of_study(config.folder / TRAININGS, study, safely=not config.simulated)
        self._answered = Answered(config, study)

    def require_same(self, header: Header, task: Task) -> None:
        """Note the settings of a training until a round of it is answered, and refuse others later.

        Raises:
            PolicyRefused: the settings are not those of the training's first answered round.
            StorageError: the list cannot be read or written.
        """
        if self._simulated:
            return
        left_out = {"round", "own_round", "evaluation", "part"} | ({"masking"} if task.masking is None else set())
        settings = task.model_dump_json(exclude=left_out)
        line = replace(Line.of(header, hashlib.sha256(settings.encode()).hexdigest()), round=0)
        if not self._answered.took_part(header):
            self._rounds.forget(header.training, 0)
        if not self._rounds.add(line, alone=True):
            text = f"{_named(header)}: got other settings than this training began with here"
            raise PolicyRefused(f"{text}, expected the same in all rounds. {how_to_release(replace(header, round=1))}")


def how_to_release(header: Header) -> str:
    """How the people of a site release a round, in words."""
    return f"To release the round: sahfl-client forget-round SITE_FILE {header.training} {header.round}"


def forget_round(config: SiteConfig, training: str, round_: int) -> int:
    """Release a round in whichever study it is, and all rounds of its training after it.

    The audit log has a line for it before it counts.

    Returns the number of released rounds, answered or confirmed.

    Raises:
        StorageError: the audit log or a list cannot be read or written.
    """
    if not TRAINING.fullmatch(training):
        return 0
    first = {FOLDER: round_, CONFIRMED: round_, TRAININGS: 0 if round_ <= 1 else round_}  # settings stand at round 0
    lists = {name: [RoundList(path) for path in (config.folder / name).glob("*.jsonl")] for name in first}
    released = max(sum(one.count(training, first[name]) for one in found) for name, found in lists.items())
    if released:
        words = f"Released: {released} answered rounds of training {training}, from round {round_} on,"
        words = f"{words} may be answered anew."
        details = {"training": training, "round": round_, "released": released}
        AuditLog(config.folder).append("round_released", words, **details)
    for name, found in lists.items():
        for one in found:
            one.forget(training, first[name])
    for path in (*(config.folder / FOLDER).glob(f"{training}-*.reply"), config.folder / MASKED / f"{training}.notes"):
        path.unlink(missing_ok=True)
    return released


def _named(header: Header) -> str:
    return f"{header.method}, fold {header.fold}, round {header.round}"
