"""A head CT as the networks see it: from a NIfTI file to slices in three views, and from their probabilities to a mask.

Needs numpy and nibabel. ``settings`` is the content of preprocessing.json; README.md explains it. Arrays of a volume
have the axes (x, y, z) in RAS+: left to right, back to front, foot to head. A slice is (x, y) in the axial view, (x, z)
in the coronal and (y, z) in the sagittal view.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform
from numpy.typing import NDArray

Volume = NDArray[np.float32]
SLICE_AXIS = {"axial": 2, "coronal": 1, "sagittal": 0}
AT_ONCE = 8
"""Slices that a network receives together; the result does not depend on it."""


class HeadCT:
    """One scan: ``stacks`` has the slices of each view, (n, height, width), in whole HU."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.source: Any = nibabel.load(path)
        _check_geometry(self.source)
        turned: Any = nibabel.as_closest_canonical(self.source)
        hu = np.asarray(turned.dataobj, np.float32)
        _check_values(hu)
        self.shape = hu.shape
        self.spacing_mm = np.linalg.norm(turned.affine[:3, :3], axis=0)
        field = self._field(hu)  # pixels of even size in x and y, the scan's own slices along z
        self.start_z = self._start_z(field)
        even = np.rint(cut(resize(field, 2, self._length), 2, self.start_z, settings["size"][2], settings["air_hu"]))
        views = [view for view in settings["weights"] if view == "axial" or self.shape[2] >= settings["min_slices"]]
        if not views:
            raise ValueError(f"got a scan of {self.shape[2]} slices, expected {settings['min_slices']} or more")
        volumes = {view: field if view == "axial" else even for view in views}
        self.stacks = {view: np.ascontiguousarray(np.moveaxis(volumes[view], SLICE_AXIS[view], 0)) for view in views}

    def segment(self, view: str, run: Callable[[Volume], Any]) -> Volume:
        """Probability of blood in a view, (n, height, width).

        ``run`` is a network: from slices with their neighbours in HU, (batch, 2 * neighbours + 1, height, width), to
        logits (batch, 1, height, width). The first and the last slice are their own missing neighbours. Slices that
        show no part of the head have probability 0.
        """
        stack, k = self.stacks[view], self.settings["neighbours"]
        shown = np.flatnonzero((stack > self.settings["head_hu"]).any(axis=(1, 2)))
        probability = np.zeros(stack.shape, np.float32)
        for first in range(0, len(shown), AT_ONCE):
            batch = shown[first : first + AT_ONCE]
            around = np.clip(batch[:, None] + np.arange(-k, k + 1), 0, len(stack) - 1)  # (batch, 2 k + 1)
            logits = np.asarray(run(stack[around]))
            probability[batch] = 0.5 + 0.5 * np.tanh(0.5 * logits[:, 0])  # the logistic function, without overflow
        return probability

    def fuse(self, probabilities: dict[str, Volume]) -> Volume:
        """Mean of the views by their weights, on the scan's own voxels.

        An axial slice above or below the field of the other views has the axial view alone.
        """
        (width, height, _), (x, y, depth) = self.settings["size"], self.shape
        total, weights = np.zeros((width, height, depth), np.float32), np.zeros(depth, np.float32)
        for view, slices in probabilities.items():
            weight = np.float32(self.settings["weights"][view])
            volume, shown = np.moveaxis(slices, 0, SLICE_AXIS[view]), np.ones((1, 1, slices.shape[-1]), np.float32)
            if view == "axial":
                shown = np.ones((1, 1, depth), np.float32)
            else:
                volume, shown = (resize(cut(one, 2, -self.start_z, self._length), 2, depth) for one in (volume, shown))
            total += volume * weight
            weights += shown[0, 0] * weight
        total /= np.where(weights == 0, np.float32(1), weights)
        for axis in (0, 1):
            total = cut(total, axis, -self.start[axis], self.resized[axis])
        return resize(resize(total, 1, y), 0, x)

    def write(self, path: Path, mask: NDArray[np.bool_]) -> float:
        """Write a mask (x, y, z) on the scan's own grid, with its order of axes and its affine; return its mL."""
        turn = ornt_transform([[0, 1], [1, 1], [2, 1]], io_orientation(self.source.affine))
        image = nibabel.Nifti1Image(apply_orientation(mask.astype(np.uint8), turn), self.source.affine)
        image.set_sform(self.source.affine, int(self.source.header["sform_code"]))
        image.set_qform(self.source.affine, int(self.source.header["qform_code"]))
        image.header["xyzt_units"] = self.source.header["xyzt_units"]
        nibabel.save(image, path)
        return float(mask.sum() * abs(np.linalg.det(self.source.affine[:3, :3])) / 1000)

    def _field(self, hu: Volume) -> Volume:
        """Pixels of the study's size in a field around the head's centre, (width, height, slices), in whole HU."""
        (width, height, _), spacing, air = (self.settings[name] for name in ("size", "spacing_mm", "air_hu"))
        self.resized = [max(1, round(hu.shape[axis] * self.spacing_mm[axis] / spacing)) for axis in (0, 1)]
        hu = resize(resize(hu, 1, self.resized[1]), 0, self.resized[0])
        head = hu > self.settings["head_hu"]
        self.start = [_centre(head.any(axis=(1, 2))) - width // 2, _centre(head.any(axis=(0, 2))) - height // 2]
        field = cut(cut(hu, 0, self.start[0], width, air), 1, self.start[1], height, air)
        return np.clip(np.rint(field), -2048, 4095)

    @property
    def _length(self) -> int:
        """Slices of the scan when they are as far apart as pixels."""
        return max(1, round(self.shape[2] * self.spacing_mm[2] / self.settings["spacing_mm"]))

    def _start_z(self, field: Volume) -> int:
        """First slice of the coronal and sagittal field, among evenly spaced ones; negative if the field is higher.

        A scan that fits is centred. Of a higher one, the field is centred on the slices that show bone; if these do not
        fit either, the field ends at the top of the head.
        """
        size, bone = self.settings["size"][2], self.settings["bone"]
        area_mm2 = (field > bone["hu"]).sum(axis=(0, 1)) * self.settings["spacing_mm"] ** 2
        slices = np.flatnonzero(area_mm2 >= bone["mm2"])
        if self._length <= size or not len(slices):
            return (self._length - size) // 2
        low, top = (round(int(edge) * self._length / self.shape[2]) for edge in (slices[0], slices[-1] + 1))
        start = (low + top - size) // 2 if top - low <= size else top - size
        return min(max(start, 0), self._length - size)


def windows(slabs: Volume, windows_hu: list[list[float]]) -> Volume:
    """(batch, slices, height, width) in HU -> (batch, windows * slices, height, width) in 0..1, windows outermost."""
    return np.concatenate([np.clip((slabs - low) / (high - low), 0, 1) for low, high in windows_hu], axis=1)


def resize(volume: Volume, axis: int, size: int) -> Volume:
    """Linear interpolation to ``size`` samples along an axis; the outer edges of the first and the last sample stay.

    Fewer samples are weighted means over a triangle of twice their distance. The result is that of PyTorch's
    ``bilinear`` with ``antialias`` to the last bit: float32, each product rounded together with its sum.
    """
    n = volume.shape[axis]
    if n == size:
        return volume
    one, half = np.float32(1), np.float32(0.5)
    step = np.float32(n) / np.float32(size)
    reach = max(step, one)
    centre = step * (np.arange(size, dtype=np.float32) + half)
    first = np.maximum((centre - reach + half).astype(int), 0)
    end = np.minimum((centre + reach + half).astype(int), n)
    sources = first[:, None] + np.arange((end - first).max())  # (size, samples under the triangle)
    distance = np.abs((sources.astype(np.float32) - centre[:, None] + half) * (one / reach))
    weights = np.where(sources < end[:, None], np.clip(one - distance, 0, None), 0)
    weights /= np.cumsum(weights, axis=1)[:, -1:]
    moved = np.moveaxis(volume, axis, -1)
    result = np.zeros((*moved.shape[:-1], size), np.float32)
    for source, weight in zip(np.minimum(sources, n - 1).T, weights.T, strict=True):
        result = (result + moved[..., source].astype(np.float64) * weight).astype(np.float32)
    return np.moveaxis(result, -1, axis)


def cut(volume: Volume, axis: int, start: int, size: int, fill: float = 0.0) -> Volume:
    """``size`` samples along an axis, from ``start`` on; ``fill`` where the volume has none."""
    shape = [*volume.shape[:axis], size, *volume.shape[axis + 1 :]]
    result = np.full(shape, fill, np.float32)
    low, high = max(start, 0), max(min(start + size, volume.shape[axis]), max(start, 0))
    np.moveaxis(result, axis, 0)[low - start : high - start] = np.moveaxis(volume, axis, 0)[low:high]
    return result


def command(predict: Callable[[Path, Path], float]) -> None:
    """Read the scan's and the mask's path from the command line, and print the volume."""
    if len(sys.argv) != 3:
        print(f"usage: python {sys.argv[0]} SCAN.nii.gz MASK.nii.gz", file=sys.stderr)
        sys.exit(2)
    try:
        volume_ml = predict(Path(sys.argv[1]), Path(sys.argv[2]))
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{volume_ml:.2f} mL of blood; for research use only, not a medical device")


def _centre(shown: NDArray[np.bool_]) -> int:
    pixels = np.flatnonzero(shown)
    return int(pixels[0] + pixels[-1] + 1) // 2 if len(pixels) else len(shown) // 2


def _check_geometry(source: Any) -> None:
    if len(source.shape) != 3 or 0 in source.shape or np.linalg.det(source.affine[:3, :3]) == 0:
        raise ValueError(f"got an image of shape {source.shape}, expected a volume of three dimensions")
    if not (source.header["sform_code"] or source.header["qform_code"]):
        raise ValueError("got neither sform nor qform, expected one: left and right are not known")


def _check_values(hu: Volume) -> None:
    """Refuse what is no head CT in HU; sahfl itself checks much more."""
    if not np.isfinite(hu).all() or hu.min() > -500 or hu.max() < 300:
        raise ValueError(f"got values from {hu.min():g} to {hu.max():g}, expected a head CT in HU, from air to bone")
