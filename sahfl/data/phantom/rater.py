"""The reference mask: the outline that a careful human would draw, not the exact blood shares."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sahfl.data.phantom.acquisition import bleed_slices, blur_in_plane
from sahfl.data.phantom.hemorrhage import LABELS
from sahfl.data.phantom.profiles import ScannerProfile
from sahfl.data.phantom.space import Field
from sahfl.data.phantom.subject import Region

_MARKED_SHARE = 0.42
"""A rater marks voxels with at least this share of blood (unitless)."""
_BONE_SHARE = 0.10
"""Voxels with a larger share of bone are not marked."""
_SMALLEST_PIECE_MM2 = 14.0
"""Smaller pieces of a slice are not outlined: 5 pixels of 1.8 mm, 70 of 0.45 mm."""


def draw_label(region: Region, shares: Mapping[str, Field], soft: Field, profile: ScannerProfile) -> NDArray[np.uint8]:
    """Mask (X, Y, Z) uint8 of ``LABELS`` from each label's blood shares and the boneless shares ``soft``, both (n,)."""
    grid = region.grid
    boneless = bleed_slices(blur_in_plane(region.average(soft), grid, profile.psf_sigma_mm), profile)
    visible = boneless > 1 - _BONE_SHARE
    label = np.zeros(grid.shape, np.uint8)
    strongest = np.zeros(grid.shape, np.float32)
    for name, share in shares.items():
        seen = blur_in_plane(region.average(share), grid, 0.6 * profile.psf_sigma_mm)
        outlined, threshold = seen, _MARKED_SHARE + profile.rater_shift
        if name == "SAH":
            # Raters outline thin subarachnoid blood as smooth, connected, slightly enlarged bands.
            outlined = blur_in_plane(seen, grid, 0.5)
            threshold -= 0.01
        marked = _drop_small_pieces((outlined > threshold) & visible, grid.spacing_mm) & (seen >= strongest)
        label[marked] = LABELS[name]
        strongest = np.where(marked, seen, strongest)
    return label


def _drop_small_pieces(mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> NDArray[np.bool_]:
    in_slice = np.zeros((3, 3, 3), int)
    in_slice[:, :, 1] = 1
    pieces, n_pieces = ndimage.label(mask, structure=in_slice)
    if n_pieces == 0:
        return mask
    areas_mm2 = np.bincount(pieces.ravel()) * (spacing_mm[0] * spacing_mm[1])
    return mask & (areas_mm2 >= _SMALLEST_PIECE_MM2)[pieces]
