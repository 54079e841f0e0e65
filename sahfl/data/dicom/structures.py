"""Contours of radiotherapy (RTSTRUCT) as an annotation of a CT series.

A structure that is named as blood is drawn on the slices of its series: a voxel is blood if its centre lies inside an
odd number of the structure's contours in its slice. So a contour within another one is a hole, and the area of a mask
is that of its contours on average. Several structures that are named as blood are united.

No library that is kept up reads these files without reading the whole series again, and those that were kept round
contours to whole pixels.

Source: DICOM PS3.3 2024, A.19 and C.8.8.6 (ROI contour).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import RTStructureSetStorage

from sahfl.data.dicom.header import private, read_elements
from sahfl.data.dicom.series import Series
from sahfl.data.dicom.stack import LPS_TO_RAS
from sahfl.data.formats.segments import choose_blood
from sahfl.errors import ScanProblem

OFF_SLICE = 0.25
"""Largest distance of a contour from its slice, in distances to the next one; programs round to 0.01 mm and more."""
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "")
"""Types of contours that enclose an area; all are united by the odd number of contours around a voxel."""
MOST_POINTS = 1 << 22
"""Points of all contours of a file; the contours of a head have some ten thousands."""
CONTOUR_ELEMENTS = (
    *("SOPClassUID", "StructureSetROISequence", "ROIContourSequence", "FrameOfReferenceUID"),
    "ReferencedFrameOfReferenceSequence",
)


def is_structures(path: Path) -> bool:
    """Test whether a DICOM file holds contours.

    Raises:
        ScanProblem: it is damaged.
    """
    with private():
        return bool(read_elements(path, ("SOPClassUID",)).get("SOPClassUID") == RTStructureSetStorage)


def series_of(path: Path) -> frozenset[str]:
    """UIDs of the series that the contours were drawn on, as their header says.

    Raises:
        ScanProblem: the file is damaged.
    """
    with private():
        frames = read_elements(path, ("ReferencedFrameOfReferenceSequence",)).get("ReferencedFrameOfReferenceSequence")
        studies = [study for frame in frames or () for study in frame.get("RTReferencedStudySequence") or ()]
        found = [series for study in studies for series in study.get("RTReferencedSeriesSequence") or ()]
        return frozenset(str(series.get("SeriesInstanceUID", "")) for series in found)


def read_structures(
    path: Path, series: Series, blood: Sequence[str | int] = ()
) -> tuple[NDArray[np.uint8], tuple[tuple[str, str], ...]]:
    """The structures that are named as blood, on the voxels of their series: uint8 (columns, rows, planes), and notes.

    Raises:
        ScanProblem: they belong to another series, none is named as blood, encloses no area, or lies on no slice.
    """
    with private():
        dataset = read_elements(path, CONTOUR_ELEMENTS)
        _check_frame(dataset, series)
        structures = {int(item.ROINumber): str(item.get("ROIName", "")) for item in dataset.StructureSetROISequence}
        drawn = [item for item in dataset.get("ROIContourSequence") or () if item.get("ContourSequence")]
        drawn = [item for item in drawn if int(item.ReferencedROINumber) in structures]
        if not drawn:
            raise ScanProblem("seg_segments", "the set of contours (RTSTRUCT) has no structure with contours")
        numbers = [int(item.ReferencedROINumber) for item in drawn]
        chosen, text = choose_blood([structures[number] for number in numbers], numbers, blood)
        label = np.zeros((*series.image.shape[:2], len(series.places)), np.uint8)
        for index in chosen:
            label |= _voxels(_contours(drawn[index]), series).astype(np.uint8)
    return series.on_planes(label), (("seg_counted", text),) if text else ()


def _check_frame(dataset: Dataset, series: Series) -> None:
    named = {
        str(item.get("FrameOfReferenceUID", "")) for item in dataset.get("ReferencedFrameOfReferenceSequence") or ()
    }
    named |= {str(item.get("ReferencedFrameOfReferenceUID", "")) for item in dataset.StructureSetROISequence}
    if not series.shares_frame(named):
        raise ScanProblem("seg_frame_of_reference", "the contours belong to another frame of reference")


def _contours(structure: Dataset) -> Iterator[NDArray[np.float64]]:
    """The closed contours of a structure, (n, 3) in mm, LPS."""
    n_points, n_closed = 0, 0
    for contour in structure.ContourSequence:
        points = np.asarray(contour.ContourData, np.float64)
        n_points += points.size // 3
        if points.size % 3 or not np.isfinite(points).all() or n_points > MOST_POINTS:
            raise ScanProblem("seg_geometry", "a contour is no list of points, or has too many")
        if str(contour.get("ContourGeometricType") or "") in CLOSED and points.size >= 9:
            n_closed += 1
            yield points.reshape(-1, 3)
    if not n_closed:
        raise ScanProblem("seg_geometry", "a structure has points or open lines only, which enclose no area")


def _voxels(contours: Iterator[NDArray[np.float64]], series: Series) -> NDArray[np.bool_]:
    """Voxels (columns, rows, slices) whose centres lie inside an odd number of contours.

    A contour belongs to the slice that it lies on. Where slices have uneven distances, that is none of the volume's
    planes.
    """
    found = np.zeros((*series.image.shape[:2], len(series.places)), np.bool_)
    to_voxels = np.linalg.inv(np.asarray(series.image.affine, np.float64))
    gaps = np.concatenate([[np.inf], np.diff(series.places), [np.inf]])
    for points in contours:
        places = points @ (to_voxels[:3, :3] @ LPS_TO_RAS).T + to_voxels[:3, 3]
        index = int(np.abs(series.places - places[:, 2].mean()).argmin())
        between = float(min(gaps[index], gaps[index + 1]))
        off = float(np.abs(places[:, 2] - series.places[index]).max())
        if not off <= OFF_SLICE * (between if np.isfinite(between) else 1.0):
            raise ScanProblem("seg_geometry", "a contour does not lie on a slice of the series")
        found[:, :, index] ^= inside(places[:, :2], found.shape[:2])
    return found


def inside(corners: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which pixels' centres lie inside a polygon, by the even-odd rule; shape (columns, rows).

    A centre on an edge counts on the polygon's lower side of both axes and not on its upper side, so that two polygons
    with a common edge share no pixel.

    Args:
        corners: (n, 2), in pixels: column, row; the last is joined to the first.
        shape: number of columns and of rows.
    """
    found = np.zeros(shape, np.bool_)
    ends = np.roll(corners, -1, axis=0)
    low, high = corners[:, 1].min(), corners[:, 1].max()
    columns = np.arange(shape[0])
    for row in range(max(0, int(np.ceil(low))), min(shape[1] - 1, int(np.floor(high))) + 1):
        crossed = (corners[:, 1] <= row) != (ends[:, 1] <= row)
        (x0, y0), (x1, y1) = corners[crossed].T, ends[crossed].T
        at = np.sort(x0 + (row - y0) * (x1 - x0) / (y1 - y0))
        # The number of crossings at or left of a pixel's centre.
        found[:, row] = np.searchsorted(at, columns, side="right") % 2 == 1
    return found
