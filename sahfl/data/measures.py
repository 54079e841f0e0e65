"""Measurements of a scan for the checks: its values, its head and brain, and the position of its annotation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sahfl.data.contrast import SOFT_HU, Fit, contrast_of
from sahfl.data.ct import HEAD_HU, Scan
from sahfl.data.skull import skull_share

BONE_HU = 300.0
FAT_HU = -150.0
"""Air and lung lie below this value, fat and soft tissue above."""
COARSE_MM = 2.0
"""Pixel size on which head and brain are detected: accurate enough for shares, and fast at 512 x 512."""
SMALLEST_BRAIN_ML = 2.0
"""Less soft tissue inside closed bone is too little to measure."""
UNSIGNED_SHIFT_HU = 1024.0
"""What is missing in values that were stored unsigned and lost their rescale intercept."""
FEW_SLICES = 0.2
"""With a skull in a smaller share of the slices, it is looked for a second time, behind the noise."""
LEAST_CT_HU = -50.0
"""Values of which none is lower hold no air in HU."""


@dataclass(frozen=True)
class AnnotationMeasures:
    """Measurements of an annotation that is not empty; shares are of its voxels."""

    median_hu: float
    head_share: float
    """Number of annotated voxels divided by the number of voxels of the head."""
    outside_share: float
    """Outside the head."""
    air_share: float
    """Below -150 HU."""
    bone_share: float
    """Above 300 HU."""
    contrast_hu: float | None
    """Median of the annotated soft tissue minus median of the tissue around it; None if one of them is missing."""
    mirrored_hu: float | None
    """The same contrast after the annotation is mirrored left to right."""
    better: Fit | None
    """A change of its axes under which it would fit, if its contrast is low."""


@dataclass(frozen=True)
class Measures:
    """Measurements of one scan; None for a value that cannot be measured."""

    lowest_hu: float
    low_hu: float
    """1st percentile."""
    high_hu: float
    """99th percentile."""
    highest_hu: float
    padding_share: float
    """Share of voxels below -1024 HU."""
    whole_numbers: bool
    n_values: int
    """Distinct values, rounded to whole HU."""
    brain_ml: float
    """Soft tissue inside closed bone."""
    brain_hu: float | None
    """Median of that tissue."""
    noise_hu: float | None
    """Standard deviation of the noise in that tissue, from differences between neighbouring pixels."""
    top_share: float
    """Area of the head in the topmost slice divided by its largest area in any slice."""
    skull_share: float | None
    """Share of the slices that show brain inside a skull; None if the field of view is too small to judge."""
    shifted_skull_share: float | None
    """The same if 1024 is missing in the values; None for values below zero too."""
    annotation: AnnotationMeasures | None
    """None for an empty annotation."""


def measure(scan: Scan) -> Measures:
    """Measure a scan on coarser copies; takes about a second for 512 x 512 x 30 voxels."""
    image = scan.image
    flat = image.ravel(order="K")  # a view, whatever the order of the axes in memory
    # About a million evenly spaced voxels; an odd step avoids sampling the same columns in every row.
    sample = flat[:: (flat.size // 1_000_000) | 1]
    low, high = (float(value) for value in np.percentile(sample, [1.0, 99.0]))
    coarse = _coarse(scan)
    head, brain = _head(coarse), _brain(coarse)
    tissue = coarse[brain]
    areas = head.sum(axis=(0, 1))
    brain_ml = float(brain.sum()) * scan.voxel_ml * float(np.prod(_steps(scan)))
    known = brain_ml >= SMALLEST_BRAIN_ML
    return Measures(
        lowest_hu=float(image.min()),
        low_hu=low,
        high_hu=high,
        highest_hu=float(image.max()),
        padding_share=float((image < -1024).mean()),
        whole_numbers=bool(np.array_equal(sample, np.rint(sample))),
        n_values=int(np.unique(np.clip(np.rint(sample), -4096, 8191)).size),
        brain_ml=brain_ml,
        brain_hu=float(np.median(tissue)) if known else None,
        noise_hu=_noise(image, _fine(brain, scan)) if known else None,
        skull_share=_skull_share(scan, coarse),
        shifted_skull_share=_shifted_share(scan, coarse, float(image.min())),
        top_share=float(areas[-1] / areas.max()) if areas.max() else 0.0,
        annotation=_annotation(scan, head),
    )


def signature(image: NDArray[np.float32], size: tuple[int, int, int] = (12, 12, 6)) -> NDArray[np.float32]:
    """The head's box as a small volume of mean HU, shape ``size``, clipped to -100..300; alike for copies of a scan."""
    inside = ndimage.find_objects((image > HEAD_HU).astype(np.int8))
    box = image[inside[0]] if inside and inside[0] is not None else image
    for axis, n in enumerate(size):
        edges = np.linspace(0, box.shape[axis], n + 1).astype(int)
        starts = np.minimum(edges[:-1], box.shape[axis] - 1)
        lengths = np.maximum(1, edges[1:] - starts)
        parts = [np.take(box, range(s, s + k), axis).mean(axis) for s, k in zip(starts, lengths, strict=True)]
        box = np.stack(parts, axis) if axis else np.stack([np.clip(part, -100, 300) for part in parts], 0)
    return np.asarray(box, np.float32)


