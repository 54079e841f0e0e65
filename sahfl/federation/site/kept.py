"""Tensors that a site stores between the rounds of a training, in files whose names are hashes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sahfl.adapters import AdapterState
from sahfl.adapters.files import load_tensors, save_tensors
from sahfl.errors import AdapterError
from sahfl.payload import Header, layout

KEPT = 3
"""Number of stored rounds: the current one, the one before, and one more if a server falls back to a checkpoint."""
ROUND = "[0-9]" * 5
"""The round in a file's name, as a pattern; other files of a training may lie beside these."""


class KeptTensors:
    """Tensors of the last rounds of one training, one file per round; no text from the server becomes part of a path.

    Args:
        folder: folder of the files.
        header: names the training and the current round.
        part: hash of the set of tensors, if rounds of the training store different sets.
    """

    def __init__(self, folder: Path, header: Header, part: str = "") -> None:
        self._folder, self._training, self._round = folder, header.training, header.round
        self._prefix = f"{header.training}-{part}" if part else header.training

    def last(self, *, up_to: int) -> tuple[int, Path] | None:
        """The last stored round up to ``up_to``, and its file; None without one."""
        return next(((round_, path) for round_, path in reversed(self._files()) if round_ <= up_to), None)

    def read(self, *, up_to: int, like: AdapterState) -> Iterator[AdapterState | None]:
        """Yield each round's tensors up to ``up_to``, last first; None for a damaged file or one unlike ``like``."""
        for round_, path in reversed(self._files()):
            if round_ <= up_to:
                yield _read(path, like=like)

    def keep(self, tensors: AdapterState, note: Mapping[str, Any] | None = None) -> None:
        """Store the tensors of the current round with a note, and delete all but the last ``KEPT`` rounds.

        Only the owner can read the file.

        Rounds after the current one are deleted too, for every part: the server repeats earlier rounds, or starts anew.
        """
        save_tensors(self._path(self._round), tensors, note)
        for path in list(self._folder.glob(f"{self._training}-*{ROUND}.safetensors")):
            if _round_of(path) > self._round:
                path.unlink(missing_ok=True)
        for _, path in self._files()[:-KEPT]:
            path.unlink(missing_ok=True)

    def _files(self) -> list[tuple[int, Path]]:
        """Rounds and their files, the earliest first."""
        found = self._folder.glob(f"{self._prefix}-{ROUND}.safetensors")
        return sorted((_round_of(path), path) for path in found)

    def _path(self, round_: int) -> Path:
        return self._folder / f"{self._prefix}-{round_:05d}.safetensors"


def _round_of(path: Path) -> int:
    return int(path.stem[-5:])


def _read(path: Path, *, like: AdapterState) -> AdapterState | None:
    try:
        found, _ = load_tensors(path)
    except AdapterError:
        return None
    return found if dict(layout(found)) == dict(layout(like)) else None
