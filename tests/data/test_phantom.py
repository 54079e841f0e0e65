import gzip
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from sahfl.data.phantom import LABELS, PROFILES, CohortSpec, make_case, write_cohort
from sahfl.data.phantom.brain import build_brain
from sahfl.data.phantom.cohort import case_seed
from sahfl.data.phantom.hemorrhage import mix_blood, spread_blood
from sahfl.data.phantom.injuries import sample_injury
from sahfl.data.phantom.lesions import (
    CisternalBlood,
    Contusion,
    EpiduralClot,
    Injury,
    SubduralClot,
    VentricularBlood,
)
from sahfl.data.phantom.mass_effect import displace_brain
from sahfl.data.phantom.noise import NoiseBank
from sahfl.data.phantom.skull import build_skull, render_skull
from sahfl.data.phantom.space import Grid, Points, chain_distance, coverage, ellipsoid_distance
from sahfl.data.phantom.subject import place_head, sample_subject
from sahfl.data.phantom.tissue import render_tissue
from sahfl.errors import DataError

SHAPE = (64, 72, 12)
SPACING_MM = (3.2, 3.2, 12.0)
KINDS = {"sah": {4}, "tbi": {1, 2, 5}, "normal": set()}


def small_case(seed=7, kind="sah", profile="standard", shape=SHAPE, spacing_mm=SPACING_MM):
    return make_case(seed, kind=kind, profile=PROFILES[profile], shape=shape, spacing_mm=spacing_mm)


def parenchyma_hu(case):
    soft = (case.image > 10) & (case.image < 65) & (case.label == 0)
    return np.median(case.image[ndimage.binary_erosion(soft, iterations=3)])


# --- one case -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_arguments_give_the_same_bits(kind):
    first, second = small_case(kind=kind), small_case(kind=kind)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.label, second.label)


def test_different_seeds_give_different_heads():
    one, other = small_case(seed=1, kind="normal"), small_case(seed=2, kind="normal")
    assert np.abs(one.image.astype(int) - other.image).mean() > 20


def test_types_and_shapes_are_those_promised():
    case = small_case()
    assert (case.image.dtype, case.image.shape) == (np.int16, SHAPE)
    assert (case.label.dtype, case.label.shape) == (np.uint8, SHAPE)
    assert (case.seed, case.kind) == (7, "sah")


def test_the_affine_is_diagonal_with_the_head_near_its_origin():
    case = small_case(kind="normal")
    np.testing.assert_array_equal(case.affine[:3, :3], np.diag(SPACING_MM))
    inside = np.argwhere((case.image > 0) & (case.image < 80)).mean(axis=0)
    assert np.abs(case.affine @ [*inside, 1.0])[:3].max() < 25  # mm


def test_nose_and_orbits_lie_in_front_and_below():
    case = small_case(kind="normal", shape=(96, 108, 24), spacing_mm=(2.1, 2.1, 6.0))
    head = np.stack([ndimage.binary_fill_holes(plane > -500) for plane in np.moveaxis(case.image, 2, 0)], axis=2)
    _, air_y, air_z = np.argwhere(head & (case.image < -500)).mean(axis=0)
    _, head_y, head_z = np.argwhere(head).mean(axis=0)
    assert air_y > head_y + 10
    assert air_z < head_z - 3


def test_a_clot_drawn_on_the_right_side_lies_at_positive_x():
    sides = set()
    for seed in range(8):
        injury = sample_injury(np.random.default_rng(np.random.SeedSequence(seed).spawn(5)[2]), "tbi")
        case = small_case(seed=seed, kind="tbi")
        clots = [lesion for lesion in injury.lesions if isinstance(lesion, EpiduralClot | SubduralClot)]
        where = np.argwhere(np.isin(case.label, [LABELS["EDH"], LABELS["SDH"]]))
        if clots and where.size:
            right = clots[0].direction[0] > 0
            assert ((case.affine[0] @ [*where.mean(axis=0), 1.0]) > 0) == right
            sides.add(right)
    assert sides == {True, False}


