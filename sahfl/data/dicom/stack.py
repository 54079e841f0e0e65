"""From the positions of slices to the affine of a volume.

Gantry tilt. A tilted scanner moves the table along the body while the slices lean, so neighbouring slices are shifted
against each other and the stacking direction is not perpendicular to the slices. The affine contains this step
unchanged: it is sheared, not a rotation. No voxel is interpolated: HU, annotation and prediction stay on the scanner's
own pixels, and a voxel's volume (the determinant of the affine) is right. The drawback: coronal and sagittal slices
show the head slanted by the tilt. An annotation drawn on a tilt-corrected copy (dcm2niix ``_Tilt``) has other voxels
and is refused as ``shape`` or ``affine``.

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
    """0 if the header does not contain it; used only for a single slice."""
    slope: float
    intercept: float


def stack(slices: Sequence[Slice]) -> tuple[list[Slice], NDArray[np.float64]]:
    """Slices sorted along their normal, and the affine (4, 4) from (column, row, slice) to RAS mm.

    Guarantees: no slice lies further than ``POSITION_TOLERANCE_MM`` from where the affine puts it; instance numbers and
    file names are not used.

    Raises:
        ScanProblem: mixed orientations or sizes, two slices at one position, missing or unevenly spaced slices.
    """
    row, column, normal = _directions(slices)
    _check_sizes(slices)
    along = np.array([np.dot(normal, part.position_mm) for part in slices])
    order = np.argsort(along, kind="stable")
    slices = [slices[index] for index in order]
    step = _step([part.position_mm for part in slices], along[order], normal, slices[0].thickness_mm)
    between_rows, between_columns = slices[0].pixel_mm
    affine, origin = np.eye(4), np.array(slices[0].position_mm)
    affine[:3] = LPS_TO_RAS @ np.column_stack([row * between_columns, column * between_rows, step, origin])
    return slices, affine


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
    positions: Sequence[tuple[float, ...]], along: NDArray[np.float64], normal: NDArray[np.float64], thickness_mm: float
) -> NDArray[np.float64]:
    """Vector (3,) from a slice to the next in mm (LPS): perpendicular to the slices unless the gantry was tilted.

    Positions are sorted; ``along`` holds them in mm along the unit vector ``normal``. A single slice has its thickness.
    """
    if len(positions) == 1:
        if thickness_mm <= 0:
            text = "the series is one slice without SliceThickness: its volume is unknown"
            raise ScanProblem("unknown_thickness", text)
        return normal * thickness_mm
    gaps = np.diff(along)
    if n := int((gaps < POSITION_TOLERANCE_MM).sum()):
        text = f"{n} slice(s) lie where another lies: a copy or a second acquisition?"
        raise ScanProblem("duplicate_positions", text)
    usual = float(np.median(gaps))
    wide = gaps > 1.5 * usual
    if wide.any() and np.allclose(gaps / usual, np.rint(gaps / usual), atol=0.1):
        n = int(np.rint(gaps[wide] / usual - 1).sum())
        raise ScanProblem("missing_slices", f"{n} slice(s) of {usual:.2f} mm are missing between the first and last")
    places = np.asarray(positions)
    step: NDArray[np.float64] = (places[-1] - places[0]) / (len(places) - 1)
    off = np.linalg.norm(places - places[0] - np.arange(len(places))[:, None] * step, axis=1).max()
    if off > POSITION_TOLERANCE_MM:
        text = f"slice distances of {gaps.min():.2f} to {gaps.max():.2f} mm, a slice is {off:.2f} mm off its place"
        raise ScanProblem("uneven_slices", f"{text}; dcm2niix writes an evenly spaced NIfTI copy (_Eq)")
    tilt = np.degrees(np.arccos(np.clip(np.dot(step, normal) / np.linalg.norm(step), -1, 1)))
    if tilt > MOST_TILT_DEGREES:
        raise ScanProblem("tilt", f"the slices are stacked {tilt:.0f} degrees off their normal, expected a gantry tilt")
    return step
