"""What stays at a site of one training: its norms, private terms, factors or layers, in files that never leave.

A site stores its part after each round in which it trained, and its whole trained network when it evaluates it. The
folder ``private`` in the site's folder holds them, readable by their owner only. A part that the training needs and
that is missing or damaged is an error: a site never goes on with values of the server in its place.

Source: Li et al. 2021, arXiv 2102.07623 (FedBN: norms); Guo et al. 2024, arXiv 2410.01463 (FedSA: one factor of each
pair); private terms, here.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sahfl.adapters import AdapterState, digest
from sahfl.adapters.files import load_tensors, save_tensors
from sahfl.atomic import write_atomic
from sahfl.errors import AdapterError, PrivatePartLost, RunError
from sahfl.federation.site.kept import KeptTensors
from sahfl.log_lines import LogLine
from sahfl.payload import Header, layout
from sahfl.regular_files import LIST_BYTES, read_json
from sahfl.task import Task

log = logging.getLogger(__name__)
FOLDER = "private"
NAME = re.compile(r"[0-9a-f]{16}")
_NAMED = {"study": str, "method": str, "fold": int}
"""What the note of each file names, and the type of it."""
LAST = 100_000
"""A round above all others. The first round that is stored after a deletion takes its place."""


class PrivatePart:
    """The part of one training that stays at a site.

    Args:
        folder: the site's folder.
        task: the request's task.
        header: names the training and the round.
        names: the tensors that stay in the rounds.
    """

    def __init__(self, folder: Path, task: Task, header: Header, names: Collection[str]) -> None:
        self._folder, self._task, self._header, self._names = folder / FOLDER, task, header, names
        self._kept = KeptTensors(self._folder, header)

    def read(self, whole: AdapterState, *, after_round: int) -> AdapterState:
        """The site's own tensors of its last trained round up to ``after_round``; those of ``whole`` in round 1.

        Args:
            whole: all trained tensors at the start of the training.
            after_round: the last round that counts; the last phase at the site is the round after the rounds.

        Returns:
            The tensors that stay; after the last phase at the site, all that train.

        Raises:
            PrivatePartLost: the server used an answer of this site whose part is missing here or damaged.
        """
        start = {name: whole[name] for name in self._names}
        found = self._kept.last(up_to=after_round)
        needed = self._task.own_round if self._names or self._task.own_round > self._task.rounds else 0
        if found is None and self._task.evaluation is None and self._begins_anew(needed):
            log.info(LogLine("private_part_begins_anew", training=self._header.training))
            return start
        if found is None and needed == 0:
            return start
        if found is None or found[0] < needed:
            raise PrivatePartLost(f"{self._what(needed)} is missing; {self._remedy()}")
        like = whole if found[0] > self._task.rounds else start
        try:
            tensors, note = load_tensors(found[1])
        except AdapterError as error:
            raise PrivatePartLost(f"{self._what(found[0])} is damaged; {self._remedy()}") from error
        if digest(tensors) != note.get("sha256") or dict(layout(tensors)) != dict(layout(like)):
            raise PrivatePartLost(f"{self._what(found[0])} is damaged or of other tensors; {self._remedy()}")
        return tensors

    def keep(self, own: AdapterState, *, n_volumes: int) -> None:
        """Store the tensors of the round that the header names, if there are any."""
        if own:
            self._kept.keep(own, self._note(own, n_volumes=n_volumes))
            if self._begins_anew(self._header.round):
                write_deleted(self._folder, self._header.training, up_to=self._header.round - 1)

    def keep_network(self, whole: AdapterState, *, base: str, task: Any = None, adapted: bool = False) -> None:
        """Store all trained tensors with which the site evaluates, for predictions and exports at the site.

        ``base`` is the hash of the base network; ``task`` is the task of the evaluation, by default this one;
        ``adapted`` marks a network that ``sahfl adapt`` trained.
        """
        note = self._note(whole, base=base, task=task or self._task.model_dump(mode="json"), adapted=adapted)
        save_tensors(self._folder / f"{self._header.training}-final.safetensors", whole, note)

    def is_of_a_study(self) -> bool:
        """Whether the site stores something of this training that ``sahfl adapt`` did not make."""
        paths = list(self._folder.glob(f"{self._header.training}-*.safetensors"))
        found = self._read_network(self._header)
        adapted = found is not None and bool(found[1].get("adapted"))
        return bool(paths) and not (adapted and len(paths) == 1)

    def mark(self) -> str:
        """A hash of the stored network, which names it without revealing it; empty if there is none that is whole."""
        found = self._read_network(self._header)
        return digest(found[0])[:16] if found else ""

    def adopt(self, earlier: Header, mark: str) -> None:
        """Let the stored network of an earlier training count for this one too, if it has this mark."""
        found = self._read_network(earlier)
        if found and digest(found[0])[:16] == mark:
            tensors, note = found
            self.keep_network(tensors, base=str(note.get("base")), task=note.get("task"))

    def _read_network(self, header: Header) -> tuple[AdapterState, dict[str, Any]] | None:
        try:
            tensors, note = load_tensors(self._folder / f"{header.training}-final.safetensors")
        except AdapterError:
            return None
        return (tensors, note) if digest(tensors) == note.get("sha256") else None

    def _note(self, tensors: AdapterState, **more: Any) -> dict[str, Any]:
        header = self._header
        named = {"study": header.study, "method": header.method, "fold": header.fold, "round": header.round}
        return named | {"sha256": digest(tensors)} | more

    def _begins_anew(self, needed: int) -> bool:
        """Whether the part was deleted on purpose after the round that is needed."""
        path = self._folder / f"{self._header.training}-deleted.json"
        try:
            return needed <= int(read_json(path, most=LIST_BYTES)["up_to"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return False

    def _what(self, round_: int) -> str:
        header = self._header
        return f"the part of {header.method}, fold {header.fold}, that stays at this site (round {round_})"

    def _remedy(self) -> str:
        name = self._header.training
        backup = f"restore {self._folder}/{name}-* from a backup"
        if self._task.evaluation is not None:
            return f"{backup}; without it, this fold has no result of this site"
        return f"{backup}, or begin it anew: sahfl private delete SITE_FILE {name}"


@dataclass(frozen=True)
class Stored:
    """All that a site stores of one training."""

    name: str
    """Name of the training in file names and commands, 16 hex digits."""
    study: str
    """Fingerprint of the study."""
    method: str
    fold: int
    """Held-out fold, counted from 0."""
    round: int
    """Last stored round; 0 if only the network of an evaluation is stored."""
    network: Path | None
    """File of the network that the site evaluated, if there is one."""
    damaged: bool
    """Whether a file cannot be read."""
    n_bytes: int
    files: tuple[Path, ...]


def stored(folder: Path) -> tuple[Stored, ...]:
    """List what a site stores, by study, method and fold; ``folder`` is the site's folder.

    A training whose files are all damaged has neither study nor method.
    """
    by_name: dict[str, list[Path]] = {}
    for path in sorted((folder / FOLDER).glob("*.safetensors")):
        by_name.setdefault(path.name.partition("-")[0], []).append(path)
    found = [_stored(name, paths) for name, paths in by_name.items()]
    return tuple(sorted(found, key=lambda one: (one.study, one.method, one.fold)))


def _stored(name: str, paths: list[Path]) -> Stored:
    notes: dict[Path, dict[str, Any]] = {}
    for path in paths:
        with suppress(AdapterError):
            note = load_tensors(path)[1]
            if all(type(note.get(name)) is kind for name, kind in _NAMED.items()):
                notes[path] = note
    nothing: dict[str, Any] = {"study": "", "method": "", "fold": 0}
    last = next(reversed(notes.values()), nothing)
    rounds = [int(path.stem[-5:]) for path in paths if path.stem[-5:].isdecimal()]
    return Stored(
        name,
        study=last["study"],
        method=last["method"],
        fold=last["fold"],
        round=max(rounds, default=0),
        network=next((path for path in paths if path.stem.endswith("-final")), None),
        damaged=len(notes) < len(paths),
        n_bytes=sum(path.stat().st_size for path in paths),
        files=tuple(paths),
    )


def delete(folder: Path, name: str) -> int:
    """Delete all that a site stores of a training; the training may begin anew here, but is not evaluated from it.

    Returns the number of deleted files.

    It also serves a training of which all files are lost.

    Args:
        folder: the site's folder.
        name: the training's name, 16 hex digits.

    Raises:
        RunError: the name is none.
    """
    if not NAME.fullmatch(name):
        raise RunError(f"{name[:40]!r}: is no name of a training, expected 16 hex digits as sahfl private list prints")
    write_deleted(folder / FOLDER, name, up_to=LAST)
    paths = list((folder / FOLDER).glob(f"{name}-*.safetensors"))
    for path in paths:
        path.unlink(missing_ok=True)
    return len(paths)


def write_deleted(folder: Path, name: str, *, up_to: int) -> None:
    """Note that the part of a training was deleted, so that it may begin anew where a round ``up_to`` is needed."""
    write_atomic(folder / f"{name}-deleted.json", json.dumps({"up_to": up_to}) + "\n")
