"""Masks on another grid than their image: placed by their affine, with the Dice of the way there and back."""

import nibabel
import numpy as np
import pytest

from sahfl.data.ct import read_scan
from sahfl.data.manifest import Case
from sahfl.data.regrid import regrid
from sahfl.errors import ScanProblem

IMAGE = np.diag([0.5, 0.5, 5.0, 1.0])
SHAPE = (40, 48, 12)


def a_mask():
    mask = np.zeros(SHAPE, bool)
    mask[10:22, 14:30, 3:7] = True
    mask[14:16, 18:20, 4:6] = False
    return mask


def moved(affine, voxels):
    found = affine.copy()
    found[:3, 3] = (affine @ [*voxels, 1.0])[:3]
    return found


def test_a_cropped_mask_comes_back_voxel_for_voxel():
    crop = a_mask()[8:25, 12:33, 2:9]
    found, dice = regrid(crop, moved(IMAGE, (8, 12, 2)), SHAPE, IMAGE)
    assert np.array_equal(found, a_mask())
    assert dice == 1.0


def test_a_mask_that_reaches_beyond_the_image_loses_what_lies_outside():
    found, dice = regrid(a_mask(), moved(IMAGE, (0, 0, -5)), SHAPE, IMAGE)
    assert np.array_equal(found[:, :, :2], a_mask()[:, :, 5:7])
    assert not found[:, :, 2:].any()
    n, kept = a_mask().sum(), a_mask()[:, :, 5:7].sum()
    assert dice == pytest.approx(2 * kept / (n + kept))


def test_a_finer_mask_of_whole_voxels_loses_nothing():
    fine = a_mask().repeat(2, 0).repeat(2, 1).repeat(5, 2)
    affine = moved(np.diag([0.25, 0.25, 1.0, 1.0]), (-0.5, -0.5, -2))  # both begin at the same corner
    found, dice = regrid(fine, affine, SHAPE, IMAGE)
    assert np.array_equal(found, a_mask())
    assert dice == 1.0


def test_a_turned_grid_keeps_volume_and_place():
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    fine = np.zeros((160, 190, 12), bool)
    fine[60:100, 70:120, 3:7] = True
    affine = turn @ np.diag([0.25, 0.25, 5.0, 1.0])
    found, dice = regrid(fine, affine, (90, 90, 12), np.diag([0.4, 0.4, 5.0, 1.0]) + np.pad([[-5.0]], ((0, 3), (3, 0))))
    assert found.sum() * 0.4**2 == pytest.approx(40 * 50 * 4 * 0.25**2, rel=0.02)
    assert dice > 0.97


def test_an_empty_mask_is_empty_on_every_grid():
    found, dice = regrid(np.zeros((3, 3, 3), bool), np.eye(4), SHAPE, IMAGE)
    assert (found.shape, found.any(), dice) == (SHAPE, False, 1.0)


# --- in a case ------------------------------------------------------------------------------------------------------


def scan_of(folder, mask, affine):
    nibabel.save(nibabel.Nifti1Image(np.full(SHAPE, 30, np.int16), IMAGE), folder / "image.nii")
    nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), affine), folder / "label.nii")
    return read_scan(Case("bern-0007", folder / "image.nii", folder / "label.nii", "p"))


def test_a_mask_on_another_grid_is_used_and_the_finding_has_both_grids_and_the_dice(tmp_path):
    scan = scan_of(tmp_path, a_mask()[8:25, 12:33, 2:9], moved(IMAGE, (8.2, 12, 2)))
    assert np.array_equal(scan.label, a_mask())
    assert scan.notes == (
        (
            "regridded",
            "the label has 17 x 21 x 7 voxels of 0.50 x 0.50 x 5.00 mm for an image of 40 x 48 x 12 voxels of 0.50 x "
            "0.50 x 5.00 mm and was resampled (nearest voxel); the Dice of there and back is 1.000",
        ),
    )


PARTS = {
    "whole": (a_mask(), IMAGE),
    "crop": (a_mask()[8:25, 12:33, 2:9], moved(IMAGE, (8, 12, 2))),
    "larger": (np.pad(a_mask(), 3), moved(IMAGE, (-3, -3, -3))),
    "other-side": (a_mask()[25:8:-1, 12:33, 2:9], moved(IMAGE, (25, 12, 2)) @ np.diag([-1, 1, 1, 1])),
}


@pytest.mark.parametrize(("mask", "affine"), PARTS.values(), ids=PARTS.keys())
def test_a_mask_on_voxels_of_the_image_has_no_finding(tmp_path, mask, affine):
    scan = scan_of(tmp_path, mask, affine)
    assert np.array_equal(scan.label, a_mask())
    assert scan.notes == ()


REFUSED = {
    "elsewhere": (a_mask()[8:25], moved(IMAGE, (500, 0, 0)), "affine", "no voxel of the label lies in the image"),
    "half-outside": (a_mask()[8:], moved(IMAGE, (8, 0, -5)), "grid_lost", r"is 0\.\d\d, expected at least 0\.7"),
    "same-voxels-moved": (a_mask(), moved(IMAGE, (1, 0, 0)), "affine", "same voxels at different places, up to 0.5 mm"),
    "no-volume": (
        a_mask()[8:],
        np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        "affine",
        "the voxels of the label have no volume",
    ),
}


@pytest.mark.parametrize(("mask", "affine", "rule", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_mask_that_does_not_fit_is_refused_with_numbers(tmp_path, mask, affine, rule, message):
    with pytest.raises(ScanProblem, match=f"case bern-0007: .*{message}") as caught:
        scan_of(tmp_path, mask, affine)
    assert caught.value.rule == rule


@pytest.mark.filterwarnings("error")
def test_a_mask_without_thickness_lies_nowhere_on_the_image():
    thin = np.diag([1e-300, 4.0, 5.0, 1.0])
    there, _ = regrid(np.ones((6, 8, 4), bool), thin, (6, 8, 4), np.diag([4.0, 4.0, 5.0, 1.0]))
    assert there[0].any()
    assert not there[1:].any()
