"""CP-LoRA: a kernel's update factorised over every axis of the kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import normalize

from sahfl.adapters.updates.geometry import (
    Convolution,
    Geometry,
    depthwise,
    depthwise_gradients,
    pointwise,
    pointwise_gradient,
)

AXES = {2: ("height", "width"), 3: ("depth", "height", "width")}


class CPLoRA(nn.Module):
    """The update sum_p out[:, p] x in[:, p] x height[:, p] x width[:, p] of a kernel (canonical polyadic form).

    rank * (out + in + height + width) numbers, and one more factor, ``depth``, in three dimensions. With
    ``joint_kernel`` (CP3) one factor ``kernel`` (*kernel, rank) replaces those of the axes, so that a term's kernel
    need not be a product. ``factor_out`` starts at zero, each other factor with columns of one length in random
    directions. So all terms of a layer start with the same length, on kernels of any size.

    Source: arXiv 2508.01772 (the idea); Lebedev et al. 2015, arXiv 1412.6553, section 3 (CP form of a kernel).
    """

    def __init__(self, base: Convolution, *, rank: int, joint_kernel: bool, generator: Generator) -> None:
        super().__init__()
        self.rank = rank
        kernel = (math.prod(base.kernel_size),) if joint_kernel else base.kernel_size
        axes = (base.out_channels, base.in_channels, *kernel)
        self.full_rank = math.prod(axes) // max(axes)
        channels = base.in_channels + base.out_channels
        self.cost = rank * (4.4 * channels + 60 * math.prod(base.kernel_size))
        weight = base.weight
        self.factor_out = nn.Parameter(weight.new_zeros(base.out_channels, rank))
        # Every term gets the length that kaiming_uniform(a=sqrt 5) gives a kernel on average, 1 / sqrt 3.
        start = _unit_columns(weight, (base.in_channels,), rank, generator) / math.sqrt(3)
        self.factor_in = nn.Parameter(start)
        names = ("kernel",) if joint_kernel else AXES[len(base.kernel_size)]
        sizes = (base.kernel_size,) if joint_kernel else [(size,) for size in base.kernel_size]
        for name, size in zip(names, sizes, strict=True):
            self.register_parameter(f"factor_{name}", nn.Parameter(_unit_columns(weight, size, rank, generator)))
        self.inner_factors = ("factor_in", *(f"factor_{name}" for name in names))
        self.exchanged = ("factor_out", *self.inner_factors)

    @property
    def up(self) -> nn.Parameter:
        """The factor that starts at zero, (out, rank)."""
        return self.factor_out

    def space(self) -> Tensor:
        """Each term's kernel, (*kernel, rank)."""
        return _product([self.get_parameter(name) for name in self.inner_factors[1:]])

    def delta(self, up: Tensor) -> Tensor:
        """Update of the kernel, (out, in, *kernel), from the scaled ``up`` (out, rank)."""
        space = self.space()
        right = self.factor_in[:, None] * space.flatten(0, -2)  # (in, voxels, rank)
        return torch.matmul(up, right.flatten(0, 1).t()).reshape(up.shape[0], -1, *space.shape[:-1])

    def inner(self, x: Tensor, geometry: Geometry) -> Tensor:
        """(batch, in, *space) -> (batch, rank, *space')."""
        space = self.space()
        if self._is_pointwise(space, geometry):
            return pointwise(x, (self.factor_in * space.flatten(0, -2)).t())
        return depthwise(pointwise(x, self.factor_in.t()), _kernels(space), geometry)

    def up_gradient(self, gradient: Tensor, u: Tensor, geometry: Geometry) -> Tensor:
        """Gradient of ``up``, (out, rank), from ``gradient`` (batch, out, *space') and ``u`` (batch, rank, *space')."""
        return pointwise_gradient(gradient, u)

    def gradients(self, gradient: Tensor, x: Tensor, up: Tensor, geometry: Geometry) -> tuple[Tensor, ...]:
        """Gradients of ``up`` (out, rank), ``factor_in`` (in, rank) and the other factors (*sizes, rank)."""
        space = self.space()
        of_u = pointwise(gradient, up.t())
        if self._is_pointwise(space, geometry):
            right = self.factor_in * space.flatten(0, -2)
            of_up = pointwise_gradient(gradient, pointwise(x, right.t().to(x.dtype)))
            of_right = pointwise_gradient(x, of_u).to(right.dtype)
            of_in, of_space = of_right * space.flatten(0, -2), (of_right * self.factor_in).sum(0).view_as(space)
        else:
            terms, kernels = pointwise(x, self.factor_in.t().to(x.dtype)), _kernels(space).to(x.dtype)
            of_up = pointwise_gradient(gradient, depthwise(terms, kernels, geometry))
            of_terms, of_kernels = depthwise_gradients(of_u, terms, kernels, geometry)
            of_in, of_space = pointwise_gradient(x, of_terms), of_kernels.squeeze(1).movedim(0, -1).to(space.dtype)
        return of_up, of_in, *self._axis_gradients(of_space)

    def _is_pointwise(self, space: Tensor, geometry: Geometry) -> bool:
        return space[..., 0].numel() == 1 and geometry.is_still

    def _axis_gradients(self, of_space: Tensor) -> tuple[Tensor, ...]:
        factors = [self.get_parameter(name).detach().requires_grad_() for name in self.inner_factors[1:]]
        with torch.enable_grad():
            space = _product(factors)
        return torch.autograd.grad(space, factors, of_space)


def _unit_columns(like: Tensor, size: tuple[int, ...], rank: int, generator: Generator) -> Tensor:
    """Columns of length one, (*size, rank), in random directions; ones if a column is a single number."""
    if math.prod(size) == 1:
        return like.new_ones(*size, rank)
    columns = like.new_empty(math.prod(size), rank).normal_(generator=generator)
    return normalize(columns, dim=0).view(*size, rank)


def _product(factors: Sequence[Tensor]) -> Tensor:
    space, *others = factors
    for factor in others:
        space = space.unsqueeze(-2) * factor
    return space


def _kernels(space: Tensor) -> Tensor:
    return space.movedim(-1, 0).unsqueeze(1)  # (rank, 1, *kernel)
