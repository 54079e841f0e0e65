"""A network of two convolutions, for the test that adds a network to sahfl."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.toy_layers import ToyLayers
from sahfl.errors import ConfigError
from sahfl.model import Network, PlainNetwork


class ToyNetwork(Network):
    """One network of two convolutions for all views."""

    def __init__(
        self, in_channels: int, *, size: str, seed: int, views: Sequence[str] = (), deep_supervision: bool = False
    ) -> None:
        super().__init__(in_channels, size=size, seed=seed)
        if views or deep_supervision:
            raise ConfigError(f"model: {size} has neither planes: per_view nor deep_supervision")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = ToyLayers(in_channels)
        self.in_channels = in_channels

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        return {"encoder": ("net.look",), "head": ("net.decide",)}

    def forward(self, slices: Tensor, view: str | None = None) -> Tensor:
        """(batch, in_channels, height, width) -> logits (batch, 1, height, width)."""
        return self.net(slices)

    def plain(self, view: str) -> PlainNetwork:
        """The layers by themselves."""
        return PlainNetwork(self.net, {"in_channels": self.in_channels})
