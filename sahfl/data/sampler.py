"""Training batches: augmented random slices of a site's volumes, a fixed share of them with blood."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sahfl.data.augmentation import Augmentation
from sahfl.data.view_settings import Strength, View, ViewsConfig
from sahfl.data.views import CaseViews, SliceStack, slab, windows


class SliceSampler:
    """Endless batches of slices from a set of volumes.

    Each batch shows one view, drawn by the views' weights. Each slice comes from a volume drawn with equal chance, so
    that patients count equally whatever their number of slices. The first ``foreground_share`` of a batch is drawn from
    the slices with blood, if the volume has any.

    Guarantees: the batches depend only on the arguments.
    """

    def __init__(
        self,
        cases: Sequence[CaseViews],
        views: ViewsConfig,
        *,
        batch_size: int,
        foreground_share: float,
        seed: int,
        augmentation: Strength = "usual",
    ) -> None:
        self._by_view: dict[View, list[CaseViews]] = {
            view: [case for case in cases if view in case.stacks] for view in views.weights
        }
        self._config = views
        self._batch_size = batch_size
        self._n_foreground = round(batch_size * foreground_share)
        self.seed = seed
        self._random = np.random.default_rng(seed)
        self._augment = Augmentation(spacing_mm=views.spacing_mm, strength=augmentation, seed=seed)
        self._chances = [weight if self._by_view[view] else 0.0 for view, weight in views.weights.items()]

    def batch(self) -> tuple[Tensor, Tensor, View]:
        """Network input (batch, channels, height, width) in 0..1, blood (batch, 1, height, width), and their view."""
        chances = np.asarray(self._chances) / sum(self._chances)
        view = list(self._by_view)[self._random.choice(len(chances), p=chances)]
        drawn = [self._draw(view, foreground=index < self._n_foreground) for index in range(self._batch_size)]
        image, label = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
        # Height is x in axial and coronal slices, so mirroring it swaps left and right; sagittal slices have no x axis.
        image, label = self._augment(image, label, mirror=view != "sagittal")
        return windows(image, self._config.windows_hu), label, view

    def _draw(self, view: View, *, foreground: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A slice with its neighbours (slices, height, width) in HU, and its blood (1, height, width)."""
        stack, index = self._choose(view, foreground=foreground)
        return slab(stack, index, self._config.neighbours), stack.label[index : index + 1].astype(np.float32)

    def _choose(self, view: View, *, foreground: bool) -> tuple[SliceStack, int]:
        """The slices of a volume, and the number of one of them."""
        cases = self._by_view[view]
        stack = cases[self._random.integers(len(cases))].stacks[view]
        if foreground and len(stack.with_blood):
            return stack, int(self._random.choice(stack.with_blood))
        return stack, int(self._random.integers(stack.image.shape[0]))
