"""The two convolutions of the toy network, in a file without sahfl: a MONAI bundle has a copy of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ToyLayers(nn.Module):
    """A convolution that looks around, and one that decides for each pixel."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.look = nn.Conv2d(in_channels, 6, kernel_size=3, padding=1)
        self.decide = nn.Conv2d(6, 1, kernel_size=1)

    def forward(self, slices: Tensor) -> Tensor:
        """(batch, in_channels, height, width) -> logits (batch, 1, height, width)."""
        return self.decide(torch.relu(self.look(slices)))
