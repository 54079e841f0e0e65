"""DICOM files as scanners write them, for tests: slices of a volume, and segmentations by an independent library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

CANARIES = ("Muster", "Hans", "19470312", "4711-0815", "Bahnhofstrasse", "Dr-Who")
"""What the headers say of the patient; it must not be found anywhere else."""
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
Change = Callable[[Dataset, int], None]


def unchanged(dataset: Dataset, index: int) -> None:
    """Leave a slice as it is."""


def uid(*names: object) -> str:
    """The same UID for the same names."""
    return generate_uid(entropy_srcs=["sahfl", *map(str, names)])


def slice_dataset(volume: np.ndarray, affine: np.ndarray, index: int, series: str = "ct") -> Dataset:
    """Slice ``index`` of a volume (columns, rows, slices) in HU, with its affine to RAS mm."""
    plane = RAS_TO_LPS @ affine[:3]
    between_columns, between_rows = np.linalg.norm(plane[:, :2], axis=0)
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, uid(series, index)
    data.StudyInstanceUID, data.SeriesInstanceUID = uid("study"), uid(series)
    data.FrameOfReferenceUID, data.Modality, data.ImageType = uid("frame"), "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.PatientName, data.PatientID, data.PatientBirthDate = "Muster^Hans", "4711-0815", "19470312"
    data.PatientAddress, data.ReferringPhysicianName, data.PatientSex = "Bahnhofstrasse 1", "Dr-Who", "M"
    data.StudyDate = data.StudyTime = data.AccessionNumber = data.StudyID = ""
    data.SeriesNumber, data.InstanceNumber, data.SliceThickness = 1, index + 1, "5.0"
    data.ImagePositionPatient = [f"{mm:.6f}" for mm in plane @ [0, 0, index, 1]]
    data.ImageOrientationPatient = [
        f"{part:.8f}" for part in (*plane[:, 0] / between_columns, *plane[:, 1] / between_rows)
    ]
    data.PixelSpacing = [f"{between_rows:.6f}", f"{between_columns:.6f}"]
    data.Columns, data.Rows = volume.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.RescaleSlope, data.RescaleIntercept, data.RescaleType = "1", "-1024", "HU"
    data.PixelData = (volume[:, :, index].T + 1024).astype("<u2").tobytes()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return data


def write_series(
    folder: Path, volume: np.ndarray, affine: np.ndarray, *, change: Change = unchanged, series: str = "ct"
) -> list[Path]:
    """Write each slice as a file named by its number; ``change`` alters a slice before it is written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(volume.shape[2]):
        data = slice_dataset(volume, affine, index, series)
        paths.append(folder / f"{series}-{index:03d}.dcm")
        with pydicom.config.disable_value_validation():  # some tests write what no scanner should
            change(data, index)
            data.save_as(paths[-1], enforce_file_format=True)
    return paths


def write_segmentation(path: Path, slices: list[Path], label: np.ndarray, name: str = "Hemorrhage") -> Path:
    """Write a label (columns, rows, slices) as a binary SEG of the slices, as highdicom does it."""
    return write_segments(path, slices, label[..., None], [(name, codes.SCT.Lesion)])


def write_segments(path: Path, slices: list[Path], labels: np.ndarray, kinds: list[tuple[str, Code]]) -> Path:
    """Write labels (columns, rows, slices, segments) as one binary SEG; ``kinds`` has name and type of each segment."""
    segmentation = highdicom.seg.Segmentation(
        source_images=[pydicom.dcmread(item) for item in slices],
        pixel_array=labels.transpose(2, 1, 0, 3).astype(np.uint8),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_described(number, *kind) for number, kind in enumerate(kinds, 1)],
        series_instance_uid=uid("seg series"),
        series_number=2,
        sop_instance_uid=uid("seg"),
        instance_number=1,
        manufacturer="sahfl tests",
        manufacturer_model_name="none",
        software_versions="0",
        device_serial_number="0",
        omit_empty_frames=True,
    )
    segmentation.save_as(path)
    return path


def _described(number: int, name: str, kind: Code) -> highdicom.seg.SegmentDescription:
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=kind,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
    )
