"""Numbers that can be masked: fixed-point numbers and counts in the ring of 16, 32 or 64 bits.

Masks cancel in integers that wrap around at 2^bits. So a number becomes a whole number of steps, and the step is so
large that the sum over all sites cannot wrap. The step depends on public values only, so that it is the same at all
sites.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sahfl.errors import PayloadError
from sahfl.masking.masks import Numbers

DTYPES: dict[int, str] = {16: "<u2", 32: "<u4", 64: "<u8"}
"""Form of the masked numbers, by the ring's bits."""


@dataclass(frozen=True)
class FixedPoint:
    """How numbers are written in a ring, so that their weighted sum over the sites fits.

    The step is the largest accuracy with which the sum cannot wrap, a power of two: with ``bits`` 32, ``bound`` 1 and
    ``weights`` 1 it is 2^-30. A weighted number is off by half a step, and by 2^-52 of itself (which counts with 64
    bits only); the sum over n sites by n times this. Numbers that are multiples of the step, with weight 1, are exact.

    Raises:
        PayloadError: there is no such ring, or a value is not positive and finite, or the sites need every step.
    """

    bits: int
    """16, 32 or 64."""
    bound: float
    """Largest absolute value of a number, before its weight; for updates, the clip of the study."""
    n_sites: int
    """Most sites in the sum."""
    weights: float = 1.0
    """Most that the weights of all sites add up to: 1 for shares of all volumes, ``n_sites`` for a plain sum."""

    def __post_init__(self) -> None:
        if self.bits not in DTYPES:
            raise PayloadError(f"ring: got {self.bits} bits, expected one of {sorted(DTYPES)}")
        if not all(math.isfinite(value) and value > 0 for value in (self.bound, self.weights)) or self.n_sites < 1:
            found = f"{self.bound}, {self.weights} and {self.n_sites}"
            raise PayloadError(f"ring: got a bound, weights and sites of {found}, expected finite numbers above 0")
        if self._room < 1:
            raise PayloadError(f"ring: {self.n_sites} sites need more than {self.bits} bits")

    @cached_property
    def step(self) -> float:
        """The value of one step, a power of two, in the numbers' unit."""
        return 2.0**-self._power

    @cached_property
    def most(self) -> int:
        """Largest absolute value, in steps, that the sum can have."""
        return math.floor(self._largest * Fraction(2) ** self._power) + self.n_sites * self._slack

    def encode(self, values: NDArray[Any], *, weight: float = 1.0) -> Numbers:
        """Write weighted numbers as whole steps.

        Args:
            values: of any shape, float32 or float64; the result has the same shape.
            weight: this site's, public: its volumes over the volumes of all sites of the list.

        Raises:
            PayloadError: a number is not finite or beyond the bound, or the weight is not in (0, ``weights``].
        """
        if not 0 < weight <= self.weights:
            raise PayloadError(f"weight: got {weight}, expected above 0, at most {self.weights}")
        numbers = np.asarray(values, np.float64)
        largest = float(np.abs(numbers).max(initial=0.0))
        if not largest <= self.bound:  # NaN too
            raise PayloadError(f"numbers to mask: got one of size {largest:g}, expected at most {self.bound:g}")
        whole = np.rint(numbers * weight * 2.0**self._power).astype(np.int64)
        return whole.astype(DTYPES[self.bits])

    def decode(self, total: Numbers) -> NDArray[np.float64]:
        """Read a sum; the weighted mean is this over the weights of those who are in it.

        Raises:
            PayloadError: it is of another ring, or larger than honest sites' sums can be: one of them is broken or
                lies.
        """
        whole = _signed(total, self.bits)
        if whole.size and (int(whole.max()) > self.most or int(whole.min()) < -self.most):
            raise PayloadError("masked sum: is larger than the bound allows; a site sent what it must not")
        return whole.astype(np.float64) * self.step

    @property
    def _slack(self) -> int:
        """Steps by which rounding can move one site's number, rounded up."""
        return 1 + 2 ** max(0, self.bits - 52)

    @property
    def _room(self) -> int:
        return 2 ** (self.bits - 1) - 1 - self.n_sites * self._slack

    @cached_property
    def _largest(self) -> Fraction:
        return Fraction(self.bound) * Fraction(self.weights)

    @cached_property
    def _power(self) -> int:
        """The largest p with ``bound * weights * 2^p`` within the room."""
        ratio = Fraction(self._room) / self._largest
        power = ratio.numerator.bit_length() - ratio.denominator.bit_length()
        return power if Fraction(2) ** power <= ratio else power - 1


