"""The bytes of a state on the wire, packed and checked with numpy alone, and the header that names the request.

One array, because hundreds of small ones cost a federated engine more than their bytes. ``check_header`` and ``unpack``
compare everything from a peer with the request before its use. Only numpy, so that a hospital can audit the module.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sahfl import __version__
from sahfl.adapters import AdapterState
from sahfl.errors import PayloadError, VersionsDiffer

SCHEMA = 1
MOST_VOLUMES = 1_000_000
FINGERPRINT = re.compile(r"[0-9a-f]{64}")
"""The form of a study's fingerprint and of a network's hash."""

Layout = tuple[tuple[str, tuple[int, ...]], ...]
"""Names and shapes of a state, in the order of the flat array."""
Encoding = Literal["float32", "float16", "int8"]
DTYPES: dict[Encoding, str] = {"float32": "<f4", "float16": "<f2", "int8": "|i1"}
STEPS = 127
"""int8 numbers range from -127 to 127; -128 is never written."""
LEAST_STEP = float(np.finfo(np.float32).tiny)
"""Below it, float32 has too few digits for a step."""
LARGEST_STEP = float(np.finfo(np.float32).max) / 128
"""A step times -128, which a faulty sender could write, stays finite."""


@dataclass(frozen=True)
class Header:
    """What a state belongs to; a reply must repeat the header of its request."""

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
        """The fields as a flat mapping."""
        return asdict(self)

    def place(self) -> dict[str, str | float]:
        """Stage, method, fold and round, as fields of a log line."""
        return {"stage": self.stage, "method": self.method, "fold": self.fold, "round": self.round}

    @property
    def training(self) -> str:
        """Name of this round's training in file names; a hash, so that nothing received becomes a path."""
        text = f"{self.study} {self.stage} {self.method} {self.fold}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def payload_size(shapes: Iterable[tuple[int, ...]], encoding: Encoding) -> tuple[int, int]:
    """Count the numbers in tensors of these shapes, and their bytes in an encoding, without headers."""
    numbers = sum(map(math.prod, shapes))
    return numbers, numbers * np.dtype(DTYPES[encoding]).itemsize


def check_header(got: dict[str, Any], expected: Header) -> None:
    """Compare a received header with the expected one; PayloadError names the first wrong field, versions first."""
    order = ("schema", "sahfl", *(field.name for field in fields(Header)))
    for name in dict.fromkeys(order):
        value, wanted = got.get(name), getattr(expected, name)
        if type(value) is not type(wanted) or value != wanted:
            raise PayloadError(f"{name}: got {_cut(value, 80)!r}, expected {wanted!r}")
    if unknown := sorted(got.keys() - set(order)):
        raise PayloadError(f"header: has unknown field {unknown[0][:40]!r}")


def require_own_version(header: Mapping[str, Any]) -> None:
    """Refuse a request that another version of sahfl, or of the payload, made.

    Raises:
        VersionsDiffer: names the versions of both ends.
    """
    own = {"sahfl": __version__, "schema": SCHEMA}
    theirs = {name: header.get(name, value) for name, value in own.items()}
    if all(type(theirs[name]) is type(value) for name, value in own.items()) and theirs != own:
        found = f"the request is of sahfl {_cut(theirs['sahfl'], 40)!r}, payload {theirs['schema']}"
        here = f"this site has sahfl {__version__!r}, payload {SCHEMA}"
        raise VersionsDiffer(f"versions differ: {found}; {here}; install the same at both ends")


def check_training(n_volumes: object, loss: object) -> tuple[int, float]:
    """Check a site's report: from 1 to a million volumes and a finite loss; PayloadError otherwise."""
    if type(n_volumes) is not int or not 1 <= n_volumes <= MOST_VOLUMES:
        raise PayloadError(f"n_volumes: got {_cut(n_volumes, 40)!r}, expected 1 to {MOST_VOLUMES}")
    if type(loss) is not float or not math.isfinite(loss):
        raise PayloadError(f"loss: got {_cut(loss, 40)!r}, expected a finite number")
    return n_volumes, loss


def layout(state: AdapterState) -> Layout:
    """Names and shapes of a state."""
    return tuple((name, tuple(value.shape)) for name, value in state.items())


