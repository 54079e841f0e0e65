import numpy as np
import pytest
from scipy import ndimage

from sahfl.data.phantom import LABELS, PROFILES, make_case
from sahfl.data.phantom.injuries import sample_injury
from sahfl.data.phantom.lesions import SubduralClot

SHAPE, SPACING_MM = (128, 128, 32), (1.8, 1.8, 5.0)


def contrasts_to_ring(case, label):
    """Mean HU of a label less the mean of unlabelled soft matter within 5 mm of it, for each slice with 30 mm2 of it.

    On real slices: 13.7 HU (72 slices of BHSD type, the value aimed at); this very measure gives 11.8 HU on 12 of them.
    """
    for image, mask in zip(np.moveaxis(case.image, 2, 0), np.moveaxis(case.label, 2, 0), strict=True):
        blood = mask == label
        if blood.sum() * SPACING_MM[0] ** 2 < 30:
            continue
        near = ndimage.distance_transform_edt(~blood) * SPACING_MM[0] <= 5
        ring = near & (mask == 0) & (image > -10) & (image < 90)
        yield image[blood].mean() - image[ring].mean()


@pytest.fixture(scope="module")
def aneurysms():
    return [
        make_case(seed, kind="sah", profile=PROFILES["standard"], shape=SHAPE, spacing_mm=SPACING_MM)
        for seed in range(1000, 1060)
    ]


@pytest.mark.slow
def test_subarachnoid_blood_stands_out_as_little_as_on_real_slices(aneurysms):
    contrasts = [value for case in aneurysms for value in contrasts_to_ring(case, LABELS["SAH"])]
    assert 13.0 <= np.median(contrasts) <= 14.0


@pytest.mark.slow
def test_the_median_blood_volume_is_that_of_published_aneurysmal_bleedings(aneurysms):
    voxel_ml = np.prod(SPACING_MM) / 1000
    assert 20 <= np.median([(case.label > 0).sum() * voxel_ml for case in aneurysms]) <= 30


@pytest.mark.slow
def test_every_aneurysm_case_has_subarachnoid_blood(aneurysms):
    assert all((case.label == LABELS["SAH"]).any() for case in aneurysms)


@pytest.mark.slow
def test_noise_is_that_of_real_slices():
    case = make_case(1000, kind="normal", profile=PROFILES["standard"], shape=SHAPE, spacing_mm=SPACING_MM)
    image = case.image.astype(float)
    quiet = ndimage.binary_erosion((image > 10) & (image < 65), iterations=3)
    # Differences of second order cancel anatomy; their variance is 1.5 times that of white noise.
    residual = (image[1:-1] - (image[:-2] + image[2:]) / 2)[quiet[1:-1]]
    assert 2.0 <= 1.4826 * np.median(np.abs(residual)) / np.sqrt(1.5) <= 3.2


# --- each kind beside what was measured on 72 real slices -----------------------------------------------------------

FINE_SHAPE, FINE_MM = (208, 256, 30), (0.9, 0.9, 5.0)
MEASURED = {"SAH": (13.7, 3.1, 3), "IVH": (20, 4.5, 1), "IPH": (26, 14, 1), "SDH": (27, 3.4, 1), "EDH": (40, 4.2, 1)}
"""Medians over real slices: contrast to the surrounding ring (HU), thickness (mm), pieces in a slice."""
CONTRAST_SHARE, THICKNESS_SHARE = 0.35, 0.35
"""How far the phantom's median may lie from the measured one."""
SAH_THICKNESS_MM = (2.8, 3.6)
"""The subject of the study is held to a narrower band."""


def describe_slice(image, blood, any_blood):
    """Contrast to the ring (HU), mean thickness (mm) and number of pieces of one kind in one slice."""
    step = FINE_MM[0]
    ring = (ndimage.distance_transform_edt(~blood, sampling=step) <= 5) & ~any_blood & (image > -10) & (image < 90)
    # Within a band of thickness t the mean distance to its border is t / 4; half a pixel of it is the pixels' own.
    to_border = ndimage.distance_transform_edt(np.pad(blood, 1), sampling=step)[1:-1, 1:-1] - step / 2
    pieces = ndimage.label(blood, np.ones((3, 3)))[1]
    return image[blood].mean() - image[ring].mean(), 4 * to_border[blood].mean(), pieces


