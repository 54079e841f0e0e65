"""Points in millimetres and signed distances to the shapes of which anatomy is built.

The head has its own RAS+ frame: x to the right, y to the front, z up, origin between the commissures. This module holds
no 3-D array: a field is one float32 number for each computed point, shape (n,).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Field: TypeAlias = NDArray[np.floating]
"""float32 values, one for each point, shape (n,), or a volume. The type does not contain float32, because numpy's stubs
lose it at every power and every product with a Python number; a test of ``make_case`` checks it."""
Triple: TypeAlias = tuple[float, float, float]
Ball: TypeAlias = tuple[float, float, float, float]
"""Centre x, y, z and radius (mm)."""

REACH_MM = 8.0
"""Distances are exact below this value and cut off above it, so that only the neighbourhood of a shape is computed."""

SUBSLICE_MM = 2.5
"""Approximate thickness of the layers that are averaged into a slice (mm)."""

CENTRE_HEIGHT_MM = 4.0
"""Height of the volume's centre above the head's origin (mm)."""


class Points(NamedTuple):
    """Coordinates of n points (mm), each of shape (n,)."""

    x: Field
    y: Field
    z: Field

    def mirrored(self) -> Points:
        """The points with both hemispheres folded onto the right one."""
        return Points(np.abs(self.x), self.y, self.z)

    def shifted(self, shift_x_mm: Field) -> Points:
        """The points moved to the left by ``shift_x_mm`` (n,), so that the anatomy appears moved to the right."""
        return Points(self.x - shift_x_mm, self.y, self.z)

    def take(self, chosen: NDArray[np.intp]) -> Points:
        """The points at the indices ``chosen``, shape (m,)."""
        return Points(self.x[chosen], self.y[chosen], self.z[chosen])

    def distance_to(self, centre: Triple) -> Field:
        """Euclidean distance to one place (mm), shape (n,)."""
        return np.sqrt((self.x - centre[0]) ** 2 + (self.y - centre[1]) ** 2 + (self.z - centre[2]) ** 2)


@dataclass(frozen=True)
class Grid:
    """The scan's voxel grid, each slice cut into ``n_sub`` layers."""

    shape: tuple[int, int, int]
    """Voxels (X, Y, Z)."""
    spacing_mm: Triple

    @property
    def n_sub(self) -> int:
        """Number of layers that are averaged into a slice."""
        return max(1, round(self.spacing_mm[2] / SUBSLICE_MM))

    @property
    def layer_ml(self) -> float:
        """Volume of one point: a voxel's share of one layer (mL)."""
        return self.spacing_mm[0] * self.spacing_mm[1] * self.spacing_mm[2] / 1000.0 / self.n_sub

    def axes_mm(self) -> tuple[Field, Field, Field]:
        """Scanner coordinates of the voxel columns, rows and layers: shapes (X,), (Y,), (Z * n_sub,)."""
        counts = (self.shape[0], self.shape[1], self.shape[2] * self.n_sub)
        steps = (self.spacing_mm[0], self.spacing_mm[1], self.spacing_mm[2] / self.n_sub)
        x, y, z = (
            ((np.arange(n) - (n - 1) / 2) * step).astype(np.float32) for n, step in zip(counts, steps, strict=True)
        )
        return x, y, z + np.float32(CENTRE_HEIGHT_MM)

    def affine(self) -> NDArray[np.float64]:
        """Voxel index to mm, RAS+, shape (4, 4), diagonal."""
        affine = np.diag([*self.spacing_mm, 1.0])
        affine[:3, 3] = [-(n - 1) / 2 * step for n, step in zip(self.shape, self.spacing_mm, strict=True)]
        affine[2, 3] += CENTRE_HEIGHT_MM
        return affine

    def average(self, indices: NDArray[np.intp], values: Field, *, background: float = 0.0) -> Field:
        """Average layers into slices: values (n,) at flat layer ``indices`` -> image (X, Y, Z) float32.

        Layers without a value count as ``background``.
        """
        # z is the last axis, so neighbouring layers of one slice share their flat index divided by n_sub.
        total = np.bincount(indices // self.n_sub, values - np.float32(background), int(np.prod(self.shape)))
        return (total / self.n_sub + background).astype(np.float32).reshape(self.shape)


def sphere_radius_mm(volume_ml: float) -> float:
    """Radius (mm) of a ball of this volume."""
    return (volume_ml * 1000 * 3 / (4 * math.pi)) ** (1 / 3)


def coverage(distance_mm: Field, half_width_mm: float) -> Field:
    """Share of a voxel inside a surface, (n,): 1 inside (distance < 0), 0 outside, a ramp of +-half_width between."""
    return np.clip(np.float32(0.5) - distance_mm * np.float32(0.5 / half_width_mm), 0.0, 1.0)


def chain_distance(points: Points, balls: Sequence[Ball]) -> Field:
    """Signed distance (n,) to a chain of tapered capsules through ``balls`` (mm, negative inside, at most REACH_MM)."""
    result = np.full_like(points.x, REACH_MM)
    for start, end in pairwise(balls):
        radius = max(start[3], end[3])
        low = [min(a, b) - radius for a, b in zip(start[:3], end[:3], strict=True)]
        high = [max(a, b) + radius for a, b in zip(start[:3], end[:3], strict=True)]
        near = _near_box(points, low, high)
        if near.size:
            result[near] = np.minimum(result[near], _capsule(points.take(near), start, end))
    return result


def ellipsoid_distance(points: Points, centre: Triple, radii_mm: Triple) -> Field:
    """Approximate signed distance (n,) to an ellipsoid (mm, negative inside, at most REACH_MM).

    Exact at the surface along the shortest axis; too small along the others.
    """
    low = [c - r for c, r in zip(centre, radii_mm, strict=True)]
    high = [c + r for c, r in zip(centre, radii_mm, strict=True)]
    near = _near_box(points, low, high)
    result = np.full_like(points.x, REACH_MM)
    q = points.take(near)
    squared = sum(((axis - c) / r) ** 2 for axis, c, r in zip(q, centre, radii_mm, strict=True))
    result[near] = np.minimum((np.sqrt(squared) - 1) * np.float32(min(radii_mm)), np.float32(REACH_MM))
    return result


def _near_box(points: Points, low: Sequence[float], high: Sequence[float]) -> NDArray[np.intp]:
    inside = np.ones(points.x.shape, bool)
    for axis, lowest, highest in zip(points, low, high, strict=True):
        inside &= (axis > lowest - REACH_MM) & (axis < highest + REACH_MM)
    return np.flatnonzero(inside)


def _capsule(points: Points, start: Ball, end: Ball) -> Field:
    ax, ay, az, radius = start
    dx, dy, dz = end[0] - ax, end[1] - ay, end[2] - az
    px, py, pz = points.x - ax, points.y - ay, points.z - az
    along = np.clip((px * dx + py * dy + pz * dz) / (dx * dx + dy * dy + dz * dz + 1e-6), 0.0, 1.0)
    aside = (px - along * dx) ** 2 + (py - along * dy) ** 2 + (pz - along * dz) ** 2
    return np.sqrt(aside) - (radius + (end[3] - radius) * along)
