"""An annotation in a NIfTI file, brought to the voxels of its CT series.

Programs write the grid of a series in different ways, though the voxels are the same:

- in another order of the axes;
- of a tilted series with another third axis: along the slices' normal (ITK, ITK-SNAP), or along the table with a
  stretched second axis (dcm2niix without correction);
- of a series with uneven distances with one distance for all slices.

An annotation with other voxels, such as one drawn on dcm2niix's corrected copy (``_Tilt``), is resampled from where its
header puts it. dcm2niix puts some corrected copies beside their series; such an annotation does not cover the series.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray
from scipy import ndimage

from sahfl.data.dicom.choice import Notes
from sahfl.data.dicom.stack import POSITION_TOLERANCE_MM
from sahfl.data.regrid import LEAST_DICE, apart_mm, regrid
from sahfl.errors import ScanProblem

UPRIGHT_DEGREES = 1.0
"""Slices that lean less than this are not tilted."""
CLEARLY_HU = 5.0
"""Blood stands out of brain by 20 HU and more."""


def fits(label: Any, shape: tuple[int, ...], affine: NDArray[np.float64], n_slices: int) -> bool:
    """Test whether an annotation has the voxels of a series, by headers alone."""
    if not has_volume(label):
        return False
    turned_shape, turned, _ = _turned(label, affine)
    if turned_shape == shape and apart_mm(shape, turned, affine) <= POSITION_TOLERANCE_MM:
        return True
    return turned_shape == (*shape[:2], n_slices) and _same_voxels(shape, turned, affine, n_slices)


def fit(label: Any, image: Any, places: NDArray[np.float64]) -> tuple[NDArray[Any], Notes]:
    """The annotation's values on the voxels of a series (columns, rows, slices or planes), and how it was fitted.

    The values are those of the file where its voxels are the series' own, and 0 or 1 where they were resampled. Of
    uneven slices they are (columns, rows, slices), for ``Series.on_planes``.

    Args:
        label: an open NIfTI file.
        image: the series' volume.
        places: of the slices among the volume's planes.

    Raises:
        ScanProblem: it does not fit; the text has the millimetres.
    """
    shape, affine, n_slices = image.shape, np.asarray(image.affine, np.float64), len(places)
    turned_shape, turned, transform = _turned(label, affine)
    voxels = apply_orientation(np.asarray(label.dataobj), transform)
    exact = turned_shape == shape and apart_mm(shape, turned, affine) <= POSITION_TOLERANCE_MM
    if exact:
        return voxels, ()
    if turned_shape == (*shape[:2], n_slices) and _same_voxels(shape, turned, affine, n_slices):
        text = "the annotation has the series' own voxels, and its header"
        what = f"another tilt (up to {apart_mm(turned_shape, turned, affine):.1f} mm off)"
        if turned_shape != shape:
            what = "one distance for all slices"
        return voxels, (("annotation_grid", f"{text} {what}; the voxels are used"),)
    if turned_shape == shape:
        off = apart_mm(shape, turned, affine)
        raise ScanProblem("affine", f"annotation and series lie up to {off:.1f} mm apart, with as many voxels")
    made, notes = _resampled(voxels, turned, shape, affine)
    if _tilt_degrees(affine) > UPRIGHT_DEGREES:
        _require_own_shear(voxels > 0, turned, image, made > 0)
    return made, notes


def _require_own_shear(mask: NDArray[np.bool_], own: NDArray[np.float64], image: Any, made: NDArray[np.bool_]) -> None:
    """Refuse an annotation that stands out of the image only if its slices are shifted the other way.

    dcm2niix corrects some tilts in the wrong direction, on a grid that covers the series all the same.
    """
    affine = np.asarray(image.affine, np.float64)
    axis = int(np.abs(affine[:3, :2].T @ _axis_of_tilt(affine)).argmin())  # the one that leans
    step = affine[:3, 2] / np.linalg.norm(affine[:3, 2]) * np.linalg.norm(own[:3, 2])
    shift = float((step - own[:3, 2]) @ own[:3, axis]) / float(own[:3, axis] @ own[:3, axis])
    other = own.copy()
    other[:3, 2] += 2 * shift * own[:3, axis]
    other[:3, 3] -= (mask.shape[2] - 1) * shift * own[:3, axis]
    values = np.asarray(image.dataobj)
    reversed_, _ = regrid(mask, other, image.shape, affine)
    if _contrast(values, reversed_) >= _contrast(values, made) + CLEARLY_HU:
        off = abs(shift) * (mask.shape[2] - 1) * float(np.linalg.norm(own[:3, axis]))
        text = f"the annotation fits the tilted series better with its slices shifted the other way (by {off:.1f} mm)"
        raise ScanProblem("affine", f"{text}; dcm2niix corrects some tilts in the wrong direction")


def _contrast(values: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """Mean HU of a mask minus that of the ring around it in the slices; -inf for an empty mask."""
    disc = ndimage.generate_binary_structure(3, 1)
    disc[:, :, [0, 2]] = False
    ring = ndimage.binary_dilation(mask, disc, iterations=3) & ~mask
    return float(values[mask].mean() - values[ring].mean()) if mask.any() and ring.any() else -np.inf


def _turned(label: Any, affine: NDArray[np.float64]) -> tuple[tuple[int, ...], NDArray[np.float64], Any]:
    """Shape and affine of an annotation whose axes are turned to those of a series, and how to turn its voxels."""
    own = np.asarray(label.affine, np.float64)
    transform = ornt_transform(io_orientation(own), io_orientation(affine))
    shape = [0, 0, 0]
    for axis, (to, _) in enumerate(transform):
        shape[int(to)] = label.shape[axis]
    return tuple(shape), own @ inv_ornt_aff(transform, label.shape), transform


def has_volume(label: Any) -> bool:
    """Test whether an annotation is a volume of three axes that has a place."""
    return len(label.shape) == 3 and 0 not in label.shape and bool(abs(np.linalg.det(label.affine[:3, :3])) > 0)


def _tilt_degrees(affine: NDArray[np.float64]) -> float:
    normal, step = np.cross(affine[:3, 0], affine[:3, 1]), affine[:3, 2]
    cosine = abs(normal @ step) / np.linalg.norm(normal) / np.linalg.norm(step)
    return float(np.degrees(np.arccos(min(1.0, cosine))))


def _same_voxels(
    shape: tuple[int, ...], found: NDArray[np.float64], affine: NDArray[np.float64], n_slices: int
) -> bool:
    """Test whether two affines of as many voxels differ only as programs write tilt and uneven distances.

    The axis around which the gantry is tilted must be the same, and nothing may lie further off than the tilt and the
    slice distances explain.
    """
    tilt = np.radians(_tilt_degrees(affine))
    uneven = n_slices != shape[2]
    if np.degrees(tilt) <= UPRIGHT_DEGREES and not uneven:
        return False
    mean = affine[:3, 2] * (shape[2] - 1) / max(1, n_slices - 1)
    true = np.column_stack([affine[:3, 0], affine[:3, 1], mean])
    lengths, expected = np.linalg.norm(found[:3, :3], axis=0), np.linalg.norm(true, axis=0)
    least = np.array([1, 1, np.cos(tilt) ** 2]) * expected * 0.99
    most = np.array([1, 1 / np.cos(tilt) ** 2, 1]) * expected * 1.01
    if uneven:
        least[2], most[2] = expected[2] / 4, expected[2] * 4
    cosines = (found[:3, :3] * true).sum(axis=0) / lengths / expected
    lean = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    near = np.array([1 / 3, 1 / 3, 1.1]) * np.degrees(tilt) + 0.1  # a stretched axis leans a tenth of the tilt
    if not ((lengths >= least) & (lengths <= most) & (lean <= near)).all():
        return False
    extent = (np.array([*shape[:2], n_slices]) - 1) * expected
    allowed = float(extent[1:].max() * np.sin(tilt) * 1.2 + 1.0) + (float(extent[2]) if uneven else 0.0)
    ends = [np.array([0, 0, k, 1.0]) for k in (0, n_slices - 1)]
    true4 = np.eye(4)
    true4[:3] = np.column_stack([true, affine[:3, 3]])
    along = _axis_of_tilt(affine) if np.degrees(tilt) > UPRIGHT_DEGREES else affine[:3, 0] / expected[0]
    moved = [(found - true4) @ end for end in ends]
    aside = min(abs(float(move[:3] @ along)) for move in moved)
    return aside <= 0.5 and min(float(np.linalg.norm(move[:3])) for move in moved) <= allowed


def _axis_of_tilt(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit vector around which the gantry is turned: perpendicular to the slices' normal and to the step."""
    axis = np.cross(np.cross(affine[:3, 0], affine[:3, 1]), affine[:3, 2])
    return axis / np.linalg.norm(axis)


