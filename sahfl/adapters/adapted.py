"""The adapted convolution: a frozen layer, a low-rank update of its kernel, and optionally DoRA's magnitudes."""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
from torch import Tensor, nn

from sahfl.adapters.fused import FusedConvolution
from sahfl.adapters.updates.geometry import FEW, Convolution, convolve, kernel_of, per_channel, prepare
from sahfl.adapters.updates.joined import Joined
from sahfl.adapters.updates.update import Update

Path = Literal["dense", "fused"]
TRANSPOSED = 2.5
"""How much more the fused way costs in a transposed convolution, whose output is larger than its input."""
LEAST_SAVED = 8e7
"""Multiplications of a step that the fused way must save to be the faster one, because it has more operations."""


class AdaptedConv(nn.Module):
    """A frozen convolution plus a trainable low-rank update of its kernel.

    With W the kernel of the base and D the update, the layer is the convolution with V = W + scale * D. With
    magnitudes m (DoRA) its kernel is m[o] * V[o] / ||V[o]||; the backward pass takes the norm as a constant, as the
    paper does. Everything else (stride, padding, dilation, padding mode, bias) is the base layer's.

    Guarantees: a fresh layer gives the base's output bit for bit; the base never changes; ``merged()`` computes the
    same function; only what ``exchanged`` names is trainable.

    Args:
        base: the layer, which is frozen here.
        update: the fresh update of the layer's kernel.
        private: a second fresh update of the same form, whose terms stay at the site that trains them; D is the sum.
        scale: factor of the update (``sahfl.adapters.scale_of``).
        magnitude: learn the length of each output channel's kernel apart from its direction.
        rank_dropout: chance that a training step leaves a term of the update out; the other terms are scaled up.

    Source: Hu et al. 2021, arXiv 2106.09685, section 4.1 (scale); Liu et al. 2024, arXiv 2402.09353, sections 4.1 and
    4.3 (magnitude, constant norm); Yeh et al. 2023, arXiv 2309.14859 (rank dropout).
    """

    def __init__(
        self,
        base: Convolution,
        update: nn.Module,
        *,
        scale: float,
        magnitude: bool,
        rank_dropout: float = 0.0,
        private: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.update: Update = update  # type: ignore[assignment]
        self.private: Update | None = private  # type: ignore[assignment]
        self.scale = scale
        self.rank_dropout = rank_dropout
        self.magnitude = nn.Parameter(lengths(kernel_of(base).detach())) if magnitude else None
        self.exchanged = ("magnitude",) if magnitude else ()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, *space) -> (batch, out, *space'); the batch axis may be missing, as in the base."""
        if x.ndim == len(self.base.kernel_size) + 1:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        x, geometry = prepare(x, self.base)
        up, update, bias = self._scaled_up(), self.whole, self.base.bias
        if choose_path(self.base, update, x) == "dense":
            return convolve(x, self.kernel(up)[0], geometry, bias)
        inner = [update.get_parameter(name) for name in update.inner_factors]
        return FusedConvolution.apply(x, self.kernel, update, geometry, up, self.magnitude, bias, *inner)  # type: ignore[no-untyped-call]

    @property
    def whole(self) -> Update:
        """The update with its private terms, if there are any."""
        return self.update if self.private is None else Joined(self.update, self.private)

    def direction(self, up: Tensor) -> Tensor:
        """V, (out, in, *kernel), from ``up`` (out, terms, ...); autocast does not change its precision."""
        kernel = kernel_of(self.base)
        with torch.autocast(kernel.device.type, enabled=False):
            delta = self.whole.delta(up)
        return kernel + delta if torch.is_grad_enabled() else delta.add_(kernel)

    def ratio(self, direction: Tensor) -> Tensor | None:
        """Ratio m / ||V|| of each output channel, (out,), from V (out, in, *kernel); None without magnitudes."""
        if self.magnitude is None:
            return None
        length = lengths(direction.detach())
        return self.magnitude / torch.where(length > 0, length, 1)  # a kernel of zeros stays one

    def kernel(self, up: Tensor) -> tuple[Tensor, Tensor | None]:
        """The adapted kernel, (out, in, *kernel), and its ratio m / ||V||, (out,); from ``up`` (out, terms, ...)."""
        direction = self.direction(up)
        ratio = self.ratio(direction)
        return (direction if ratio is None else direction * per_channel(ratio, direction.ndim, axis=0)), ratio

    @torch.no_grad()
    def merged(self) -> Convolution:
        """A plain convolution that computes the same function; ``self`` is unchanged."""
        plain = copy.deepcopy(self.base)
        kernel_of(plain).copy_(self.kernel(self.whole.up * self.scale)[0])
        return plain

    def _scaled_up(self) -> Tensor:
        up = self.whole.up * self.scale
        if self.training and self.rank_dropout:
            kept = torch.empty(up.shape[1], device=up.device, dtype=up.dtype).bernoulli_(1 - self.rank_dropout)
            up = up * per_channel(kept / (1 - self.rank_dropout), up.ndim, axis=1)
        return up


def lengths(kernel: Tensor) -> Tensor:
    """Length of every output channel's kernel: (out, in, *kernel) -> (out,)."""
    return torch.linalg.vector_norm(kernel.flatten(1), dim=1)


def choose_path(base: Convolution, update: Update, x: Tensor) -> Path:
    """The faster of two equal ways to compute an adapted convolution of x, (batch, in, *space), by a fixed rule.

    ``dense`` makes the adapted kernel and lets autograd compute its dense gradient; ``fused`` is ``FusedConvolution``.
    The rule and the updates' costs come from ``benchmarks/adapters.py --layers`` on one core with AVX-512, of an AMD
    EPYC and of an Intel Xeon; a GPU is not measured and takes ``dense``. Where only ``up`` trains, ``fused`` keeps a
    map of few channels instead of the input.
    """
    if not torch.is_grad_enabled():
        return "dense"
    if not any(update.get_parameter(name).requires_grad for name in update.inner_factors):
        return "fused"
    if x.device.type != "cpu" or base.out_channels < FEW:
        return "dense"
    cost = update.cost * (TRANSPOSED if base.transposed else 1)
    n_pixels = x.shape[0] * math.prod(x.shape[2:])
    saved = (math.prod(base.kernel_size) * base.in_channels * base.out_channels - cost) * n_pixels
    return "fused" if saved > LEAST_SAVED else "dense"
