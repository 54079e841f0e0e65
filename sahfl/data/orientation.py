"""Volumes turned to RAS+ (left to right, back to front, foot to head) in mm, however a file stores their axes."""

from __future__ import annotations

from typing import Any

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from sahfl.data.nifti import reading
from sahfl.errors import ScanProblem

MM = 2
UNITS: dict[int, tuple[str, float]] = {1: ("metre", 1000.0), MM: ("mm", 1.0), 3: ("micron", 0.001)}
"""Units of length of a NIfTI header by their code (``xyzt_units``), and the mm of each; without a code it is mm."""
DECLARED_MM = 100.0, 700.0
"""Longest side of a volume that is declared in another unit than mm. A head is 100 to 300 mm, around it lies air."""
ANY_MM = 2.0, 5000.0
"""Longest side of a volume in mm; beyond these limits the numbers are metres or microns."""


def unit_of(header: Any) -> tuple[str, float]:
    """Name and mm of the unit of length of a volume's header."""
    code = int(header["xyzt_units"]) & 7 if "xyzt_units" in header else MM
    return UNITS.get(code, UNITS[MM])


def in_ras(image: Any, which: str) -> nibabel.Nifti1Image:
    """An open volume (a NIfTI file or a DICOM series) with three axes in RAS+ and an affine in mm.

    Further axes of length 1 are dropped. The unit of length is that of the header, if a head has that size in it.

    Raises:
        ScanProblem: it is no volume of numbers, its voxels have no volume or an impossible size, it is damaged, or it
            is an annotation without an orientation.
    """
    if (kind := image.get_data_dtype()).kind not in "iuf":
        raise ScanProblem("unreadable", f"the {which} holds {kind} voxels, expected whole or real numbers")
    shape = tuple(int(n) for n in image.shape)
    if len(shape) < 3 or 0 in shape or any(n != 1 for n in shape[3:]):
        rule = "not_3d" if which == "image" else "shape"
        raise ScanProblem(rule, f"{which} has shape {shape}, expected three dimensions")
    # An image without an orientation is a finding of its own; an annotation would be moved to a place that no one gave.
    if which == "label" and not int(image.header["sform_code"]) and not int(image.header["qform_code"]):
        text = "the label has no orientation (sform and qform codes are both 0)"
        raise ScanProblem("no_orientation", f"{text}; give it the image's only if you know that their voxels match")
    affine = _in_mm(image, which, shape[:3])
    try:
        with reading(f"the {which} file is truncated or damaged"):  # a truncated .nii.gz opens, and fails only here
            header = image.header.copy()
            header.set_xyzt_units("mm")
            voxels = image.dataobj if len(shape) == 3 else image.dataobj.reshape(shape[:3])
            return nibabel.as_closest_canonical(type(image)(voxels, affine, header))
    except (MemoryError, OverflowError) as error:  # a damaged header can claim any size
        text = f"the {which} file claims {shape} voxels, too many for this machine's memory"
        raise ScanProblem("unreadable", text) from error


def _in_mm(image: Any, which: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The affine in mm."""
    affine = np.array(image.affine, np.float64)
    if not abs(np.linalg.det(affine[:3, :3])) > 0:
        raise ScanProblem("affine", f"the voxels of the {which} have no volume (the affine's determinant is 0)")
    name, mm = unit_of(image.header)
    affine[:3] *= mm
    size = voxel_sizes(affine) * shape
    low, high = ANY_MM if name == "mm" else DECLARED_MM
    if not low <= size.max() <= high:
        measured = " x ".join(f"{side:.3g}" for side in size)
        raise ScanProblem("units", f"the {which} is in {name} by its header: {measured} mm; {_meant(size / mm)}")
    return affine


def _meant(sides: NDArray[np.float64]) -> str:
    """The unit in which the sides of a volume would be those of a head."""
    low, high = DECLARED_MM
    units = [name for name, mm in UNITS.values() if low <= sides.max() * mm <= high]
    return f"in {units[0]} it would have the size of a head" if units else "no unit makes this the size of a head"