@pytest.fixture(scope="module")
def slices_by_kind():
    found = {kind: [] for kind in LABELS}
    for kind in ("sah", "tbi"):
        for seed in range(3000, 3020):
            case = make_case(seed, kind=kind, profile=PROFILES["standard"], shape=FINE_SHAPE, spacing_mm=FINE_MM)
            for image, mask in zip(np.moveaxis(case.image, 2, 0), np.moveaxis(case.label, 2, 0), strict=True):
                for name, value in LABELS.items():
                    if (mask == value).sum() * FINE_MM[0] ** 2 >= 30 and (kind, name) != ("tbi", "SAH"):
                        found[name].append(describe_slice(image, mask == value, mask > 0))
    for name, rows in found.items():
        contrast, thickness, pieces = np.median(rows, axis=0)
        text = f"contrast {contrast:.1f} HU, thickness {thickness:.1f} mm, {pieces:.0f} piece(s)"
        print(f"{name}: {text} in {len(rows)} slices; real {MEASURED[name]}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", MEASURED)
def test_each_kind_is_as_dense_thick_and_scattered_as_on_real_slices(slices_by_kind, kind):
    contrast, thickness, pieces = np.median(slices_by_kind[kind], axis=0)
    expected_contrast, expected_thickness, expected_pieces = MEASURED[kind]
    assert contrast == pytest.approx(expected_contrast, rel=CONTRAST_SHARE)
    assert thickness == pytest.approx(expected_thickness, rel=THICKNESS_SHARE)
    assert abs(pieces - expected_pieces) <= 1


@pytest.mark.slow
def test_subarachnoid_blood_is_as_thin_as_on_real_slices(slices_by_kind):
    contrast, thickness, _ = np.median(slices_by_kind["SAH"], axis=0)
    assert SAH_THICKNESS_MM[0] <= thickness <= SAH_THICKNESS_MM[1]
    assert 12 <= contrast <= 16


def draws_chronic_subdural(seed):
    injury = sample_injury(np.random.default_rng(np.random.SeedSequence(seed).spawn(6)[2]), "tbi")
    return any(isinstance(x, SubduralClot) and x.darkening_hu > 35 and x.settled_hu == 0 for x in injury.lesions)


@pytest.mark.slow
def test_chronic_subdurals_are_dark_long_crescents():
    seeds = [seed for seed in range(3000, 3100) if draws_chronic_subdural(seed)][:4]
    cases = [
        make_case(s, kind="tbi", profile=PROFILES["standard"], shape=FINE_SHAPE, spacing_mm=FINE_MM) for s in seeds
    ]
    rows = []
    for case in cases:
        masks = case.label == LABELS["SDH"]
        # Literature: 15-30 HU, brain 35; the whole collection is marked, so it is large.
        assert 15 <= np.median(case.image[masks]) <= 30
        assert masks.sum() * np.prod(FINE_MM) / 1000 > 20
        for image, blood, label in zip(*(np.moveaxis(x, 2, 0) for x in (case.image, masks, case.label)), strict=True):
            if blood.sum() * FINE_MM[0] ** 2 >= 30:
                rows.append(describe_slice(image, blood, label > 0))
    contrast, thickness, _ = np.median(rows, axis=0)
    assert contrast < 3  # voxels beside bone are brighter than the collection
    assert 3 <= thickness <= 20


@pytest.mark.slow
def test_subarachnoid_blood_is_thinner_fainter_and_in_more_pieces_than_a_contusion(slices_by_kind):
    thin, bruise = (np.median(slices_by_kind[kind], axis=0) for kind in ("SAH", "IPH"))
    assert thin[0] < 0.7 * bruise[0]
    assert thin[1] < 0.6 * bruise[1]
    assert thin[2] > bruise[2]