FRACTION = 40
"""Bits after the point of a number in two words."""


def encode_exact(values: NDArray[np.float64], *, n_sites: int) -> Numbers:
    """Write numbers (n,) in two words each, whole part and fraction, as uint64 (2 n,), all whole parts first.

    Numbers that are multiples of 2^-40 add up without any error, whatever their size; others are rounded to these.

    Raises:
        PayloadError: a number is not finite, or above 2^40; or there are so many sites that a sum could wrap.
    """
    _check_words(n_sites)
    if values.size and not float(np.abs(values).max()) <= 2.0**FRACTION:  # NaN too
        raise PayloadError(f"numbers to mask: got one above {2.0**FRACTION:g}, or none at all")
    whole = np.floor(values)
    fraction = np.rint((values - whole) * 2.0**FRACTION)
    return np.concatenate([whole, fraction]).astype(np.int64).astype(DTYPES[64])


def decode_exact(total: Numbers, *, n_sites: int) -> NDArray[np.float64]:
    """Read a sum of numbers in two words (2 n,): (n,).

    Raises:
        PayloadError: it is of another ring, of an odd length, or larger than honest sites' sums can be.
    """
    _check_words(n_sites)
    words = _signed(total, 64)
    if words.size % 2:
        raise PayloadError(f"masked sum: got {words.size} words, expected two for each number")
    whole, fraction = words.reshape(2, -1)
    most = n_sites << FRACTION
    too_large = words.size and (int(whole.max()) > most or int(whole.min()) < -most)
    if words.size and (too_large or not 0 <= int(fraction.min()) <= int(fraction.max()) <= most):
        raise PayloadError("masked sum: is larger than the bound allows; a site sent what it must not")
    return (whole + (fraction >> FRACTION)) + (fraction & ((1 << FRACTION) - 1)) * 2.0**-FRACTION


def _check_words(n_sites: int) -> None:
    if not 1 <= n_sites < 1 << (62 - FRACTION):
        raise PayloadError(f"ring: {n_sites} sites do not fit numbers of two words")


def encode_counts(values: NDArray[np.int64], *, bits: int, most: int, n_sites: int) -> Numbers:
    """Write whole numbers from 0 to ``most`` (any shape, int64) as they are; the sum over ``n_sites`` is exact.

    Raises:
        PayloadError: the sum could wrap, or a number is not whole or out of range.
    """
    _check_counts(bits, most, n_sites)
    if values.dtype.kind not in "iu":
        raise PayloadError(f"counts: got {values.dtype}, expected whole numbers")
    if values.size and (int(values.min()) < 0 or int(values.max()) > most):
        raise PayloadError(f"counts: got {values.min()} to {values.max()}, expected 0 to {most}")
    return values.astype(DTYPES[bits])


def decode_counts(total: Numbers, *, bits: int, most: int, n_sites: int) -> NDArray[np.int64]:
    """Read a sum of counts.

    Raises:
        PayloadError: it is of another ring, or outside what honest sites can have sent.
    """
    _check_counts(bits, most, n_sites)
    whole = _signed(total, bits)
    if whole.size and (int(whole.min()) < 0 or int(whole.max()) > most * n_sites):
        raise PayloadError(f"masked counts: their sum is outside 0 to {most * n_sites}; a site sent what it must not")
    return whole


def _check_counts(bits: int, most: int, n_sites: int) -> None:
    if bits not in DTYPES or most < 0 or n_sites < 1 or most * n_sites >= 2 ** (bits - 1):
        raise PayloadError(f"counts: {n_sites} sites with up to {most} each do not fit a ring of {bits} bits")


def _signed(total: Numbers, bits: int) -> NDArray[np.int64]:
    if total.dtype != np.dtype(DTYPES[bits]):
        raise PayloadError(f"masked sum: got {total.dtype}, expected {np.dtype(DTYPES[bits])}")
    return total.view(f"<i{bits // 8}").astype(np.int64)