def pack(state: AdapterState, encoding: Encoding = "float32") -> NDArray[Any]:
    """All tensors of a state in one flat array (n,), little-endian; empty for an empty state.

    float32 is exact; float16 and int8 round, int8 to multiples of the tensor's step (``steps``).

    Raises:
        PayloadError: a number is too large for float16 or int8, or not finite; the message names the tensor.
    """
    if not state:
        return np.zeros(0, DTYPES[encoding])
    if encoding == "int8":
        if large := [name for name, step in zip(state, steps(state), strict=True) if not step <= LARGEST_STEP]:
            raise PayloadError(f"{large[0]!r}: has a number too large for int8")
        parts = [_whole_steps(value, step) for value, step in zip(state.values(), steps(state), strict=True)]
        return np.concatenate(parts)
    flat = np.concatenate([np.ravel(value) for value in state.values()]).astype("<f4", copy=False)
    if encoding == "float16":
        with np.errstate(over="ignore"):
            flat = flat.astype("<f2")
        if not np.isfinite(flat).all():
            raise PayloadError(f"{_first_not_finite(flat, state)!r}: has a number too large for float16")
    return flat


def steps(state: AdapterState) -> tuple[float, ...]:
    """The int8 step of each tensor (any shapes): a 127th of its largest absolute value; 0 for one of (almost) zeros."""
    found = (np.float32(np.abs(value).max(initial=0.0)) / np.float32(STEPS) for value in state.values())
    return tuple(0.0 if step < LEAST_STEP else float(step) for step in found)


def unpack(
    data: bytes, got: Layout, *, like: AdapterState, encoding: Encoding = "float32", tensor_steps: Sequence[float] = ()
) -> AdapterState:
    """Read a flat array back into tensors.

    Guarantees: nothing is allocated before names, shapes and size have been compared with ``like``; the result has the
    names, order and shapes of ``like``, is float32 and finite. A round trip in float32 is exact. In float16 each number
    is off by at most 2^-11 of itself (or 2^-25), in int8 by at most half a step (or 2^-119), besides the rounding of
    float32.

    Args:
        data: bytes of the flat array.
        got: the layout that came with it.
        like: the expected state.
        encoding: number format that the receiver asked for.
        tensor_steps: of int8, one per tensor.

    Raises:
        PayloadError: the layout or the size differs, or a number is not finite; the message names the first tensor.
    """
    wanted = layout(like)
    if got != wanted:
        raise PayloadError(_first_difference(got, wanted))
    dtype = np.dtype(DTYPES[encoding])
    n_bytes = dtype.itemsize * sum(value.size for value in like.values())
    if len(data) != n_bytes:
        raise PayloadError(f"body: got {len(data)} bytes, expected {n_bytes}")
    flat = np.frombuffer(data, dtype)
    if encoding == "int8":
        _check_steps(tensor_steps, like)
    elif not np.isfinite(flat).all():
        raise PayloadError(f"{_first_not_finite(flat, like)!r}: contains NaN or inf")
    state, start = {}, 0
    for index, (name, value) in enumerate(like.items()):
        part = flat[start : start + value.size].reshape(value.shape).astype(np.float32)
        state[name] = part * np.float32(tensor_steps[index]) if encoding == "int8" else part
        start += value.size
    return state


def _whole_steps(value: NDArray[np.float32], step: float) -> NDArray[np.int8]:
    if not step:
        return np.zeros(value.size, np.int8)
    return np.clip(np.rint(np.ravel(value) / np.float32(step)), -STEPS, STEPS).astype(np.int8)


def _check_steps(tensor_steps: Sequence[float], like: AdapterState) -> None:
    if len(tensor_steps) != len(like):
        raise PayloadError(f"steps: got {len(tensor_steps)}, expected one for each of {len(like)} tensors")
    for name, step in zip(like, tensor_steps, strict=True):
        if type(step) is not float or not 0 <= step <= LARGEST_STEP:
            raise PayloadError(f"{name!r}: got step {_cut(step, 40)!r}, expected a finite number of 0 or more")


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


def _first_not_finite(flat: NDArray[Any], like: AdapterState) -> str:
    bad, start = int(np.flatnonzero(~np.isfinite(flat))[0]), 0
    for name, value in like.items():
        start += value.size
        if bad < start:
            return name
    raise AssertionError("unreachable: the position lies within the state")
