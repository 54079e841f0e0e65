"""Adapters: small trainable updates of a frozen network, and the one definition of what of them is exchanged."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

AdapterState = dict[str, NDArray[np.float32]]
"""Exchanged tensors by name; the only form in which trained numbers leave a site."""


def digest(state: AdapterState) -> str:
    """SHA-256 (hex) over names, shapes and values, whatever their order; equal on every machine."""
    ordered = sorted(state.items())
    sha = hashlib.sha256(repr(tuple((name, tuple(value.shape)) for name, value in ordered)).encode())
    for _, value in ordered:
        sha.update(np.ascontiguousarray(value, "<f4").tobytes())
    return sha.hexdigest()
