"""What an update of a kernel offers: the one interface between the methods and the adapted convolution."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from sahfl.adapters.updates.geometry import Geometry


class Update(Protocol):
    """A low-rank update of a kernel: ``up`` after an inner map of few channels. A module; its factors are trainable."""

    exchanged: tuple[str, ...]
    """Names of all its factors."""
    inner_factors: tuple[str, ...]
    """Names of those that ``inner`` uses: all but ``up``."""
    rank: int
    """Number of terms, as the method counts them."""
    full_rank: int
    """Terms with which every kernel of this shape can be written; more are legal (over-parameterisation)."""
    cost: float
    """What ``gradients`` takes, in multiplications of a dense convolution, per voxel of the map; ``paths`` compares."""

    @property
    def up(self) -> nn.Parameter:
        """The factor on the output's side, (out, terms, ...); zero at the start."""

    def delta(self, up: Tensor) -> Tensor:
        """Update of the kernel, (out, in, *kernel), with ``up`` (out, terms, ...) scaled by the caller."""

    def inner(self, x: Tensor, geometry: Geometry) -> Tensor:
        """(batch, in, *space) -> (batch, terms, *space')."""

    def up_gradient(self, gradient: Tensor, u: Tensor, geometry: Geometry) -> Tensor:
        """Gradient with respect to ``up``, in its shape, of x convolved with ``delta(up)``.

        Args:
            gradient: that of the convolution's result, (batch, out, *space').
            u: ``inner(x)``, (batch, terms, *space').
            geometry: of the convolution.
        """

    def gradients(self, gradient: Tensor, x: Tensor, up: Tensor, geometry: Geometry) -> tuple[Tensor, ...]:
        """Gradients with respect to ``up`` and ``inner_factors``, each in its shape; not recorded for autograd.

        Args:
            gradient: that of x convolved with ``delta(up)``, (batch, out, *space'').
            x: (batch, in, *space).
            up: (out, terms, ...), scaled.
            geometry: of the convolution.
        """

    def get_parameter(self, target: str) -> nn.Parameter:
        """A factor by name."""
