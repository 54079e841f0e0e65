"""From the positions of slices to the affine of a volume.

Gantry tilt. A tilted scanner moves the table along the body while the slices lean, so neighbouring slices are shifted
against each other and the stacking direction is not perpendicular to the slices. The affine contains this step
unchanged: it is sheared, not a rotation. No voxel is interpolated: HU, annotation and prediction stay on the scanner's
own pixels, and a voxel's volume (the determinant of the affine) is right. The drawback: coronal and sagittal slices
show the head slanted by the tilt. ``fit`` brings an annotation to these voxels that other programs wrote.

Uneven distances. A series of two thicknesses, or with slices off their place by a part of a distance, is put on an even
grid along its own step (``Stack.places``). A gap that one slice or more would fill is a missing slice.

Orientation. DICOM counts mm to the patient's left and back (LPS), sahfl and NIfTI to the right and front (RAS).

Source: DICOM PS3.3 2024, C.7.6.2.1.1 (image plane attributes).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sahfl.errors import ScanProblem

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
POSITION_TOLERANCE_MM = 0.1
"""Largest distance of a slice from the position that the affine gives it."""
DIRECTION_TOLERANCE = 1e-3
"""Largest difference between components of unit vectors; at 512 x 0.45 mm it moves the end of a row by 0.2 mm."""
MOST_GAP = 1.5
"""A gap of more expected distances lacks a slice."""
FEWEST_ALIKE = 4
"""As many equal gaps in a row are a part of the series with a distance of its own."""
MOST_TILT_DEGREES = 40.0
"""Gantries tilt up to 30 degrees; above this limit the slices do not belong together."""


@dataclass(frozen=True)
class Slice:
    """Geometry and calibration (rescale slope and intercept) of one slice."""

    path: Path
    frame_of_reference: str
    position_mm: tuple[float, ...]
    """(x, y, z) of the centre of the first pixel, LPS."""
    orientation: tuple[float, ...]
    """Unit vector along a row, then along a column, LPS."""
    pixel_mm: tuple[float, ...]
    """Distance between rows, then between columns."""
    shape: tuple[int, int]
    """Rows, columns."""
    thickness_mm: float
    """0 if the header does not contain it."""
    slope: float
    intercept: float
    padding: tuple[int, int] | None = None
    """First and last stored value of what is outside the scanner's field of view."""
    frame: int = -1
    """Index of the frame in a file of many, -1 in a file of one."""


@dataclass(frozen=True)
class Stack:
    """Slices as a volume."""

    slices: list[Slice]
    """Sorted along their normal."""
    affine: NDArray[np.float64]
    """(4, 4), from (column, row, plane) to RAS mm."""
    n_planes: int
    """Planes of the volume; as many as there are slices, unless their distances are uneven."""
    places: NDArray[np.float64]
    """(n slices,): where each lies among the planes; whole numbers unless their distances are uneven."""
    gaps_mm: tuple[float, float]
    """Smallest and largest distance of two slices."""

    @property
    def even(self) -> bool:
        """Whether each plane is a slice."""
        return self.n_planes == len(self.slices) and bool((self.places == np.arange(self.n_planes)).all())


def stack(slices: Sequence[Slice]) -> Stack:
    """Slices sorted along their normal, with the affine from (column, row, plane) to RAS mm.

    Guarantees: no slice lies further than ``POSITION_TOLERANCE_MM`` from where the affine puts it; instance numbers and
    file names are not used.

    Raises:
        ScanProblem: mixed orientations or sizes, two slices at one position, missing slices, or slices that are shifted
            in their own plane.
    """
    row, column, normal = _directions(slices)
    _check_sizes(slices)
    along = np.array([np.dot(normal, part.position_mm) for part in slices])
    order = np.argsort(along, kind="stable")
    slices = [slices[index] for index in order]
    step, places, gaps_mm = _step(slices, along[order], normal)
    between_rows, between_columns = slices[0].pixel_mm
    affine, origin = np.eye(4), np.array(slices[0].position_mm)
    affine[:3] = LPS_TO_RAS @ np.column_stack([row * between_columns, column * between_rows, step, origin])
    return Stack(slices, affine, round(float(places[-1])) + 1, places, gaps_mm)


