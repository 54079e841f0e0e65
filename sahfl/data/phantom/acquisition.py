"""The scanner: beam hardening, headrest, point spread, slice profile, noise and calibration."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sahfl.data.phantom.profiles import ScannerProfile
from sahfl.data.phantom.skull import AIR_HU
from sahfl.data.phantom.space import Field, Grid, Points

HU_LIMITS = (-1024, 3071)
"""Range of a 12-bit scanner."""
_SOLID_HU = -600.0
"""Voxels above this value contain matter and get the calibration error."""


def harden_beam(hu: Field, points: Points, depth_mm: Field, profile: ScannerProfile) -> Field:
    """Add to HU (n,) the brightening under the inner table and a dark, striped band between the petrous bones."""
    hu = hu + np.float32(profile.cupping_hu) * np.exp(-np.clip(depth_mm, 0, 60) / 9)
    x, y, z = points
    band = np.exp(-(((z + 37) / 9) ** 2) - ((y + 14) / 9) ** 2 - (x / 30) ** 2)
    return hu - np.float32(1.6 * profile.streak_hu) * band * (1 + 0.6 * np.sin((y + 0.15 * x) / 3.1))


def add_headrest(image: Field, grid: Grid, rng: np.random.Generator) -> None:
    """Draw the headrest's shell, and sometimes a tube, into slices (X, Y, Z) in place; it is the same on each slice."""
    x, y, _ = grid.axes_mm()
    radius, centre_y = rng.uniform(104, 118), rng.uniform(1, 6)
    centre_x = rng.normal(0, 4)
    across, along = x[:, None] - np.float32(centre_x), y[None, :] - np.float32(centre_y)
    shell = np.abs(np.hypot(across, along) - np.float32(radius)) - np.float32(rng.uniform(1.2, 2.0))
    share = np.clip(0.5 - shell / (1.1 * grid.spacing_mm[0]), 0, 1) * (along < -radius * rng.uniform(0.1, 0.75))
    np.maximum(image, (AIR_HU + share * rng.uniform(1000, 1250))[:, :, None], out=image)
    for _ in range(rng.integers(0, 3)):
        place_x, place_y = float(rng.choice([-1, 1])) * rng.uniform(82, 105), rng.uniform(-60, 60)
        tube = np.hypot(x[:, None] - np.float32(place_x), y[None, :] - np.float32(place_y)) - rng.uniform(1.5, 3)
        wall = np.clip(0.5 - tube / (1.1 * grid.spacing_mm[0]), 0, 1).astype(np.float32)
        np.maximum(image, (AIR_HU + wall * rng.uniform(1050, 1900))[:, :, None], out=image)


def scan(image: Field, grid: Grid, profile: ScannerProfile, rng: np.random.Generator) -> NDArray[np.int16]:
    """Turn true HU (X, Y, Z) into a scanner's image (int16): blur, noise, calibration error and quantisation."""
    image = blur_in_plane(image, grid, profile.psf_sigma_mm)
    if profile.edge_enhancement > 0:
        image = image + profile.edge_enhancement * (image - blur_in_plane(image, grid, 1.5 * profile.psf_sigma_mm))
    image = bleed_slices(image, profile)
    image = image + _noise(grid, profile, rng)
    image = np.where(image < _SOLID_HU, image, image + np.float32(profile.hu_offset_hu))
    return np.clip(np.rint(image), *HU_LIMITS).astype(np.int16)


def blur_in_plane(image: Field, grid: Grid, sigma_mm: float) -> Field:
    """Gaussian blur of (X, Y, Z) within the slices."""
    sigma = (sigma_mm / grid.spacing_mm[0], sigma_mm / grid.spacing_mm[1], 0)
    return ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3.0)


def bleed_slices(image: Field, profile: ScannerProfile) -> Field:
    """Average a share of the neighbouring slices into each slice of (X, Y, Z)."""
    if profile.slice_bleed == 0:
        return image
    kernel = (profile.slice_bleed, 1 - 2 * profile.slice_bleed, profile.slice_bleed)
    return ndimage.correlate1d(image, kernel, axis=2, mode="nearest")


def _noise(grid: Grid, profile: ScannerProfile, rng: np.random.Generator) -> Field:
    """Correlated noise (X, Y, Z) with the profile's SD, a quarter stronger in the head's middle than at its edge."""
    noise = rng.standard_normal(grid.shape, dtype=np.float32)
    noise = blur_in_plane(noise, grid, profile.noise_correlation_mm)
    x, y, _ = grid.axes_mm()
    central = np.exp(-((x[:, None] / 60) ** 2) - (y[None, :] / 75) ** 2)
    return noise * (np.float32(profile.noise_sd_hu) / noise.std() * (0.75 + 0.5 * central))[:, :, None]
