"""The interface of a network, and the multi-view U-Net: 2-D networks on axial, coronal and sagittal slices."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from sahfl.seeds import derive_seed

WIDTHS: dict[str, tuple[int, int, int, int, int]] = {
    "tiny": (16, 16, 32, 64, 128),
    "base": (32, 64, 128, 256, 400),
    "large": (64, 128, 256, 512, 800),
}
"""Channels at the depths 1 (full resolution) to 4, and in the bottleneck."""
DEPTHS = ("1", "2", "3", "4")
BLOOD_PRIOR_LOGIT = -4.0
"""Initial output bias: about 2 % of the pixels of a slice are blood."""


class Network(nn.Module, ABC):
    """Base class of networks that segment slices; ``config.network.NETWORKS`` lists its subclasses.

    A subclass draws its weights from ``seed`` alone. It has no buffers, because running statistics would carry one
    site's scanner to the others. It raises ``ConfigError`` for a setting that it does not support.

    Args:
        in_channels: channels of a slice: windows times slices (``data.views.n_channels``).
        size: the network's name in the table.
        seed: seed of the initial weights.
        views: the views that have a network of their own; without any, one network sees all.
        deep_supervision: add outputs at half and quarter resolution, for training only.
    """

    def __init__(
        self, in_channels: int, *, size: str, seed: int, views: Sequence[str] = (), deep_supervision: bool = False
    ) -> None:
        super().__init__()

    @property
    @abstractmethod
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Parts of the network by the names that a method's settings use, each with the paths of its modules."""

    @abstractmethod
    def forward(self, slices: Tensor, view: str | None = None) -> Tensor | list[Tensor]:
        """Logits of blood for slices of a view.

        Args:
            slices: (batch, in_channels, height, width) in 0..1; height and width are multiples of 16.
            view: name of the view. Without it every layer runs once, for code without views.

        Returns:
            (batch, 1, height, width). In training with deep supervision a list: that, at half, and at quarter size.
        """


class MultiViewUNet(Network):
    """U-Nets on slices with neighbours and HU windows as channels: one shared by all views, or one for each.

    Guarantees: a batch of one view gives no gradient to another view's own network, whose initial weights do not depend
    on the other views.
    """

    def __init__(
        self, in_channels: int, *, size: str, seed: int, views: Sequence[str] = (), deep_supervision: bool = False
    ) -> None:
        super().__init__(in_channels, size=size, seed=seed)
        self._shared = not views
        seeds: dict[str, int] = {view: derive_seed(seed, view) for view in views} or {"net": seed}
        for name, own_seed in seeds.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(own_seed)
                self.add_module(name, UNet(in_channels, WIDTHS[size], n_outputs=3 if deep_supervision else 1))

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """The parts by role and depth; depth 1 is at full resolution. A part spans all networks."""
        roles = [f"encoder.{depth}" for depth in DEPTHS] + ["bottleneck"]
        roles += [f"decoder.{depth}" for depth in reversed(DEPTHS)] + ["head"]
        return {role: tuple(f"{name}.{role}" for name, _ in self.named_children()) for role in roles}

    def forward(self, slices: Tensor, view: str | None = None) -> Tensor | list[Tensor]:
        """(batch, in_channels, height, width) -> logits (batch, 1, height, width); the mean of all without a view."""
        nets = list(self.children()) if view is None or self._shared else [self.get_submodule(view)]
        outputs = [net(slices) for net in nets]
        logits = [level[0] if len(nets) == 1 else torch.stack(level).mean(0) for level in zip(*outputs, strict=True)]
        return logits if len(logits) > 1 else logits[0]


class UNet(nn.Module):
    """A 2-D U-Net of four halvings, its modules named by role and depth, with 1x1 outputs that start at rare blood.

    Each depth has two of MONAI's convolutions with instance norm and leaky ReLU. No convolution has a bias, because the
    next norm would remove it (after a transposed one, but for the picture's edge).

    Source: Ronneberger et al. 2015, arXiv 1505.04597; instance norm, transposed convolutions and outputs at several
    resolutions as in nnU-Net, Isensee et al. 2021, doi 10.1038/s41592-020-01008-z.

    Args:
        in_channels: channels of a slice.
        widths: channels at the depths 1 to 4, and in the bottleneck.
        n_outputs: resolutions with an output, the finest first; all but the finest are computed in training only.
    """

    def __init__(self, in_channels: int, widths: tuple[int, ...], *, n_outputs: int) -> None:
        super().__init__()
        inputs, below = (in_channels, *widths), widths[1:]
        self.encoder = nn.ModuleDict({d: _two_convolutions(*inputs[n : n + 2]) for n, d in enumerate(DEPTHS)})
        self.bottleneck = _two_convolutions(*widths[-2:])
        steps = reversed(list(zip(DEPTHS, below, widths, strict=False)))
        self.decoder = nn.ModuleDict({depth: UpStep(deeper, width) for depth, deeper, width in steps})
        self.head = nn.ModuleDict({DEPTHS[n]: nn.Conv2d(widths[n], 1, kernel_size=1) for n in range(n_outputs)})
        for output in self.head.values():
            nn.init.constant_(output.bias, BLOOD_PRIOR_LOGIT)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> list[Tensor]:
        """(batch, in_channels, height, width) -> logits (batch, 1, ...), the finest first; alone unless training."""
        skips, logits = {}, {}
        for depth in DEPTHS:
            skips[depth] = x = self.encoder[depth](x)
            x = max_pool2d(x, 2)
        x = self.bottleneck(x)
        for depth, step in self.decoder.items():
            x = step(x, skips[depth])
            if depth == "1" or (self.training and depth in self.head):
                logits[depth] = self.head[depth](x)
        return [logits[depth] for depth in sorted(logits)]


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
    act, norm = ("leakyrelu", {"negative_slope": 0.1, "inplace": True}), ("instance", {"affine": True})
    return nn.Sequential(
        Convolution(2, in_channels, out_channels, act=act, norm=norm, bias=False),
        Convolution(2, out_channels, out_channels, act=act, norm=norm, bias=False),
    )


def for_inference(net: nn.Module) -> nn.Module:
    """A network that computes the same, within rounding, in less time on a processor; ``net`` is unchanged.

    Every 2-D instance norm becomes a group norm of one channel per group, which is the same formula, and the weights
    get the memory format ``channels_last``; torch has faster kernels for both (``benchmarks/prediction.py``). On
    another device the copy has no such changes. The copy is in evaluation mode.
    """
    found = copy.deepcopy(net).eval()
    if device_of(net).type != "cpu":
        return found
    for path, module in list(found.named_modules()):
        if isinstance(module, nn.InstanceNorm2d) and not module.track_running_stats:
            norm = nn.GroupNorm(module.num_features, module.num_features, eps=module.eps, affine=module.affine)
            norm.weight, norm.bias = module.weight, module.bias
            found.set_submodule(path, norm)
    return found.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def device_of(net: nn.Module) -> torch.device:
    """The device of a network's parameters; the processor, if it has none."""
    return next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
