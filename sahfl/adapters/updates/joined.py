"""Two updates of one kernel as one: the terms of the first, then those of the second."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sahfl.adapters.updates.geometry import Geometry
from sahfl.adapters.updates.update import Update


class Joined:
    """The sum of two updates of one form, behind the interface of one update.

    An adapter with private terms has two: the one that travels, and the one that stays at a site. The class only looks
    at their factors; it is made anew for each use, and owns none.
    """

    def __init__(self, first: Update, second: Update) -> None:
        self._first, self._second = first, second
        self._n_terms = first.up.shape[1]
        self.exchanged = _named(first.exchanged, second.exchanged)
        self.inner_factors = _named(first.inner_factors, second.inner_factors)
        self.rank, self.full_rank = first.rank + second.rank, first.full_rank
        self.cost = first.cost + second.cost

    @property
    def up(self) -> Tensor:
        """The factors on the output's side, (out, terms of both, ...)."""
        return torch.cat([self._first.up, self._second.up], dim=1)

    def delta(self, up: Tensor) -> Tensor:
        """Update of the kernel, (out, in, *kernel), from the scaled ``up`` (out, terms of both, ...)."""
        first, second = self._parts(up)
        # Contiguous: a convolution with a kernel of other strides rounds otherwise.
        return (self._first.delta(first) + self._second.delta(second)).contiguous()

    def inner(self, x: Tensor, geometry: Geometry) -> Tensor:
        """(batch, in, *space) -> (batch, terms of both, *space')."""
        return torch.cat([self._first.inner(x, geometry), self._second.inner(x, geometry)], dim=1)

    def up_gradient(self, gradient: Tensor, u: Tensor, geometry: Geometry) -> Tensor:
        """Gradient of ``up``, from ``gradient`` (batch, out, *space'') and ``u``, the result of ``inner``."""
        first, second = self._parts(u)
        parts = self._first.up_gradient(gradient, first, geometry), self._second.up_gradient(gradient, second, geometry)
        return torch.cat(parts, dim=1)

    def gradients(self, gradient: Tensor, x: Tensor, up: Tensor, geometry: Geometry) -> tuple[Tensor, ...]:
        """Gradients of ``up`` and of the inner factors of both, in the order of ``inner_factors``."""
        first, second = self._parts(up)
        of_first, *inner_first = self._first.gradients(gradient, x, first, geometry)
        of_second, *inner_second = self._second.gradients(gradient, x, second, geometry)
        return torch.cat([of_first, of_second], dim=1), *inner_first, *inner_second

    def get_parameter(self, target: str) -> nn.Parameter:
        """A factor of the first update (``first.NAME``) or of the second (``second.NAME``)."""
        which, _, name = target.partition(".")
        return (self._first if which == "first" else self._second).get_parameter(name)

    def _parts(self, terms: Tensor) -> tuple[Tensor, Tensor]:
        """The terms of each update, from an axis 1 with those of both."""
        return terms[:, : self._n_terms], terms[:, self._n_terms :]


def _named(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return (*(f"first.{name}" for name in first), *(f"second.{name}" for name in second))
