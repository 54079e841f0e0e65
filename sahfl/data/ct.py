"""CT volumes: from NIfTI or DICOM to Hounsfield units on the grid that the network sees, and back."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import torch
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray
from torch.nn import functional

from sahfl.data import dicom
from sahfl.data.manifest import Case
from sahfl.data.nifti import load_nifti
from sahfl.errors import ScanProblem, UnfitFile

AIR_HU = -1000.0
HEAD_HU = -300.0
"""Voxels above this value belong to the head or the headrest, not to the surrounding air."""
AFFINE_TOLERANCE_MM = 1e-3


@dataclass(frozen=True)
class Scan:
    """One CT volume and its annotation, axes (x, y, z) in RAS+: left to right, back to front, foot to head."""

    image: NDArray[np.float32]
    """(X, Y, Z), HU."""
    label: NDArray[np.bool_]
    """(X, Y, Z), True where there is blood of any kind."""
    affine: NDArray[np.float64]
    """(4, 4), voxel index to mm."""
    notes: tuple[tuple[str, str], ...] = ()
    """Rules and texts of what a site should see of how the files were read."""

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in mL, from the determinant of the affine; correct for oblique scans too."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along x, y, z in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def volume_ml(self) -> float:
        """Annotated volume in mL."""
        return float(self.label.sum()) * self.voxel_ml


def read_scan(case: Case) -> Scan:
    """Read a case's image and annotation, and turn both to RAS+.

    An image that is a folder is a DICOM series (``sahfl.data.dicom``); any other image is a NIfTI file.

    Raises:
        ScanProblem: a file cannot be read, or image and annotation do not belong together; it names the broken rule.
    """
    # Unlike Path.is_dir, os.path.isdir does not raise PermissionError.
    notes: tuple[tuple[str, str], ...] = ()
    if os.path.isdir(case.image):
        image, label, notes = _open_dicom(case)
    else:
        image, label = open_nifti(case), open_nifti(case, "label")
    _check_shape(case, image)
    if image.shape != label.shape:
        raise ScanProblem("shape", f"case {case.id}: label has shape {label.shape}, the image has {image.shape}")
    if not np.allclose(image.affine, label.affine, atol=AFFINE_TOLERANCE_MM):
        raise ScanProblem("affine", f"case {case.id}: label and image lie at different places (their affines differ)")
    scan = without_annotation(case, image)
    classes, _ = _voxels(case, "label", label)
    if not np.array_equal(classes, np.rint(classes)) or classes.min() < 0 or classes.max() > 255:
        raise ScanProblem("label_values", f"case {case.id}: label values are not whole numbers from 0 to 255")
    return replace(scan, label=classes > 0, notes=notes)


def without_annotation(case: Case, image: Any) -> Scan:
    """Turn an open volume (a NIfTI file or a DICOM series) into a scan with an empty annotation.

    Raises:
        ScanProblem: it is not a volume of finite numbers.
    """
    _check_shape(case, image)
    if not abs(np.linalg.det(image.affine[:3, :3])) > 0:
        raise ScanProblem("affine", f"case {case.id}: the voxels have no volume (the affine's determinant is 0)")
    hounsfield, affine = _voxels(case, "image", image)
    if not np.isfinite(hounsfield).all():
        raise ScanProblem("not_finite", f"case {case.id}: image holds NaN or infinite voxels")
    return Scan(hounsfield, np.zeros(hounsfield.shape, np.bool_), affine)


def _check_shape(case: Case, image: Any) -> None:
    if len(image.shape) != 3 or 0 in image.shape:
        raise ScanProblem("not_3d", f"case {case.id}: image has shape {image.shape}, expected three dimensions")


def _open_dicom(case: Case) -> tuple[Any, Any, tuple[tuple[str, str], ...]]:
    """A series and its annotation on the same voxels, and what a site should see of both."""

    def open_label(path: Path) -> Any:
        return open_nifti(replace(case, label=path), "label")

    try:
        return dicom.read_case(case.image, case.label, open_label, wanted=case.series, blood=case.blood)
    except ScanProblem as problem:
        start = f"case {case.id}: "
        raise ScanProblem(problem.rule, f"{start}{str(problem).removeprefix(start)}") from problem


def open_nifti(case: Case, which: Literal["image", "label"] = "image") -> Any:
    """Open one of a case's files without reading its voxels.

    Raises:
        ScanProblem: the file is missing or not readable NIfTI.
    """
    path = case.image if which == "image" else case.label
    try:
        return load_nifti(path)
    except ScanProblem as problem:
        raise ScanProblem(problem.rule, f"case {case.id}: the {which} file: {problem}") from problem
    except UnfitFile as error:
        raise ScanProblem("unreadable", f"case {case.id}: the {which} file {error.strerror}") from error
    except FileNotFoundError as error:
        raise ScanProblem("missing", f"case {case.id}: the {which} file is missing") from error
    except PermissionError as error:
        raise ScanProblem("permission", f"case {case.id}: no permission to read the {which} file") from error
    except (OSError, EOFError, zlib.error, ImageFileError, HeaderDataError, ValueError) as error:
        raise ScanProblem("unreadable", f"case {case.id}: the {which} file is not readable NIfTI") from error


def _voxels(case: Case, which: str, image: Any) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Voxels (X, Y, Z) and affine (4, 4) with the axes turned to RAS+."""
    if image.get_data_dtype().kind not in "iuf":
        text = f"the {which} holds {image.get_data_dtype()} voxels, expected whole or real numbers"
        raise ScanProblem("unreadable", f"case {case.id}: {text}")
    try:
        turned: Any = nibabel.as_closest_canonical(image)
        return np.asarray(turned.dataobj, dtype=np.float32), np.asarray(turned.affine, np.float64)
    except (OSError, EOFError, zlib.error, ValueError) as error:  # a truncated .nii.gz opens, and fails only here
        raise ScanProblem("unreadable", f"case {case.id}: the {which} file is truncated or damaged") from error
    except (MemoryError, OverflowError) as error:  # a damaged header can claim any size
        text = f"the {which} file claims {image.shape} voxels, too many for this machine's memory"
        raise ScanProblem("unreadable", f"case {case.id}: {text}") from error


