"""The interface between the adapted convolution and a method's update of its kernel."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from sahfl.adapters.updates.geometry import Geometry


class Update(Protocol):
    """A low-rank update of a kernel, as a module: an inner map to few channels, and the factor ``up`` after it.

    ``AdapterMethod.update`` gives the arguments of its constructor. What a number of ``up`` multiplies starts with
    length 1 / sqrt 3 on average, for steps of equal size (``sahfl.adapters.scale_of``).
    """

    exchanged: tuple[str, ...]
    """Names of all factors."""
    inner_factors: tuple[str, ...]
    """Names of all factors but ``up``."""
    rank: int
    """Number of terms, as the method counts them."""
    full_rank: int
    """Number of terms that suffice for any kernel of this shape; more are legal."""
    cost: float
    """Cost of ``gradients`` per voxel of the map, in multiplications of a dense convolution, for ``choose_path``."""

    @property
    def up(self) -> Tensor:
        """The factor on the output's side, (out, terms, ...); zero at the start."""

    def delta(self, up: Tensor) -> Tensor:
        """Update of the kernel, (out, in, *kernel), from the scaled ``up`` (out, terms, ...)."""

    def inner(self, x: Tensor, geometry: Geometry) -> Tensor:
        """(batch, in, *space) -> (batch, terms, *space')."""

    def up_gradient(self, gradient: Tensor, u: Tensor, geometry: Geometry) -> Tensor:
        """Gradient of ``up``, in its shape, from that of the result, (batch, out, *space''), and ``u``, the result of
        ``inner``, (batch, terms, *space').
        """

    def gradients(self, gradient: Tensor, x: Tensor, up: Tensor, geometry: Geometry) -> tuple[Tensor, ...]:
        """Gradients of ``up`` and ``inner_factors``, each in its shape, from that (batch, out, *space'') of the result.

        ``x`` is the input, (batch, in, *space), and ``up`` is scaled. Autograd does not record the computation.
        """

    def get_parameter(self, target: str) -> nn.Parameter:
        """A factor by name."""
