"""The geometry and calibration of slices: one in a file, or many in a file of enhanced CT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from sahfl.data.dicom.header import code, numbers, private, read_elements
from sahfl.data.dicom.stack import Slice
from sahfl.errors import ScanProblem

PADDING = ("PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit")
_PIXELS = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", *PADDING)
SLICE_ELEMENTS = (
    *("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SliceThickness", "RescaleSlope", "RescaleIntercept", "RescaleType"),
    *_PIXELS,
)
GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
FRAME_ELEMENTS = ("FrameOfReferenceUID", "NumberOfFrames", *_PIXELS, *GROUPS)


def read_slice(path: Path) -> Slice:
    """A slice's geometry and calibration.

    Raises:
        ScanProblem: the header lacks one of them, or the pixels are not grey values in HU.
    """
    with private():
        header = read_elements(path, SLICE_ELEMENTS)
        return _slice(path, header, position=header, orientation=header, measures=header, values=header)


def read_frames(path: Path) -> list[Slice]:
    """The slices of an enhanced CT, or of one that an archive converted from single slices; localizers are left out.

    Raises:
        ScanProblem: as ``read_slice``, or the file does not describe its frames.

    Source: DICOM PS3.3 2024, C.7.6.16 and C.8.15.3 (functional groups of enhanced CT).
    """
    with private():
        header = read_elements(path, FRAME_ELEMENTS)
        shared = header[GROUPS[0]].value[0] if header.get(GROUPS[0]) else Dataset()
        frames = header.get(GROUPS[1]) or ()
        if not frames or len(frames) != int(header.get("NumberOfFrames") or 1):
            text = "got multi-frame CT without a description of each frame, expected enhanced CT or a file per slice"
            raise ScanProblem("multi_frame", text)
        found = []
        for index, own in enumerate(frames):
            kinds = _group(own, shared, "CTImageFrameTypeSequence")
            if "LOCALIZER" in (kinds.get("FrameType") or ()):
                continue
            parts = {
                "position": _group(own, shared, "PlanePositionSequence"),
                "orientation": _group(own, shared, "PlaneOrientationSequence"),
                "measures": _group(own, shared, "PixelMeasuresSequence"),
                "values": _group(own, shared, "PixelValueTransformationSequence"),
            }
            found.append(_slice(path, header, **parts, frame=index))
    if not found:
        raise ScanProblem("localizer", "got localizer image(s) only, expected a CT series")
    return found


def _group(own: Dataset, shared: Dataset, name: str) -> Dataset:
    """A functional group of a frame, or the one that all frames share; empty if there is neither."""
    for groups in (own, shared):
        if groups.get(name):
            return groups[name].value[0]
    return Dataset()


def _slice(
    path: Path,
    header: Dataset,
    *,
    position: Dataset,
    orientation: Dataset,
    measures: Dataset,
    values: Dataset,
    frame: int = -1,
) -> Slice:
    if header.get("SamplesPerPixel", 1) != 1 or header.get("PhotometricInterpretation") != "MONOCHROME2":
        raise ScanProblem("not_grey", "a slice's pixels are not plain grey values (MONOCHROME2)")
    if values.get("RescaleType") not in (None, "", "HU", "US"):
        raise ScanProblem("not_hu", f"a slice's values are in {code(values, 'RescaleType')}, expected HU")
    (slope,) = numbers(values, "RescaleSlope", 1, rule="no_rescale")
    (intercept,) = numbers(values, "RescaleIntercept", 1, rule="no_rescale")
    if slope == 0:
        raise ScanProblem("no_rescale", "a slice's RescaleSlope is 0")
    pixel_mm = numbers(measures, "PixelSpacing", 2, rule="no_geometry")
    if min(pixel_mm) <= 0:
        raise ScanProblem("no_geometry", "a slice's PixelSpacing is not above 0")
    (rows,), (columns,) = (numbers(header, keyword, 1, rule="no_geometry") for keyword in ("Rows", "Columns"))
    has_thickness = measures.get("SliceThickness") not in (None, "")
    (thickness_mm,) = numbers(measures, "SliceThickness", 1, rule="no_geometry") if has_thickness else (0.0,)
    return Slice(
        path=path,
        frame_of_reference=str(header.get("FrameOfReferenceUID") or ""),
        position_mm=numbers(position, "ImagePositionPatient", 3, rule="no_geometry"),
        orientation=numbers(orientation, "ImageOrientationPatient", 6, rule="no_geometry"),
        pixel_mm=pixel_mm,
        shape=(int(rows), int(columns)),
        thickness_mm=thickness_mm,
        slope=slope,
        intercept=intercept,
        padding=_padding(header),
        frame=frame,
    )


def _padding(header: Dataset) -> tuple[int, int] | None:
    """First and last stored value outside the field of view, as in the header, whose signs may not be the pixels'."""
    first, last = (_whole(header.get(name)) for name in PADDING[1:])
    return None if first is None else (first, first if last is None else last)


def _whole(value: Any) -> int | None:
    if isinstance(value, bytes):  # implicit VR: whether it is signed depends on another element
        return int.from_bytes(value[:2], "little") if value else None
    return None if value is None or value == "" else int(value)
