"""CP-LoRA: a low-rank update of a convolution's kernel, factorised over every axis of the kernel."""

from __future__ import annotations

import copy
import math

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from sahfl.errors import AdapterError

Convolution = nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
AXES = {2: ("height", "width"), 3: ("depth", "height", "width")}


class CPLoRAConv(nn.Module):
    """A frozen convolution plus a trainable CP (canonical polyadic) update of its kernel.

    With the kernel read as (out, in, height, width), the layer computes the convolution with

        W + alpha / rank * sum_p  out[:, p] x in[:, p] x height[:, p] x width[:, p]

    and one more factor, ``depth``, in three dimensions. ``factor_out`` starts at zero, so a fresh adapter leaves the
    output unchanged, bit for bit. Transposed convolutions keep their kernel as (in, out, ...); the factors mean the
    same. The update lives in weight space: stride, padding, dilation and padding mode stay the base layer's own.

    Guarantees: ``merged()`` computes the same function; only the factors are trainable, the base's bias is not.

    Raises:
        AdapterError: the convolution is grouped.

    Source: arXiv 2508.01772 (the idea); Lebedev et al. 2015, arXiv 1412.6553, section 3 (CP form of a kernel); scaling
    by alpha / rank after Hu et al. 2021, arXiv 2106.09685, section 4.1.
    """

    def __init__(self, base: Convolution, *, rank: int, alpha: float, generator: Generator) -> None:
        super().__init__()
        if base.groups != 1:
            raise AdapterError(f"CP-LoRA needs a convolution with groups=1, got groups={base.groups}")
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        self.axes = AXES[len(base.kernel_size)]
        self.exchanged = ("factor_out", "factor_in", *(f"factor_{axis}" for axis in self.axes))
        self.factor_out = nn.Parameter(base.weight.new_zeros(base.out_channels, rank))  # (out, rank)
        # All in-side factors together have the variance that kaiming_uniform(a=sqrt 5) gives a kernel: 1 / (3 fan_in).
        bound = 1 / math.sqrt(base.in_channels)
        self.factor_in = nn.Parameter(
            base.weight.new_empty(base.in_channels, rank).uniform_(-bound, bound, generator=generator)
        )
        for axis, size in zip(self.axes, base.kernel_size, strict=True):
            factor = base.weight.new_empty(size, rank).normal_(0, 1 / math.sqrt(size), generator=generator)
            self.register_parameter(f"factor_{axis}", nn.Parameter(factor))  # (size, rank)

    def delta(self) -> Tensor:
        """Update of the kernel, in the kernel's own layout."""
        right: Tensor = self.factor_in
        for axis in self.axes:  # Khatri-Rao product, (in * height * width, rank)
            right = (right[:, None] * self.get_parameter(f"factor_{axis}")[None]).flatten(0, 1)
        delta = self.scale * self.factor_out @ right.t()
        delta = delta.view(self.base.out_channels, self.base.in_channels, *self.base.kernel_size)
        return delta.transpose(0, 1) if self.base.transposed else delta

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, *space) -> (batch, out, *space')."""
        base, weight = self.base, self.base.weight + self.delta()
        if isinstance(base, nn.ConvTranspose2d | nn.ConvTranspose3d):
            convolve = functional.conv_transpose2d if len(self.axes) == 2 else functional.conv_transpose3d
            return convolve(x, weight, base.bias, base.stride, base.padding, base.output_padding, 1, base.dilation)  # type: ignore[arg-type]
        # _conv_forward is private, but the only entry that honours padding_mode.
        return base._conv_forward(x, weight, base.bias)

    @torch.no_grad()
    def merged(self) -> Convolution:
        """A plain convolution that computes the same function; ``self`` is unchanged."""
        plain = copy.deepcopy(self.base)
        plain.weight.copy_(self.base.weight + self.delta())
        return plain