def test_grid_axes_agree_with_the_affine():
    grid = Grid((9, 9, 4), (4.0, 4.0, 5.0))
    x, y, z = grid.axes_mm()
    assert x[0] < 0 < x[-1]
    assert (grid.affine() @ [8, 0, 0, 1])[0] == pytest.approx(x[-1])
    assert (grid.affine() @ [0, 8, 0, 1])[1] == pytest.approx(y[-1])
    assert (grid.affine() @ [0, 0, 3, 1])[2] == pytest.approx(z[-2:].mean())  # a slice is two layers


def test_left_and_right_half_of_a_healthy_head_differ():
    image = small_case(kind="normal").image.astype(int)
    assert np.abs(image - image[::-1]).mean() > 10


def test_hounsfield_units_are_those_of_a_head():
    case = small_case(kind="normal")
    assert np.median(case.image[0]) == pytest.approx(-1000, abs=5)  # air
    assert 32 <= parenchyma_hu(case) <= 38
    assert np.percentile(case.image, 99) > 600  # skull
    assert case.image.min() >= -1024
    assert case.image.max() <= 3071


@pytest.mark.parametrize(("kind", "expected"), KINDS.items())
def test_labels_fit_the_kind_of_case(kind, expected):
    for seed in range(6):
        present = set(np.unique(small_case(seed=seed, kind=kind).label)) - {0}
        assert present <= set(LABELS.values())
        assert bool(present & expected) == bool(expected), f"seed {seed}: {present}"


def test_a_normal_case_has_no_label():
    assert not small_case(kind="normal").label.any()


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("kind", ["sah", "tbi"])
def test_labels_never_lie_on_bone_or_air(kind, profile):
    case = small_case(seed=3, kind=kind, profile=profile)
    marked = case.image[case.label > 0]
    assert marked.min() > -50
    assert marked.max() < 300


def test_a_profile_offset_shifts_parenchyma_but_not_air():
    standard, offset = small_case(kind="normal"), small_case(kind="normal", profile="offset")
    assert 4 <= parenchyma_hu(offset) - parenchyma_hu(standard) <= 8  # 6 HU, less contrast, more cupping
    assert np.median(offset.image[0]) == pytest.approx(-1000, abs=5)


def test_a_noisy_profile_is_noisier():
    def roughness(profile):
        image = small_case(kind="normal", profile=profile).image.astype(float)
        inside = ndimage.binary_erosion((image > 10) & (image < 65), iterations=3)
        return np.diff(image, axis=0)[inside[1:]].std()

    assert roughness("low_dose") > 1.3 * roughness("standard") > 1.3 * roughness("smooth") * 0.8


def test_a_case_keeps_its_blood_volume_on_anregridded():
    coarse = small_case(seed=5, shape=(72, 84, 24), spacing_mm=(2.7, 2.7, 6.0))
    fine = small_case(seed=5, shape=(96, 112, 28), spacing_mm=(2.0, 2.0, 5.0))
    volumes = [(case.label > 0).sum() * abs(np.linalg.det(case.affine)) for case in (coarse, fine)]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.2)


def test_the_same_seed_gives_the_same_healthy_head_with_and_without_blood():
    healthy, bleeding = small_case(kind="normal"), small_case(kind="sah")
    bone = healthy.image > 600
    assert (bleeding.image[bone] > 300).mean() > 0.99


# --- geometry -------------------------------------------------------------------------------------------------------


def points(*rows):
    return Points(*np.array(rows, np.float32).T)


def test_distance_to_a_capsule_is_exact_and_cut_off_at_eight_millimetres():
    places = points((0, 0, 0), (5, 3, 0), (13, 0, 0), (0, 0, 40))
    distance = chain_distance(places, [(0, 0, 0, 2.0), (10, 0, 0, 2.0)])
    np.testing.assert_allclose(distance, [-2, 1, 1, 8], atol=1e-3)


