"""Error feedback: what rounding took from a site's update in one round is added to its update in the next.

Kept at the site, one file for each of the last rounds of a training, so that a round that is asked again gives the
same answer. Where other tensors train from round to round, each choice of tensors has files of its own: what is left
over waits for the next round that sends them. Names of files are hashes: nothing that a server sent becomes a path.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from sahfl.adapters import AdapterState
from sahfl.adapters.files import load_tensors, save_tensors
from sahfl.errors import AdapterError
from sahfl.payload import Encoding, Header, layout, pack, steps, unpack

KEPT = 3
"""Rounds: the one in work, the one before, and one more for a server that falls back to an older checkpoint."""


def with_feedback(folder: Path, header: Header, change: AdapterState, encoding: Encoding) -> AdapterState:
    """What to send in the place of ``change``: the change and what rounding has left over so far.

    The left-over of this round is kept in ``folder``. In float32 nothing is rounded, kept or added.

    Guarantees: what was sent over the rounds differs from the sum of the changes by what the last round left over,
    besides the rounding of float32. A left-over that is damaged or of another layout is not used.

    Source: Karimireddy et al. 2019, arXiv 1901.09847, algorithm 1.
    """
    if encoding == "float32":
        return change
    files = folder / "feedback"
    turn = hashlib.sha256(repr(layout(change)).encode()).hexdigest()[:16]
    if header.round == 1:  # a new training: what an earlier run of the same study left over is not its
        _remove(sorted(files.glob(f"{header.training}-*.safetensors")))
    own = files / f"{header.training}-{turn}-{header.round:05d}.safetensors"
    earlier = sorted(path for path in files.glob(f"{header.training}-{turn}-*.safetensors") if path.name < own.name)
    left = _read(earlier[-1], like=change) if earlier else None
    wanted = {name: value + left[name] if left else value for name, value in change.items()}
    sent = unpack(
        pack(wanted, encoding).tobytes(), layout(wanted), like=wanted, encoding=encoding, tensor_steps=steps(wanted)
    )
    save_tensors(own, {name: wanted[name] - sent[name] for name in wanted})
    _remove(earlier[: 1 - KEPT])
    return wanted


def _read(path: Path, *, like: AdapterState) -> AdapterState | None:
    """What a round left over; None where it is damaged: that of a round before it was sent already."""
    try:
        left, _ = load_tensors(path)
    except AdapterError:
        return None
    return left if layout(left) == layout(dict(sorted(like.items()))) else None


def _remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
