"""A mask on another grid than its image, brought to the image's voxels.

Nothing is resampled if the mask's voxels are voxels of the image: all of them, or some, as 3D Slicer saves it. If they
have equally many voxels of one size at different places, the mask is refused: a program may have lost its place, and
resampling would move it. Any other grid is a grid of its own, such as a finer one.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from sahfl.errors import ScanProblem

SAME_MM = 1e-3
"""Affines that differ by no more in any number are the same."""
LEAST_DICE = 0.7
"""Of the round trip. A lesion of 3 cm that was drawn in slices of 1 mm has 0.9 and more on slices of 5 mm."""


def fit(
    mask: NDArray[np.bool_],
    mask_affine: NDArray[np.float64],
    image_shape: tuple[int, ...],
    image_affine: NDArray[np.float64],
) -> tuple[NDArray[np.bool_], str]:
    """The mask on the image's voxels, and what was done to it; as it is, with no text, if it lies on them.

    Args:
        mask: (X, Y, Z) in RAS, as the image.
        mask_affine: (4, 4).
        image_shape: of the image.
        image_affine: (4, 4) of the image.

    Raises:
        ScanProblem: mask and image lie at different places, or the mask does not survive the round trip of ``regrid``.
    """
    same_voxels = mask.shape == tuple(image_shape)
    if same_voxels and np.allclose(mask_affine, image_affine, atol=SAME_MM):
        return mask, ""
    if not np.isfinite(mask_affine).all() or not abs(np.linalg.det(mask_affine[:3, :3])) > 0:
        raise ScanProblem("affine", "the label's voxels have no volume (the affine's determinant is 0)")
    sizes, wanted = (np.linalg.norm(affine[:3, :3], axis=0) for affine in (mask_affine, image_affine))
    if same_voxels and np.allclose(sizes, wanted, rtol=1e-3):
        apart = apart_mm(mask.shape, mask_affine, image_affine)
        text = f"label and image have the same voxels at different places, up to {apart:.1f} mm apart"
        raise ScanProblem("affine", text)
    found, dice = regrid(mask, mask_affine, image_shape, image_affine)
    grids = f"{_grid(mask.shape, sizes)} for an image of {_grid(image_shape, wanted)}"
    if dice == 1 and _is_part(mask_affine, image_affine):
        return found, ""
    if dice == 0:
        raise ScanProblem("affine", f"no voxel of the label lies in the image (the label has {grids})")
    if dice < LEAST_DICE:
        text = f"the label has {grids}; the Dice of there and back is {dice:.2f}, expected at least {LEAST_DICE}"
        raise ScanProblem("grid_lost", text)
    return found, f"the label has {grids} and was resampled (nearest voxel); the Dice of there and back is {dice:.3f}"


def _is_part(mask_affine: NDArray[np.float64], image_affine: NDArray[np.float64]) -> bool:
    """Whether the voxels of two grids that overlap are the same."""
    apart = np.linalg.solve(mask_affine[:3, :3], image_affine[:3, 3] - mask_affine[:3, 3])
    moved = mask_affine.copy()
    moved[:3, 3] += mask_affine[:3, :3] @ np.round(apart)
    return bool(np.allclose(moved, image_affine, atol=SAME_MM))


def _grid(shape: tuple[int, ...], spacing_mm: NDArray[np.float64]) -> str:
    return f"{' x '.join(map(str, shape))} voxels of {' x '.join(f'{mm:.2f}' for mm in spacing_mm)} mm"


def apart_mm(shape: tuple[int, ...], affine: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Largest distance in mm between the places that two affines give to a corner of a grid."""
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, n - 1) for n in shape))], np.float64)
    return float(np.linalg.norm(corners @ (affine - other).T[:, :3], axis=1).max())


def regrid(
    mask: NDArray[np.bool_],
    mask_affine: NDArray[np.float64],
    image_shape: tuple[int, ...],
    image_affine: NDArray[np.float64],
) -> tuple[NDArray[np.bool_], float]:
    """Take for each voxel of the image the nearest voxel of the mask; outside the mask's grid there is no blood.

    The round trip takes the result back to the mask's grid in the same way. Its Dice with the mask is 1 if nothing was
    lost, 0 if mask and image do not overlap, and 1 for an empty mask.

    Args:
        mask: (X, Y, Z).
        mask_affine: (4, 4), voxel index to RAS mm.
        image_shape: of the image, (X, Y, Z).
        image_affine: (4, 4) of the image.

    Returns:
        The mask on the image's voxels, and the Dice of the round trip.
    """
    there = _sampled(mask, mask_affine, image_shape, image_affine)
    back = _sampled(there, image_affine, mask.shape, mask_affine)
    both = int(mask.sum()) + int(back.sum())
    return there, 2 * int((mask & back).sum()) / both if both else 1.0


def _sampled(
    source: NDArray[np.bool_],
    source_affine: NDArray[np.float64],
    shape: tuple[int, ...],
    affine: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """The nearest voxel of ``source`` for each voxel of a grid, one slice of the grid at a time."""
    found = np.zeros(shape, np.bool_)
    if not source.any():
        return found
    to_source = np.linalg.inv(source_affine) @ affine
    x, y = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    with np.errstate(over="ignore", invalid="ignore"):  # of places far outside, where one of the grids has no thickness
        in_plane = [to_source[axis, 0] * x + to_source[axis, 1] * y for axis in range(3)]
        for z in range(shape[2]):
            # Rounded first: an index of 0.49999999 and one of 0.50000001 are the same place.
            places = [np.round(in_plane[a] + to_source[a, 2] * z + to_source[a, 3], 6) for a in range(3)]
            nearest = [np.floor(place + 0.5) for place in places]
            inside = np.all([(n >= 0) & (n < size) for n, size in zip(nearest, source.shape, strict=True)], axis=0)
            found[:, :, z][inside] = source[tuple(n[inside].astype(np.int64) for n in nearest)]
    return found
