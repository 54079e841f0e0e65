"""Comparison of an exported network with the run's network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sahfl.config import View, ViewsConfig
from sahfl.data.views import windows
from sahfl.errors import ExportDiffers

MOST_DIFFERENCE = 1e-3
"""Allowed difference of logits, 0.00025 of a probability; other kernels and a merged adapter round differently."""
Computes = Callable[[Tensor, View], Tensor]
"""From slices in HU with their neighbours, (batch, slices, height, width), and their view to logits (batch, 1, ...)."""


def from_hu(net: nn.Module, views: ViewsConfig) -> Computes:
    """A network with the HU windows in front of it."""
    return lambda slabs, view: net(windows(slabs, views.windows_hu), view)


@torch.no_grad()
def compare(what: str, found: Computes, net: nn.Module, views: ViewsConfig) -> float:
    """Largest absolute difference of logits between an export, read back from its file, and the run's own network.

    Each view is compared at its own size and at 64 x 48 pixels. The adapter of ``net`` is not merged.

    Raises:
        ExportDiffers: the difference is above ``MOST_DIFFERENCE``, or not a number.
    """
    generator = torch.Generator().manual_seed(0)
    x, y, z = views.size
    sizes: dict[View, tuple[int, int]] = {"axial": (x, y), "coronal": (x, z), "sagittal": (y, z)}
    largest, expected = 0.0, from_hu(net.eval(), views)
    for view in views.weights:
        for n, size in ((2, sizes[view]), (1, (64, 48))):
            slabs = 100 * torch.randn(n, 2 * views.neighbours + 1, *size, generator=generator)
            largest = max(largest, float((found(slabs, view) - expected(slabs, view)).abs().max()))
    if not largest <= MOST_DIFFERENCE:
        raise ExportDiffers(f"{what}: differs by {largest:.3g} from the run's network, expected {MOST_DIFFERENCE:g}")
    return largest
