"""CT volumes: from NIfTI or DICOM to Hounsfield units on the grid that the network sees, and back."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from sahfl.data import dicom
from sahfl.data.dicom.choice import Notes
from sahfl.data.formats.volume import open_volume
from sahfl.data.formats.voxels import as_image
from sahfl.data.labels import LabelClasses
from sahfl.data.manifest import MOST_NAMED, Case
from sahfl.data.nifti import reading
from sahfl.data.orientation import in_ras
from sahfl.data.regrid import fit
from sahfl.errors import ScanProblem

AIR_HU = -1000.0
HEAD_HU = -300.0
"""Voxels above this value belong to the head or the headrest, not to the surrounding air."""

ROUNDED = 1e-3
"""A value of an annotation this close to a whole number is it: headers round the scale of a class."""


@dataclass(frozen=True)
class Scan:
    """One CT volume and its annotation, axes (x, y, z) in RAS+: left to right, back to front, foot to head."""

    image: NDArray[np.float32]
    """(X, Y, Z), HU."""
    label: NDArray[np.bool_]
    """(X, Y, Z), True where there is blood of any kind."""
    affine: NDArray[np.float64]
    """(4, 4), voxel index to mm."""
    kinds: LabelClasses | None = None
    """The values of the annotation's file; None without one, and where its segments were chosen by their names."""
    notes: Notes = ()
    """Rule and text of what was done to the files when they were read."""

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in mL, from the determinant of the affine; correct for oblique scans too."""
        return voxel_ml_of(self.affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along x, y, z in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def volume_ml(self) -> float:
        """Annotated volume in mL."""
        return float(self.label.sum()) * self.voxel_ml


def voxel_ml_of(affine: NDArray[np.float64]) -> float:
    """Volume in mL of a voxel whose affine (4, 4) is in mm."""
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000.0


def read_scan(case: Case) -> Scan:
    """Read a case's image and annotation, and turn both to RAS+ in mm.

    An image that is a folder is a DICOM series (``sahfl.data.dicom``); any other image is a volume in a file. The two
    may store their axes in any order and direction, each its own: their places in the patient are compared. A mask on
    another grid is brought to the image's (``regrid``).

    Raises:
        ScanProblem: a file cannot be read, or image and annotation do not belong together; it names the broken rule.
    """
    # Unlike Path.is_dir, os.path.isdir does not raise PermissionError.
    opened = _open_dicom(case) if os.path.isdir(case.image) else _Opened(open_file(case), open_file(case, "label"))
    scan, label = without_annotation(case, opened.image), _of_blood(case, opened)
    try:
        mask, resampled = fit(label, np.asarray(opened.label.affine), scan.image.shape, scan.affine)
    except ScanProblem as problem:
        raise ScanProblem(problem.rule, _of_case(case, problem)) from problem
    return replace(scan, label=mask, kinds=opened.kinds, notes=opened.noting("regridded", resampled))


@dataclass
class _Opened:
    """A case's files without their voxels."""

    image: Any
    label: Any
    notes: Notes = ()
    kinds: LabelClasses | None = None

    def noting(self, rule: str, text: str) -> Notes:
        """The notes, and one more if it has a text."""
        return (*self.notes, (rule, text)) if text else self.notes


def read_image(case: Case) -> Scan:
    """A case's image with an empty annotation; a DICOM series may be given by its folder or by one of its files.

    Raises:
        ScanProblem: it cannot be read, or is not a volume of finite numbers.
    """
    folder = os.path.isdir(case.image)
    if not folder and not dicom.is_dicom(case.image):
        return without_annotation(case, open_file(case))
    try:
        series = dicom.read_series(case.image) if folder else dicom.read_series(case.image.parent, of=case.image)
    except ScanProblem as problem:
        raise ScanProblem(problem.rule, _of_case(case, problem)) from problem
    return without_annotation(case, series.image)


def _of_case(case: Case, problem: ScanProblem) -> str:
    start = f"case {case.id}: "
    return f"{start}{str(problem).removeprefix(start)}"


def _of_blood(case: Case, opened: _Opened) -> NDArray[np.bool_]:
    """The annotation in RAS+ (X, Y, Z), True where there is blood; its values and its affine are noted."""
    label, opened.label = opened.label, turned(case, opened.label, "label")
    if getattr(label, "named", False):
        opened.notes = opened.noting("seg_counted", label.chosen)
        return _voxels(case, "label", opened.label) > 0
    classes = _classes(case, _voxels(case, "label", opened.label))
    kinds = _kinds(case, classes, voxel_ml_of(opened.label.affine))
    opened.kinds = kinds
    return np.isin(classes, kinds.counted) if kinds.left_out else classes > 0


