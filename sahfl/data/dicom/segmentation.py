"""Annotations of a CT series: a volume (NIfTI, NRRD, MetaImage) beside it, a DICOM segmentation object (SEG), or a set
of contours (RTSTRUCT, ``structures``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage

from sahfl.data.dicom import structures
from sahfl.data.dicom.choice import Notes
from sahfl.data.dicom.foreign import listed
from sahfl.data.dicom.header import PIXEL_ELEMENTS, decoded, private, read_elements
from sahfl.data.dicom.series import Series
from sahfl.data.dicom.stack import LPS_TO_RAS, POSITION_TOLERANCE_MM
from sahfl.data.dicom.survey import Contents
from sahfl.data.labels import is_blood
from sahfl.data.regrid import LEAST_DICE, regrid
from sahfl.errors import ScanProblem

SEG_ELEMENTS = (
    *("SOPClassUID", "SegmentationType", "FrameOfReferenceUID", "SegmentSequence", "ReferencedSeriesSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
BLOOD_CODES = frozenset(
    {"50960005", "131148009", "35566002", "1386000", "274100004", "21454007", "95453001", "35486000", "82999001"}
)
"""SNOMED CT: hemorrhage, bleeding, hematoma, intracranial, cerebral, subarachnoid, subdural, intraventricular and
epidural hemorrhage."""


def find_annotation(contents: Contents) -> Path:
    """The only annotation in a patient's folder: a volume in a file, a segmentation or contours.

    Raises:
        ScanProblem: there is none, or more than one.
    """
    found = [item.path for item in contents.found if item.kind in ("nifti", "volume", "segmentation")]
    if not found:
        text = "the case's folder holds no annotation (NIfTI, NRRD or MetaImage file, DICOM segmentation or contours)"
        others = f"; it holds {listed(contents.foreign)}" if contents.foreign else ""
        raise ScanProblem("missing", f"{text}{others}")
    if len(found) > 1:
        raise ScanProblem("several_annotations", f"the case's folder holds {len(found)} annotations, expected one")
    return found[0]


def series_of(path: Path) -> frozenset[str]:
    """UIDs of the series that a segmentation or contours were drawn on, as the header says.

    Raises:
        ScanProblem: the file is damaged.
    """
    with private():
        if structures.is_structures(path):
            return structures.series_of(path)
        found = read_elements(path, ("ReferencedSeriesSequence",)).get("ReferencedSeriesSequence") or ()
        return frozenset(str(item.get("SeriesInstanceUID", "")) for item in found)


def read_segmentation(path: Path, series: Series) -> nibabel.Nifti1Image:
    """A segmentation object as an image on the voxels of its series; as ``read_segments``."""
    values, _ = read_segments(path, series)
    return nibabel.Nifti1Image(values, series.image.affine)


def read_segments(path: Path, series: Series, blood: Sequence[str | int] = ()) -> tuple[NDArray[np.uint8], Notes]:
    """A segmentation object on the voxels of its series: uint8 (columns, rows, planes), 1 where a segment of blood is.

    A frame's position, not its number, decides on which slice it is placed; slices without a frame are empty. Frames
    that have other pixels than the slices are resampled. Contours (RTSTRUCT) become voxels as in ``structures``.

    Args:
        path: the file.
        series: on which it was drawn.
        blood: labels or numbers of the segments that are blood; empty: those that are named as blood.

    Raises:
        ScanProblem: it is not a binary segmentation of this series, or no segment's name means blood.

    Source: DICOM PS3.3 2024, A.51 and C.8.20 (segmentation), C.7.6.16 (functional groups).
    """
    if structures.is_structures(path):
        return structures.read_structures(path, series, blood)
    with private():
        dataset = read_elements(path, (*SEG_ELEMENTS, *PIXEL_ELEMENTS))
        _check(dataset, series)
        counted, notes = _segments(dataset, blood)
        frames = decoded(dataset)
        frames = frames[None] if frames.ndim == 2 else frames
        places = list(_frame_affines(dataset))
        if len(places) != len(frames):
            raise ScanProblem("seg_geometry", "the segmentation has other frames than it describes")
        kept = [(frames[i].T > 0, places[i]) for i, n in enumerate(_numbers(dataset)) if n in counted]
    try:
        return series.on_planes(_on_slices(kept, series)), notes
    except ScanProblem as problem:
        if problem.rule != "seg_geometry":
            raise
        made, more = _on_other_grid(kept, series, problem)
        return made, (*notes, *more)


def _on_slices(frames: Sequence[tuple[NDArray[np.bool_], NDArray[np.float64]]], series: Series) -> NDArray[np.uint8]:
    label = np.zeros((*series.image.shape[:2], len(series.places)), np.uint8)
    for frame, affine in frames:
        if frame.shape != label.shape[:2]:
            raise ScanProblem("seg_geometry", "the segmentation's frames have other pixels than the slices")
        label[:, :, _slice_index(affine, series)] |= frame.astype(np.uint8)
    return label


def _on_other_grid(
    frames: Sequence[tuple[NDArray[np.bool_], NDArray[np.float64]]], series: Series, problem: ScanProblem
) -> tuple[NDArray[np.uint8], Notes]:
    """Frames that are an even stack of their own, resampled on the series; else the problem that was found first."""
    normal = np.cross(frames[0][1][:, 0], frames[0][1][:, 1]) if frames else np.zeros(3)
    length = float(np.linalg.norm(normal))
    if not 0 < length < math.inf:
        raise problem
    along = np.array([affine[:, 2] @ normal / length for _, affine in frames])
    order = np.argsort(along, kind="stable")
    depths = np.unique(np.round(along[order], 2))
    if len(depths) < 2 or len({frame.shape for frame, _ in frames}) > 1:
        raise problem
    origin, last = frames[order[0]][1], frames[order[-1]][1]
    finest = float(np.diff(depths).min())
    n_planes = round(float(depths[-1] - depths[0]) / finest) + 1
    where = (depths - depths[0]) / finest
    if not 2 <= n_planes <= 4 * len(depths) + 100 or np.abs(where - np.rint(where)).max() > 0.1:
        raise problem  # empty slices have no frame, so that gaps are whole numbers of planes
    volume = np.zeros((*frames[0][0].shape, n_planes), np.bool_)
    for (frame, _), depth in zip(frames, along, strict=True):
        volume[:, :, round((float(depth) - float(depths[0])) / finest)] |= frame
    own = np.eye(4)
    own[:3] = np.column_stack([origin[:, :2], (last[:, 2] - origin[:, 2]) / (n_planes - 1), origin[:, 2]])
    made, dice = regrid(volume, own, series.image.shape, np.asarray(series.image.affine, np.float64))
    if not made.any() or dice < LEAST_DICE:
        raise ScanProblem("seg_geometry", f"{problem}; brought to them and back, it keeps a Dice of {dice:.2f}")
    text = f"the segmentation has {' x '.join(map(str, volume.shape))} voxels of its own"
    return made.astype(np.uint8), (("regridded", f"{text}; it is resampled, with a Dice of {dice:.3f} there and back"),)


def _check(dataset: Dataset, series: Series) -> None:
    if dataset.SOPClassUID != SegmentationStorage or dataset.SegmentationType != "BINARY":
        raise ScanProblem("seg_type", "the annotation is not a binary DICOM segmentation")
    if not series.shares_frame((str(dataset.get("FrameOfReferenceUID") or ""),)):
        raise ScanProblem("seg_frame_of_reference", "the segmentation belongs to another frame of reference")


def _segments(dataset: Dataset, blood: Sequence[str | int]) -> tuple[frozenset[int], Notes]:
    """Numbers of the segments that count as blood."""
    segments = list(dataset.SegmentSequence)
    wanted = {str(name).strip().lower() for name in blood}
    counted = frozenset(
        int(segment.SegmentNumber)
        for segment in segments
        if (wanted & _asked(segment) if wanted else _is_blood(segment))
    )
    if not counted:
        what = "fits the setting data.blood" if wanted else "is named as blood"
        text = f"none of {len(segments)} segment(s) {what}"
        raise ScanProblem("seg_segments", f"{text}; name it (label or property type), or list it under data.blood")
    if len(counted) == len(segments):
        return counted, ()
    what = "those of the setting data.blood" if wanted else "those named as blood"
    return counted, (("seg_counted", f"{len(counted)} of {len(segments)} segments count, {what}"),)


def _asked(segment: Dataset) -> set[str]:
    """A segment's label and number, as a site may name them."""
    return {str(segment.get("SegmentLabel", "")).strip().lower(), str(segment.get("SegmentNumber", ""))}


