"""Training batches: augmented random slices of a site's volumes, a fixed share of them with blood."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sahfl.data.view_settings import View, ViewsConfig
from sahfl.data.views import CaseViews, slab, windows
from sahfl.monai_parts import (
    Compose,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    set_track_meta,
)


class SliceSampler:
    """Endless batches of slices from a set of volumes.

    Each batch shows one view, drawn by the views' weights. Each slice comes from a volume drawn with equal chance, so
    that patients count equally whatever their number of slices. The first ``foreground_share`` of a batch is drawn from
    the slices with blood, if the volume has any.

    Guarantees: the batches depend only on the arguments.
    """

    def __init__(
        self, cases: Sequence[CaseViews], views: ViewsConfig, *, batch_size: int, foreground_share: float, seed: int
    ) -> None:
        self._by_view: dict[View, list[CaseViews]] = {
            view: [case for case in cases if view in case.stacks] for view in views.weights
        }
        self._config = views
        self._batch_size = batch_size
        self._n_foreground = round(batch_size * foreground_share)
        self.seed = seed
        self._random = np.random.default_rng(seed)
        self._augment = {mirror: _augmentation(mirror=mirror, seed=seed) for mirror in (True, False)}
        self._chances = [weight if self._by_view[view] else 0.0 for view, weight in views.weights.items()]
        set_track_meta(False)  # MONAI's metadata tensors would cost a third of the loading time

    def batch(self) -> tuple[Tensor, Tensor, View]:
        """Network input (batch, channels, height, width) in 0..1, blood (batch, 1, height, width), and their view."""
        chances = np.asarray(self._chances) / sum(self._chances)
        view = list(self._by_view)[self._random.choice(len(chances), p=chances)]
        slices = [self._draw(view, foreground=index < self._n_foreground) for index in range(self._batch_size)]
        image = torch.stack([torch.as_tensor(item["image"]) for item in slices])
        label = torch.stack([torch.as_tensor(item["label"]) for item in slices])
        return windows(image, self._config.windows_hu), (label >= 0.5).float(), view

    def _draw(self, view: View, *, foreground: bool) -> dict[str, Tensor]:
        cases = self._by_view[view]
        stack = cases[self._random.integers(len(cases))].stacks[view]
        if foreground and len(stack.with_blood):
            index = int(self._random.choice(stack.with_blood))
        else:
            index = int(self._random.integers(stack.image.shape[0]))
        item = {
            "image": slab(stack, index, self._config.neighbours),
            "label": stack.label[index : index + 1].astype(np.float32),
        }
        # Height is x in axial and coronal slices, so mirroring it swaps left and right; sagittal slices have no x axis.
        return self._augment[view != "sagittal"](item)


def _augmentation(*, mirror: bool, seed: int) -> Compose:
    """Mirroring, rotation, zoom, shift, blur, contrast, calibration offset and noise in HU.

    nnU-Net also changes gamma and resolution, and uses other chances and mostly wider ranges (Isensee et al. 2021, doi
    10.1038/s41592-020-01008-z, supplementary note 4).
    """
    steps = [
        RandFlipd(["image", "label"], prob=0.5 if mirror else 0.0, spatial_axis=0),
        RandAffined(
            ["image", "label"],
            prob=0.3,
            rotate_range=0.25,
            scale_range=0.15,
            translate_range=6,
            mode=("bilinear", "nearest"),
            padding_mode="border",
        ),
        RandGaussianSmoothd("image", prob=0.15, sigma_x=(0.3, 0.8), sigma_y=(0.3, 0.8)),
        RandScaleIntensityd("image", prob=0.3, factors=0.1),
        RandShiftIntensityd("image", prob=0.5, offsets=5.0),
        RandGaussianNoised("image", prob=0.3, std=4.0),
    ]
    return Compose(steps).set_random_state(seed)
