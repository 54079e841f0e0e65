"""The multi-view U-Net: one 2-D network that sees axial, coronal and sagittal slices."""

from __future__ import annotations

from typing import Literal

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

FEATURES: dict[str, tuple[int, ...]] = {
    "tiny": (16, 16, 32, 64, 128, 16),
    "base": (32, 64, 128, 256, 448, 32),
    "large": (64, 128, 256, 512, 896, 64),
}
BLOOD_PRIOR_LOGIT = -4.0
"""Start of the output bias: about 2 % of the pixels of a slice are blood, and starting there saves the first steps."""


class MultiViewUNet(nn.Module):
    """A U-Net on slices with neighbours and HU windows as channels, shared by all views.

    MONAI's ``BasicUNet`` with instance norm: no running statistics, so a site's scanner never leaks into the weights
    through a norm, and averaging sites is well defined. Its parts are named by role: ``conv_0``, ``down_1`` to
    ``down_3`` (encoder), ``down_4`` (bottleneck), ``upcat_4`` to ``upcat_1`` (decoder), ``final_conv`` (head).

    Args:
        in_channels: windows times slices (``data.views.n_channels``).
        size: width of the network.
        seed: seed of the initial weights.
    """

    def __init__(self, in_channels: int, *, size: Literal["tiny", "base", "large"], seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = BasicUNet(
                spatial_dims=2,
                in_channels=in_channels,
                out_channels=1,
                features=FEATURES[size],
                norm=("instance", {"affine": True}),
            )
        nn.init.constant_(self.net.final_conv.bias, BLOOD_PRIOR_LOGIT)

    @property
    def parts(self) -> dict[str, str]:
        """Paths of the parts by role and depth; depth 1 is at full resolution."""
        encoder = {"encoder.1": "net.conv_0"} | {f"encoder.{n + 1}": f"net.down_{n}" for n in (1, 2, 3)}
        decoder = {f"decoder.{n}": f"net.upcat_{n}" for n in (4, 3, 2, 1)}
        return encoder | {"bottleneck": "net.down_4"} | decoder | {"head": "net.final_conv"}

    def forward(self, slices: Tensor) -> Tensor:
        """(batch, in_channels, height, width) in 0..1 -> logits of blood (batch, 1, height, width)."""
        return self.net(slices)


def device_of(net: nn.Module) -> torch.device:
    """Where a network computes: the device of its parameters; the processor, if it has none."""
    return next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
