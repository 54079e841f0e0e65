"""Multi-view 2-D slices of a CT volume, and the way back from slice predictions to a volume.

Axial slices stay as the scanner made them. Coronal and sagittal slices need even spacing along z, so the volume is
first interpolated along z; a volume with fewer than ``MIN_SLICES`` slices has an axial view only. In every view a slice
is (height, width): (x, y) axial, (x, z) coronal, (y, z) sagittal. A volume higher than their field is cut around the
head; if head and neck together are higher, the field is aligned to the top of the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sahfl.data.ct import AIR_HU, Placement, Scan, from_grid, to_grid
from sahfl.data.view_settings import View, ViewsConfig
from sahfl.errors import DataError

MIN_SLICES = 8
"""Fewer slices are too few for a coronal or sagittal picture."""
BONE_HU, BONE_MM2 = 300, 100.0
"""A slice with at least this area of bone shows the head or the neck; headrests and tables contain no bone."""


class Slices(Protocol):
    """Slices (n, height, width) in memory or on disk (``data.cache``), read by ``slices[first:last]``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, height, width)."""

    def __getitem__(self, key: slice, /) -> NDArray[Any]:
        """Slices ``first`` to ``last`` - 1, as an array (n, height, width)."""


@dataclass(frozen=True)
class SliceStack:
    """All slices of one volume in one view."""

    image: Slices
    """(n, height, width), int16, HU."""
    label: Slices
    """(n, height, width), bool."""
    with_blood: NDArray[np.intp]
    """Indices of the slices with annotated blood."""


@dataclass(frozen=True)
class CaseViews:
    """One volume as slice stacks, with the data needed to bring a prediction back to the scan."""

    stacks: dict[View, SliceStack]
    placement: Placement
    slice_spacing_mm: float
    start_z: int
    """First pixel along z of the coronal and sagittal field in the evenly spaced volume; negative if the field is
    higher."""


def make_views(scan: Scan, config: ViewsConfig) -> CaseViews:
    """Cut a scan into the slice stacks of the configured views.

    Raises:
        DataError: the scan has too few slices for any configured view.
    """
    image, label, placement = to_grid(scan, spacing_mm=config.spacing_mm, size=config.size[:2])
    spacing_z = scan.spacing_mm[2]
    views = [view for view in config.weights if view == "axial" or image.shape[2] >= MIN_SLICES]
    if not views:
        wanted = ", ".join(config.weights)
        raise DataError(f"a scan with {image.shape[2]} slices has only an axial view, the study uses {wanted}")
    length = _even_length(image.shape[2], spacing_z, config)
    start, even = _start_z(image, length, config), (image, label)
    if any(view != "axial" for view in views):
        hounsfield, blood = (_interpolate_z(volume.astype(np.float32), length) for volume in (image, label))
        hounsfield = np.rint(_cut_z(hounsfield, start, config.size[2], AIR_HU))
        even = (hounsfield.astype(np.int16), _cut_z(blood, start, config.size[2], 0.0) >= 0.5)
    stacks = {view: _stack(*((image, label) if view == "axial" else even), view) for view in views}
    return CaseViews(stacks, placement, spacing_z, start)


SLICE_AXIS: dict[View, int] = {"axial": 2, "coronal": 1, "sagittal": 0}


def _stack(image: NDArray[np.int16], label: NDArray[np.bool_], view: View) -> SliceStack:
    slices = np.ascontiguousarray(np.moveaxis(image, SLICE_AXIS[view], 0))
    masks = np.ascontiguousarray(np.moveaxis(label, SLICE_AXIS[view], 0))
    return SliceStack(slices, masks, np.flatnonzero(masks.any(axis=(1, 2))))


def slab(stack: SliceStack, index: int, neighbours: int) -> NDArray[np.float32]:
    """Slice ``index`` with its neighbours, (2 * neighbours + 1, height, width), float32 HU; the ends are repeated."""
    first, end = max(index - neighbours, 0), stack.image.shape[0]
    around = np.clip(np.arange(index - neighbours, index + neighbours + 1), 0, end - 1)
    return stack.image[first : index + neighbours + 1][around - first].astype(np.float32)


def windows(slabs: Tensor, windows_hu: tuple[tuple[float, float], ...]) -> Tensor:
    """(batch, slices, height, width) in HU -> (batch, slices * windows, height, width) in 0..1."""
    channels = [((slabs - low) / (high - low)).clamp(0, 1) for low, high in windows_hu]
    return torch.cat(channels, dim=1)


def n_channels(config: ViewsConfig) -> int:
    """Input channels of the network: windows times slices."""
    return len(config.windows_hu) * (2 * config.neighbours + 1)


def fuse(probabilities: dict[View, NDArray[np.float32]], case: CaseViews, config: ViewsConfig) -> NDArray[np.float32]:
    """Weighted mean of the views' probabilities (n, height, width), on the scan's own voxels, float32 (X, Y, Z).

    The weights are normalised in each axial slice over the views that show it: a scan higher than the field has slices
    that only the axial view shows.
    """
    depth = case.placement.scan_shape[2]
    fused, total = np.zeros((*config.size[:2], depth), np.float32), np.zeros(depth, np.float32)
    for view, slices in probabilities.items():
        volume, shown = np.moveaxis(slices, 0, SLICE_AXIS[view]), np.ones((1, 1, depth), np.float32)
        if view != "axial":
            volume = _scan_z(volume, case, config)
            shown = _scan_z(np.ones((1, 1, config.size[2]), np.float32), case, config)
        fused += volume * np.float32(config.weights[view])
        total += shown[0, 0] * np.float32(config.weights[view])
    total[total == 0] = 1  # no configured view shows this slice
    return from_grid(fused / total, case.placement)


def _scan_z(volume: NDArray[np.float32], case: CaseViews, config: ViewsConfig) -> NDArray[np.float32]:
    """From the field along z back to the scan's own slices, (x, y, Z); zero outside the field."""
    depth = case.placement.scan_shape[2]
    length = _even_length(depth, case.slice_spacing_mm, config)
    return _interpolate_z(_cut_z(volume, -case.start_z, length, 0.0), depth)