def _classes(case: Case, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """An annotation's values as whole numbers."""
    whole = np.rint(values)
    if (odd := ~np.isclose(values, whole, rtol=0, atol=ROUNDED) | (whole < 0) | (whole > 255)).any():
        text = f"the label holds {values[odd][0]:.4g}, expected whole numbers from 0 to 255"
        raise ScanProblem("label_values", f"case {case.id}: {text}")
    return whole.astype(np.uint8)


def _kinds(case: Case, classes: NDArray[np.uint8], voxel_ml: float) -> LabelClasses:
    """The values of an annotation, and which of them are blood."""
    counts = np.bincount(classes.ravel(), minlength=256)
    voxels = {value: int(counts[value]) for value in range(1, 256) if counts[value]}
    if case.blood is not None:
        values = tuple(value for value in case.blood if isinstance(value, int))
        if not values and voxels:
            text = "the site names blood by names alone, and the label file has values; give the values"
            raise ScanProblem("label_values", f"case {case.id}: {text}")
        return LabelClasses(voxels, tuple(value for value in voxels if value in values), known=True)
    if case.declared is not None and (odd := [value for value in voxels if value not in case.declared]):
        found = ", ".join(f"{value} ({voxels[value] * voxel_ml:.2f} mL)" for value in odd[:MOST_NAMED])
        declared = ", ".join(map(str, case.declared[:MOST_NAMED]))
        text = f"the label holds value {found}, and the list of cases declares {declared}"
        raise ScanProblem("label_undeclared", f"case {case.id}: {text}")
    return LabelClasses(voxels, tuple(voxels), known=case.declared is not None)


def without_annotation(case: Case, image: Any) -> Scan:
    """Turn an open volume (a NIfTI file or a DICOM series) into a scan with an empty annotation.

    Raises:
        ScanProblem: it is not a volume of finite numbers.
    """
    return _scan(case, turned(case, image, "image"))


def turned(case: Case, image: Any, which: str) -> Any:
    """An open volume of a case in RAS+ and mm; the message of a ``ScanProblem`` names the case."""
    try:
        return in_ras(image, which)
    except ScanProblem as problem:
        raise ScanProblem(problem.rule, f"case {case.id}: {problem}") from problem


def _scan(case: Case, image: Any) -> Scan:
    hounsfield = _voxels(case, "image", image)
    if not np.isfinite(hounsfield).all():
        raise ScanProblem("not_finite", f"case {case.id}: image holds NaN or infinite voxels")
    return Scan(hounsfield, np.zeros(hounsfield.shape, np.bool_), np.asarray(image.affine, np.float64))


def _open_dicom(case: Case) -> _Opened:
    """A series, and its annotation on the same voxels with 1 where there is blood."""
    opened = _Opened(None, None)

    def open_label(path: Path) -> Any:
        return open_file(replace(case, label=path), "label")

    def choose(label: Any) -> Any:
        opened.label = label
        mask = _of_blood(case, opened).astype(np.uint8)
        return as_image(mask, np.asarray(opened.label.affine, np.float64))

    try:
        image, label, notes = dicom.read_case(
            case.image, case.label, open_label, choose, wanted=case.series, blood=case.blood or ()
        )
    except ScanProblem as problem:
        raise ScanProblem(problem.rule, _of_case(case, problem)) from problem
    return _Opened(image, label, (*opened.notes, *notes), opened.kinds)


def open_file(case: Case, which: Literal["image", "label"] = "image") -> Any:
    """Open one of a case's files (NIfTI, NRRD or MetaImage) without reading its voxels.

    Raises:
        ScanProblem: the file is missing or cannot be read.
    """
    try:
        if which == "image":
            if dicom.is_dicom(case.image):
                text = "a file is one of a DICOM series; list the folder of the series instead"
                raise ScanProblem("unreadable", text)
            return open_volume(case.image)
        return open_volume(case.label, case.blood or (), by_value=case.by_value)
    except ScanProblem as problem:
        text = str(problem).replace("a file", f"the {which} file", 1)
        raise ScanProblem(problem.rule, f"case {case.id}: {text}") from problem


def _voxels(case: Case, which: str, image: Any) -> NDArray[np.float32]:
    """Voxels (X, Y, Z)."""
    try:
        with reading(f"the {which} file is truncated or damaged"):
            return np.asarray(image.dataobj, dtype=np.float32)
    except ScanProblem as problem:
        raise ScanProblem(problem.rule, f"case {case.id}: {problem}") from problem


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
