"""The interface of a network, and the multi-view U-Net: 2-D networks on axial, coronal and sagittal slices."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

import sahfl.monai_parts  # noqa: F401 - before sahfl.unet, which imports MONAI by itself
from sahfl.errors import ConfigError
from sahfl.seeds import derive_seed
from sahfl.unet import DEPTHS, UNet

WIDTHS: dict[str, tuple[int, int, int, int, int]] = {
    "tiny": (16, 16, 32, 64, 128),
    "base": (32, 64, 128, 256, 400),
    "large": (64, 128, 256, 512, 800),
}
"""Channels at the depths 1 (full resolution) to 4, and in the bottleneck."""


@dataclass(frozen=True)
class PlainNetwork:
    """The network of one view by itself. The file of its class imports nothing of sahfl: a bundle has a copy of it."""

    module: nn.Module
    """Takes slices (batch, in_channels, height, width) alone; returns logits (batch, 1, height, width)."""
    arguments: Mapping[str, Any]
    """The class, called with these, builds a module with the same tensors; values are those of JSON."""


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

    def plain(self, view: str) -> PlainNetwork:
        """The network of a view by itself, for a MONAI bundle; a subclass may leave it out.

        Raises:
            ConfigError: this kind of network has no class that works without sahfl.
        """
        found = f"the network {type(self).__name__} does not work without sahfl"
        raise ConfigError(f"bundle: {found}, as a bundle must; name another format, such as onnx")


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
        n_outputs = 3 if deep_supervision else 1
        self._arguments: dict[str, Any] = {
            "in_channels": in_channels,
            "widths": list(WIDTHS[size]),
            "n_outputs": n_outputs,
        }
        seeds: dict[str, int] = {view: derive_seed(seed, view) for view in views} or {"net": seed}
        for name, own_seed in seeds.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(own_seed)
                self.add_module(name, UNet(**self._arguments))

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """The parts by role and depth; depth 1 is at full resolution. A part spans all networks."""
        roles = [f"encoder.{depth}" for depth in DEPTHS] + ["bottleneck"]
        roles += [f"decoder.{depth}" for depth in reversed(DEPTHS)] + ["head"]
        return {role: tuple(f"{name}.{role}" for name, _ in self.named_children()) for role in roles}

    def forward(self, slices: Tensor, view: str | None = None) -> Tensor | list[Tensor]:
        """(batch, in_channels, height, width) -> logits (batch, 1, height, width); the mean of all without a view."""
        if self._shared or view is not None:
            return self._net(view)(slices)
        outputs = [net(slices) for net in self.children()]
        if isinstance(outputs[0], Tensor):
            return torch.stack(outputs).mean(0)
        return [torch.stack(level).mean(0) for level in zip(*outputs, strict=True)]

    def plain(self, view: str) -> PlainNetwork:
        """The U-Net of a view."""
        return PlainNetwork(self._net(view), self._arguments)

    def _net(self, view: str | None) -> nn.Module:
        return self.get_submodule("net" if self._shared else str(view))


_FOR_INFERENCE: WeakSet[nn.Module] = WeakSet()
"""What ``for_inference`` made, so that it is not made twice."""


def for_inference(net: nn.Module) -> nn.Module:
    """A network that computes the same, within rounding, in less time on a processor; ``net`` is unchanged.

    The weights get the memory format ``channels_last``, for which torch has faster kernels on a processor
    (``benchmarks/prediction.py``). The copy is in evaluation mode. A network that this function made is returned
    itself, unless it was put in training mode since.
    """
    if net in _FOR_INFERENCE and not net.training:
        return net
    found = copy.deepcopy(net).eval()
    _FOR_INFERENCE.add(found)
    on_processor = device_of(net).type == "cpu"
    return found.to(memory_format=torch.channels_last) if on_processor else found  # type: ignore[call-overload]


def device_of(net: nn.Module) -> torch.device:
    """The device of a network's parameters; the processor, if it has none."""
    return next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
