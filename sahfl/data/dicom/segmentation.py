"""Annotations of a CT series: a volume (NIfTI, NRRD, MetaImage) beside it, a DICOM segmentation object (SEG), or a set
of contours (RTSTRUCT, ``structures``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage

from sahfl.data.dicom.header import PIXEL_ELEMENTS, decoded, private, read_elements
from sahfl.data.dicom.series import Series
from sahfl.data.dicom.stack import LPS_TO_RAS, POSITION_TOLERANCE_MM
from sahfl.data.dicom.structures import is_structures, read_structures
from sahfl.data.dicom.survey import survey
from sahfl.data.formats.voxels import as_image
from sahfl.data.labels import is_blood
from sahfl.errors import ScanProblem

_SEG_ELEMENTS = (
    *("SOPClassUID", "SegmentationType", "FrameOfReferenceUID", "SegmentSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)


def find_annotation(folder: Path) -> Path:
    """The only annotation below a patient's folder.

    Raises:
        ScanProblem: there is none, or more than one.
    """
    found = [item.path for item in survey(folder) if item.kind in ("nifti", "segmentation")]
    if not found:
        raise ScanProblem("missing", "the case's folder holds no annotation (NIfTI file or DICOM segmentation)")
    if len(found) > 1:
        raise ScanProblem("several_annotations", f"the case's folder holds {len(found)} annotations, expected one")
    return found[0]


def read_segmentation(path: Path, series: Series) -> nibabel.Nifti1Image:
    """A segmentation object on the voxels of its series: uint8 (columns, rows, slices), 1 where any segment is set.

    Contours (RTSTRUCT) become voxels as ``structures.read_structures`` describes.

    A frame's position, not its number, decides on which slice it is placed; slices without a frame are empty. Frames
    must lie on the series' own pixels: nothing is resampled.

    Raises:
        ScanProblem: it is not a binary segmentation of this series, or a segment's name does not mean blood.

    Source: DICOM PS3.3 2024, A.51 and C.8.20 (segmentation), C.7.6.16 (functional groups).
    """
    if is_structures(path):
        label, notes = read_structures(path, series)
        return as_image(label, np.asarray(series.image.affine), "".join(text for _, text in notes))
    with private():
        dataset = read_elements(path, (*_SEG_ELEMENTS, *PIXEL_ELEMENTS))
        _check(dataset, series)
        frames = decoded(dataset)
        frames = frames[None] if frames.ndim == 2 else frames
        label = np.zeros(series.image.shape, np.uint8)
        places = list(_frame_affines(dataset))
        if len(places) != len(frames) or frames.shape[2:0:-1] != label.shape[:2]:
            raise ScanProblem("seg_geometry", "the segmentation's frames have other pixels than the slices")
        for frame, affine in zip(frames, places, strict=True):
            label[:, :, _slice_index(affine, series)] |= (frame.T > 0).astype(np.uint8)
    return nibabel.Nifti1Image(label, series.image.affine)


def _check(dataset: Dataset, series: Series) -> None:
    if dataset.SOPClassUID != SegmentationStorage or dataset.SegmentationType != "BINARY":
        raise ScanProblem("seg_type", "the annotation is not a binary DICOM segmentation")
    if not series.frame_of_reference or dataset.FrameOfReferenceUID != series.frame_of_reference:
        raise ScanProblem("seg_frame_of_reference", "the segmentation belongs to another frame of reference")
    segments = dataset.SegmentSequence
    if strange := sum(not any(map(is_blood, _names(segment))) for segment in segments):
        text = f"{strange} of {len(segments)} segment(s) are not named as blood, and every segment counts"
        raise ScanProblem("seg_segments", f"{text}; name them (label or property type) or remove them")


def _names(segment: Dataset) -> tuple[str, ...]:
    """The segment's label and the meaning of its property type."""
    types = segment.get("SegmentedPropertyTypeCodeSequence") or ()
    return str(segment.get("SegmentLabel", "")), *(str(item.get("CodeMeaning", "")) for item in types)


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
    columns, rows, n_slices = series.image.shape
    corners = np.array([[0, columns - 1, 0, columns - 1], [0, 0, rows - 1, rows - 1], [1, 1, 1, 1]], np.float64)
    whole = np.asarray(series.image.affine, np.float64)
    index = round(float(np.linalg.solve(whole[:3, :3], affine[:, 2] - whole[:3, 3])[2]))
    expected = whole[:3] @ np.vstack([corners[:2], np.full(4, index), np.ones(4)])
    off = float(np.abs(affine @ corners - expected).max())
    if not 0 <= index < n_slices or not off <= 2 * POSITION_TOLERANCE_MM:
        raise ScanProblem("seg_geometry", "a frame of the segmentation does not lie on a slice of the series")
    return index