def _resampled(
    voxels: NDArray[Any], own: NDArray[np.float64], shape: tuple[int, ...], affine: NDArray[np.float64]
) -> tuple[NDArray[np.uint8], Notes]:
    sizes = f"{' x '.join(map(str, voxels.shape))} voxels, the series {' x '.join(map(str, shape))}"
    if not (voxels > 0).any():
        raise ScanProblem("shape", f"the annotation is empty and has {sizes}, expected the series' own voxels")
    tilted = _tilt_degrees(affine) > UPRIGHT_DEGREES
    off = _uncovered_mm(voxels.shape, own, shape, affine)
    if tilted and (off > 1.2 * np.linalg.norm(own[:3, :3], axis=0) + 0.5).any():  # dcm2niix drops a last slice
        text = f"the annotation has {sizes}, and leaves up to {off.max():.1f} mm of the tilted series uncovered"
        raise ScanProblem("affine", f"{text}; dcm2niix puts some corrected copies beside their series")
    made, dice = regrid(voxels > 0, own, shape, affine)
    if not made.any() or dice < LEAST_DICE:
        text = f"the annotation has {sizes}; brought to these and back, it keeps a Dice of {dice:.2f}"
        raise ScanProblem("shape", f"{text}, expected {LEAST_DICE} at least")
    text = f"the annotation has {sizes}; it is resampled (nearest neighbour), with a Dice of {dice:.3f} there and back"
    return made.astype(np.uint8), (("regridded", text),)


def _uncovered_mm(
    own_shape: tuple[int, ...], own: NDArray[np.float64], shape: tuple[int, ...], affine: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How far a series reaches out of the annotation's grid along each of its axes, (3,) in mm."""
    corners = np.array(np.meshgrid(*([0, n - 1] for n in shape), indexing="ij")).reshape(3, -1)
    places = np.linalg.inv(own) @ affine @ np.vstack([corners, np.ones(corners.shape[1])])
    last = np.array(own_shape)[:, None] - 1
    beyond = np.maximum(np.maximum(-places[:3], places[:3] - last), 0)
    return (beyond * np.linalg.norm(own[:3, :3], axis=0)[:, None]).max(axis=1)
