"""What identifies the content of a patient's folder: what is read of its slices and annotations, and nothing else.

A patient's id may be mended, a text corrected, a file renamed or a viewer's file added: the scan stays the same, and so
do the budgets that the ledger keeps for it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from sahfl.data.dicom.header import PIXEL_ELEMENTS, private, read_elements
from sahfl.data.dicom.segmentation import SEG_ELEMENTS
from sahfl.data.dicom.slices import GROUPS, SLICE_ELEMENTS
from sahfl.data.dicom.structures import CONTOUR_ELEMENTS
from sahfl.data.dicom.survey import survey
from sahfl.data.formats.volume import files_of

_UIDS = {"FrameOfReferenceUID", "ReferencedFrameOfReferenceSequence", "ReferencedSeriesSequence", "PatientID"}
"""Read, but changed by programs that take a patient's identity away or mend it."""
_READ = (*SLICE_ELEMENTS, *PIXEL_ELEMENTS, *GROUPS, *SEG_ELEMENTS, *CONTOUR_ELEMENTS)
_ELEMENTS = tuple(dict.fromkeys(name for name in _READ if name not in _UIDS))
_SCANS = ("slice", "frames", "segmentation")


def scan_parts(folder: Path) -> tuple[tuple[bytes, ...], tuple[Path, ...]]:
    """Hashes of the folder's slices, segmentations and contours, in no order of names, and its annotations in files.

    Raises:
        ScanProblem: a file cannot be read.
    """
    contents = survey(folder)
    hashes = sorted(dicom_hash(item.path) for item in contents.found if item.kind in _SCANS)
    volumes = [item.path for item in contents.found if item.kind in ("nifti", "volume")]
    return tuple(hashes), tuple(file for path in volumes for file in files_of(path))


def dicom_hash(path: Path) -> bytes:
    """SHA-256 over the elements of a file that are read, and its pixels.

    Raises:
        ScanProblem: the file cannot be read.
    """
    with private():
        dataset = read_elements(path, _ELEMENTS)
        syntax = dataset.file_meta.TransferSyntaxUID
        stream = DicomBytesIO()
        stream.is_little_endian, stream.is_implicit_VR = not str(syntax).endswith("1.2.2"), False
        write_dataset(stream, dataset)
        return hashlib.sha256(f"{syntax}\n".encode() + stream.getvalue()).digest()
