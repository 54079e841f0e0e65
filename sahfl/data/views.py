"""Multi-view 2-D slices of a CT volume, and the way back from slice predictions to a volume.

Axial slices stay where the scanner made them. Coronal and sagittal slices need even spacing along z, so the volume is
interpolated along z first; a volume with fewer than ``MIN_SLICES`` slices has an axial view only. In every view a
slice is (height, width): (x, y) axial, (x, z) coronal, (y, z) sagittal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sahfl.config import View, ViewsConfig
from sahfl.data.ct import AIR_HU, Placement, Scan, from_grid, to_grid
from sahfl.errors import DataError

MIN_SLICES = 8
"""Fewer slices than this make no coronal or sagittal picture."""


@dataclass(frozen=True)
class SliceStack:
    """All slices of one volume in one view."""

    image: NDArray[np.int16]
    """(n, height, width), HU."""
    label: NDArray[np.bool_]
    """(n, height, width)."""
    with_blood: NDArray[np.intp]
    """Indices of the slices with annotated blood."""


@dataclass(frozen=True)
class CaseViews:
    """One volume as slice stacks, with what is needed to bring a prediction back to the scan."""

    stacks: dict[View, SliceStack]
    placement: Placement
    slice_spacing_mm: float


def make_views(scan: Scan, config: ViewsConfig) -> CaseViews:
    """Cut a scan into the slice stacks of the configured views.

    Raises:
        DataError: the scan has too few slices for the configured views, none of which is axial.
    """
    image, label, placement = to_grid(scan, spacing_mm=config.spacing_mm, size=config.size[:2])
    spacing_z = scan.spacing_mm[2]
    views = [view for view in config.weights if view == "axial" or image.shape[2] >= MIN_SLICES]
    if not views:
        wanted = ", ".join(config.weights)
        raise DataError(f"a scan with {image.shape[2]} slices has only an axial view, the study uses {wanted}")
    even = (image, label)
    if any(view != "axial" for view in views):
        resampled = _even_z(image.astype(np.float32), spacing_z, config, AIR_HU)
        even = (np.rint(resampled).astype(np.int16), _even_z(label.astype(np.float32), spacing_z, config, 0.0) >= 0.5)
    stacks = {view: _stack(*((image, label) if view == "axial" else even), view) for view in views}
    return CaseViews(stacks, placement, spacing_z)


SLICE_AXIS: dict[View, int] = {"axial": 2, "coronal": 1, "sagittal": 0}


def _stack(image: NDArray[np.int16], label: NDArray[np.bool_], view: View) -> SliceStack:
    slices = np.ascontiguousarray(np.moveaxis(image, SLICE_AXIS[view], 0))
    masks = np.ascontiguousarray(np.moveaxis(label, SLICE_AXIS[view], 0))
    return SliceStack(slices, masks, np.flatnonzero(masks.any(axis=(1, 2))))


def slab(stack: SliceStack, index: int, neighbours: int) -> NDArray[np.float32]:
    """Slice ``index`` with its neighbours, (2 * neighbours + 1, height, width) in HU; the ends are repeated."""
    around = np.clip(np.arange(index - neighbours, index + neighbours + 1), 0, len(stack.image) - 1)
    return stack.image[around].astype(np.float32)


def windows(slabs: Tensor, windows_hu: tuple[tuple[float, float], ...]) -> Tensor:
    """(batch, slices, height, width) in HU -> (batch, slices * windows, height, width) in 0..1."""
    channels = [((slabs - low) / (high - low)).clamp(0, 1) for low, high in windows_hu]
    return torch.cat(channels, dim=1)


def n_channels(config: ViewsConfig) -> int:
    """Input channels of the network: windows times slices."""
    return len(config.windows_hu) * (2 * config.neighbours + 1)


def fuse(probabilities: dict[View, NDArray[np.float32]], case: CaseViews, config: ViewsConfig) -> NDArray[np.float32]:
    """Weighted mean of the views' probabilities, on the scan's own voxels (X, Y, Z).

    Args:
        probabilities: per view (n, height, width), as the stacks of ``case``.
        case: the volume's views.
        config: the views' weights; they are normalised, for each axial slice, over the views that show it. A scan
            taller than the field has slices that only the axial view shows.
    """
    depth = case.placement.scan_shape[2]
    fused, total = np.zeros((*config.size[:2], depth), np.float32), np.zeros(depth, np.float32)
    for view, slices in probabilities.items():
        volume, shown = np.moveaxis(slices, 0, SLICE_AXIS[view]), np.ones((1, 1, depth), np.float32)
        if view != "axial":
            volume = _scan_z(volume, depth, case.slice_spacing_mm, config)
            shown = _scan_z(np.ones((1, 1, config.size[2]), np.float32), depth, case.slice_spacing_mm, config)
        fused += volume * np.float32(config.weights[view])
        total += shown[0, 0] * np.float32(config.weights[view])
    total[total == 0] = 1  # no configured view shows this slice
    return from_grid(fused / total, case.placement)


def _even_z(volume: NDArray[np.float32], spacing_z: float, config: ViewsConfig, fill: float) -> NDArray[np.float32]:
    """Interpolate along z to the in-plane spacing and centre in ``size[2]`` pixels."""
    length = _even_length(volume.shape[2], spacing_z, config)
    return _centre_z(_interpolate_z(volume, length), config.size[2], fill)


def _scan_z(volume: NDArray[np.float32], depth: int, spacing_z: float, config: ViewsConfig) -> NDArray[np.float32]:
    """Undo ``_even_z``: back to the scan's own slices."""
    length = _even_length(depth, spacing_z, config)
    return _interpolate_z(_centre_z(volume, length, 0.0), depth)


def _even_length(depth: int, spacing_z: float, config: ViewsConfig) -> int:
    return max(1, round(depth * spacing_z / config.spacing_mm))


def _interpolate_z(volume: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Linear between slices; thin slices are averaged on the way to thicker ones."""
    columns = torch.from_numpy(np.ascontiguousarray(volume)).reshape(1, 1, -1, volume.shape[2])
    size = (columns.shape[2], length)
    moved = functional.interpolate(columns, size=size, mode="bilinear", antialias=True, align_corners=False)
    return moved.reshape(*volume.shape[:2], length).numpy()


def _centre_z(volume: NDArray[np.float32], size: int, fill: float) -> NDArray[np.float32]:
    """Cut or pad along z around the middle; ``_centre_z`` to another size and back keeps what both have in common."""
    have = volume.shape[2]
    if have >= size:
        begin = (have - size) // 2
        return volume[:, :, begin : begin + size]
    begin = (size - have) // 2
    result = np.full((*volume.shape[:2], size), fill, np.float32)
    result[:, :, begin : begin + have] = volume
    return result
