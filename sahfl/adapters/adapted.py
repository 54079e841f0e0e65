"""The adapted convolution: a frozen layer, a low-rank update of its kernel, and optionally DoRA's magnitudes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sahfl.adapters.fused import FusedConvolution
from sahfl.adapters.paths import choose_path
from sahfl.adapters.updates.geometry import Convolution, convolve, kernel_of, per_channel, prepare
from sahfl.adapters.updates.update import Update


class AdaptedConv(nn.Module):
    """A frozen convolution plus a trainable low-rank update of its kernel.

    With W the kernel of the base and D the update's, the layer is the convolution with V = W + scale * D; with
    magnitudes m (DoRA) it is that with m[o] * V[o] / ||V[o]||, the norm of every output channel's kernel being taken
    as a constant in the backward pass, as the paper does. Stride, padding, dilation, padding mode
    and bias stay the base layer's own.

    Guarantees: a fresh layer gives the base's output bit for bit; the base never changes, so taking the adapter off
    restores it bit for bit; ``merged()`` computes the same function; only what ``exchanged`` names is trainable.

    Args:
        base: the layer; frozen from here on.
        update: its kernel's update, fresh.
        scale: factor of the update (alpha / rank, or alpha / sqrt(rank)).
        magnitude: learn the length of each output channel's kernel apart from its direction.
        rank_dropout: chance that a term of the update is left out of a training step; the others are scaled up.

    Source: Hu et al. 2021, arXiv 2106.09685, section 4.1 (scale); Kalajdzievski 2023, arXiv 2312.03732 (square root);
    Liu et al. 2024, arXiv 2402.09353, sections 4.1 and 4.3 (magnitude, constant norm); Yeh et al. 2023, arXiv
    2309.14859 (rank dropout).
    """

    def __init__(
        self, base: Convolution, update: nn.Module, *, scale: float, magnitude: bool, rank_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.update: Update = update  # type: ignore[assignment]
        self.scale = scale
        self.rank_dropout = rank_dropout
        self.magnitude = nn.Parameter(lengths(kernel_of(base).detach())) if magnitude else None
        self.exchanged = ("magnitude",) if magnitude else ()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, *space) -> (batch, out, *space'); without a batch too, as the base."""
        if x.ndim == len(self.base.kernel_size) + 1:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        x, geometry = prepare(x, self.base)
        up, update, bias = self._scaled_up(), self.update, self.base.bias
        if choose_path(self.base, update, x) == "dense":
            return convolve(x, self.kernel(up)[0], geometry, bias)
        inner = [update.get_parameter(name) for name in update.inner_factors]
        return FusedConvolution.apply(x, self.kernel, update, geometry, up, self.magnitude, bias, *inner)  # type: ignore[no-untyped-call]

    def direction(self, up: Tensor) -> Tensor:
        """V, (out, in, *kernel); in the parameters' own precision, whatever autocast says."""
        kernel = kernel_of(self.base)
        with torch.autocast(kernel.device.type, enabled=False):
            delta = self.update.delta(up)
        return kernel + delta if torch.is_grad_enabled() else delta.add_(kernel)

    def ratio(self, direction: Tensor) -> Tensor | None:
        """Ratio m / ||V|| of each output channel, (out,); None without magnitudes."""
        if self.magnitude is None:
            return None
        length = lengths(direction.detach())
        return self.magnitude / torch.where(length > 0, length, 1)  # a kernel of zeros stays one

    def kernel(self, up: Tensor) -> tuple[Tensor, Tensor | None]:
        """The adapted kernel, (out, in, *kernel), and the ratio m / ||V|| in it."""
        direction = self.direction(up)
        ratio = self.ratio(direction)
        return (direction if ratio is None else direction * per_channel(ratio, direction.ndim, axis=0)), ratio

    @torch.no_grad()
    def merged(self) -> Convolution:
        """A plain convolution that computes the same function; ``self`` is unchanged."""
        plain = copy.deepcopy(self.base)
        kernel_of(plain).copy_(self.kernel(self.update.up * self.scale)[0])
        return plain

    def _scaled_up(self) -> Tensor:
        up = self.update.up * self.scale
        if self.training and self.rank_dropout:
            kept = torch.empty(up.shape[1], device=up.device, dtype=up.dtype).bernoulli_(1 - self.rank_dropout)
            up = up * per_channel(kept / (1 - self.rank_dropout), up.ndim, axis=1)
        return up


def lengths(kernel: Tensor) -> Tensor:
    """Length of every output channel's kernel, (out,)."""
    return torch.linalg.vector_norm(kernel.flatten(1), dim=1)
