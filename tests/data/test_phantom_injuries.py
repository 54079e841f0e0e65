"""What the phantom draws, and how each pattern of bleeding looks once it lies in a head."""

import numpy as np
import pytest

from sahfl.data.phantom import PROFILES, make_case
from sahfl.data.phantom.brain import build_brain, tentorium_height
from sahfl.data.phantom.hemorrhage import mix_blood, spread_blood
from sahfl.data.phantom.injuries import _SPECK_PLACES, sample_injury
from sahfl.data.phantom.lesions import (
    CisternalBlood,
    Contusion,
    DuralLayer,
    Injury,
    Metal,
    SubduralClot,
    VentricularBlood,
)
from sahfl.data.phantom.mass_effect import displace_brain
from sahfl.data.phantom.metal import add_metal, metal_distance
from sahfl.data.phantom.noise import NoiseBank
from sahfl.data.phantom.skull import build_skull
from sahfl.data.phantom.space import Grid
from sahfl.data.phantom.subject import place_head, sample_subject
from sahfl.data.phantom.tissue import render_tissue

GRID = Grid((96, 112, 28), (2.0, 2.0, 5.0))
MARKED_SHARE = 0.42
"""Share of blood from which the rater outlines a voxel."""
CRESCENT = {"direction": (1.0, 0.0, 0.3), "thickness_mm": 10.0, "half_angles_rad": (1.1, 0.7), "density": 1.0}


def bleed(*lesions, **harm):
    """HU, blood shares, brain and mass effect of one head with these lesions, before it is scanned."""
    injury = Injury(tuple(lesions), **harm)
    rng = np.random.default_rng(0)
    subject = sample_subject(rng, PROFILES["standard"])
    head = place_head(GRID, subject, NoiseBank(np.random.SeedSequence(0), GRID), gantry_tilt_deg=0.0)
    skull = build_skull(head, subject)
    mass = displace_brain(skull, injury, rng)
    brain = build_brain(skull, subject, mass, hydrocephalus=injury.hydrocephalus)
    shares, oedema = spread_blood(brain, injury, mass)
    hu = mix_blood(render_tissue(brain, subject, oedema, contrast=1.0), brain, shares, injury, subject)
    return hu, shares, brain, mass


def volume_ml(share, brain):
    return float((share * brain.inside).sum()) * GRID.layer_ml


@pytest.fixture(scope="module")
def traumas():
    return [sample_injury(np.random.default_rng(seed), "tbi") for seed in range(1500)]


@pytest.fixture(scope="module")
def aneurysms():
    return [sample_injury(np.random.default_rng(seed), "sah") for seed in range(1500)]


# --- shares of what is drawn ----------------------------------------------------------------------------------------


def subdurals_of(injuries):
    return [
        [lesion for lesion in injury.lesions if isinstance(lesion, SubduralClot | DuralLayer)]
        for injury in injuries
        if any(isinstance(lesion, SubduralClot | DuralLayer) for lesion in injury.lesions)
    ]


def test_a_third_of_subdural_patients_have_old_isodense_or_mixed_collections(traumas):
    patients = subdurals_of(traumas)
    old = [any(getattr(lesion, "darkening_hu", 0) > 0 for lesion in lesions) for lesions in patients]
    mixed = [any(getattr(lesion, "settled_hu", 0) > 0 for lesion in lesions) for lesions in patients]
    assert 0.29 <= np.mean(old) <= 0.41
    assert 0.09 <= np.mean(mixed) <= 0.20


def test_a_sixth_of_subdural_patients_bled_along_falx_or_tentorium(traumas):
    layers = [any(isinstance(lesion, DuralLayer) for lesion in lesions) for lesions in subdurals_of(traumas)]
    assert 0.10 <= np.mean(layers) <= 0.23


def test_subdural_collections_are_2_to_20_millimetres_thick(traumas):
    lesions = [lesion for patient in subdurals_of(traumas) for lesion in patient]
    assert all(2 <= lesion.thickness_mm <= 20 for lesion in lesions)
    old = [lesion.thickness_mm for lesion in lesions if getattr(lesion, "darkening_hu", 0) > 0]
    assert 6 <= np.median(old) <= 11


def test_a_fifth_of_aneurysms_carry_metal_and_some_a_drain(aneurysms):
    assert 0.15 <= np.mean([injury.metal is not None for injury in aneurysms]) <= 0.25
    assert 0.10 <= np.mean([injury.drain_side != 0 for injury in aneurysms]) <= 0.20


def test_small_bleeds_are_among_those_drawn(traumas):
    patients = [[x for x in injury.lesions if isinstance(x, Contusion)] for injury in traumas]
    patients = [clots for clots in patients if clots]
    assert 0.2 <= np.mean([any(clot.volume_ml < 0.8 for clot in clots) for clots in patients]) <= 0.6
    specks = [x for injury in traumas for x in injury.lesions if isinstance(x, VentricularBlood) and 0 < x.cast_mm < 10]
    assert len(specks) >= 50


# --- how they look --------------------------------------------------------------------------------------------------


def test_an_old_subdural_is_darker_than_brain_and_belongs_to_the_mask_as_a_whole():
    hu, shares, brain, mass = bleed(SubduralClot(**CRESCENT, darkening_hu=42.0))
    collection = (mass.clot_mm > 3) & (brain.depth_mm > 1) & (brain.depth_mm < mass.clot_mm - 1)
    assert (shares["SDH"][collection] > MARKED_SHARE).all()
    assert 15 <= np.median(hu[collection]) <= 30


def test_an_isodense_subdural_has_the_density_of_brain():
    hu, shares, _, _ = bleed(SubduralClot(**CRESCENT, darkening_hu=26.0))
    assert 32 <= np.median(hu[shares["SDH"] > 0.9]) <= 44