def _steps(scan: Scan) -> tuple[int, int]:
    x, y, _ = scan.spacing_mm
    return max(1, round(COARSE_MM / x)), max(1, round(COARSE_MM / y))


def _pixel_mm(scan: Scan) -> tuple[float, float]:
    """Size of a coarse pixel."""
    (x, y, _), (step_x, step_y) = scan.spacing_mm, _steps(scan)
    return x * step_x, y * step_y


def _skull_share(scan: Scan, coarse: NDArray[np.float32], shift_hu: float = 0.0) -> float | None:
    """Share of the slices that show a skull on every second or fourth pixel, or on the mean of as many.

    Only single pixels show a thin skull, and only their mean shows the brain behind the noise of a bone kernel.
    """
    share = skull_share(coarse - np.float32(shift_hu), _pixel_mm(scan))
    x, y = _steps(scan)
    if share is None or share >= FEW_SLICES or x * y == 1:
        return share
    n_x, n_y, n_z = (n // step for n, step in zip(scan.image.shape, (x, y, 1), strict=True))
    means = scan.image[: n_x * x, : n_y * y].reshape(n_x, x, n_y, y, n_z).mean(axis=(1, 3))
    return max(share, skull_share(means - np.float32(shift_hu), _pixel_mm(scan)) or 0.0)


def _shifted_share(scan: Scan, coarse: NDArray[np.float32], lowest: float) -> float | None:
    return _skull_share(scan, coarse, UNSIGNED_SHIFT_HU) if lowest >= LEAST_CT_HU else None


def _coarse(scan: Scan) -> NDArray[np.float32]:
    x, y = _steps(scan)
    return scan.image[::x, ::y]


def _fine(mask: NDArray[np.bool_], scan: Scan) -> NDArray[np.bool_]:
    x, y = _steps(scan)
    return mask.repeat(x, 0).repeat(y, 1)[: scan.image.shape[0], : scan.image.shape[1]]


def _head(coarse: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The head on coarse pixels, with the air inside it; a headrest is part of it."""
    return np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(coarse > HEAD_HU, 2, 0)], axis=2)


def _brain(coarse: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Soft tissue that bone encloses within its slice, on coarse pixels."""
    cross = ndimage.generate_binary_structure(2, 2)
    planes = []
    for plane in np.moveaxis(coarse, 2, 0):
        bone = ndimage.binary_closing(np.pad(plane > BONE_HU, 2), cross, iterations=2)[2:-2, 2:-2]
        inside = ndimage.binary_fill_holes(bone) & ~bone
        planes.append(ndimage.binary_erosion(inside, cross))
    return np.stack(planes, axis=2) & (coarse > SOFT_HU[0]) & (coarse < SOFT_HU[1])


def _noise(image: NDArray[np.float32], brain: NDArray[np.bool_]) -> float | None:
    """Robust SD of differences between x-neighbours, divided by the square root of 2; edges of tissue hardly count."""
    differences = (image[1:] - image[:-1])[brain[1:] & brain[:-1]]
    return float(np.median(np.abs(differences)) * 1.4826 / np.sqrt(2)) if differences.size else None


def _annotation(scan: Scan, head: NDArray[np.bool_]) -> AnnotationMeasures | None:
    label, values = scan.label, scan.image[scan.label]
    if not values.size:
        return None
    inside = _fine(head, scan)
    contrast = contrast_of(scan.image, label)
    return AnnotationMeasures(
        median_hu=float(np.median(values)),
        head_share=float(values.size / max(1, inside.sum())),
        outside_share=float(1 - inside[label].mean()),
        air_share=float((values < FAT_HU).mean()),
        bone_share=float((values > BONE_HU).mean()),
        contrast_hu=contrast.here_hu,
        mirrored_hu=contrast.mirrored_hu,
        better=contrast.better,
    )
