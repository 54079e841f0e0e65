"""How an annotation differs from the tissue around it: as it lies, mirrored, and under other changes of its axes.

Acute blood is brighter than brain. An annotation that was flipped, moved or drawn on another scan mostly is not:
measured on 36 real slices, its contrast is 5 HU or less in 90 % of 180 wrong pairs and in 2 right ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SOFT_HU = (-100.0, 150.0)
"""Values that soft tissue inside the skull can have; all other values are bone, air or metal."""
LOW_CONTRAST_HU = 5.0
"""An annotation of at most this contrast is suspicious."""
BETTER_HU = 15.0
"""A change of its axes that raises the contrast by at least this much would fit."""
MOST_MOVED = 3
"""Slices by which an annotation is moved to find its place."""
MOST_PLACES = 20_000
"""Voxels that are looked at to compare changes."""
LEAST_SOFT = 0.5
"""Least share of soft tissue under an annotation that fits."""


@dataclass(frozen=True)
class Fit:
    """A change of an annotation's axes, or another slice, under which it would fit the image."""

    change: str
    """In words, such as ``front and back swapped``."""
    contrast_hu: float


@dataclass(frozen=True)
class Contrast:
    """The contrast of an annotation."""

    here_hu: float | None
    """Median of the annotated soft tissue minus median of the tissue around it; None if one of them is missing."""
    mirrored_hu: float | None
    """The same after the annotation is mirrored left to right."""
    better: Fit | None
    """The best change, if the annotation is suspicious and a change would fit."""


Places = tuple[NDArray[np.intp], ...]


def contrast_of(image: NDArray[np.float32], label: NDArray[np.bool_]) -> Contrast:
    """Measure the contrast of an annotation that is not empty; image and label are (X, Y, Z) in RAS+."""
    inside, around = np.nonzero(label), _around(label)
    here = _contrast(image, inside, around)
    mirrored = _contrast(image[::-1], inside, around)
    better = None
    if here is None or here <= LOW_CONTRAST_HU:
        least = max(here or 0.0, 0.0) + BETTER_HU
        inside, around = _some(inside), _some(around)
        found = [
            Fit(change, value)
            for change, view, slices in _changes(image)
            if (value := _contrast(view, _moved(inside, slices, view), _moved(around, slices, view), LEAST_SOFT))
            is not None and value >= least
        ]  # fmt: skip
        better = max(found, key=lambda fit: fit.contrast_hu, default=None)
    return Contrast(here, mirrored, better)


def _around(label: NDArray[np.bool_]) -> Places:
    """The voxels of a ring around the annotation, 3 to 6 pixels away in the slice."""
    box = tuple(slice(max(0, s.start - 8), s.stop + 8) for s in ndimage.find_objects(label.astype(np.int8))[0])
    disc = ndimage.generate_binary_structure(3, 1)
    disc[:, :, [0, 2]] = False
    near, far = (ndimage.binary_dilation(label[box], disc, iterations=n) for n in (3, 6))
    return tuple(part + side.start for part, side in zip(np.nonzero(far & ~near), box, strict=True))


def _contrast(image: NDArray[np.float32], inside: Places, around: Places, least_soft: float = 0.0) -> float | None:
    """Median of the soft tissue at ``inside`` minus that ``around``; None without either."""
    medians = []
    for places, least in ((inside, least_soft), (around, 0.0)):
        values = image[places]
        soft = values[(values > SOFT_HU[0]) & (values < SOFT_HU[1])]
        if not soft.size or soft.size < least * values.size:
            return None
        medians.append(float(np.median(soft)))
    return medians[0] - medians[1]


def _some(places: Places) -> Places:
    """Evenly chosen places, enough for a median."""
    step = -(-len(places[0]) // MOST_PLACES)
    return tuple(part[:: step or 1] for part in places)


def _moved(places: Places, slices: int, image: NDArray[np.float32]) -> Places:
    """Voxels moved by a number of slices, without those that leave the volume."""
    z = places[2] + slices
    kept = (z >= 0) & (z < image.shape[2])
    return places[0][kept], places[1][kept], z[kept]


def _changes(image: NDArray[np.float32]) -> Iterator[tuple[str, NDArray[np.float32], int]]:
    """Each change of axes that keeps the shape: its name, the image changed back, and slices to move by.

    The image is changed and not the annotation, of which only places are kept. A change of two axes and its reverse are
    one, because both are tried.
    """
    ends = ("left and right", "front and back", "head and foot")
    orders = {(0, 1, 2): "", (1, 0, 2): "x and y", (2, 1, 0): "x and z", (0, 2, 1): "y and z"}
    for order, axes in orders.items():
        if tuple(image.shape[axis] for axis in order) != image.shape:
            continue
        for flips in np.ndindex(2, 2, 2):
            if order == (0, 1, 2) and not any(flips):
                continue
            flipped = [name for name, flip in zip(ends, flips, strict=True) if flip]
            names = [f"the axes {axes}"] * bool(axes) + flipped
            view = image[tuple(slice(None, None, -1 if flip else 1) for flip in flips)].transpose(order)
            yield f"{', '.join(names)} swapped", view, 0
    for slices in range(-MOST_MOVED, MOST_MOVED + 1):
        if slices:
            yield f"the annotation {abs(slices)} slice(s) {'higher' if slices > 0 else 'lower'}", image, slices
