"""Finished cells on disk: one file for each, found by a hash of everything that determines its result."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sahfl.adapters import AdapterState, digest
from sahfl.adapters.files import load_tensors, save_tensors
from sahfl.errors import AdapterError, UnfitFile
from sahfl.regular_files import check_inside, check_links
from sahfl.run.journal_line import is_event

Record = dict[str, Any]
MOST_SAMPLED = 20
"""Number of entries of one kind that are read to estimate its time."""


def hash_of(value: Any) -> str:
    """SHA-256 (hex) of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Identity:
    """Everything that identifies a cell: equal identities give bit-identical results."""

    content: Record
    """Everything that determines the result, as JSON values."""
    kind: Record
    """The part of the content that determines the amount of work."""

    @property
    def key(self) -> str:
        """Name of the entry."""
        return hash_of(self.content)


@dataclass(frozen=True)
class Entry:
    """A finished cell."""

    state: AdapterState
    """The state after the last round; empty if nothing is trained."""
    rounds: list[Record]
    """The journal's lines of its rounds, in order."""
    evaluations: dict[str, Record]
    """The evaluation files of the cell, by the part that was evaluated, "" for a method without parts."""
    seconds: float
    """Working time of all sites together."""
    stays: Record | None = None
    """Fingerprint of the ``study``, and by site the ``marks`` of the networks that stay there; None if none does."""


class CellStore:
    """A folder of finished cells, ``<kind>/<key>.safetensors``; several runs may use it at once.

    Guarantees: an entry is complete or absent. A found entry matches the hash that was written with it, and was saved
    under exactly this identity. Any file may be deleted at any time; its cell is then computed again. No link is
    followed out of the folder, so that nothing else is read, written or deleted; the folder may be a link itself.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, identity: Identity) -> Entry | None:
        """The entry of an identity; None if there is none.

        Raises:
            AdapterError: it is damaged, or a link out of the store; ``drop`` removes it.
            UnfitFile: the folder of its kind is such a link.
        """
        path = self._path(identity)
        if path.is_symlink():
            raise AdapterError(f"{path}: is a link, expected a file")
        if not path.exists():
            return None
        state, note = load_tensors(path)
        body = note.get("body")
        if not isinstance(body, dict) or note.get("seal") != hash_of(body):
            raise AdapterError(f"{path}: its record does not match its hash")
        if body.get("identity") != identity.content or body.get("sha256") != digest(state):
            raise AdapterError(f"{path}: its content does not match its name")
        try:
            rounds, evaluations = body["rounds"], body["evaluations"]
            if not all(is_event(line) and "round" in line for line in rounds) or not isinstance(evaluations, dict):
                raise TypeError
            return Entry(state, rounds, evaluations, float(body["seconds"]), body["stays"])
        except (KeyError, TypeError, ValueError) as error:
            raise AdapterError(f"{path}: its record is not the one of a cell") from error

    def save(self, identity: Identity, entry: Entry) -> None:
        """Save an entry.

        Raises:
            OSError: the disk is full, or the folder cannot be written, or leads out of the store.
        """
        body = {"identity": identity.content, "sha256": digest(entry.state), "seconds": entry.seconds}
        body |= {"rounds": entry.rounds, "evaluations": entry.evaluations, "stays": entry.stays}
        save_tensors(self._path(identity), entry.state, {"body": body, "seal": hash_of(body)})

    def drop(self, identity: Identity) -> None:
        """Delete an entry."""
        self._path(identity).unlink(missing_ok=True)

    def delete(self, unwanted: Callable[[Record], bool]) -> int:
        """Delete the entries whose identity is unwanted, and damaged ones; returns their number.

        Raises:
            UnfitFile: a link leads out of the store; nothing is deleted.
        """
        n_deleted = 0
        check_links(self._folder)
        for path in self._folder.glob("*/*.safetensors"):
            try:
                gone = unwanted(load_tensors(path)[1]["body"]["identity"])
            except (AdapterError, KeyError, TypeError):
                gone = True  # nobody can tell what it holds
            if gone:
                path.unlink(missing_ok=True)
            n_deleted += gone
        return n_deleted

    def seconds(self, kind: Record) -> float | None:
        """Working time of the sites for a cell of this kind: the median of some entries; None if there are none."""
        found = []
        for path in sorted((self._folder / hash_of(kind)[:16]).glob("*.safetensors"))[:MOST_SAMPLED]:
            try:
                check_inside(path, self._folder)
                found.append(float(load_tensors(path)[1]["body"]["seconds"]))
            except (AdapterError, UnfitFile, KeyError, TypeError, ValueError):
                continue
        return statistics.median(found) if found else None

    def _path(self, identity: Identity) -> Path:
        folder = self._folder / hash_of(identity.kind)[:16]
        check_inside(folder, self._folder)
        return folder / f"{identity.key}.safetensors"