def _even_length(depth: int, spacing_z: float, config: ViewsConfig) -> int:
    return max(1, round(depth * spacing_z / config.spacing_mm))


def _start_z(image: NDArray[np.int16], length: int, config: ViewsConfig) -> int:
    """First pixel of the field along z, in a volume (x, y, Z) that becomes ``length`` pixels high.

    A volume that fits is centred, and so is one without bone, because the position of the head is then unknown.
    """
    depth, size = image.shape[2], config.size[2]
    bone = np.flatnonzero((image > BONE_HU).sum(axis=(0, 1)) * config.spacing_mm**2 >= BONE_MM2)
    if length <= size or not len(bone):
        return (length - size) // 2
    low, vertex = (round(int(edge) * length / depth) for edge in (bone[0], bone[-1] + 1))
    start = (low + vertex - size) // 2 if vertex - low <= size else vertex - size
    return min(max(start, 0), length - size)


def _interpolate_z(volume: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Interpolate linearly between slices; thin slices are averaged into thicker ones."""
    columns = torch.from_numpy(np.ascontiguousarray(volume)).reshape(1, 1, -1, volume.shape[2])
    size = (columns.shape[2], length)
    moved = functional.interpolate(columns, size=size, mode="bilinear", antialias=True, align_corners=False)
    return moved.reshape(*volume.shape[:2], length).numpy()


def _cut_z(volume: NDArray[np.float32], start: int, size: int, fill: float) -> NDArray[np.float32]:
    """Cut or pad along z; the inverse call, with start ``-start``, keeps the part that both volumes share."""
    result = np.full((*volume.shape[:2], size), fill, np.float32)
    low, high = max(start, 0), min(start + size, volume.shape[2])
    result[:, :, low - start : high - start] = volume[:, :, low:high]
    return result
