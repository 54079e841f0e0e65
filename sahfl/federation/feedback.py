"""Error feedback: what rounding took from a site's update in one round is added to its update in the next.

Kept at the site, one file for each of the last rounds of a training, so that a round that is asked again gives the
same answer. Names of files are hashes: nothing that a server sent becomes a path.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
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

    Source: Karimireddy et al. 2019, arXiv 1901.09847, algorithm 1.
    """
    if encoding == "float32":
        return change
    left = _read(folder, header, like=change)
    wanted = {name: value + left[name] if left else value for name, value in change.items()}
    sent = unpack(
        pack(wanted, encoding).tobytes(), layout(wanted), like=wanted, encoding=encoding, tensor_steps=steps(wanted)
    )
    save_tensors(_file(folder, header), {name: wanted[name] - sent[name] for name in wanted})
    for old in range(1, header.round - KEPT + 1):
        _file(folder, replace(header, round=old)).unlink(missing_ok=True)
    return wanted


def _read(folder: Path, header: Header, *, like: AdapterState) -> AdapterState | None:
    """Left-over of the last round before this one that the site took part in."""
    for round_ in range(header.round - 1, max(0, header.round - KEPT - 1), -1):
        try:
            left, _ = load_tensors(_file(folder, replace(header, round=round_)))
        except AdapterError:  # the site was not part of that round, or its file is damaged
            continue
        return left if layout(left) == layout(dict(sorted(like.items()))) else None
    return None


def _file(folder: Path, header: Header) -> Path:
    cell = f"{header.study} {header.stage} {header.method} {header.fold}"
    return folder / "feedback" / f"{hashlib.sha256(cell.encode()).hexdigest()[:16]}-{header.round:05d}.safetensors"
