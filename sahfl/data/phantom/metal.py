"""Clips and coils: metal at a treated aneurysm and the streaks that it causes in its slices."""

from __future__ import annotations

import math

import numpy as np

from sahfl.data.phantom.lesions import Metal
from sahfl.data.phantom.space import Ball, Field, chain_distance, coverage
from sahfl.data.phantom.subject import Region

_METAL_HU = 3000.0
_BLOOM_MM = 3.0
"""Within this distance of metal, nothing can be outlined (mm)."""
_STREAK_HU = 200.0
"""Standard deviation over directions (HU) of the streaks next to metal that fills a disc of radius 4 mm."""
_FADE_MM = 16.0
"""Distance at which a streak has half its strength (mm)."""
_STRONGEST_HU = 180.0
_FAINTEST_AREA_MM2 = 2.0
_FREQUENCIES = np.arange(2, 32, 2)
"""Even frequencies only, because a streak has the same sign on both sides of the metal."""


def metal_distance(region: Region, metal: Metal) -> Field:
    """Distance to a clip or a ball of coils at the region's points (mm, negative inside), shape (n,)."""
    x, y, z = metal.centre
    reach = max(metal.length_mm / 2, 0.1)
    chain: list[Ball] = [(x - reach, y, z, metal.radius_mm), (x + reach, y + 0.3 * reach, z, metal.radius_mm)]
    return chain_distance(region.points, chain)


def add_metal(image: Field, region: Region, distance_mm: Field, rng: np.random.Generator) -> None:
    """Draw metal and its bright and dark streaks into slices (X, Y, Z) of true HU, in place."""
    metal = region.average(coverage(distance_mm, region.partial_mm))
    x, y, _ = region.grid.axes_mm()
    pixel_mm2 = region.grid.spacing_mm[0] * region.grid.spacing_mm[1]
    for index, share in enumerate(np.moveaxis(metal, 2, 0)):
        area_mm2 = float(share.sum()) * pixel_mm2
        if area_mm2 < _FAINTEST_AREA_MM2:
            continue
        across = x[:, None] - np.float32((share.sum(axis=1) * x).sum() / share.sum())
        along = y[None, :] - np.float32((share.sum(axis=0) * y).sum() / share.sum())
        strength = _STREAK_HU * min(area_mm2 / (math.pi * 4**2), 1.5)
        streaks = _directions(np.arctan2(along, across), rng) / (1 + (across**2 + along**2) / np.float32(_FADE_MM**2))
        image[:, :, index] += np.clip(np.float32(strength) * streaks, -_STRONGEST_HU, _STRONGEST_HU)
    np.maximum(image, metal * np.float32(_METAL_HU), out=image, where=metal > 0.02)


def outlined_share(distance_mm: Field) -> Field:
    """Share (n,) of a point that a rater can see: 0 in metal and its bloom, 1 elsewhere."""
    return 1 - coverage(distance_mm - np.float32(_BLOOM_MM), 1.0)


def _directions(angle: Field, rng: np.random.Generator) -> Field:
    """A random function of direction with about unit variance: a few sharp streaks with little between them."""
    values = np.zeros_like(angle)
    amplitudes = rng.normal(size=_FREQUENCIES.size) * np.sqrt(2 / _FREQUENCIES.size)
    for frequency, amplitude, phase in zip(
        _FREQUENCIES, amplitudes, rng.uniform(0, 2 * math.pi, _FREQUENCIES.size), strict=True
    ):
        values += np.float32(amplitude) * np.cos(np.float32(frequency) * angle + np.float32(phase))
    return values * np.abs(values) / np.float32(math.sqrt(3))
