"""One head with one lesion, taken through other programs' formats and read again: a row for each way."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pydicom
import SimpleITK
from pydicom.uid import RLELossless

from harness.contours import contours_of, write_structures
from harness.dicom_files import write_segmentation, write_series
from sahfl.data import convert, dicom
from sahfl.data.ct import Scan, read_scan
from sahfl.data.manifest import Case

SHAPE = (48, 56, 14)
AXIAL = np.array([[-0.45, 0, 0, 10.8], [0, -0.45, 0, 12.6], [0, 0, 5.0, -30.0], [0, 0, 0, 1]])
_TURN = np.radians(18)
TILTED = AXIAL.copy()
TILTED[1:3, 1] = -0.45 * np.cos(_TURN), -0.45 * np.sin(_TURN)
DCM2NIIX = shutil.which("dcm2niix")


@dataclass(frozen=True)
class Row:
    """What came back."""

    way: str
    hu_apart: float
    """Largest difference of a voxel of the image."""
    mask_apart: int
    """Voxels of the mask that differ."""
    mm_apart: float
    """Largest difference in the places of voxels."""
    ml: float
    """Annotated blood."""

    def text(self) -> str:
        """The row of the table."""
        return f"| {self.way} | {self.hu_apart:g} | {self.mask_apart} | {self.mm_apart:.3f} | {self.ml:.3f} |"


HEAD = "| way | HU apart | mask voxels apart | mm apart | blood in mL |\n|---|---|---|---|---|"


def head() -> np.ndarray:
    """HU (columns, rows, slices) of a skull with noise in it; no symmetry."""
    x, y, z = np.indices(SHAPE) - np.array(SHAPE).reshape(3, 1, 1, 1) / 2
    radius = np.sqrt((x / 21) ** 2 + (y / 25) ** 2 + (z / 9) ** 2)
    noise = np.random.default_rng(3).normal(0, 5, SHAPE)
    hu = np.select([radius < 0.8, radius < 0.92, radius < 1], [34, 900, 20], -1000) + noise
    hu[mask() > 0] += 32
    return np.rint(hu).astype(np.int16)


def mask() -> np.ndarray:
    """A lesion on one side with a hole and a separate part."""
    found = np.zeros(SHAPE, np.uint8)
    found[12:20, 15:29, 5:9] = 1
    found[15:17, 19:22, 6:8] = 0
    found[30:32, 20, 4] = 1
    return found


def expected(affine: np.ndarray) -> Scan:
    """The head as it was before."""
    turned = [nibabel.as_closest_canonical(nibabel.Nifti1Image(part, affine)) for part in (head(), mask())]
    return Scan(np.asarray(turned[0].dataobj, np.float32), np.asarray(turned[1].dataobj) > 0, turned[0].affine)


def rows(folder: Path) -> Iterator[Row]:
    """A row for each way; without dcm2niix its ways are missing."""
    for index, (way, make) in enumerate(WAYS.items()):
        if "dcm2niix" in way and DCM2NIIX is None:
            continue
        place = folder / f"way-{index}"
        place.mkdir()
        affine = TILTED if "tilted" in way else AXIAL
        yield _compared(way, read_scan(make(place, affine)), expected(affine))


def _compared(way: str, found: Scan, wanted: Scan) -> Row:
    if found.image.shape != wanted.image.shape:
        raise AssertionError(f"{way}: got {found.image.shape}, expected {wanted.image.shape}")
    corners = np.stack(np.meshgrid(*([0, n - 1] for n in SHAPE), [1]), -1).reshape(-1, 4)
    return Row(
        way=way,
        hu_apart=float(np.abs(found.image - wanted.image).max()),
        mask_apart=int((found.label != wanted.label).sum()),
        mm_apart=float(np.abs(corners @ (found.affine - wanted.affine).T).max()),
        ml=found.volume_ml,
    )


# --- the ways -------------------------------------------------------------------------------------------------------


def _series(place: Path, affine: np.ndarray, *, change: Callable[..., None] | None = None) -> list[Path]:
    return write_series(place, head(), affine, **({"change": change} if change else {}))


def _nifti(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def dicom_nifti(place: Path, affine: np.ndarray) -> Case:
    """A series with a NIfTI mask beside it."""
    _series(place, affine)
    _nifti(place / "mask.nii.gz", mask(), affine)
    return Case("a-0000", place, place, "p")


def dicom_compressed(place: Path, affine: np.ndarray) -> Case:
    """The same with packed pixels."""
    case = dicom_nifti(place, affine)
    for path in place.glob("*.dcm"):
        data = pydicom.dcmread(path)
        data.compress(RLELossless, generate_instance_uid=False)
        data.save_as(path)
    return case


def dicom_seg(place: Path, affine: np.ndarray) -> Case:
    """A series with a SEG of highdicom."""
    write_segmentation(place / "seg.dcm", _series(place, affine), mask())
    return Case("a-0000", place, place, "p")


def own_seg(place: Path, affine: np.ndarray) -> Case:
    """A series with a SEG as sahfl predict writes it."""
    _series(place, affine)
    from sahfl.data.dicom.write_segmentation import write_segmentation as write_own

    series = dicom.read_series(place)
    write_own(place / "seg.dcm", mask() > 0, series, algorithm="none")
    return Case("a-0000", place, place, "p")


def several_series(place: Path, affine: np.ndarray) -> Case:
    """A thick series with a thin one of the same head, which the rule would prefer: the annotation decides."""
    thin, thin_mask = (np.repeat(part, 2, axis=2) for part in (head(), mask()))
    place_of_thin = np.array(affine)
    place_of_thin[:3, 2] /= 2
    place_of_thin[:3, 3] -= place_of_thin[:3, 2] / 2

    def change(data: pydicom.Dataset, index: int) -> None:
        data.SliceThickness = "2.5"

    write_series(
        place / "thin", np.where(thin_mask, 0, thin).astype(np.int16), place_of_thin, change=change, series="thin"
    )
    _series(place / "thick", affine)
    _nifti(place / "mask.nii.gz", mask(), affine)
    return Case("a-0000", place, place, "p")


def contours(place: Path, affine: np.ndarray) -> Case:
    """A series with contours around each run of voxels in a row."""
    _series(place, affine)
    write_structures(place / "rs.dcm", contours_of(mask()), affine)
    return Case("a-0000", place, place, "p")


def slicer(place: Path, affine: np.ndarray) -> Case:
    """A series with a cropped .seg.nrrd of two segments in LPS."""
    _series(place, affine)
    low = np.argwhere(mask()).min(axis=0)
    crop = mask()[tuple(slice(n, None) for n in low)] * np.uint8(2)
    crop[-2:, -2:, -2:] = 1
    to_lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    header = {"space": "left-posterior-superior", "space directions": to_lps[:, :3].T, "encoding": "gzip"}
    header |= {"space origin": to_lps @ [*low, 1], "kinds": ["domain"] * 3}
    for index, name in enumerate(("ventricles", "SDH")):
        header |= {f"Segment{index}_Name": name, f"Segment{index}_LabelValue": str(index + 1)}
    nrrd.write(str(place / "a.seg.nrrd"), crop, header)
    return Case("a-0000", place, place / "a.seg.nrrd", "p")


def dcm2niix(place: Path, affine: np.ndarray) -> Case:
    """The NIfTI that dcm2niix makes of a series."""
    _series(place / "dicom", affine)
    command = [str(DCM2NIIX), "-z", "y", "-f", "ct", "-o", str(place), str(place / "dicom")]
    subprocess.run(command, check=True, capture_output=True)
    return Case("a-0000", place / "ct.nii.gz", _nifti(place / "mask.nii.gz", mask(), affine), "p")


def itk(ending: str) -> Callable[[Path, np.ndarray], Case]:
    """SimpleITK reads the series and the mask, and writes both."""

    def make(place: Path, affine: np.ndarray) -> Case:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames([str(path) for path in _series(place / "dicom", affine)])
        image = reader.Execute()
        label = SimpleITK.GetImageFromArray(mask().transpose(2, 1, 0))
        label.CopyInformation(image)
        for name, part in (("image", image), ("mask", label)):
            SimpleITK.WriteImage(SimpleITK.Cast(part, SimpleITK.sitkInt16), str(place / f"{name}{ending}"), True)
        return Case("a-0000", place / f"image{ending}", place / f"mask{ending}", "p")

    return make


def converted(place: Path, affine: np.ndarray) -> Case:
    """What sahfl convert writes of a series."""
    case = dicom_nifti(place / "dicom", affine)
    (one,) = convert.convert([case], place / "dicom", place / "out")
    return Case("a-0000", place / "out" / one.image, place / "out" / one.mask, "p")


WAYS: dict[str, Callable[[Path, np.ndarray], Case]] = {
    "DICOM, mask in NIfTI": dicom_nifti,
    "DICOM on a tilted gantry, mask in NIfTI": dicom_nifti,
    "DICOM packed (RLE), mask in NIfTI": dicom_compressed,
    "DICOM, SEG of highdicom": dicom_seg,
    "DICOM on a tilted gantry, SEG of highdicom": dicom_seg,
    "DICOM, SEG of `sahfl predict`": own_seg,
    "DICOM, two series, mask on the thick one": several_series,
    "DICOM, RTSTRUCT": contours,
    "DICOM on a tilted gantry, RTSTRUCT": contours,
    "DICOM, cropped .seg.nrrd": slicer,
    "DICOM to dcm2niix to NIfTI": dcm2niix,
    "DICOM to SimpleITK to NIfTI": itk(".nii.gz"),
    "DICOM to SimpleITK to NRRD": itk(".nrrd"),
    "DICOM to SimpleITK to MetaImage (.mha)": itk(".mha"),
    "DICOM to SimpleITK to MetaImage (.mhd)": itk(".mhd"),
    "DICOM to `sahfl convert` to NIfTI": converted,
    "DICOM on a tilted gantry to `sahfl convert` to NIfTI": converted,
}
"""By what happens to the head: from the head (HU) and its lesion to a case."""
