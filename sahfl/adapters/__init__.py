"""Adapters: small trainable updates of a frozen network, and the one definition of what of them is exchanged."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True)
class FactoredLayer:
    """How the exchanged tensors of one adapted layer make up its kernel; what exact aggregation needs to know."""

    form: Literal["lora_c", "conv_lora", "cp"]
    shape: tuple[int, ...]
    """Of the kernel, (out, in, *kernel)."""
    up: str
    """Name of the out-side factor; its terms lie along axis 1."""
    inner: tuple[str, ...]
    """Names of the other factors; terms along axis 0, in the CP form along the last."""
    alpha: float
    scaling: Literal["rank", "sqrt_rank"]
    terms_per_rank: int = 1
    """LoRA-C has as many terms per rank as the kernel is wide."""
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
        """Axis of the terms in each factor; for CP factors the last."""
        if self.form != "cp":
            return {self.up: 1, self.inner[0]: 0}
        last = {name: 1 for name in (self.up, *self.inner)}
        return last | ({self.inner[1]: len(self.shape) - 2} if len(self.inner) == 2 else {})

    def scale(self, n_terms: int) -> float:
        """Factor of the update for a number of terms."""
        rank = n_terms / self.terms_per_rank
        return self.alpha / (rank if self.scaling == "rank" else rank**0.5)
