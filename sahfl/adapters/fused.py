"""The adapted convolution as one operation, with two dense convolutions in each training step.

The forward pass convolves with the adapted kernel; the backward pass computes the gradient of the input. The gradients
of the factors come from maps of few channels, which the backward pass makes again. No dense kernel gradient is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sahfl.adapters.updates.geometry import Geometry, convolve, input_gradient, per_channel
from sahfl.adapters.updates.update import Update

Kernel = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""``AdaptedConv.kernel``."""


class FusedConvolution(torch.autograd.Function):
    """Convolution with the kernel of an ``AdaptedConv``; gradients for all that may train, and for the input.

    Guarantees: equals autograd through the dense kernel, up to rounding. The backward pass keeps the input, or a map of
    few channels where neither an inner factor nor a magnitude trains. With magnitudes it keeps the output too, and
    computes it again if a later operation has overwritten it in place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        kernel_of: Kernel,
        update: Update,
        geometry: Geometry,
        up: Tensor,
        magnitude: Tensor | None,
        bias: Tensor | None,
        *inner: Tensor,
    ) -> Tensor:
        """(batch, in, *space) -> (batch, out, *space')."""
        device = x.device.type
        ctx.autocast = torch.is_autocast_enabled(device)
        if ctx.autocast:
            x = x.to(torch.get_autocast_dtype(device))
        ctx.kernel_of, ctx.update, ctx.geometry, ctx.shape = kernel_of, update, geometry, x.shape
        ctx.inner_trains = any(ctx.needs_input_grad[7:])
        with torch.autocast(device, enabled=False):
            kernel = kernel_of(up)[0].to(x.dtype)
            y = convolve(x, kernel, geometry, None if bias is None else bias.to(x.dtype))
        ctx.keeps_input = ctx.inner_trains or magnitude is not None
        ctx.save_for_backward(x if ctx.keeps_input else _inner(ctx, x), up, magnitude, bias, *inner)
        # Not saved as the others: autograd would refuse the backward pass if an activation overwrote it in place.
        ctx.y, ctx.version = None if magnitude is None else y.detach(), y._version
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Gradients in the order of the arguments of ``forward``."""
        kept, up, magnitude, bias, *inner = ctx.saved_tensors
        y, ctx.y = ctx.y, None  # at once: the graph may live until the next step's
        update, geometry, dtype = ctx.update, ctx.geometry, kept.dtype
        gradient = gradient.contiguous()
        with torch.autocast(kept.device.type, enabled=False):
            kernel, ratio = ctx.kernel_of(up)
            kernel = kernel.to(dtype)
            of_x = None
            if ctx.needs_input_grad[0]:
                x = kept if ctx.keeps_input else gradient.new_empty(1).expand(ctx.shape)
                of_x = input_gradient(gradient, x, kernel, geometry)
            if magnitude is not None and (y is None or y._version != ctx.version):
                y = convolve(kept, kernel, geometry, None if bias is None else bias.to(dtype))
            if ctx.inner_trains:
                rows = up if ratio is None else up * per_channel(ratio, up.ndim, axis=0)
                of_up, *of_inner = update.gradients(gradient, kept, rows.to(dtype), geometry)
            else:
                u = _inner(ctx, kept) if ctx.keeps_input else kept
                of_up, of_inner = update.up_gradient(gradient, u, geometry), [None] * len(inner)
            of_up = of_up.to(up.dtype) if ratio is None else of_up * per_channel(ratio, up.ndim, axis=0)
            of_magnitude = None if magnitude is None else _magnitude_gradient(gradient, y, bias, magnitude)
            of_bias = gradient.sum([0, *range(2, gradient.ndim)], dtype=bias.dtype) if ctx.needs_input_grad[6] else None
        of_inner = [None if of is None else of.to(factor.dtype) for of, factor in zip(of_inner, inner, strict=True)]
        return of_x, None, None, None, of_up, of_magnitude, of_bias, *of_inner


def _inner(ctx: Any, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, dtype=x.dtype if ctx.autocast else None, enabled=ctx.autocast):
        return ctx.update.inner(x, ctx.geometry)


def _magnitude_gradient(gradient: Tensor, y: Tensor, bias: Tensor | None, magnitude: Tensor) -> Tensor:
    wide = torch.promote_types(gradient.dtype, torch.float32)
    # One by one: the product of a whole batch would leave the cache and come back to be summed.
    along = sum((one * of_one).flatten(1).sum(1, dtype=wide) for one, of_one in zip(y, gradient, strict=True))
    if bias is not None:
        along = along - bias * sum(of_one.flatten(1).sum(1, dtype=wide) for of_one in gradient)
    # A magnitude of zero belongs to a kernel of zeros, which nothing trains.
    return torch.where(magnitude == 0, 0, along / magnitude).to(magnitude.dtype)
