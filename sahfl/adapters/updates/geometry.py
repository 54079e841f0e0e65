"""Convolutions of two and three dimensions, plain and transposed, behind one function and one kernel layout.

Kernels are (out, in, *kernel) everywhere in ``adapters``; PyTorch keeps those of transposed convolutions as
(in, out, *kernel), and only this module knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

Convolution = nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d
FEW = 16
"""Channels to which convolution libraries for processors pad fewer; below, other ways to compute are faster."""
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Geometry:
    """How a kernel moves over its input; one number per axis."""

    transposed: bool
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    """Zeros on both sides."""
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]

    def along(self, axes: Sequence[bool]) -> Geometry:
        """The same movement along some axes; one step at a time, without padding, along the others."""

        def pick(values: tuple[int, ...], neutral: int) -> tuple[int, ...]:
            return tuple(value if chosen else neutral for value, chosen in zip(values, axes, strict=True))

        return Geometry(
            self.transposed,
            pick(self.stride, 1),
            pick(self.padding, 0),
            pick(self.dilation, 1),
            pick(self.output_padding, 0),
        )

    @property
    def is_still(self) -> bool:
        """A kernel of one voxel computes one output per input."""
        return set(self.stride) == {1} and set(self.padding) == set(self.output_padding) == {0}

    @property
    def is_reversible(self) -> bool:
        """``reversed`` leads back to the size of the input."""
        return set(self.stride) == {1} and set(self.output_padding) == {0}

    def reversed(self) -> Geometry:
        """The movement of the convolution that computes this one's gradient of the input."""
        return replace(self, transposed=not self.transposed)


def kernel_of(base: Convolution) -> Tensor:
    """A layer's weight as (out, in, *kernel); a view."""
    return base.weight.transpose(0, 1) if base.transposed else base.weight


def is_plain(module: Convolution) -> bool:
    """Whether a layer computes the convolution with its weight and nothing else, whatever its class is called."""
    kind = next(kind for kind in CONVOLUTIONS if isinstance(module, kind))
    own = any(getattr(type(module), name) is not getattr(kind, name) for name in ("forward", "__call__"))
    own |= not module.transposed and type(module)._conv_forward is not kind._conv_forward
    hooked = bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
    return not (own or hooked or is_parametrized(module))


def prepare(x: Tensor, base: Convolution) -> tuple[Tensor, Geometry]:
    """The input, padded where zeros on both sides would not do, and the movement of the layer's kernel over it."""
    nothing = (0,) * len(base.kernel_size)
    padding = base.padding
    if base.padding_mode != "zeros" or padding == "same":
        reversed_twice = base._reversed_padding_repeated_twice  # private, but what the layer itself pads by
        sides = [(reversed_twice[2 * axis], reversed_twice[2 * axis + 1]) for axis in range(len(nothing))][::-1]
        if base.padding_mode == "zeros" and all(before == after for before, after in sides):
            padding = tuple(before for before, _ in sides)
        else:
            mode = "constant" if base.padding_mode == "zeros" else base.padding_mode
            x, padding = functional.pad(x, reversed_twice, mode=mode), nothing
    elif padding == "valid":
        padding = nothing
    return x, Geometry(base.transposed, base.stride, padding, base.dilation, base.output_padding)  # type: ignore[arg-type]


def convolve(x: Tensor, kernel: Tensor, geometry: Geometry, bias: Tensor | None = None, groups: int = 1) -> Tensor:
    """(batch, in, *space) by a kernel (out, in / groups, *kernel) -> (batch, out, *space')."""
    flat = kernel.ndim == 4
    if geometry.transposed:
        transposed = functional.conv_transpose2d if flat else functional.conv_transpose3d
        # Of a depthwise kernel (channels, 1, *kernel) both layouts are the same.
        weight = kernel if groups > 1 else kernel.transpose(0, 1)
        return transposed(
            x,
            weight,
            bias,
            geometry.stride,
            geometry.padding,
            geometry.output_padding,
            groups,
            geometry.dilation,
        )
    plain = functional.conv2d if flat else functional.conv3d
    return plain(x, kernel, bias, geometry.stride, geometry.padding, geometry.dilation, groups)


