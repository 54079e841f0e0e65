"""Masks: a seed of 32 bytes becomes as many numbers of the ring as a vector has, which are added or subtracted.

The stream is ChaCha20's with nonce and counter 0 (RFC 8439, section 2.4), read as little-endian numbers. A seed is used
for one vector only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

Numbers = NDArray[Any]
"""Numbers of a ring: uint16, uint32 or uint64, (n,)."""
Stream = Callable[[bytes], Callable[[int], bytes]]
"""From a seed to a source of its next bytes."""
CHUNK_BYTES = 1 << 16
"""Fits the cache of a core: a mask needs no memory of the vector's size."""
_ZEROS = bytes(CHUNK_BYTES)


def chacha20(seed: bytes) -> Callable[[int], bytes]:
    """The stream of a seed: call it for the next bytes, at most 64 KiB at a time."""
    encryptor = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor()
    return lambda n_bytes: encryptor.update(_ZEROS[:n_bytes])


def add_mask(vector: Numbers, seed: bytes, *, subtract: bool = False, stream: Stream = chacha20) -> None:
    """Add the mask of a seed to a vector (n,), in place, or subtract it; both wrap around as the ring does."""
    little = vector.dtype.newbyteorder("<")
    following, step = stream(seed), CHUNK_BYTES // vector.itemsize
    for start in range(0, vector.size, step):
        part = vector[start : start + step]
        mask = np.frombuffer(following(part.nbytes), little)
        if subtract:
            np.subtract(part, mask, out=part)
        else:
            np.add(part, mask, out=part)


def subtracts(site: str, other: str) -> bool:
    """Whether a site subtracts the mask that it has with another one: the one whose name comes later does."""
    return site > other
