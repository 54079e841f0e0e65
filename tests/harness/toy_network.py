"""A network of two convolutions, for the test that adds a network to sahfl."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sahfl.errors import ConfigError
from sahfl.model import Network


class ToyNetwork(Network):
    """One network for all views: a convolution that looks around, and one that decides for each pixel."""

    def __init__(
        self, in_channels: int, *, size: str, seed: int, views: Sequence[str] = (), deep_supervision: bool = False
    ) -> None:
        super().__init__(in_channels, size=size, seed=seed)
        if views or deep_supervision:
            raise ConfigError(f"model: {size} has neither planes: per_view nor deep_supervision")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.look = nn.Conv2d(in_channels, 6, kernel_size=3, padding=1)
            self.decide = nn.Conv2d(6, 1, kernel_size=1)

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        return {"encoder": ("look",), "head": ("decide",)}

    def forward(self, slices: Tensor, view: str | None = None) -> Tensor:
        """(batch, in_channels, height, width) -> logits (batch, 1, height, width)."""
        return self.decide(torch.relu(self.look(slices)))
