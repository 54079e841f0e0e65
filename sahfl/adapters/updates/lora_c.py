"""LoRA-C: the kernel read as one matrix of (out x height) by (in x width), updated by a product of two thin ones."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

from sahfl.adapters.updates.few import convolve_to_few, few_kernel_gradient
from sahfl.adapters.updates.geometry import Convolution, Geometry, convolve, input_gradient, kernel_gradient


class LoRAC(nn.Module):
    """The update B A of a kernel read as a matrix, B (out * height, rank * width), A (rank * width, in * width).

    The factors are kernels: ``up`` (out, rank * width, height, 1) and ``down`` (rank * width, in, 1, width), together
    rank * k^2 * (in + out) numbers for k x k kernels. In three dimensions depth stays with height. ``up`` starts at
    zero, ``down`` like the kernel of a new layer.

    The published code, which is loralib's ``ConvLoRA``, reshapes B A with ``view``, which mixes the axes. This form
    permutes them, as the paper does.

    Source: Ding et al. 2024, arXiv 2410.16954, section 3; the same code in Aleem et al. 2024, arXiv 2402.04964.
    """

    exchanged = ("down", "up")
    inner_factors = ("down",)

    def __init__(self, base: Convolution, *, rank: int, generator: Generator) -> None:
        super().__init__()
        *others, width = base.kernel_size
        self.rank = rank
        self.full_rank = math.ceil(min(base.out_channels * math.prod(others), base.in_channels * width) / width)
        rows, weight = rank * width, base.weight
        edge, channels = round(math.sqrt(math.prod(base.kernel_size))), base.in_channels + base.out_channels
        self.cost = rows * edge * (3 * channels + 30)  # two convolutions along one axis each
        bound = 1 / math.sqrt(base.in_channels * width)  # kaiming_uniform(a=sqrt 5) of A
        shape = (rows, base.in_channels, *(1 for _ in others), width)
        self.down = nn.Parameter(weight.new_empty(shape).uniform_(-bound, bound, generator=generator))
        self.up = nn.Parameter(weight.new_zeros(base.out_channels, rows, *others, 1))
        self._last = (*(False for _ in others), True)

    def delta(self, up: Tensor) -> Tensor:
        """Update of the kernel, (out, in, *kernel), from the scaled ``up``."""
        kernel = torch.tensordot(up.squeeze(-1), self.down.flatten(2), dims=([1], [0]))  # (out, *others, in, width)
        return kernel.movedim(-2, 1)

    def inner(self, x: Tensor, geometry: Geometry) -> Tensor:
        """(batch, in, *space) -> (batch, rank * width, *space with the last axis convolved)."""
        return convolve(x, self.down, geometry.along(self._last))

    def up_gradient(self, gradient: Tensor, u: Tensor, geometry: Geometry) -> Tensor:
        """Gradient of ``up``, from ``gradient`` (batch, out, *space') and ``u``, the result of ``inner``."""
        return kernel_gradient(gradient, u, self.up.shape, self._outer(geometry))

    def gradients(self, gradient: Tensor, x: Tensor, up: Tensor, geometry: Geometry) -> tuple[Tensor, ...]:
        """Gradients of ``up`` and ``down``, in their shapes."""
        inner, outer = geometry.along(self._last), self._outer(geometry)
        u = convolve_to_few(x, self.down.to(x.dtype), inner)
        if outer.is_reversible:  # reversed, ``outer`` too is a convolution to a few channels
            back, flat = outer.reversed(), up.transpose(0, 1)
            of_u = convolve_to_few(gradient, flat, back)
            of_up = few_kernel_gradient(u, gradient, flat.shape, back).transpose(0, 1)
        else:
            of_u = input_gradient(gradient, u, up, outer)
            of_up = self.up_gradient(gradient, u, geometry)
        return of_up, few_kernel_gradient(of_u, x, self.down.shape, inner)

    def _outer(self, geometry: Geometry) -> Geometry:
        return geometry.along([not last for last in self._last])
