"""Adapters: small trainable updates of a frozen network, and the one definition of what of them is exchanged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

AdapterState = dict[str, NDArray[np.float32]]
"""Exchanged tensors by name; the only form in which trained numbers leave a site."""
Floats = NDArray[np.float64]


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
    """How the factors of an adapted layer make up its kernel: all that the aggregation asks of an adapter method.

    *Terms* are one matrix (size of the axis, terms) for each factor, the out-side factor first. ``aggregation.forms``
    has the forms of this project.
    """

    terms: Callable[[FactoredLayer, Mapping[str, Floats]], list[Floats]]
    """From a layer's tensors to its terms, without the scale."""
    factors: Callable[[FactoredLayer, Sequence[Floats], AdapterState], dict[str, Floats]]
    """The inverse: terms as tensors of a layer, in the shapes that they have in a state, but for the rank."""
    dense: Callable[[FactoredLayer, Sequence[Floats]], Floats]
    """The update of the kernel that terms stand for, (out, in, *kernel)."""
    nearest: Callable[[FactoredLayer, list[Floats], Sequence[WeightedState], AdapterState], list[Floats]]
    """Terms near those of the sites' mean, as many as a global state has; from the layer, the mean's terms, what the
    sites sent, and that state."""
    rank_axes: Callable[[FactoredLayer], dict[str, int]]
    """Axis of the terms in each factor, by the tensor's name."""
    terms_per_rank: Callable[[tuple[int, ...]], int] = lambda shape: 1
    """Terms for each rank that the method counts, from the kernel's shape."""


@dataclass(frozen=True)
class FactoredLayer:
    """How the exchanged tensors of one adapted layer make up its kernel; what exact aggregation needs to know."""

    form: Form
    shape: tuple[int, ...]
    """Of the kernel, (out, in, *kernel)."""
    up: str
    """Name of the out-side factor; its terms lie along axis 1."""
    inner: tuple[str, ...]
    """Names of the other factors."""
    alpha: float
    scaling: Literal["rank", "sqrt_rank"]
    magnitude: str | None = None
    """Name of DoRA's magnitudes."""
    kernel: NDArray[np.float32] | None = None
    """The frozen kernel; only layers with magnitudes need it."""

    @property
    def names(self) -> tuple[str, ...]:
        """All its tensors."""
        return (self.up, *self.inner, *([self.magnitude] if self.magnitude else []))

    @property
    def rank_axes(self) -> dict[str, int]:
        """Axis of the terms in each factor."""
        return self.form.rank_axes(self)

    @property
    def terms_per_rank(self) -> int:
        """Terms for each rank that the method counts."""
        return self.form.terms_per_rank(self.shape)

    def scale(self, n_terms: int) -> float:
        """Factor of the update for a number of terms."""
        rank = n_terms / self.terms_per_rank
        return self.alpha / (rank if self.scaling == "rank" else rank**0.5)
