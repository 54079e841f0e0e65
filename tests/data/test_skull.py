"""A volume without a head is refused by name; every real head, whatever is missing in it, is not."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.testing import data_path

from sahfl.data.ct import Scan, read_scan
from sahfl.data.manifest import datalist_sites, read_datalist
from sahfl.data.measures import measure
from sahfl.data.new_scan import read_new_scan
from sahfl.data.phantom import PROFILES, make_case
from sahfl.data.rules import BY_ID
from sahfl.data.scan_rules import NO_HU, judge_scan
from sahfl.data.skull import skull_share
from sahfl.errors import DataRefused

MM = (2.0, 2.0, 5.0)


def plane(n=160):
    """Coordinates in mm of a field of view of 320 mm."""
    at = (np.arange(n) - n / 2) * MM[0]
    return np.meshgrid(at, at, indexing="ij")


def oval(width, depth, x0=0.0, y0=0.0):
    x, y = plane()
    return ((x - x0) / width) ** 2 + ((y - y0) / depth) ** 2 < 1


def scan_of(section, n_slices=8, noise=6.0):
    """The same section in every slice, with noise, in HU."""
    rng = np.random.default_rng(0)
    image = np.repeat(section[:, :, None], n_slices, 2) + rng.normal(0, noise, (*section.shape, n_slices))
    image = np.rint(image).astype(np.float32)
    return Scan(image, np.zeros(image.shape, bool), np.diag([*MM, 1.0]))


def layers(*parts):
    """HU of ovals, each over the ones before."""
    section = np.full((160, 160), -1000.0)
    for mask, value in parts:
        section[mask] = value
    return section


def ring(width, depth, thick, **place):
    return oval(width, depth, **place) & ~oval(width - thick, depth - thick, **place)


def head(flap=0.0):
    """A head of 150 x 180 mm; ``flap`` degrees of its skull are missing on one side."""
    x, y = plane()
    bone = ring(70, 86, 8) & ~((np.abs(np.degrees(np.arctan2(y, x))) < flap / 2) & (x > 0))
    return layers((oval(76, 92), 40), (oval(70, 86), 34), (bone, 1000), (oval(12, 25), 8))


def rules_of(scan):
    return {item.rule for item in judge_scan("x", scan, measure(scan))}


def refusals(scan):
    return {rule for rule in rules_of(scan) if BY_ID[rule].severity == "error"}


BODIES = {
    "abdomen": layers((oval(170, 120), -100), (oval(155, 105), 50), (oval(20, 20, y0=-70), 500)),
    "small-abdomen": layers((oval(90, 70), -100), (oval(84, 64), 50), (oval(14, 14, y0=-45), 500)),
    "abdomen-in-ribs": layers(
        (oval(170, 120), -100), (ring(155, 105, 6), 500), (oval(148, 98), 50), (oval(20, 20, y0=-70), 500)
    ),
    "chest": layers(
        (oval(170, 120), 40), (ring(155, 105, 6), 500), (oval(60, 85, x0=-75), -850), (oval(60, 85, x0=75), -850)
    ),
    "pelvis": layers(
        *((oval(170, 120), -90), (oval(120, 90), 50), (oval(60, 60), -90), (oval(35, 35), 5)),
        *((oval(25, 30, x0=-105), 600), (oval(25, 30, x0=105), 600), (oval(30, 12, y0=-85), 500)),
    ),
    "neck": layers(
        *((oval(65, 70), -80), (oval(58, 62), 55), (oval(22, 18, y0=-25), 600), (oval(8, 8, y0=-25), 30)),
        (oval(10, 9, y0=10), -1000),
    ),
    "jaw": layers(
        *((oval(75, 85), 0), (ring(60, 75, 10) & (plane()[1] > -10), 1100), (oval(20, 18, y0=-35), 600)),
        *((oval(40, 30, y0=30), 55), (oval(30, 10, y0=-8), -1000)),
    ),
    "thighs": layers(
        *((oval(75, 75, x0=-80), 55), (oval(75, 75, x0=80), 55)),
        *((oval(15, 15, x0=-80), 1200), (oval(15, 15, x0=80), 1200), (oval(8, 8, x0=-80), -60)),
    ),
    "water": layers((oval(100, 100), 0)),
    "air": layers(),
    "bone-phantom": layers((oval(100, 100), 800)),
}


@pytest.mark.parametrize("body", BODIES)
def test_another_part_of_the_body_is_refused_for_having_no_head(body):
    section = BODIES[body].copy()
    section[:4, :4] = 1000  # a metal corner, so that every volume reaches from air to bone
    assert refusals(scan_of(section)) == {"no_head"}


@pytest.mark.parametrize("noise", [30, 60, 100])
def test_a_noisy_head_is_a_head(noise):
    assert not refusals(scan_of(head(60), noise=noise))


def fine(section, noise, n_slices=3):
    """The section with pixels of 0.5 mm and noise of a bone kernel in thin slices."""
    rng = np.random.default_rng(0)
    plane = np.repeat(np.repeat(section, 4, 0), 4, 1)[:, :, None]
    image = np.rint(plane + rng.normal(0, noise, (*plane.shape[:2], n_slices))).astype(np.float32)
    return Scan(image, np.zeros(image.shape, bool), np.diag([0.5, 0.5, 5.0, 1.0]))


@pytest.mark.parametrize("noise", [6, 100, 200])
def test_a_head_in_thin_slices_of_a_bone_kernel_is_a_head(noise):
    assert not refusals(fine(head(60), noise)) & {"no_head", "looks_like_mr"}


@pytest.mark.parametrize("body", ["abdomen", "chest", "neck", "bone-phantom"])
def test_noise_makes_no_head_of_another_part_of_the_body(body):
    section = BODIES[body].copy()
    section[:4, :4] = 1000
    assert "no_head" in refusals(fine(section, 100))


@pytest.mark.parametrize("thick", [1, 2])
def test_a_newborns_thin_skull_is_a_skull(thick):
    section = layers((oval(45, 55), 40), (oval(42, 52), 20), (ring(42, 52, 2 * thick), 600))
    assert not refusals(scan_of(section)) & {"no_head", "looks_like_mr"}


@pytest.mark.parametrize("n_slices", [1, 3, 8])
@pytest.mark.parametrize("flap", [0, 60, 100])
def test_a_head_is_a_head_with_an_open_skull_and_in_one_slice(flap, n_slices):
    assert not refusals(scan_of(head(flap), n_slices))


def test_a_head_in_a_long_scan_is_found():
    """A scan of head and neck: 25 mm of 250 mm show the brain."""
    neck, brain = scan_of(BODIES["neck"], 45), scan_of(head(), 5)
    image = np.concatenate([neck.image, brain.image], axis=2)
    assert not refusals(Scan(image, np.zeros(image.shape, bool), neck.affine))


def test_a_field_of_view_that_is_too_small_for_a_skull_is_not_judged():
    inside = scan_of(head()).image[48:112, 50:110]  # 128 x 120 mm
    assert skull_share(inside, MM[:2]) is None
    assert skull_share(scan_of(head()).image, MM[:2]) == 1.0


def test_the_finding_says_how_much_of_the_volume_shows_a_head():
    scan = scan_of(BODIES["neck"])
    (found,) = [item for item in judge_scan("x", scan, measure(scan)) if item.rule == "no_head"]
    assert found.text == "case x: 0 mm of 40 mm show brain inside a skull"


# --- MR -------------------------------------------------------------------------------------------------------------


def mr(fat, brain, spread, top):
    """An MR of a head: bright fat, dark bone, and brain of two kinds of matter; air is near 0."""
    rng = np.random.default_rng(1)
    matter = brain + spread * np.sign(rng.normal(size=(160, 160)))
    section = np.zeros((160, 160))
    for mask, value in ((oval(76, 92), fat), (oval(70, 86), 30), (oval(62, 78), matter), (oval(12, 25), top)):
        section = np.where(mask, value, section)
    image = np.repeat(section[:, :, None], 6, 2) + np.abs(rng.normal(0, 20, (160, 160, 6)))
    return np.rint(image).astype(np.float32)


MRS = {
    "t1": mr(1800, 900, 120, 200),
    "t2": mr(1500, 700, 150, 2400),
    "up-to-1200": mr(1100, 600, 80, 300),
    "brain-at-1060": mr(2000, 1060, 150, 300),
    "small-numbers": mr(500, 300, 40, 100),
}


@pytest.mark.parametrize("which", MRS)
def test_an_mr_is_refused_by_name_and_no_change_of_its_values_makes_it_a_ct(which):
    empty = np.zeros(MRS[which].shape, bool)
    assert refusals(Scan(MRS[which], empty, np.diag([*MM, 1.0]))) == {"looks_like_mr"}
    for intercept, slope in ((-1024, 1), (-1000, 1), (-1024, 0.7), (-1024, 2)):
        changed = Scan((MRS[which] * slope + intercept).astype(np.float32), empty, np.diag([*MM, 1.0]))
        assert refusals(changed) & {"no_head", "not_hu", "brain_not_hu"}, (intercept, slope)


def test_an_mr_of_a_small_field_of_view_is_refused_for_its_values():
    """An MR that comes with nibabel: 66 x 82 mm, values from -610 to 30393."""
    with pytest.raises(DataRefused, match=r"looks_like_mr: .*99th percentile 127\d\d.*Use the CT of the head"):
        read_new_scan(Path(data_path) / "anatomical.nii")


def test_a_new_scan_without_a_head_is_refused_with_its_remedy(tmp_path):
    scan = scan_of(BODIES["abdomen"])
    nibabel.save(nibabel.Nifti1Image(scan.image, scan.affine), tmp_path / "scan.nii")
    with pytest.raises(DataRefused, match=r"no_head: 0 mm of 40 mm show brain inside a skull\. Use the CT of the head"):
        read_new_scan(tmp_path / "scan.nii")


def test_a_ct_without_its_intercept_is_no_mr_and_its_remedy_works():
    good = scan_of(head())
    stored = Scan(np.clip(good.image + 1024, 0, None), good.label, good.affine)
    assert refusals(stored) == {"shifted"}
    assert not refusals(Scan(stored.image - 1024, good.label, good.affine))


def test_a_ct_that_was_cut_at_zero_is_no_mr():
    good = scan_of(head())
    assert refusals(Scan(np.clip(good.image, 0, None), good.label, good.affine)) == {"not_hu"}


# --- no false alarms ------------------------------------------------------------------------------------------------


def test_every_real_slice_shows_a_head(realct):
    cases = [case for site in datalist_sites(realct / "datalist.json") for case in read_datalist(
        realct / "datalist.json", site)]  # fmt: skip
    refused = [case.id for case in cases if rules_of(read_scan(case)) & NO_HU]
    print(f"{len(refused)} of {len(cases)} real slices are refused as no head")
    assert (len(cases), refused) == (36, [])


@pytest.mark.parametrize("profile", ["standard", "noisy", "tilted"])
@pytest.mark.parametrize("part", [np.s_[:], np.s_[:16], np.s_[12:13], np.s_[4:8]], ids=["all", "cut", "one", "few"])
def test_a_part_of_a_phantom_shows_a_head(profile, part):
    case = make_case(3, kind="tbi", profile=PROFILES[profile], shape=(96, 112, 24), spacing_mm=MM)
    image = case.image[:, :, part].astype(np.float32)
    assert not refusals(Scan(image, np.zeros(image.shape, bool), case.affine))
