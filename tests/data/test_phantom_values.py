import numpy as np
import pytest
from scipy import ndimage

from sahfl.data.phantom import LABELS, PROFILES, make_case

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
