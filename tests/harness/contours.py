"""Sets of contours (RTSTRUCT) as planning systems write them, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

from harness.dicom_files import RAS_TO_LPS, uid

Contour = tuple[str, float, Sequence[tuple[float, float]]]
"""Structure, slice, and corners (column, row) in pixels."""


def contours_of(mask: np.ndarray, name: str = "hematoma") -> list[Contour]:
    """A contour around each run of voxels in a row of a mask (columns, rows, slices)."""
    found: list[Contour] = []
    for column, row, index in np.argwhere(mask):
        if column == 0 or not mask[column - 1, row, index]:
            end = column + int(np.argmin(np.append(mask[column:, row, index], 0)))
            left, right, top, bottom = column - 0.5, end - 0.5, row - 0.5, row + 0.5
            found.append((name, float(index), [(left, top), (right, top), (right, bottom), (left, bottom)]))
    return found


def write_structures(path: Path, contours: Sequence[Contour], affine: np.ndarray, *, frame: str = "") -> Path:
    """Write contours on the slices of a volume with this affine to RAS mm."""
    frame = frame or uid("frame")
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = RTStructureSetStorage, uid("structures"), "RTSTRUCT"
    data.PatientName, data.PatientID, data.StructureSetLabel = "Muster^Hans", "4711-0815", "plan of Dr-Who"
    data.StudyInstanceUID, data.SeriesInstanceUID = uid("study"), uid("structures series")
    names = list(dict.fromkeys(name for name, _, _ in contours))
    data.StructureSetROISequence = [
        _item(ROINumber=n, ROIName=name, ReferencedFrameOfReferenceUID=frame) for n, name in enumerate(names, 1)
    ]
    data.ROIContourSequence = [
        _item(
            ReferencedROINumber=n,
            ContourSequence=[
                _item(ContourGeometricType="CLOSED_PLANAR", NumberOfContourPoints=len(corners), ContourData=points)
                for structure, index, corners in contours
                if structure == name
                for points in [_points(corners, index, affine)]
            ],
        )
        for n, name in enumerate(names, 1)
    ]
    of_series = _item(RTReferencedSeriesSequence=[_item(SeriesInstanceUID=uid("ct"))])
    data.ReferencedFrameOfReferenceSequence = [_item(FrameOfReferenceUID=frame, RTReferencedStudySequence=[of_series])]
    if not names:
        data.StructureSetROISequence = [_item(ROINumber=1, ROIName="ICH", ReferencedFrameOfReferenceUID=frame)]
    with pydicom.config.disable_value_validation():
        data.save_as(path, enforce_file_format=True)
    return path


def _item(**elements: object) -> Dataset:
    item = Dataset()
    with pydicom.config.disable_value_validation():
        for name, value in elements.items():
            setattr(item, name, value)
    return item


def _points(corners: Sequence[tuple[float, float]], index: float, affine: np.ndarray) -> list[str]:
    """The corners in mm, LPS, one after the other."""
    places = np.column_stack([np.asarray(corners, float), np.full(len(corners), index), np.ones(len(corners))])
    return [f"{mm:.4f}" for mm in ((RAS_TO_LPS @ affine[:3]) @ places.T).T.ravel()]
