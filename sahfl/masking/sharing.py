"""Shamir's secret sharing: a secret in n shares, of which any t give it back and t - 1 tell nothing.

The secret is the value at 0 of a random polynomial of degree t - 1 over a prime field, a share its value at another x.
Source: Shamir 1979 (10.1145/359168.359176). Bonawitz et al. 2017, section 3.1, use it the same way. Python's integers
do not take constant time; what is shared here is used in one round only.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate

from sahfl.errors import PayloadError

PRIME = 2**256 + 297
"""The smallest prime above 2^256, so that every secret of 32 bytes is in the field."""
SECRET_BYTES = 32
SHARE_BYTES = 33
Random = Callable[[int], bytes]
"""Gives as many random bytes as it is asked for."""
Share = tuple[int, int]
"""A share: x, which is no secret, and the value there."""


def split(
    secret: int, xs: Iterable[int], threshold: int, *, prime: int = PRIME, random: Random = secrets.token_bytes
) -> list[Share]:
    """Split a secret into one share for each of ``xs``; any ``threshold`` of them give it back.

    A coefficient is drawn from 128 bits more than the field has, so that it is off uniform by 2^-128 at most.

    Raises:
        PayloadError: the secret or an x is not in the field, an x is 0 or occurs twice, or there are too few of them.
    """
    xs, n_bytes = list(xs), (prime.bit_length() + 7) // 8 + 16
    _check(xs, threshold, prime)
    if not 0 <= secret < prime:
        raise PayloadError("secret: is outside the field")
    coefficients = [secret, *(int.from_bytes(random(n_bytes), "big") % prime for _ in range(threshold - 1))]
    return [(x, _value(coefficients, x, prime)) for x in xs]


def combine(shares: Sequence[Share], threshold: int, *, prime: int = PRIME, at: int = 0) -> int:
    """The value at ``at`` (the secret is at 0) of the polynomial through the first ``threshold`` shares.

    A wrong share gives a wrong value without an error: compare the result with something that is known.

    Raises:
        PayloadError: there are too few shares, an x is 0 or occurs twice, or a value is outside the field.
    """
    xs = [x for x, _ in shares]
    _check(xs, threshold, prime)
    if not all(0 <= value < prime for _, value in shares):
        raise PayloadError("share: its value is outside the field")
    weights = _weights(tuple(xs[:threshold]), at, prime)
    return sum(weight * value for weight, (_, value) in zip(weights, shares, strict=False)) % prime


def split_bytes(secret: bytes, n: int, threshold: int, *, random: Random = secrets.token_bytes) -> list[bytes]:
    """Split 32 bytes into n shares of 33 bytes each, for x = 1 to n.

    Raises:
        PayloadError: the secret has another length, or fewer than ``threshold`` shares are asked for.
    """
    if len(secret) != SECRET_BYTES:
        raise PayloadError(f"secret: got {len(secret)} bytes, expected {SECRET_BYTES}")
    shares = split(int.from_bytes(secret, "big"), range(1, n + 1), threshold, random=random)
    return [value.to_bytes(SHARE_BYTES, "big") for _, value in shares]


def read_share(data: bytes) -> int:
    """Read the value of a share; PayloadError if it has not 33 bytes, or is outside the field."""
    value = int.from_bytes(data, "big")
    if len(data) != SHARE_BYTES or value >= PRIME:
        raise PayloadError(f"share: got {len(data)} bytes, expected {SHARE_BYTES}, of a number in the field")
    return value


def _check(xs: Sequence[int], threshold: int, prime: int) -> None:
    if not 1 <= threshold <= len(xs):
        raise PayloadError(f"shares: got {len(xs)}, expected at least the threshold of {threshold}")
    if not all(0 < x < prime for x in xs):
        raise PayloadError("share: its x is 0, where the secret is, or outside the field")
    if len(set(xs)) != len(xs):
        raise PayloadError("shares: an x occurs twice")


def _value(coefficients: Sequence[int], x: int, prime: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % prime
    return value


@lru_cache(maxsize=1024)
def _weights(xs: tuple[int, ...], at: int, prime: int) -> tuple[int, ...]:
    """Lagrange's weights of the values at ``xs`` for the value at ``at``."""
    if at in xs:
        return tuple(int(x == at) for x in xs)
    whole = math.prod(at - x for x in xs)
    below = [(at - x) * math.prod(x - other for other in xs if other != x) % prime for x in xs]
    return tuple(whole * inverse % prime for inverse in _inverses(below, prime))


def _inverses(values: Sequence[int], prime: int) -> list[int]:
    """The inverses of numbers other than 0, with one division: a division costs as much as a hundred products."""
    before = list(accumulate(values, lambda one, other: one * other % prime, initial=1))
    rest, found = pow(before[-1], -1, prime), []
    for value, product in zip(reversed(values), reversed(before[:-1]), strict=True):
        found.append(rest * product % prime)
        rest = rest * value % prime
    return found[::-1]
