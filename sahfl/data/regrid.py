"""A mask on another grid than its image: brought there by nearest neighbour, with what the way there and back lost."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

LEAST_DICE = 0.7
"""A mask that the way to the image's grid and back changes more is too fine, or lies elsewhere."""
MOST_OUTSIDE = 0.01
"""Largest share of a mask's volume that may lie outside the image."""


def regrid(
    mask: NDArray[np.bool_], mask_affine: NDArray[np.float64], shape: tuple[int, ...], affine: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], float]:
    """A mask (X, Y, Z) on another grid (nearest neighbour), and the Dice of the mask with itself after the way back.

    The Dice is 1 for a mask that is empty on both grids, and 0 for one that lies outside the image.

    Args:
        mask: on its own grid.
        mask_affine: (4, 4), from its voxels to mm.
        shape: of the image's grid.
        affine: (4, 4), from the image's voxels to mm.
    """
    there = _sampled(mask, np.linalg.inv(mask_affine) @ affine, shape)
    back = _sampled(there, np.linalg.inv(affine) @ mask_affine, mask.shape)
    total = int(mask.sum()) + int(back.sum())
    return there, 1.0 if total == 0 else 2.0 * int((mask & back).sum()) / total


def apart_mm(shape: tuple[int, ...], affine: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Largest distance in mm between the places that two affines give to a corner of a grid."""
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, n - 1) for n in shape))], np.float64)
    return float(np.linalg.norm(corners @ (affine - other).T[:, :3], axis=1).max())


def _sampled(mask: NDArray[np.bool_], to_mask: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    voxels = ndimage.affine_transform(
        mask.astype(np.uint8), to_mask[:3, :3], to_mask[:3, 3], output_shape=shape, order=0, mode="grid-constant"
    )
    return voxels > 0
