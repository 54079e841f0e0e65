"""convLoRA: a kernel's update as a convolution to ``rank`` channels and a mixture of these."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

from sahfl.adapters.updates.few import convolve_to_few, few_kernel_gradient
from sahfl.adapters.updates.geometry import Convolution, Geometry, convolve, pointwise, pointwise_gradient


class ConvLoRA(nn.Module):
    """The update ``up @ down`` of a kernel, with ``down`` (rank, in, *kernel) and ``up`` (out, rank).

    rank * (in * voxels of the kernel + out) numbers. The form of LoCon, and of Hugging Face PEFT for ``Conv2d`` and
    ``Conv3d``; the paper named ConvLoRA (arXiv 2402.04964) has code of LoRA-C's form. ``up`` starts at zero, ``down``
    like the kernel of a new layer.

    Source: Yeh et al. 2023, arXiv 2309.14859 (LoCon).
    """

    exchanged = ("down", "up")
    inner_factors = ("down",)

    def __init__(self, base: Convolution, *, rank: int, generator: Generator) -> None:
        super().__init__()
        self.rank = rank
        voxels = math.prod(base.kernel_size)
        self.full_rank = min(base.out_channels, base.in_channels * voxels)
        self.cost = rank * (3 * voxels * base.in_channels + 4.4 * base.out_channels + 30 * voxels)
        weight = base.weight
        bound = 1 / math.sqrt(base.in_channels * voxels)  # kaiming_uniform(a=sqrt 5)
        shape = (rank, base.in_channels, *base.kernel_size)
        self.down = nn.Parameter(weight.new_empty(shape).uniform_(-bound, bound, generator=generator))
        self.up = nn.Parameter(weight.new_zeros(base.out_channels, rank))

    def delta(self, up: Tensor) -> Tensor:
        """Update of the kernel, (out, in, *kernel), from the scaled ``up`` (out, rank)."""
        return torch.matmul(up, self.down.flatten(1)).view(-1, *self.down.shape[1:])

    def inner(self, x: Tensor, geometry: Geometry) -> Tensor:
        """(batch, in, *space) -> (batch, rank, *space')."""
        return convolve(x, self.down, geometry)

    def up_gradient(self, gradient: Tensor, u: Tensor, geometry: Geometry) -> Tensor:
        """Gradient of ``up``, (out, rank), from ``gradient`` (batch, out, *space') and ``u`` (batch, rank, *space')."""
        return pointwise_gradient(gradient, u)

    def gradients(self, gradient: Tensor, x: Tensor, up: Tensor, geometry: Geometry) -> tuple[Tensor, ...]:
        """Gradients of ``up`` (out, rank) and ``down`` (rank, in, *kernel)."""
        of_up = pointwise_gradient(gradient, convolve_to_few(x, self.down.to(x.dtype), geometry))
        of_u = pointwise(gradient, up.t())
        return of_up, few_kernel_gradient(of_u, x, self.down.shape, geometry)
