"""One CT series: from the files of a patient's folder to a volume in HU and its position in the patient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from sahfl.data.dicom.header import PIXEL_ELEMENTS, code, decoded, numbers, private, read_elements
from sahfl.data.dicom.stack import Slice, stack
from sahfl.data.dicom.survey import find_slices, placed
from sahfl.data.volume_size import require_size
from sahfl.errors import ScanProblem

LOWEST_HU = -1024.0
"""Lower values are set to this one: scanners fill the area outside their field of view with values far below air."""

_SLICE_ELEMENTS = (
    *("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"),
    *("SliceThickness", "RescaleSlope", "RescaleIntercept", "RescaleType", "SamplesPerPixel"),
    "PhotometricInterpretation",
)


@dataclass(frozen=True)
class Series:
    """One CT series as a volume."""

    image: nibabel.Nifti1Image
    """(columns, rows, slices) in HU, float32, with the affine to RAS mm."""
    frame_of_reference: str
    """UID of the coordinate system, which a segmentation must share; empty if the header has none."""
    files: tuple[Path, ...] = ()
    """The files of the slices, in the order of the volume."""


def read_series(folder: Path, *, of: Path | None = None) -> Series:
    """The only CT series below a patient's folder, or the one that the file ``of`` belongs to.

    Localizers and objects that are not CT images are ignored.

    Raises:
        ScanProblem: there is not exactly one series, or it is no evenly stacked CT volume; it names the broken rule.
    """
    slices = []
    for path in find_slices(folder, of=of):
        with placed(path, folder):
            slices.append(read_slice(path))
    if len({part.frame_of_reference for part in slices}) > 1:
        raise ScanProblem("mixed_frames", "the slices have several frames of reference, their places do not compare")
    slices, affine = stack(slices)
    rows, columns = slices[0].shape
    require_size((columns, rows, len(slices)))
    volume = np.empty((columns, rows, len(slices)), np.float32)
    for index, part in enumerate(slices):
        with placed(part.path, folder):
            volume[:, :, index] = _hounsfield(part).T
    files = tuple(part.path for part in slices)
    return Series(nibabel.Nifti1Image(volume, affine), slices[0].frame_of_reference, files)


def read_slice(path: Path) -> Slice:
    """A slice's geometry and calibration.

    Raises:
        ScanProblem: the header lacks one of them, or the pixels are not grey values in HU.
    """
    with private():
        header = read_elements(path, _SLICE_ELEMENTS)
        if header.get("SamplesPerPixel", 1) != 1 or header.get("PhotometricInterpretation") != "MONOCHROME2":
            raise ScanProblem("not_grey", "a slice's pixels are not plain grey values (MONOCHROME2)")
        if header.get("RescaleType") not in (None, "", "HU", "US"):
            raise ScanProblem("not_hu", f"a slice's values are in {code(header, 'RescaleType')}, expected HU")
        (slope,) = numbers(header, "RescaleSlope", 1, rule="no_rescale")
        (intercept,) = numbers(header, "RescaleIntercept", 1, rule="no_rescale")
        if slope == 0:
            raise ScanProblem("no_rescale", "a slice's RescaleSlope is 0")
        pixel_mm = numbers(header, "PixelSpacing", 2, rule="no_geometry")
        if min(pixel_mm) <= 0:
            raise ScanProblem("no_geometry", "a slice's PixelSpacing is not above 0")
        (rows,), (columns,) = (numbers(header, keyword, 1, rule="no_geometry") for keyword in ("Rows", "Columns"))
        has_thickness = header.get("SliceThickness") not in (None, "")
        (thickness_mm,) = numbers(header, "SliceThickness", 1, rule="no_geometry") if has_thickness else (0.0,)
        return Slice(
            path=path,
            frame_of_reference=str(header.get("FrameOfReferenceUID") or ""),
            position_mm=numbers(header, "ImagePositionPatient", 3, rule="no_geometry"),
            orientation=numbers(header, "ImageOrientationPatient", 6, rule="no_geometry"),
            pixel_mm=pixel_mm,
            shape=(int(rows), int(columns)),
            thickness_mm=thickness_mm,
            slope=slope,
            intercept=intercept,
        )


def _hounsfield(part: Slice) -> NDArray[np.float32]:
    """A slice's values in HU, (rows, columns)."""
    with private():
        stored = decoded(read_elements(part.path, PIXEL_ELEMENTS))
        if stored.shape != part.shape:
            raise ScanProblem("unreadable", f"a slice has pixels of shape {stored.shape}, its header has {part.shape}")
    values = stored.astype(np.float32) * np.float32(part.slope) + np.float32(part.intercept)
    return np.maximum(values, np.float32(LOWEST_HU))
