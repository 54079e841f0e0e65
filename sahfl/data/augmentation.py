"""Augmentation of a whole batch of slices at once, in torch: lengths in mm, intensities in HU.

``usual`` is mild and helps short trainings. ``strong`` also randomises what differs between scanners, patients and the
age of blood, as a training of a thousand steps or more can use it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sahfl.data.ct import AIR_HU
from sahfl.data.view_settings import Strength

TISSUE_HU = (0.0, 100.0)
"""Range in which tissue and blood lie; what randomises their contrast leaves the rest as it is."""
Floats = NDArray[np.float64]


class Augmentation:
    """Random changes of the slices of a batch, each by itself; image and blood move together.

    Guarantees: the result depends only on the arguments and on the calls before; PyTorch's random state is unchanged.

    Args:
        spacing_mm: pixel size of the slices.
        strength: ``usual`` or ``strong``.
        seed: seed of all draws.

    Source: the kinds of changes as in nnU-Net, Isensee et al. 2021, doi 10.1038/s41592-020-01008-z, supplementary note
    4, with other ranges; ``strong`` as in domain randomisation, Billot et al. 2023, doi 10.1016/j.media.2023.102789.
    """

    def __init__(self, *, spacing_mm: float, strength: Strength = "usual", seed: int) -> None:
        self._pixel, self._strength = spacing_mm, strength
        self._random = np.random.default_rng(seed)
        self._noise = torch.Generator().manual_seed(seed % 2**63)

    def __call__(self, image: Tensor, label: Tensor, *, mirror: bool) -> tuple[Tensor, Tensor]:
        """Change a batch.

        Args:
            image: (batch, slices, height, width), float32, HU; unchanged itself.
            label: blood (batch, 1, height, width), 0 or 1, float32; unchanged itself.
            mirror: whether left and right lie along the height, and may be exchanged.

        Returns:
            Image and label of the same shapes.
        """
        image, label = image.clone(), label.clone()
        if mirror:
            chosen = self._some(len(image), 0.5)
            image[chosen], label[chosen] = image[chosen].flip(2), label[chosen].flip(2)
        if self._strength == "strong":
            self._change(image, 0.7, lambda one, i: one + self._age_of_blood(label[i]))
            self._change(image, 0.5, lambda one, i: self._tissue(one))
            self._change(image, 0.5, lambda one, i: one + 4 * self._field(one.shape[1:], 28) * (one > AIR_HU / 5))
        self._move(image, label)
        self._change(image, 0.15, lambda one, i: self._blurred(one))
        if self._strength == "strong":
            self._change(image, 0.3, lambda one, i: self._gamma(one))
            self._change(image, 0.25, lambda one, i: self._coarser(one))
        self._change(image, 0.3, lambda one, i: one * self._uniform(0.9, 1.1))
        most = 10.0 if self._strength == "strong" else 5.0
        self._change(image, 0.5, lambda one, i: one + self._uniform(-most, most))
        most = 8.0 if self._strength == "strong" else 4.0
        self._change(image, 0.3, lambda one, i: one + self._uniform(0.0, most) * self._normal(one.shape))
        return image, label

    # ------------------------------------------------------------------------------------------------- draws

    def _some(self, n: int, chance: float) -> Tensor:
        """Indices of the slices that a change befalls."""
        return torch.from_numpy(np.flatnonzero(self._random.random(n) < chance))

    def _change(self, image: Tensor, chance: float, change: Callable[[Tensor, int], Tensor]) -> None:
        """Change some slices (slices, height, width) of a batch, in place."""
        for i in self._some(len(image), chance).tolist():
            image[i] = change(image[i], i)

    def _uniform(self, low: float, high: float) -> float:
        return float(self._random.uniform(low, high))

    def _normal(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=self._noise)

    def _field(self, shape: torch.Size, cell_mm: float) -> Tensor:
        """A smooth random field (height, width) of about unit variance; ``cell_mm`` is the distance of its nodes."""
        nodes = [max(2, round(size * self._pixel / cell_mm) + 1) for size in shape]
        coarse = torch.randn(1, 1, *nodes, generator=self._noise)
        return functional.interpolate(coarse, size=tuple(shape), mode="bicubic", align_corners=True)[0, 0]

    # -------------------------------------------------------------------------------------------------- place

    def _move(self, image: Tensor, label: Tensor) -> None:
        """Rotate, zoom and shift some slices, in place; if strong, also shear and bend them. The edge is repeated."""
        strong = self._strength == "strong"
        chosen = self._some(len(image), 0.5 if strong else 0.3)
        if not len(chosen):
            return
        height, width = image.shape[2:]
        grids = []
        for _ in chosen.tolist():
            matrix, shift = self._affine(strong)
            grid = self._grid(matrix, shift, height, width)
            if strong and self._random.random() < 0.4:
                bend = [2.5 * self._field(image.shape[2:], 60) * 2 / (self._pixel * size) for size in (width, height)]
                grid = grid + torch.stack(bend, -1)
            grids.append(grid)
        grid = torch.stack(grids)
        image[chosen] = functional.grid_sample(image[chosen], grid, padding_mode="border", align_corners=False)
        moved = functional.grid_sample(label[chosen], grid, padding_mode="border", align_corners=False)
        label[chosen] = (moved >= 0.5).float()

    def _affine(self, strong: bool) -> tuple[Floats, Floats]:
        """Matrix (2, 2) and shift (2,) in mm, along height and width, from the new slice to the old one."""
        angle = self._uniform(-0.5, 0.5) if strong else self._uniform(-0.25, 0.25)
        zoom = self._random.uniform(0.75, 1.3, 2) if strong else self._random.uniform(0.85, 1.15, 2)
        if strong and self._random.random() < 0.5:
            zoom[:] = zoom[0]
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        shear = np.eye(2) + np.array([[0.0, self._uniform(-0.1, 0.1) if strong else 0.0], [0.0, 0.0]])
        return turn @ np.diag(1 / zoom) @ shear, self._random.uniform(-12.0, 12.0, 2)

    def _grid(self, matrix: Floats, shift_mm: Floats, height: int, width: int) -> Tensor:
        """The sampling grid (height, width, 2) of an affine movement about the middle of the slice."""
        half = np.array([height, width]) * self._pixel / 2
        unit = np.diag(1 / half) @ matrix @ np.diag(half)
        theta = np.column_stack([unit[::-1, ::-1], (shift_mm / half)[::-1]])  # torch has width before height
        grid: Tensor = functional.affine_grid(
            torch.from_numpy(theta[None].astype(np.float32)), [1, 1, height, width], align_corners=False
        )
        return grid[0]

    # ---------------------------------------------------------------------------------------------- sharpness

    def _blurred(self, image: Tensor) -> Tensor:
        """Blurred by a Gaussian, along height and width apart."""
        for axis in (1, 2):
            sigma = self._uniform(0.6, 1.6) / self._pixel
            reach = max(1, math.ceil(3 * sigma))
            weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float32) / sigma) ** 2)
            shape, edge = [1, 1, 1, 1], [reach, reach, 0, 0] if axis == 2 else [0, 0, reach, reach]
            shape[axis + 1] = len(weights)
            padded = functional.pad(image[:, None], edge, mode="replicate")
            image = functional.conv2d(padded, (weights / weights.sum()).view(shape))[:, 0]
        return image

    def _coarser(self, image: Tensor) -> Tensor:
        """As if it had larger pixels."""
        size = [max(2, round(edge * self._uniform(0.5, 1.0))) for edge in image.shape[1:]]
        small = functional.interpolate(image[None], size=size, mode="nearest")
        return functional.interpolate(small, size=tuple(image.shape[1:]), mode="bilinear", align_corners=False)[0]

    # ----------------------------------------------------------------------------------------------- contrast

    def _age_of_blood(self, label: Tensor) -> Tensor:
        """What is added to blood, in HU: old blood is as dark as brain or darker, and a clot is uneven."""
        soft = functional.avg_pool2d(label[None], 3, stride=1, padding=1)[0]
        return (self._uniform(-30.0, 15.0) + 8 * self._field(label.shape[1:], 24)) * soft

    def _tissue(self, image: Tensor) -> Tensor:
        """Another contrast of tissue: a random rising curve through the range of tissue."""
        low, high = TISSUE_HU
        nodes = np.linspace(low, high, 7)
        curve = np.maximum.accumulate(nodes + self._random.normal(0.0, 4.0, 7))
        moved = np.interp(image.clamp(low, high).numpy(), nodes, curve).astype(np.float32)
        return torch.where((image > low) & (image < high), torch.from_numpy(moved), image)

    def _gamma(self, image: Tensor) -> Tensor:
        """Gamma within the range of tissue, from below or from above."""
        low, high = TISSUE_HU
        share = ((image - low) / (high - low)).clamp(0, 1)
        power, above = self._uniform(0.7, 1.5), self._random.random() < 0.3
        share = 1 - (1 - share) ** power if above else share**power
        return torch.where((image > low) & (image < high), low + (high - low) * share, image)