@dataclass(frozen=True)
class Placement:
    """Position of the network's grid in a scan: what is needed to bring a prediction back to the scan's own voxels."""

    scan_shape: tuple[int, int, int]
    resized: tuple[int, int]
    """In-plane pixels of the whole scan when resampled to the grid's spacing."""
    start: tuple[int, int]
    """First pixel of the grid within the resized slice; negative if the grid reaches beyond the scan."""


def to_grid(
    scan: Scan, *, spacing_mm: float, size: tuple[int, int]
) -> tuple[NDArray[np.int16], NDArray[np.bool_], Placement]:
    """Resample a scan in-plane and cut out a field around the head's centre; the slices stay in place.

    Shrinking averages over the source pixels (anti-aliased bilinear), so thin blood fades instead of vanishing between
    samples.

    Returns:
        Image (x, y, Z) in HU and annotation (x, y, Z), of ``size`` (x, y), and the placement for ``from_grid``.
    """
    width, height = (max(1, round(scan.image.shape[axis] * scan.spacing_mm[axis] / spacing_mm)) for axis in (0, 1))
    image, label = (_resize(volume, (width, height)) for volume in (scan.image, scan.label.astype(np.float32)))
    x, y = _head_centre(image)
    start = (x - size[0] // 2, y - size[1] // 2)
    placement = Placement(scan.image.shape, (width, height), start)
    hounsfield = np.clip(np.rint(_cut(image, start, size, AIR_HU)), -2048, 4095).astype(np.int16)
    return hounsfield, _cut(label, start, size, 0.0) >= 0.5, placement


def from_grid(values: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
    """Bring values (x, y, Z) on the grid back to the scan's own voxels (X, Y, Z); zero outside the grid."""
    whole = _cut(values, (-placement.start[0], -placement.start[1]), placement.resized, 0.0)
    return _resize(whole, placement.scan_shape[:2])


def _resize(volume: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    if volume.shape[:2] == tuple(size):
        return volume
    slices = torch.from_numpy(np.ascontiguousarray(volume.transpose(2, 0, 1)))[:, None]
    resized = functional.interpolate(slices, size=size, mode="bilinear", antialias=True, align_corners=False)
    return resized[:, 0].numpy().transpose(1, 2, 0)


def _head_centre(image: NDArray[np.float32]) -> tuple[int, int]:
    head = image > HEAD_HU
    if not head.any():
        return image.shape[0] // 2, image.shape[1] // 2
    x, y = (np.flatnonzero(head.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    return int(x[0] + x[-1] + 1) // 2, int(y[0] + y[-1] + 1) // 2


def _cut(
    volume: NDArray[np.float32], start: tuple[int, int], size: tuple[int, int], fill: float
) -> NDArray[np.float32]:
    result = np.full((*size, volume.shape[2]), fill, np.float32)
    source, target = [], []
    for begin, wanted, available in zip(start, size, volume.shape[:2], strict=True):
        low, high = max(begin, 0), max(min(begin + wanted, available), max(begin, 0))
        source.append(slice(low, high))
        target.append(slice(low - begin, high - begin))
    result[tuple(target)] = volume[tuple(source)]
    return result
