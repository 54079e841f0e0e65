"""Convolutions of two and three dimensions, plain and transposed, behind one function and one kernel layout.

Kernels are (out, in, *kernel) everywhere in ``adapters``. PyTorch keeps those of transposed convolutions as
(in, out, *kernel); only this module converts.
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
"""Libraries for processors pad fewer channels than this; below it, other ways to convolve are faster."""
NARROW = 2
"""Voxels along an axis up to which strided convolutions are computed in float32 (``Geometry.may_be_wrong``)."""
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
        """The same movement along the chosen axes; along the others, steps of one voxel without padding."""

        def pick(values: tuple[int, ...], neutral: int) -> tuple[int, ...]:
            return tuple(value if chosen else neutral for value, chosen in zip(values, axes, strict=True))

        stride, dilation = pick(self.stride, 1), pick(self.dilation, 1)
        return Geometry(self.transposed, stride, pick(self.padding, 0), dilation, pick(self.output_padding, 0))

    @property
    def is_still(self) -> bool:
        """Whether a kernel of one voxel computes one output for each input voxel."""
        return set(self.stride) == {1} and set(self.padding) == set(self.output_padding) == {0}

    def may_be_wrong(self, few: Sequence[int], dtype: torch.dtype, device: torch.device) -> bool:
        """Whether oneDNN may compute this movement wrongly in bfloat16; ``few`` is the space of the smaller side.

        On processors with AMX, oneDNN reads memory that was never written for some strided convolutions, of narrow maps
        most of all, and ends the process for others (pytorch issues 163347 and 169688; torch 2.13). Movements in steps
        of one voxel are right, and so are strided ones of two axes without dilation and output padding on wider maps.
        """
        if device.type != "cpu" or dtype != torch.bfloat16 or set(self.stride) == {1}:
            return False
        plain = set(self.dilation) == {1} and set(self.output_padding) == {0}
        return len(few) > 2 or not plain or min(few) <= NARROW

    @property
    def is_reversible(self) -> bool:
        """Whether ``reversed`` restores the size of the input."""
        return set(self.stride) == {1} and set(self.output_padding) == {0}

    def reversed(self) -> Geometry:
        """The movement of the convolution that computes the gradient of this one's input."""
        return replace(self, transposed=not self.transposed)


def kernel_of(base: Convolution) -> Tensor:
    """A view of a layer's weight as (out, in, *kernel)."""
    return base.weight.transpose(0, 1) if base.transposed else base.weight


def is_plain(module: Convolution) -> bool:
    """Whether a layer computes the convolution with its weight and nothing else."""
    kind = next(kind for kind in CONVOLUTIONS if isinstance(module, kind))
    own = any(getattr(type(module), name) is not getattr(kind, name) for name in ("forward", "__call__"))
    own |= not module.transposed and type(module)._conv_forward is not kind._conv_forward
    hooked = bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
    return not (own or hooked or is_parametrized(module))


def prepare(x: Tensor, base: Convolution) -> tuple[Tensor, Geometry]:
    """The input (batch, in, *space), padded where ``Geometry`` cannot hold the padding, and the kernel's movement."""
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
    flat, device = kernel.ndim == 4, x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if geometry.may_be_wrong(_smaller_side(x, kernel, geometry), dtype, x.device):
        with torch.autocast(device, enabled=False):
            wide = None if bias is None else bias.float()
            return convolve(x.float(), kernel.float(), geometry, wide, groups).to(dtype)
    if geometry.transposed:
        transposed = functional.conv_transpose2d if flat else functional.conv_transpose3d
        # Of a depthwise kernel (channels, 1, *kernel) both layouts are the same.
        weight = kernel if groups > 1 else kernel.transpose(0, 1)
        return transposed(
            x, weight, bias, geometry.stride, geometry.padding, geometry.output_padding, groups, geometry.dilation
        )
    plain = functional.conv2d if flat else functional.conv3d
    return plain(x, kernel, bias, geometry.stride, geometry.padding, geometry.dilation, groups)


def _smaller_side(x: Tensor, kernel: Tensor, geometry: Geometry) -> list[int]:
    """The space of a convolution's result, or of a transposed one's input."""
    if geometry.transposed:
        return list(x.shape[2:])
    sizes = zip(x.shape[2:], kernel.shape[2:], geometry.stride, geometry.padding, geometry.dilation, strict=True)
    return [(n + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for n, k, stride, padding, dilation in sizes]


def input_gradient(gradient: Tensor, x: Tensor, kernel: Tensor, geometry: Geometry) -> Tensor:
    """Gradient of the input of ``convolve``, (batch, in, *space), from that of the result, (batch, out, *space').

    Only the shape of x matters; but torch copies an expanded stand-in, so pass the input where it is at hand.
    """
    return _backward(gradient, x, kernel, geometry, (True, False, False))[0]


def kernel_gradient(gradient: Tensor, x: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """Gradient of the kernel of ``convolve``, of shape (out, in, *kernel), from that of the result and the input x."""
    of_kernel = _backward(gradient, x, gradient.new_empty(1).expand(shape), geometry, (False, True, False))[1]
    return of_kernel.transpose(0, 1) if geometry.transposed else of_kernel


def _backward(
    gradient: Tensor, x: Tensor, kernel: Tensor, geometry: Geometry, wanted: tuple[bool, bool, bool], groups: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    few, dtype = (x if geometry.transposed else gradient).shape[2:], gradient.dtype
    if geometry.may_be_wrong(few, dtype, gradient.device):
        found = _backward(gradient.float(), x.float(), kernel.float(), geometry, wanted, groups)
        return tuple(None if of is None else of.to(dtype) for of in found)  # type: ignore[return-value]
    weight = kernel.transpose(0, 1) if geometry.transposed and groups == 1 else kernel
    moves = (geometry.stride, geometry.padding, geometry.dilation, geometry.transposed, geometry.output_padding)
    return torch.ops.aten.convolution_backward(gradient, x, weight, None, *moves, groups, wanted)


def pointwise(x: Tensor, matrix: Tensor) -> Tensor:
    """Mix the channels of every voxel: (batch, in, *space) by (out, in) -> (batch, out, *space).

    A matrix product, because convolution libraries pad a few channels to sixteen. ``matmul`` would copy an x that
    requires a gradient.
    """
    product = torch.bmm(matrix.expand(x.shape[0], -1, -1), x.flatten(2))
    return product.view(x.shape[0], matrix.shape[0], *x.shape[2:])


def pointwise_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Gradient of the matrix of ``pointwise``: (batch, out, *space) and (batch, in, *space) -> (out, in)."""
    first, second = gradient.flatten(2), x.flatten(2)
    if first.shape[1] > second.shape[1]:  # the product is faster with its few rows first
        return torch.bmm(second, first.transpose(1, 2)).sum(0).t()
    return torch.bmm(first, second.transpose(1, 2)).sum(0)


def depthwise(x: Tensor, kernels: Tensor, geometry: Geometry) -> Tensor:
    """Each channel by its own kernel: (batch, n, *space) by (n, 1, *kernel) -> (batch, n, *space')."""
    folded, repeated = _fold(x, kernels)
    y = convolve(folded, repeated, geometry, groups=repeated.shape[0])
    return y.reshape(*x.shape[:2], *y.shape[2:])


def depthwise_gradients(gradient: Tensor, x: Tensor, kernels: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Gradients of ``depthwise``'s input and kernels, in their shapes, from that of its result."""
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
    """One number per channel, (channels,), shaped to multiply a tensor of ``n_axes`` axes along ``axis``."""
    shape = [1] * n_axes
    shape[axis] = -1
    return values.view(shape)