def test_distance_to_an_ellipsoid_is_exact_along_its_shortest_axis():
    distance = ellipsoid_distance(points((0, 0, 0), (0, 0, 3), (0, 10, 0)), (0, 0, 0), (4, 10, 2))
    np.testing.assert_allclose(distance, [-2, 1, 0], atol=1e-5)


def test_coverage_is_half_on_the_surface():
    np.testing.assert_allclose(coverage(np.array([-2, 0, 0.5, 2], np.float32), 1.0), [1, 0.5, 0.25, 0])


def test_a_layer_average_counts_missing_layers_as_background():
    grid = Grid((1, 1, 2), (1.0, 1.0, 5.0))  # two layers a slice
    average = grid.average(np.array([0, 2, 3]), np.array([10, 20, 40], np.float32), background=-10)
    np.testing.assert_allclose(average.ravel(), [0, 30])


def test_noise_at_one_place_is_the_same_on_every_grid():
    def middle(shape, spacing_mm):
        field = NoiseBank(np.random.SeedSequence(1), Grid(shape, spacing_mm)).volume(16)
        return field[tuple(n // 2 for n in field.shape)]

    # Odd counts and one layer a slice: the middle voxel's centre is the same place.
    assert middle((21, 21, 9), (4.0, 4.0, 2.0)) == pytest.approx(middle((41, 31, 19), (2.0, 3.0, 1.0)), abs=1e-4)


def test_noise_has_unit_variance():
    field = NoiseBank(np.random.SeedSequence(2), Grid((80, 80, 40), (2.5, 2.5, 5.0))).volume(7)
    assert field.std() == pytest.approx(1.0, abs=0.05)
    assert field.dtype == np.float32


@pytest.mark.parametrize("seed", range(4))
def test_every_field_stays_in_single_precision(seed):
    rng = np.random.default_rng(seed)
    grid = Grid(SHAPE, SPACING_MM)
    subject = sample_subject(rng, PROFILES["standard"])
    injury = sample_injury(rng, "tbi" if seed % 2 else "sah")
    head = place_head(grid, subject, NoiseBank(np.random.SeedSequence(seed), grid), gantry_tilt_deg=5.0)
    skull = build_skull(head, subject)
    mass = displace_brain(skull, injury, rng)
    brain = build_brain(skull, subject, mass, hydrocephalus=0.2)
    shares, oedema = spread_blood(brain, injury, mass)
    tissue = render_tissue(brain, subject, oedema, contrast=0.9)
    fields = [render_skull(skull, swelling=(1, 0, 0)), mix_blood(tissue, brain, shares, injury, subject), *head.points]
    fields += [*shares.values(), *(value for value in vars(brain).values() if isinstance(value, np.ndarray))]
    assert {field.dtype for field in fields} == {np.dtype(np.float32)}


def test_blood_shares_never_exceed_the_whole():
    rng = np.random.default_rng(0)
    grid = Grid(SHAPE, SPACING_MM)
    subject = sample_subject(rng, PROFILES["standard"])
    bruise = Contusion((0, 10, -10), 40.0, (1, 1, 1), raggedness=0.2, oedema_mm=5)
    cisternal = CisternalBlood((0, 18, -13), 40.0, density=1.4, expansion_mm=1.0, sulcal_spread=0.5)
    injury = Injury((bruise, cisternal, VentricularBlood(level_mm=0, cast_mm=30)))
    head = place_head(grid, subject, NoiseBank(np.random.SeedSequence(0), grid), gantry_tilt_deg=0.0)
    skull = build_skull(head, subject)
    mass = displace_brain(skull, injury, rng)
    shares, _ = spread_blood(build_brain(skull, subject, mass, hydrocephalus=0.0), injury, mass)
    assert set(shares) == {"IPH", "SAH", "IVH"}
    assert sum(shares.values()).max() <= 1 + 1e-6
    assert min(share.min() for share in shares.values()) >= 0


def test_subarachnoid_blood_fills_the_volume_that_was_drawn():
    rng = np.random.default_rng(0)
    grid = Grid((96, 112, 28), (2.0, 2.0, 5.0))
    subject = sample_subject(rng, PROFILES["standard"])
    injury = Injury((CisternalBlood((0, 18, -13), 20.0, density=1.2, expansion_mm=0.8, sulcal_spread=0.8),))
    head = place_head(grid, subject, NoiseBank(np.random.SeedSequence(0), grid), gantry_tilt_deg=0.0)
    skull = build_skull(head, subject)
    mass = displace_brain(skull, injury, rng)
    brain = build_brain(skull, subject, mass, hydrocephalus=0.0)
    shares, _ = spread_blood(brain, injury, mass)
    assert (shares["SAH"] * brain.inside).sum() * grid.layer_ml == pytest.approx(20.0, rel=0.01)


# --- cohorts --------------------------------------------------------------------------------------------------------

SPEC = CohortSpec("bern", "sah", "standard", n_cases=3, seed=4, shape=(32, 36, 6), spacing_mm=(6.4, 6.4, 24.0))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_cohort_lists_every_case_by_relative_path(tmp_path):
    datalist = json.loads(write_cohort(tmp_path / "a", SPEC).read_text())
    assert datalist["labels"] == {"background": 0, **LABELS}
    assert datalist["sites"]["bern"][2] == {
        "image": "images/0002.nii.gz",
        "label": "labels/0002.nii.gz",
        "patient": "bern-0002",
    }
    assert not list(tmp_path.rglob("*.tmp"))


def test_two_runs_of_a_spec_are_bit_identical(tmp_path):
    write_cohort(tmp_path / "a", SPEC)
    write_cohort(tmp_path / "b", SPEC)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_rater_of_the_site_s_own_changes_the_annotation_alone(tmp_path):
    plain, own, generous = (replace(SPEC, rater_shift=shift) for shift in (None, 0.0, -0.1))
    for name, spec in (("plain", plain), ("own", own), ("generous", generous)):
        write_cohort(tmp_path / name, spec)
    found = {name: contents(tmp_path / name) for name in ("plain", "own", "generous")}
    images, labels = ([path for path in found["plain"] if part in path] for part in ("images/", "labels/"))
    assert all(found["plain"][path] == found["generous"][path] for path in images)
    assert all(found["plain"][path] == found["own"][path] for path in images + labels)  # standard's shift is 0
    n_voxels = {
        name: sum(int((nib.load(tmp_path / name / path).get_fdata() > 0).sum()) for path in labels)
        for name in ("plain", "generous")
    }
    assert n_voxels["generous"] > n_voxels["plain"] > 0
    assert "rater_shift" not in json.loads((tmp_path / "plain" / "datalist.json").read_text())["phantom"]


def test_an_interrupted_cohort_is_completed_without_touching_finished_cases(tmp_path):
    folder = tmp_path / "a"
    datalist = write_cohort(folder, SPEC)
    whole = contents(folder)
    datalist.unlink()
    (folder / "images/0001.nii.gz").unlink()
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}
    write_cohort(folder, SPEC)
    assert contents(folder) == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_an_interruption_by_an_exception_leaves_a_folder_that_can_be_completed(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cohort(tmp_path / "a", SPEC, on_case=stop)
    write_cohort(tmp_path / "a", SPEC)
    write_cohort(tmp_path / "b", SPEC)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_finished_cohort_returns_at_once(tmp_path):
    write_cohort(tmp_path, SPEC)
    calls = []
    assert write_cohort(tmp_path, SPEC, on_case=lambda *progress: calls.append(progress)) == tmp_path / "datalist.json"
    assert calls == []


def test_progress_is_reported_after_each_case(tmp_path):
    calls = []
    write_cohort(tmp_path, SPEC, on_case=lambda *progress: calls.append(progress))
    assert calls == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("missing", ["datalist.json", "phantom.json", None])
def test_a_folder_of_another_spec_is_refused(tmp_path, missing):
    write_cohort(tmp_path, SPEC)
    if missing:
        (tmp_path / missing).unlink()
    other = CohortSpec("graz", "tbi", "sharp", n_cases=1, seed=4)
    with pytest.raises(DataError, match=r"holds phantom spec .*'bern'.* expected .*'graz'.* choose another folder"):
        write_cohort(tmp_path, other)


def test_a_folder_with_someone_elses_datalist_is_refused_and_left_alone(tmp_path):
    (tmp_path / "datalist.json").write_text('{"sites": {}}')
    with pytest.raises(DataError, match="holds phantom spec None"):
        write_cohort(tmp_path, SPEC)
    assert contents(tmp_path) == {"datalist.json": b'{"sites": {}}'}


def test_a_datalist_that_is_not_json_is_refused(tmp_path):
    (tmp_path / "datalist.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        write_cohort(tmp_path, SPEC)


def test_all_problems_of_a_spec_are_reported_together(tmp_path):
    wrong = CohortSpec("bern", "sah", "siemens", n_cases=0, seed=1)
    with pytest.raises(DataError, match=r"'siemens', expected one of standard.*n_cases: got 0"):
        write_cohort(tmp_path, wrong)


def test_files_hold_plain_integers_in_scanner_space_without_text_or_time(tmp_path):
    write_cohort(tmp_path, SPEC)
    path = tmp_path / "images/0000.nii.gz"
    assert path.read_bytes()[4:8] == b"\0\0\0\0"  # gzip modification time
    with gzip.open(path) as stream:
        header = nib.Nifti1Header.from_fileobj(stream)
    assert header.get_data_dtype() == np.int16
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    assert (float(header["scl_slope"]), float(header["scl_inter"])) == (1.0, 0.0)
    assert header.get_xyzt_units()[0] == "mm"
    assert all(not bytes(header[field].tobytes()).strip(b"\0") for field in ("descrip", "aux_file", "db_name"))


def test_a_case_on_disk_equals_the_case_in_memory(tmp_path):
    write_cohort(tmp_path, SPEC)
    case = make_case(
        case_seed(SPEC, 1), kind="sah", profile=PROFILES["standard"], shape=SPEC.shape, spacing_mm=SPEC.spacing_mm
    )
    image = nib.load(tmp_path / "images/0001.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), case.image)
    np.testing.assert_allclose(image.affine, case.affine)
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "labels/0001.nii.gz").dataobj), case.label)


def test_sites_and_cases_get_seeds_of_their_own():
    other = CohortSpec("graz", "sah", "standard", n_cases=3, seed=4)
    assert len({case_seed(spec, index) for spec in (SPEC, other) for index in range(3)}) == 6
    # The first 8 bytes of sha256('[4, "bern", 0]'), halved: a change would give every cohort other patients.
    assert case_seed(SPEC, 0) == 3684255710895920515


def outside_the_bone(case, height_mm, ahead_mm):
    """HU of the first 8 mm outside the right side's bone, along a row from outside to inside."""
    x, y, z = (round(float(v)) for v in np.linalg.solve(case.affine, [0, ahead_mm, height_mm, 1])[:3])
    row = case.image[x:, y, z]
    outer = np.flatnonzero(row > 300)[-1]
    return row[outer + 2 : outer + 6]


def test_the_temples_carry_a_muscle_as_dense_as_blood_and_the_vault_above_does_not():
    case = small_case(kind="normal", shape=(112, 128, 32), spacing_mm=(1.8, 1.8, 5.0))
    assert 45 < np.median(outside_the_bone(case, -5, 20)) < 70
    assert np.median(outside_the_bone(case, 45, 0)) < 30
    assert not case.label.any()
