"""Whether a volume shows a head: slices with brain-like tissue that bone surrounds, in the size of a skull.

Bone surrounds a pixel on most sides, not all: skulls have holes, flaps and fields of view that cut them. Of the rays in
eight directions within the slice, six or seven must meet bone before air. Limbs fail by size, the trunk by the gaps
between its ribs and its fat, the neck by its airway and fat, and MR by its values, which vary more than brain in CT.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

AIR_BELOW_HU, BONE_ABOVE_HU = -300.0, 300.0
FAT_BELOW_HU = -20.0
"""Brain and its fluid lie above this value, fat below."""
LEAST_FIELD_MM = 140.0
"""A field of view that is smaller along x or y need not show a skull, so nothing is judged in it."""
LEAST_RAYS = 7, 6
"""Of eight: in general, and for tissue that is no brighter than brain. Measured: real slices after a craniectomy have
31 cm2 or more with six rays, and less than 9 with seven; between the jaws, six rays reach bone from muscle."""
MUSCLE_HU = 52.0
"""Muscle lies above this value, brain below. Measured on real slices: brain up to 50."""
LEAST_CM2, MOST_MM = 20.0, (170.0, 210.0)
"""Surrounded area, and its shorter and longer side. Measured: 31-189 cm2, up to 130 x 168 mm (real and phantoms)."""
MOST_FAT, MOST_SPREAD_HU = 0.15, 30.0
"""Share of fat (measured: up to 0.06), and robust SD of the values (measured: up to 11 HU)."""
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
_BOX = np.ones((3, 3, 1), np.bool_)


def skull_share(coarse: NDArray[np.float32], pixel_mm: tuple[float, float]) -> float | None:
    """Share of the slices that show brain inside a skull; None if the field of view is too small to judge.

    Args:
        coarse: (x, y, Z) in HU, pixels of about 2 mm.
        pixel_mm: their size.
    """
    if any(n * mm < LEAST_FIELD_MM for n, mm in zip(coarse.shape, pixel_mm, strict=False)):
        return None
    smooth, tissue = (ndimage.uniform_filter(coarse, (n, n, 1)) for n in (3, 5))  # the second reaches no bone
    bone = ndimage.binary_dilation(coarse > BONE_ABOVE_HU, _BOX)
    air = (smooth < AIR_BELOW_HU) & ~bone
    rays = _rays(bone, air) * (~bone & ~air)
    surrounded, open_to_a_side = (ndimage.binary_erosion(rays >= least, _BOX) for least in LEAST_RAYS)
    found = [
        _is_head(surrounded[:, :, z], tissue[:, :, z], pixel_mm)
        or _is_head(open_to_a_side[:, :, z], tissue[:, :, z], pixel_mm, MUSCLE_HU)
        for z in range(coarse.shape[2])
    ]
    return float(np.mean(found))


def _rays(bone: NDArray[np.bool_], air: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Number of the eight directions in which each voxel's ray meets bone before air."""
    count = np.zeros(bone.shape, np.int8)
    for x, y in _DIRECTIONS:
        if x:
            count += _meets_bone(bone, air, x, y)
        else:
            count += _meets_bone(bone.swapaxes(0, 1), air.swapaxes(0, 1), y, 0).swapaxes(0, 1)
    return count


def _meets_bone(bone: NDArray[np.bool_], air: NDArray[np.bool_], step: int, across: int) -> NDArray[np.bool_]:
    """Whether a ray along the first axis (``step`` is 1 or -1), and ``across`` the second, meets bone before air."""
    met = np.zeros(bone.shape, np.bool_)
    n = bone.shape[0]
    for index in range(n - 2, -1, -1) if step > 0 else range(1, n):
        ahead = index + step
        row = bone[ahead] | (met[ahead] & ~air[ahead])
        if across > 0:
            met[index, :-1] = row[1:]
        elif across < 0:
            met[index, 1:] = row[:-1]
        else:
            met[index] = row
    return met


def _is_head(
    inside: NDArray[np.bool_], values: NDArray[np.float32], pixel_mm: tuple[float, float], most_hu: float = np.inf
) -> bool:
    """Whether the largest surrounded region of a slice has the size and the values of brain."""
    parts, n = ndimage.label(inside)
    if not n:
        return False
    largest = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    if largest.sum() * pixel_mm[0] * pixel_mm[1] / 100 < LEAST_CM2:
        return False
    sides = sorted(float(np.ptp(at)) * mm for at, mm in zip(np.nonzero(largest), pixel_mm, strict=True))
    tissue = values[largest]
    spread = 1.4826 * float(np.median(np.abs(tissue - np.median(tissue))))
    fits = sides[0] <= MOST_MM[0] and sides[1] <= MOST_MM[1] and float(np.median(tissue)) <= most_hu
    return fits and float((tissue < FAT_BELOW_HU).mean()) <= MOST_FAT and spread <= MOST_SPREAD_HU
