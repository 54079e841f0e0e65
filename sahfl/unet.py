"""A 2-D U-Net of torch and MONAI alone. A MONAI bundle carries a copy of this file, so it imports nothing of sahfl."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

DEPTHS = ("1", "2", "3", "4")
BLOOD_PRIOR_LOGIT = -4.0
"""Initial output bias: about 2 % of the pixels of a slice are blood."""


class UNet(nn.Module):
    """A 2-D U-Net of four halvings, its modules named by role and depth, with 1x1 outputs that start at rare blood.

    Each depth has two of MONAI's convolutions with instance norm and leaky ReLU. No convolution has a bias, because the
    next norm would remove it (after a transposed one, but for the picture's edge).

    Source: Ronneberger et al. 2015, arXiv 1505.04597; instance norm, transposed convolutions and outputs at several
    resolutions as in nnU-Net, Isensee et al. 2021, doi 10.1038/s41592-020-01008-z.

    Args:
        in_channels: channels of a slice.
        widths: channels at the depths 1 (full resolution) to 4, and in the bottleneck.
        n_outputs: resolutions with an output, the finest first; all but the finest are computed in training only.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], *, n_outputs: int = 1) -> None:
        super().__init__()
        inputs, below = (in_channels, *widths), widths[1:]
        self.encoder = nn.ModuleDict({d: _two_convolutions(*inputs[n : n + 2]) for n, d in enumerate(DEPTHS)})
        self.bottleneck = _two_convolutions(*widths[-2:])
        steps = reversed(list(zip(DEPTHS, below, widths, strict=False)))
        self.decoder = nn.ModuleDict({depth: UpStep(deeper, width) for depth, deeper, width in steps})
        self.head = nn.ModuleDict({DEPTHS[n]: nn.Conv2d(widths[n], 1, kernel_size=1) for n in range(n_outputs)})
        for output in self.head.values():
            nn.init.constant_(output.bias, BLOOD_PRIOR_LOGIT)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(batch, in_channels, height, width) -> logits (batch, 1, height, width).

        In training with several outputs a list of all, the finest first.
        """
        skips, logits = {}, {}
        for depth in DEPTHS:
            skips[depth] = x = self.encoder[depth](x)
            x = max_pool2d(x, 2)
        x = self.bottleneck(x)
        for depth, step in self.decoder.items():
            x = step(x, skips[depth])
            if depth == "1" or (self.training and depth in self.head):
                logits[depth] = self.head[depth](x)
        return logits["1"] if len(logits) == 1 else [logits[depth] for depth in sorted(logits)]


class UpStep(nn.Module):
    """One depth of the decoder: doubles the size and appends the encoder's channels of that depth."""

    def __init__(self, deeper: int, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(deeper, width, kernel_size=2, stride=2, bias=False)
        self.convs = _two_convolutions(2 * width, width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(batch, deeper, height, width) and (batch, width, 2 height, 2 width) -> the shape of the second."""
        return self.convs(torch.cat([skip, self.up(x)], dim=1))


def _two_convolutions(in_channels: int, out_channels: int) -> nn.Sequential:
    """Instance norm is group norm with a group for each channel, which torch computes in less time on a processor."""
    act, norm = ("leakyrelu", {"negative_slope": 0.1, "inplace": True}), ("group", {"num_groups": out_channels})
    return nn.Sequential(
        Convolution(2, in_channels, out_channels, act=act, norm=norm, bias=False),
        Convolution(2, out_channels, out_channels, act=act, norm=norm, bias=False),
    )
