"""Writing a mask as a DICOM segmentation object (SEG) that refers to the series it was drawn on.

highdicom writes it, an optional dependency (``pip install highdicom``) for users who file results in an archive.
A SEG belongs to the patient's study, so it contains the patient's name and identifiers, copied from the series: keep it
where the series is kept.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from sahfl import __version__
from sahfl.atomic import write_atomic
from sahfl.data.dicom.complete_header import complete, missing_element
from sahfl.data.dicom.header import private, read_whole
from sahfl.data.dicom.series import Series
from sahfl.errors import ConfigError, DataError

LABEL = "Intracranial hemorrhage"
OTHERWISE = "the mask as NIfTI does not need it"


def require_highdicom() -> None:
    """Check before the work that a segmentation can be written.

    Raises:
        ConfigError: highdicom is not installed.
    """
    if find_spec("highdicom") is None:
        raise ConfigError("a DICOM segmentation needs highdicom, which is not installed; pip install highdicom")


def write_segmentation(path: Path, label: NDArray[np.bool_], series: Series, *, algorithm: str) -> tuple[str, ...]:
    """Write a binary segmentation with one segment, hemorrhage, atomically; slices without blood have no frame.

    An empty mask gets an empty frame for every slice, because a SEG needs at least one frame.

    Args:
        path: file to write.
        label: (columns, rows, slices), on the voxels of ``series`` in its order.
        series: on which the mask was drawn.
        algorithm: name of the program that drew it; at most 64 characters are written.

    Returns:
        What the series' headers lack and was made or left empty, a sentence each (``complete_header``).

    Raises:
        ConfigError: highdicom is not installed.
        DataError: the series lies in several multi-frame files, of which a SEG refers to one, or its headers cannot be
            repeated; the message names the element, never its value.

    Source: DICOM PS3.3 2024, A.51 and C.8.20; highdicom (Bridge et al. 2022, doi 10.1007/s10278-022-00683-y).
    """
    require_highdicom()
    logging.getLogger("highdicom").setLevel(logging.CRITICAL)  # its log lines contain the series' identifiers
    from highdicom import seg

    with private():
        sources = [read_whole(file) for file in dict.fromkeys(series.files)]
        _require_one_source(sources)
        planes = _in_order(label, series, int(sources[0].get("NumberOfFrames") or 1))
        notes = complete(sources, spacing_mm=float(np.linalg.norm(series.image.affine[:3, 2])))
    stream = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote header values
            made = seg.Segmentation(
                source_images=sources,
                pixel_array=planes,
                segmentation_type=seg.SegmentationTypeValues.BINARY,
                segment_descriptions=[_describe(algorithm)],
                series_instance_uid=generate_uid(),
                series_number=900,
                sop_instance_uid=generate_uid(),
                instance_number=1,
                manufacturer="sahfl",
                manufacturer_model_name="sahfl predict",
                software_versions=__version__,
                device_serial_number="none",
                series_description="Hemorrhage, research use only",
                omit_empty_frames=bool(label.any()),
            )
            made.save_as(stream)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        text = f"the series' headers lack what a DICOM segmentation has to repeat ({missing_element(error)})"
        raise DataError(f"no DICOM segmentation: {text}; {OTHERWISE}") from None
    write_atomic(path, stream.getvalue())
    return notes


def _require_one_source(sources: Sequence[Dataset]) -> None:
    n_frames = [int(source.get("NumberOfFrames") or 1) for source in sources]
    if len(sources) > 1 and max(n_frames) > 1:
        text = f"the series lies in {len(sources)} multi-frame files, and a segmentation refers to one"
        raise DataError(f"no DICOM segmentation: {text}; {OTHERWISE}")


def _describe(algorithm: str) -> Any:
    """The description of the only segment."""
    from highdicom import AlgorithmIdentificationSequence, seg

    return seg.SegmentDescription(
        segment_number=1,
        segment_label=LABEL,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Hemorrhage,
        algorithm_type=seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=algorithm[:64], version=__version__, family=codes.DCM.ArtificialIntelligence
        ),
    )


def _in_order(label: NDArray[np.bool_], series: Series, n_frames: int) -> NDArray[np.uint8]:
    """The mask as (slices, rows, columns); of an enhanced CT in the order of its frames."""
    slices = np.ascontiguousarray(series.on_slices(label).transpose(2, 1, 0)).astype(np.uint8)
    if max(series.frames) < 0:
        return slices
    frames = np.zeros((n_frames, *slices.shape[1:]), np.uint8)
    frames[list(series.frames)] = slices
    return frames
