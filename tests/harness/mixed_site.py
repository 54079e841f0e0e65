"""Patients of one hospital, each in another format: what lies in a folder that several people filled."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pydicom
import SimpleITK
from pydicom.uid import RLELossless

from harness.contours import contours_of, write_structures
from harness.dicom_files import uid, write_segmentation, write_series
from harness.packed_dicom import enhanced, pack
from sahfl.data.phantom import PROFILES, PhantomCase, make_case

SHAPE, SPACING_MM = (96, 112, 24), (2.0, 2.0, 5.0)
"""A whole head that passes the checks."""


def head(number: int) -> PhantomCase:
    """The head of a patient, with blood."""
    profile = PROFILES["standard"]
    return make_case(100 + number, kind="sah", profile=profile, shape=SHAPE, spacing_mm=SPACING_MM)


def write_patients(folder: Path, formats: Iterable[str] | None = None) -> dict[str, float]:
    """Write a folder for each format, named by its patient (``p01``); the mL of blood by folder."""
    volumes = {}
    for number, name in enumerate(FORMATS if formats is None else formats, 1):
        place, case = folder / f"p{number:02d}", head(number)
        place.mkdir(parents=True)
        FORMATS[name](place, case, number)
        volumes[place.name] = float((case.label > 0).sum()) * float(np.prod(SPACING_MM)) / 1000
    return volumes


def _nifti(ending: str) -> Callable[[Path, PhantomCase, int], None]:
    def write(place: Path, case: PhantomCase, number: int) -> None:
        for name, voxels in (("ct", case.image), ("mask", (case.label > 0).astype(np.uint8))):
            nibabel.save(nibabel.Nifti1Image(voxels, case.affine), place / f"{name}{ending}")

    return write


def _itk(ending: str) -> Callable[[Path, PhantomCase, int], None]:
    def write(place: Path, case: PhantomCase, number: int) -> None:
        for name, voxels in (("ct", case.image), ("mask", (case.label > 0).astype(np.uint8))):
            image = SimpleITK.GetImageFromArray(voxels.transpose(2, 1, 0))
            image.SetSpacing(SPACING_MM)
            image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
            image.SetOrigin([float(mm) for mm in np.diag([-1, -1, 1]) @ case.affine[:3, 3]])
            SimpleITK.WriteImage(image, str(place / f"{name}{ending}"), True)

    return write


def _slicer(place: Path, case: PhantomCase, number: int) -> None:
    space = {"space": "right-anterior-superior", "kinds": ["domain"] * 3, "encoding": "gzip"}
    space |= {"space directions": case.affine[:3, :3].T, "space origin": case.affine[:3, 3]}
    nrrd.write(str(place / "ct.nrrd"), case.image, space)
    low, high = (getattr(np.argwhere(case.label), name)(axis=0) for name in ("min", "max"))
    crop = case.label[tuple(map(slice, low, high + 1))] > 0
    named = {"Segment0_ID": "Segment_1", "Segment0_Name": "SAH", "Segment0_LabelValue": "1", "Segment0_Layer": "0"}
    space |= {"space origin": (case.affine @ [*low, 1])[:3]}
    nrrd.write(str(place / "ct.seg.nrrd"), crop.astype(np.uint8), space | named)


def _turned(case: PhantomCase) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, mask and affine as scanners store them: columns to the left, rows to the back."""
    image, label = case.image[::-1, ::-1], (case.label[::-1, ::-1] > 0).astype(np.uint8)
    to = np.array(case.affine)
    to[:3, 3] += to[:3, :2] @ [n - 1 for n in SHAPE[:2]]
    to[:3, :2] *= -1
    return image, label, to


def _series(place: Path, case: PhantomCase, number: int) -> tuple[list[Path], np.ndarray, np.ndarray]:
    image, label, affine = _turned(case)

    def change(data: pydicom.Dataset, index: int) -> None:
        of_patient(data, number)

    return write_series(place / "ct", image, affine, change=change, series=f"ct-{number}"), label, affine


def of_patient(data: pydicom.Dataset, number: int) -> None:
    """Give a file to a patient of its own."""
    data.PatientID, data.StudyInstanceUID = f"9900-{number}", uid("study", number)


def _with_nifti(place: Path, case: PhantomCase, number: int) -> None:
    _, label, affine = _series(place, case, number)
    nibabel.save(nibabel.Nifti1Image(label, affine), place / "mask.nii.gz")


def _with_segmentation(place: Path, case: PhantomCase, number: int) -> None:
    slices, label, _ = _series(place, case, number)
    write_segmentation(place / "seg.dcm", slices, label)


def _with_structures(place: Path, case: PhantomCase, number: int) -> None:
    _, label, affine = _series(place, case, number)
    write_structures(place / "rs.dcm", contours_of(label), affine)


def _packed(syntax: str) -> Callable[[Path, PhantomCase, int], None]:
    def write(place: Path, case: PhantomCase, number: int) -> None:
        _with_nifti(place, case, number)
        for path in (place / "ct").iterdir():
            pack(path, syntax)

    return write


def _run_length(place: Path, case: PhantomCase, number: int) -> None:
    _with_nifti(place, case, number)
    for path in (place / "ct").iterdir():
        data = pydicom.dcmread(path)
        data.compress(RLELossless, generate_instance_uid=False)
        data.save_as(path)


def _enhanced(place: Path, case: PhantomCase, number: int) -> None:
    image, label, affine = _turned(case)
    enhanced(place / "ct", image, affine, change=lambda data: of_patient(data, number))
    nibabel.save(nibabel.Nifti1Image(label, affine), place / "mask.nii.gz")


FORMATS: dict[str, Callable[[Path, PhantomCase, int], None]] = {
    "NIfTI": _nifti(".nii"),
    "NIfTI, packed": _nifti(".nii.gz"),
    "NRRD with .seg.nrrd": _slicer,
    "MetaImage": _itk(".mha"),
    "MetaImage with a file beside it": _itk(".mhd"),
    "DICOM with NIfTI": _with_nifti,
    "DICOM with SEG": _with_segmentation,
    "DICOM with RTSTRUCT": _with_structures,
    "DICOM, JPEG Lossless": _packed("JPEGLosslessProcess14_1"),
    "DICOM, run-length": _run_length,
    "enhanced CT": _enhanced,
}
"""By the format, what writes a patient into a folder."""


def write_disc(folder: Path, numbers: Iterable[int]) -> None:
    """A disc with the studies of patients; masks lie beside them."""
    for number in numbers:
        place = folder / "DICOM" / f"PA{number}" / "ST0"
        place.mkdir(parents=True)
        _with_nifti(place, head(number), number)
    (folder / "DICOMDIR").write_bytes(b"")


def zipped(folder: Path, path: Path) -> Path:
    """A zip of a folder."""
    return Path(shutil.make_archive(str(path.with_suffix("")), "zip", folder))
