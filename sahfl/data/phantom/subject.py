"""One patient: age, pose in the scanner, and the points of the scan that lie in the head."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sahfl.data.phantom.noise import NoiseBank
from sahfl.data.phantom.profiles import ScannerProfile
from sahfl.data.phantom.space import Field, Grid, Points

HEAD_RADII_MM = (96.0, 118.0, 112.0)
"""Half axes (mm) of an ellipsoid that contains every head; outside it there is only air."""
HEAD_FLOOR_MM = -100.0
"""Nothing is modelled below this height (mm)."""


@dataclass(frozen=True)
class Subject:
    """The properties of one patient's healthy head."""

    age_years: float
    atrophy: float
    """-0.2 (young, full brain) to 1 (old, wide CSF spaces)."""
    scale: tuple[float, float, float]
    """Size relative to the mean head along x, y, z."""
    rotation_rad: tuple[float, float, float]
    """Pitch, roll, yaw."""
    offset_mm: tuple[float, float, float]
    """Head's origin in the scanner."""
    cistern_width: float
    """Factor on the radii of cisterns and fissures."""
    ventricle_width: float
    """Factor on the radii of the ventricles."""
    convexity_gap_mm: float
    """Thickness of the subarachnoid space over the convexity."""
    bone_thickness_mm: float
    grey_hu: float
    white_hu: float
    blood_hu: float


def sample_subject(rng: np.random.Generator, profile: ScannerProfile) -> Subject:
    """Draw one patient from the site's age range."""
    age = rng.uniform(*profile.age_years)
    atrophy = min(max((age - 40) / 45, -0.2), 1.0)
    wide = max(atrophy, 0.0)
    size = rng.normal(1.0, 0.035)
    sx, sy, sz = (min(max(size * rng.normal(1.0, 0.015), 0.9), 1.1) for _ in range(3))
    pitch, roll = rng.normal(profile.pitch_deg, 4), rng.normal(0, profile.roll_sd_deg)
    yaw = rng.normal(0, profile.yaw_sd_deg)
    return Subject(
        age_years=age,
        atrophy=atrophy,
        scale=(sx, sy, sz),
        rotation_rad=(math.radians(pitch), math.radians(roll), math.radians(yaw)),
        offset_mm=(rng.normal(0, 3), rng.normal(0, 4), rng.normal(0, 4)),
        cistern_width=1 + 0.5 * wide + 0.15 * min(max(rng.normal(), -2.0), 2.0),
        ventricle_width=math.exp(rng.normal(0, 0.18)) * (1 + 0.55 * wide),
        convexity_gap_mm=1.3 + 1.6 * wide + rng.uniform(0, 0.5),
        bone_thickness_mm=6.0 + rng.normal(0, 0.5),
        grey_hu=41.0 + rng.normal(0, 1),
        white_hu=32.5 + rng.normal(0, 1),
        blood_hu=64.0 + rng.normal(0, 4),
    )


@dataclass(frozen=True)
class Region:
    """The points of the scan that need computing, in the head's frame."""

    grid: Grid
    bank: NoiseBank
    indices: NDArray[np.intp]
    """Flat positions in the layered grid (X, Y, Z * n_sub), ascending, shape (n,)."""
    points: Points

    @property
    def partial_mm(self) -> float:
        """Half width of the ramp that models partial volume at an edge (mm)."""
        return 0.55 * self.grid.spacing_mm[0]

    def noise(self, length_mm: float) -> Field:
        """The bank's next smooth field of unit variance at these points, shape (n,)."""
        return self.bank.sample(length_mm, self.indices)

    def subset(self, chosen: NDArray[np.intp]) -> Region:
        """The region of the points ``chosen``, shape (m,), indices in this region."""
        return Region(self.grid, self.bank, self.indices[chosen], self.points.take(chosen))

    def average(self, values: Field, *, background: float = 0.0) -> Field:
        """Slices (X, Y, Z) averaged from values (n,); elsewhere ``background``."""
        return self.grid.average(self.indices, values, background=background)


def place_head(grid: Grid, subject: Subject, bank: NoiseBank, *, gantry_tilt_deg: float) -> Region:
    """Points that may lie in the head, turned, scaled and smoothly warped into the head's frame."""
    x, y, z = (axis - np.float32(off) for axis, off in zip(grid.axes_mm(), subject.offset_mm, strict=True))
    rx, ry, rz = HEAD_RADII_MM
    within = (x[:, None, None] / rx) ** 2 + (y[:, None] / ry) ** 2 + (z / rz) ** 2 < 1
    columns, rows, layers = np.nonzero(within)
    indices = np.flatnonzero(within)
    scanner = (x[columns], y[rows], z[layers] + np.float32(math.tan(math.radians(gantry_tilt_deg))) * y[rows])
    turned = []
    for row, size in zip(_rotation(*subject.rotation_rad), subject.scale, strict=True):
        straight = (row[0] * scanner[0] + row[1] * scanner[1] + row[2] * scanner[2]) / np.float32(size)
        # A smooth warp of 1.2 mm, so that the hemispheres are not mirror images.
        turned.append(straight + np.float32(1.2) * bank.sample(50, indices))
    region = Region(grid, bank, indices, Points(*turned))
    return region.subset(np.flatnonzero(region.points.z > HEAD_FLOOR_MM))


def _rotation(pitch: float, roll: float, yaw: float) -> NDArray[np.float32]:
    cx, sx, cy, sy, cz, sz = (f(angle) for angle in (pitch, roll, yaw) for f in (math.cos, math.sin))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return (about_x @ about_y @ about_z).astype(np.float32)