def _directions(slices: Sequence[Slice]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Common unit vectors along a row, along a column, and perpendicular to the slices (LPS), each (3,)."""
    orientations = np.array([part.orientation for part in slices])
    if np.ptp(orientations, axis=0).max() > DIRECTION_TOLERANCE:
        raise ScanProblem("mixed_orientations", "the slices of the series lean differently, expected one orientation")
    row, column = orientations[0, :3], orientations[0, 3:]
    off = max(abs(np.linalg.norm(row) - 1), abs(np.linalg.norm(column) - 1), abs(np.dot(row, column)))
    if off > DIRECTION_TOLERANCE:
        raise ScanProblem("no_geometry", "ImageOrientationPatient is not two perpendicular unit vectors")
    return row, column, np.cross(row, column)


def _check_sizes(slices: Iterable[Slice]) -> None:
    sizes = {(part.shape, tuple(round(mm, 4) for mm in part.pixel_mm)) for part in slices}
    if len(sizes) > 1:
        listed = ", ".join(sorted(f"{c} x {r} of {x:g} x {y:g} mm" for (r, c), (y, x) in sizes))
        raise ScanProblem("mixed_sizes", f"the slices have different pixels ({listed}), expected one size")


def _step(
    slices: Sequence[Slice], along: NDArray[np.float64], normal: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[float, float]]:
    """Vector (3,) from a plane to the next in mm (LPS), the place of each slice among the planes, and the gaps' range.

    The vector is perpendicular to the slices unless the gantry was tilted. Slices are sorted; ``along`` holds their
    positions in mm along the unit vector ``normal``. A single slice has its thickness.
    """
    if len(slices) == 1:
        thickness_mm = slices[0].thickness_mm
        if thickness_mm <= 0:
            text = "the series is one slice without SliceThickness: its volume is unknown"
            raise ScanProblem("unknown_thickness", text)
        return normal * thickness_mm, np.zeros(1), (thickness_mm, thickness_mm)
    gaps = np.diff(along)
    if n := int((gaps < POSITION_TOLERANCE_MM).sum()):
        text = f"{n} slice(s) lie where another lies: a copy or a second acquisition?"
        raise ScanProblem("duplicate_positions", text)
    _require_complete(gaps, [part.thickness_mm for part in slices])
    points = np.asarray([part.position_mm for part in slices])
    whole, shares = points[-1] - points[0], (along - along[0]) / (along[-1] - along[0])
    if (
        off := float(np.linalg.norm(points - points[0] - shares[:, None] * whole, axis=1).max())
    ) > POSITION_TOLERANCE_MM:
        text = f"a slice is {off:.2f} mm off the straight line through the slices, expected at most 0.1 mm"
        raise ScanProblem("shifted_slices", text)
    tilt = np.degrees(np.arccos(np.clip(np.dot(whole, normal) / np.linalg.norm(whole), -1, 1)))
    if tilt > MOST_TILT_DEGREES:
        raise ScanProblem("tilt", f"the slices are stacked {tilt:.0f} degrees off their normal, expected a gantry tilt")
    places, length_mm = np.arange(len(slices), dtype=np.float64), float(along[-1] - along[0])
    if np.abs(shares - places / places[-1]).max() * length_mm > POSITION_TOLERANCE_MM:
        places = shares * max(1, round(length_mm / _finest(gaps)))
    step: NDArray[np.float64] = whole / round(float(places[-1]))
    return step, places, (float(gaps.min()), float(gaps.max()))


def _require_complete(gaps: NDArray[np.float64], thickness_mm: Sequence[float]) -> None:
    """Check for gaps that a slice would fill.

    A gap is compared with the nearest distances that the series keeps for a while, on both sides, because a series may
    have thin slices at the skull's base and thick ones above. Between slices that are thicker than usual, it may be as
    wide as they are thick.
    """
    usual, least = float(np.median(gaps)), float(gaps.min())
    kept = [index for index in range(len(gaps)) if _n_alike(gaps, index) >= FEWEST_ALIKE]
    thick = np.add(thickness_mm[:-1], thickness_mm[1:]) / 2
    thick[thick <= 1.2 * float(np.median(thickness_mm))] = 0
    lacking, n = [], 0
    for index, gap in enumerate(gaps):
        before, after = [i for i in kept if i <= index][-1:], [i for i in kept if i >= index][:1]
        expected = max((float(gaps[i]) for i in before + after), default=usual)
        if gap > MOST_GAP * max(expected, float(thick[index])):
            lacking.append(float(gap))
            n += max(1, round(float(gap) / expected) - 1)
    if lacking:
        text = f"{n} slice(s) of {usual:.2f} mm are missing between the first and last"
        raise ScanProblem("missing_slices", f"{text} (slice distances of {least:.2f} to {max(lacking):.2f} mm)")


def _finest(gaps: NDArray[np.float64]) -> float:
    """The smallest distance that the series keeps for a while; the median if it keeps none."""
    kept = [float(gaps[index]) for index in range(len(gaps)) if _n_alike(gaps, index) >= FEWEST_ALIKE]
    return min(kept, default=float(np.median(gaps)))


def _n_alike(gaps: NDArray[np.float64], index: int) -> int:
    """Number of gaps in a row around one that are equal to it."""
    different = np.abs(gaps - gaps[index]) > POSITION_TOLERANCE_MM + 0.02 * gaps[index]
    before, after = np.flatnonzero(different[:index]), np.flatnonzero(different[index:])
    start = int(before[-1]) + 1 if before.size else 0
    return (index + int(after[0]) if after.size else len(gaps)) - start
