"""Adapters of a frozen network: the types that training and aggregation share, and the digest of a state."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

AdapterState = dict[str, NDArray[np.float32]]
"""Exchanged tensors by name; the only form in which trained numbers leave a site."""
Floats = NDArray[np.float64]
Scaling = Literal["steps", "rank", "sqrt_rank"]


def scale_of(alpha: float, scaling: Scaling, *, rank: float, numbers: float, shape: Sequence[int]) -> float:
    """The factor of an adapter's update: alpha over a number that depends on the method, the rank and the kernel.

    AdamW's first step moves each of the n ``numbers`` that the out-side factor holds for an output channel by the
    learning rate, with the sign of its gradient. Each multiplies an in-side kernel of length 1 / sqrt 3, in a direction
    of its own; d is the count of numbers in a channel's kernel, of which ``shape`` is (out, in, *kernel). Directions
    are orthogonal to each other on average, but not to the gradient, so the sum of the moves has the squared length
    n + n (n - 1) 2 / (pi d), in units of a single move. With "steps" the first step therefore moves every channel's
    kernel by learning rate * alpha / sqrt 3: alpha times the learning rate, relative to a kernel as PyTorch
    initialises it.

    Source: Kalajdzievski 2023, arXiv 2312.03732 (the square root of n, for one number per rank).
    """
    d = math.prod(shape[1:])
    together = numbers * (1 + max(0.0, numbers - 1) * 2 / (math.pi * d))
    return alpha / {"steps": together**0.5, "rank": rank, "sqrt_rank": rank**0.5}[scaling]


def digest(state: AdapterState) -> str:
    """SHA-256 (hex) over names, shapes and values, whatever their order; equal on every machine."""
    ordered = sorted(state.items())
    sha = hashlib.sha256(repr(tuple((name, tuple(value.shape)) for name, value in ordered)).encode())
    for _, value in ordered:
        sha.update(np.ascontiguousarray(value, "<f4").tobytes())
    return sha.hexdigest()


@dataclass(frozen=True)
class WeightedState:
    """One site's tensors, in float64, and its share of all volumes."""

    weight: float
    state: dict[str, Floats]


@dataclass(frozen=True)
class Form:
    """How an adapter method's factors make up a kernel: all that the aggregation asks of a method.

    *Terms* are one matrix (size of the axis, terms) for each factor, the out-side factor first.
    """

    terms: Callable[[FactoredLayer, Mapping[str, Floats]], list[Floats]]
    """From a layer's tensors to its terms, without the scale."""
    factors: Callable[[FactoredLayer, Sequence[Floats], AdapterState], dict[str, Floats]]
    """From terms to a layer's tensors, with the shapes of a state (the last argument) but for the rank."""
    dense: Callable[[FactoredLayer, Sequence[Floats]], Floats]
    """From terms to the update of the kernel, (out, in, *kernel)."""
    nearest: Callable[[FactoredLayer, list[Floats], Sequence[WeightedState], AdapterState], list[Floats]]
    """From the terms of the sites' mean, what the sites sent and the global state: terms as many as that state has."""
    rank_axes: Callable[[FactoredLayer], dict[str, int]]
    """Axis of the terms in each factor, by the factor's name."""
    terms_per_rank: Callable[[tuple[int, ...]], int] = lambda shape: 1
    """Terms for one rank of the method, from the kernel's shape."""
    numbers_per_term: Callable[[tuple[int, ...]], int] = lambda shape: 1
    """Numbers of a term in the out-side factor for each output channel, from the kernel's shape."""


@dataclass(frozen=True)
class FactoredLayer:
    """An adapted layer's kernel and the names of its exchanged tensors, for the aggregation."""

    form: Form
    shape: tuple[int, ...]
    """Shape of the kernel, (out, in, *kernel)."""
    up: str
    """Name of the out-side factor, (out, terms, ...)."""
    inner: tuple[str, ...]
    """Names of the other factors."""
    alpha: float
    scaling: Scaling
    magnitude: str | None = None
    """Name of DoRA's magnitudes."""
    kernel: NDArray[np.float32] | None = None
    """The frozen kernel; only layers with magnitudes need it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors of the layer."""
        return (self.up, *self.inner, *([self.magnitude] if self.magnitude else []))

    def scale(self, n_terms: int) -> float:
        """Factor of an update of this many terms."""
        rank = n_terms / self.form.terms_per_rank(self.shape)
        numbers = n_terms * self.form.numbers_per_term(self.shape)
        return scale_of(self.alpha, self.scaling, rank=rank, numbers=numbers, shape=self.shape)