def input_gradient(gradient: Tensor, x: Tensor, kernel: Tensor, geometry: Geometry) -> Tensor:
    """Gradient of ``convolve`` with respect to its input x, of which only the shape matters.

    Pass the input itself where it is at hand: of a stand-in, torch makes a copy of that size first.
    """
    return _backward(gradient, x, kernel, geometry, (True, False, False))[0]


def kernel_gradient(gradient: Tensor, x: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """Gradient of ``convolve`` with respect to its kernel of the given shape; the kernel itself is not needed."""
    of_kernel = _backward(gradient, x, gradient.new_empty(1).expand(shape), geometry, (False, True, False))[1]
    return of_kernel.transpose(0, 1) if geometry.transposed else of_kernel


def _backward(
    gradient: Tensor, x: Tensor, kernel: Tensor, geometry: Geometry, wanted: tuple[bool, bool, bool], groups: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    weight = kernel.transpose(0, 1) if geometry.transposed and groups == 1 else kernel
    return torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        None,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        geometry.transposed,
        geometry.output_padding,
        groups,
        wanted,
    )


def pointwise(x: Tensor, matrix: Tensor) -> Tensor:
    """Mix the channels of every voxel: (batch, in, *space) by (out, in) -> (batch, out, *space).

    A matrix product, because convolution libraries pad a few channels to sixteen. Not ``matmul``: that copies an x that
    requires a gradient, to lay its voxels side by side.
    """
    product = torch.bmm(matrix.expand(x.shape[0], -1, -1), x.flatten(2))
    return product.view(x.shape[0], matrix.shape[0], *x.shape[2:])


def pointwise_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Gradient of ``pointwise`` with respect to its matrix: (out, in)."""
    first, second = gradient.flatten(2), x.flatten(2)
    if first.shape[1] > second.shape[1]:  # the product is faster with its few rows first
        return torch.bmm(second, first.transpose(1, 2)).sum(0).t()
    return torch.bmm(first, second.transpose(1, 2)).sum(0)


def depthwise(x: Tensor, kernels: Tensor, geometry: Geometry) -> Tensor:
    """Each channel by its own kernel: (batch, channels, *space) by (channels, 1, *kernel)."""
    folded, repeated = _fold(x, kernels)
    y = convolve(folded, repeated, geometry, groups=repeated.shape[0])
    return y.reshape(*x.shape[:2], *y.shape[2:])


def depthwise_gradients(gradient: Tensor, x: Tensor, kernels: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Gradients of ``depthwise`` with respect to its input and its kernels."""
    folded, repeated = _fold(x, kernels)
    groups = repeated.shape[0]
    of_y = gradient.reshape(folded.shape[0], groups, *gradient.shape[2:])
    of_x, of_kernels, _ = _backward(of_y, folded, repeated, geometry, (True, True, False), groups)
    return of_x.reshape(x.shape), of_kernels.reshape(-1, *kernels.shape).sum(0)


def _fold(x: Tensor, kernels: Tensor) -> tuple[Tensor, Tensor]:
    """The batch as further channels: convolution libraries for processors pad a few channels to sixteen."""
    if x.device.type != "cpu" or kernels.shape[0] >= FEW:
        return x, kernels
    return x.reshape(1, -1, *x.shape[2:]), kernels.repeat(x.shape[0], *(1,) * (kernels.ndim - 1))


def per_channel(values: Tensor, n_axes: int, *, axis: int) -> Tensor:
    """One number per channel, shaped to multiply a tensor of ``n_axes`` axes along ``axis``."""
    shape = [1] * n_axes
    shape[axis] = -1
    return values.view(shape)
