"""An asymmetric phantom, stored in every way that a scanner or a converter may store it, comes back the same."""

import itertools

import nibabel
import numpy as np
import pytest

from sahfl.config import ViewsConfig
from sahfl.data.ct import Scan, read_scan
from sahfl.data.manifest import Case
from sahfl.data.phantom import PROFILES, make_case
from sahfl.data.views import make_views

SEED = 1
"""A trauma patient whose blood lies on the left only."""
SPACING_MM = (3.6, 4.0, 7.5)
CONFIG = ViewsConfig(spacing_mm=4.0, size=(48, 64, 32))
STORED = list(itertools.product(itertools.permutations(range(3)), itertools.product((False, True), repeat=3)))
"""All 48 ways: which anatomical axis each voxel axis runs along, and which of them run backwards."""


@pytest.fixture(scope="module")
def phantom():
    return make_case(SEED, kind="tbi", profile=PROFILES["standard"], shape=(53, 60, 20), spacing_mm=SPACING_MM)


def name_of(stored):
    order, flips = stored
    return "".join("RAS"[axis] if not flips[axis] else "LPI"[axis] for axis in order)


def turned(volume, affine, order, flips):
    """The volume with mirrored and permuted voxel axes, and the affine that keeps every voxel at its place."""
    to_old = np.zeros((4, 4))
    to_old[3, 3] = 1
    for new, old in enumerate(order):
        to_old[old, new] = -1 if flips[old] else 1
        to_old[old, 3] = volume.shape[old] - 1 if flips[old] else 0
    mirrored = volume[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    return np.ascontiguousarray(mirrored.transpose(order)), affine @ to_old


def write(folder, phantom, affine, stored=((0, 1, 2), (False, False, False))):
    for name, volume in (("image", phantom.image), ("label", phantom.label)):
        nibabel.save(nibabel.Nifti1Image(*turned(volume, affine, *stored)), folder / f"{name}.nii.gz")
    return Case("bern-0000", folder / "image.nii.gz", folder / "label.nii.gz", "p")


def rotation(x_deg, y_deg, z_deg):
    """Rotation about x, then y, then z."""
    result = np.eye(4)
    for (first, second), angle in zip(((1, 2), (2, 0), (0, 1)), np.radians((x_deg, y_deg, z_deg)), strict=True):
        turn = np.eye(4)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[second, first], turn[first, second] = np.sin(angle), -np.sin(angle)
        result = turn @ result
    return result


def test_the_phantom_of_these_tests_is_asymmetric_along_every_axis(phantom):
    blood = phantom.label > 0
    assert blood[26:].sum() == 0
    assert blood[:26].sum() > 100
    for axis in range(3):
        assert not np.array_equal(phantom.image, np.flip(phantom.image, axis))
        assert not np.array_equal(blood, np.flip(blood, axis))


@pytest.mark.parametrize("stored", STORED, ids=map(name_of, STORED))
def test_D02_a_phantom_comes_back_voxel_for_voxel_however_it_is_stored(tmp_path, phantom, stored):
    scan = read_scan(write(tmp_path, phantom, phantom.affine, stored))
    np.testing.assert_array_equal(scan.image, phantom.image)
    np.testing.assert_array_equal(scan.label, phantom.label > 0)
    np.testing.assert_allclose(scan.affine, phantom.affine, atol=1e-4)
    assert scan.volume_ml == pytest.approx((phantom.label > 0).sum() * np.prod(SPACING_MM) / 1000, rel=1e-6)


@pytest.mark.parametrize("stored", STORED[::7], ids=map(name_of, STORED[::7]))
def test_D02_the_network_sees_blood_on_the_patients_own_side_in_every_view(tmp_path, phantom, stored):
    """The axes of a scan run from left to right and from foot to head, so the left is where x is low."""
    case = make_views(read_scan(write(tmp_path, phantom, phantom.affine, stored)), CONFIG)
    expected = make_views(Scan(phantom.image.astype(np.float32), phantom.label > 0, phantom.affine), CONFIG)
    for view, stack in case.stacks.items():
        np.testing.assert_array_equal(stack.image, expected.stacks[view].image)
        np.testing.assert_array_equal(stack.label, expected.stacks[view].label)
    for view, axis in (("axial", 1), ("coronal", 1), ("sagittal", 0)):
        along_x = case.stacks[view].label[:].any(axis=tuple({0, 1, 2} - {axis}))
        assert along_x.any()
        assert not along_x[25:].any()


OBLIQUE = {"straight": (0, 0, 0), "nodding": (15, 0, 0), "rolled": (0, -12, 0), "all-at-once": (18, -9, 25)}


@pytest.mark.parametrize("stored", STORED[::5], ids=map(name_of, STORED[::5]))
@pytest.mark.parametrize("angles", OBLIQUE.values(), ids=OBLIQUE.keys())
def test_D02_an_oblique_phantom_keeps_its_voxels_its_spacing_and_its_millilitres(tmp_path, phantom, angles, stored):
    scan = read_scan(write(tmp_path, phantom, rotation(*angles) @ phantom.affine, stored))
    np.testing.assert_array_equal(scan.image, phantom.image)
    assert scan.spacing_mm == pytest.approx(SPACING_MM, rel=1e-5)
    assert scan.volume_ml == pytest.approx((phantom.label > 0).sum() * np.prod(SPACING_MM) / 1000, rel=1e-5)


def test_an_uncorrected_gantry_tilt_keeps_the_millilitres(tmp_path, phantom):
    tilt = np.eye(4)
    tilt[1, 2] = np.tan(np.radians(20))  # each slice lies further back than the one below; its area and height stay
    scan = read_scan(write(tmp_path, phantom, tilt @ phantom.affine))
    assert scan.volume_ml == pytest.approx((phantom.label > 0).sum() * np.prod(SPACING_MM) / 1000, rel=1e-5)
    assert scan.spacing_mm[2] == pytest.approx(SPACING_MM[2] / np.cos(np.radians(20)), rel=1e-5)


@pytest.mark.parametrize(("shape", "spacing"), [((96, 120, 40), (2.0, 2.0, 3.75)), ((40, 100, 60), (4.8, 2.4, 2.5))])
def test_the_same_patient_bleeds_the_same_millilitres_on_anregridded(phantom, shape, spacing):
    volumes = []
    for case in (phantom, make_case(SEED, kind="tbi", profile=PROFILES["standard"], shape=shape, spacing_mm=spacing)):
        volumes.append(Scan(case.image.astype(np.float32), case.label > 0, case.affine).volume_ml)
    assert volumes[1] == pytest.approx(volumes[0], rel=0.15)