def test_cells_settle_in_the_back_of_a_mixed_subdural():
    mixed = SubduralClot(**CRESCENT, darkening_hu=42.0, settled_hu=35.0, level_y_mm=0.0)
    hu, shares, brain, _ = bleed(mixed)
    blood = shares["SDH"] > 0.9
    front, back = (np.median(hu[blood & side]) for side in (brain.points.y > 10, brain.points.y < -10))
    assert front < 32 < 48 < back


def test_membranes_are_brighter_than_the_old_blood_between_them():
    plain, shares, _, _ = bleed(SubduralClot(**CRESCENT, darkening_hu=42.0))
    parted, _, _, _ = bleed(SubduralClot(**CRESCENT, darkening_hu=42.0, membranes=True))
    gain = (parted - plain)[shares["SDH"] > 0.9]
    assert gain.max() > 15
    assert 0.05 < (gain > 8).mean() < 0.35


def test_a_large_subdural_shifts_the_midline():
    mass = bleed(SubduralClot(**{**CRESCENT, "thickness_mm": 18.0}))[3]
    assert 4 <= np.abs(mass.shift_x_mm).max() <= 13


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_a_layer_along_the_falx_stays_thin_and_on_its_side(side):
    _, shares, brain, _ = bleed(DuralLayer("falx", side, 4.0, (0.0, -55.0, 30.0), 35.0))
    blood = shares["SDH"] > MARKED_SHARE
    away = brain.points.x[blood] * side
    assert 1 <= volume_ml(shares["SDH"], brain) <= 15
    assert -1 <= away.min() < away.max() <= 6


def test_a_layer_on_the_tentorium_covers_one_half_of_it():
    _, shares, brain, _ = bleed(DuralLayer("tentorium", 1.0, 3.0, (18.0, -50.0, 0.0), 30.0))
    blood = shares["SDH"] > MARKED_SHARE
    assert 0.8 <= volume_ml(shares["SDH"], brain) <= 12
    assert brain.points.x[blood].min() >= 0
    height = tentorium_height(brain.points)[blood]
    assert -1.5 <= height.min() < height.max() <= 6


@pytest.mark.parametrize("place", _SPECK_PLACES)
def test_a_speck_in_the_ventricles_is_small_but_there(place):
    _, shares, brain, _ = bleed(VentricularBlood(level_mm=0.0, cast_mm=7.0, density=1.0, source=place))
    assert 0.03 <= volume_ml(shares["IVH"], brain) <= 2.0


def test_diffuse_blood_fills_the_basal_cisterns():
    def share_filled(basal_mm, volume_ml):
        blood = CisternalBlood((30, 12, -12), volume_ml, 1.2, expansion_mm=0.0, sulcal_spread=1.0, basal_mm=basal_mm)
        _, shares, brain, _ = bleed(blood)
        x, y, z = brain.points
        star = (brain.cistern_mm < -0.5) & (np.abs(x) < 28) & (np.abs(y) < 28) & (z < -12) & (z > -24)
        return (shares["SAH"][star] > MARKED_SHARE).mean()

    assert share_filled(35.0, volume_ml=30.0) > 0.9
    assert share_filled(35.0, volume_ml=12.0) > share_filled(8.0, volume_ml=12.0) + 0.03


def test_a_faded_clot_is_darker_by_what_was_drawn():
    clot = Contusion((25, 0, 25), 15.0, (1, 1, 1), raggedness=0.1, oedema_mm=3)
    fresh, shares, _, _ = bleed(clot)
    faded, _, _, _ = bleed(clot, faded_hu=18.0)
    core = shares["IPH"] > 0.99
    np.testing.assert_allclose((fresh - faded)[core], 18.0, rtol=0.02)


# --- metal ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def streaked():
    subject = sample_subject(np.random.default_rng(0), PROFILES["standard"])
    region = place_head(GRID, subject, NoiseBank(np.random.SeedSequence(0), GRID), gantry_tilt_deg=0.0)
    distance = metal_distance(region, Metal((0, 18, -13), radius_mm=4.0, length_mm=0.0))
    image = np.full(GRID.shape, 35, np.float32)
    add_metal(image, region, distance, np.random.default_rng(0))
    return image


def test_streaks_lie_only_in_slices_with_metal(streaked):
    touched = (streaked != 35).any(axis=(0, 1))
    assert 1 <= touched.sum() <= 4
    assert (streaked.max(axis=(0, 1))[touched] > 200).any()


def test_streaks_are_bright_and_dark_and_fade_with_distance(streaked):
    plane = streaked[:, :, streaked.max(axis=(0, 1)).argmax()]
    x, y = np.unravel_index(plane.argmax(), plane.shape)
    rows, columns = np.indices(plane.shape)
    radius = np.hypot(rows - x, columns - y) * GRID.spacing_mm[0]
    near, far = plane[(radius > 8) & (radius < 20)] - 35, plane[(radius > 55) & (radius < 75)] - 35
    assert near.max() > 30
    assert near.min() < -30
    assert np.abs(far).mean() < 0.35 * np.abs(near).mean()


def test_metal_is_never_outlined_as_blood():
    seeds = [
        seed
        for seed in range(40)
        if sample_injury(np.random.default_rng(np.random.SeedSequence(seed).spawn(6)[2]), "sah").metal
    ]
    assert seeds
    for seed in seeds:
        case = make_case(seed, kind="sah", profile=PROFILES["standard"], shape=(64, 72, 12), spacing_mm=(3.2, 3.2, 12))
        assert case.image[case.label > 0].max() < 500, seed