def _is_blood(segment: Dataset) -> bool:
    """Whether the segment's label means blood, or its property type by meaning or code."""
    types = segment.get("SegmentedPropertyTypeCodeSequence") or ()
    names = [str(segment.get("SegmentLabel", "")), *(str(item.get("CodeMeaning", "")) for item in types)]
    return any(map(is_blood, names)) or any(str(item.get("CodeValue", "")) in BLOOD_CODES for item in types)


def _numbers(dataset: Dataset) -> Iterator[int]:
    """The segment of each frame."""
    shared = dataset.SharedFunctionalGroupsSequence[0] if "SharedFunctionalGroupsSequence" in dataset else Dataset()
    for own in dataset.PerFrameFunctionalGroupsSequence:
        yield int(_group(own, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber)


def _frame_affines(dataset: Dataset) -> Iterator[NDArray[np.float64]]:
    """Affine of each frame, (3, 3): from (column, row, 1) to RAS mm."""
    shared = dataset.SharedFunctionalGroupsSequence[0] if "SharedFunctionalGroupsSequence" in dataset else Dataset()
    for own in dataset.PerFrameFunctionalGroupsSequence:
        position = _group(own, shared, "PlanePositionSequence").ImagePositionPatient
        orientation = np.asarray(_group(own, shared, "PlaneOrientationSequence").ImageOrientationPatient, np.float64)
        rows, columns = _group(own, shared, "PixelMeasuresSequence").PixelSpacing
        plane = [orientation[:3] * float(columns), orientation[3:] * float(rows), np.asarray(position, np.float64)]
        yield LPS_TO_RAS @ np.column_stack(plane)


def _group(own: Dataset, shared: Dataset, name: str) -> Any:
    return (own if name in own else shared)[name].value[0]


def _slice_index(affine: NDArray[np.float64], series: Series) -> int:
    """Index of the slice on whose pixels a frame lies."""
    columns, rows, _ = series.image.shape
    corners = np.array([[0, columns - 1, 0, columns - 1], [0, 0, rows - 1, rows - 1], [1, 1, 1, 1]], np.float64)
    whole = np.asarray(series.image.affine, np.float64)
    place = float(np.linalg.solve(whole[:3, :3], affine[:, 2] - whole[:3, 3])[2])
    index = int(np.abs(series.places - place).argmin())
    expected = whole[:3] @ np.vstack([corners[:2], np.full(4, series.places[index]), np.ones(4)])
    if not float(np.abs(affine @ corners - expected).max()) <= 2 * POSITION_TOLERANCE_MM:
        raise ScanProblem("seg_geometry", "a frame of the segmentation does not lie on a slice of the series")
    return index
