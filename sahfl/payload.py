"""Adapter state on the wire: one flat float32 array, its layout, and a header that says what it belongs to.

Hundreds of small arrays cost a federated engine more than the bytes do, so a state travels as one array. Nothing that
a peer sent is used before ``check_header`` and ``unpack`` have compared it with what was asked for. numpy only: this
is a module that a hospital audits.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sahfl import __version__
from sahfl.adapters import AdapterState
from sahfl.errors import PayloadError

SCHEMA = 1
MOST_VOLUMES = 1_000_000

Layout = tuple[tuple[str, tuple[int, ...]], ...]
"""Names and shapes of a state, in the order of the flat array."""


@dataclass(frozen=True)
class Header:
    """What a state belongs to; a reply must repeat the header of the request it answers."""

    study: str
    """Fingerprint of the study's settings."""
    stage: str
    """``pretrain`` or ``finetune``."""
    method: str
    fold: int
    """Held-out fold; -1 in pretraining."""
    round: int
    base: str
    """SHA-256 of the frozen base; empty in pretraining."""
    schema: int = SCHEMA
    sahfl: str = __version__

    def as_dict(self) -> dict[str, Any]:
        """Flat values for the wire."""
        return asdict(self)


def check_header(got: dict[str, Any], expected: Header) -> None:
    """Compare a received header with the expected one.

    Raises:
        PayloadError: the first field that differs, version first, with both values; or a field that is unknown.
    """
    order = ("schema", "sahfl", *(field.name for field in fields(Header)))
    for name in dict.fromkeys(order):
        value, wanted = got.get(name), getattr(expected, name)
        if type(value) is not type(wanted) or value != wanted:
            raise PayloadError(f"{name}: got {_cut(value, 80)!r}, expected {wanted!r}")
    if unknown := sorted(got.keys() - set(order)):
        raise PayloadError(f"header: has unknown field {unknown[0][:40]!r}")


def check_training(n_volumes: object, loss: object) -> tuple[int, float]:
    """Check what a site says of its own training.

    Raises:
        PayloadError: the number of volumes is not a whole number from 1 to a million, or the loss is not finite.
    """
    if type(n_volumes) is not int or not 1 <= n_volumes <= MOST_VOLUMES:
        raise PayloadError(f"n_volumes: got {_cut(n_volumes, 40)!r}, expected 1 to {MOST_VOLUMES}")
    if type(loss) is not float or not math.isfinite(loss):
        raise PayloadError(f"loss: got {_cut(loss, 40)!r}, expected a finite number")
    return n_volumes, loss


def layout(state: AdapterState) -> Layout:
    """Names and shapes of a state."""
    return tuple((name, tuple(value.shape)) for name, value in state.items())


def pack(state: AdapterState) -> NDArray[np.float32]:
    """All tensors behind one another, float32, little-endian; empty for an empty state."""
    if not state:
        return np.zeros(0, "<f4")
    return np.concatenate([np.ravel(value) for value in state.values()]).astype("<f4", copy=False)


def unpack(data: bytes, got: Layout, *, like: AdapterState) -> AdapterState:
    """Read a flat array back into tensors.

    Guarantees: nothing is allocated before names, shapes and size have been compared with ``like``; the result has
    the names, order and shapes of ``like``, and is finite. A round trip is exact.

    Args:
        data: bytes of the flat float32 array.
        got: the layout that came with it.
        like: the state that is expected.

    Raises:
        PayloadError: naming the first tensor that is missing, unexpected, misplaced, of another shape or not finite,
            or the size that was found and the one expected.
    """
    wanted = layout(like)
    if got != wanted:
        raise PayloadError(_first_difference(got, wanted))
    n_bytes = 4 * sum(value.size for value in like.values())
    if len(data) != n_bytes:
        raise PayloadError(f"body: got {len(data)} bytes, expected {n_bytes}")
    flat = np.frombuffer(data, "<f4")
    if not np.isfinite(flat).all():
        raise PayloadError(f"{_first_not_finite(flat, like)!r}: contains NaN or inf")
    state, start = {}, 0
    for name, value in like.items():
        state[name] = flat[start : start + value.size].reshape(value.shape).astype(np.float32)
        start += value.size
    return state


def _cut(value: object, most: int) -> str:
    try:
        return str(value)[:most]
    except ValueError:  # Python refuses to write a number of more than 4300 digits
        return "a huge number"


def _first_difference(got: Layout, wanted: Layout) -> str:
    found, expected = dict(got), dict(wanted)
    for name in expected:
        if name not in found:
            return f"tensor {name!r} is missing"
        if found[name] != expected[name]:
            return f"tensor {name!r}: got shape {_cut(found[name], 80)}, expected {expected[name]}"
    if extra := [name for name in found if name not in expected]:
        return f"unexpected tensor {extra[0][:120]!r}"
    return "tensors are in another order or named twice"


def _first_not_finite(flat: NDArray[np.float32], like: AdapterState) -> str:
    bad, start = int(np.flatnonzero(~np.isfinite(flat))[0]), 0
    for name, value in like.items():
        start += value.size
        if bad < start:
            return name
    raise AssertionError("unreachable: the position lies within the state")
