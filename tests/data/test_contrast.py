"""An annotation that misses its blood is a warning, and the finding names the change of axes that would fit."""

import re

import numpy as np
import pytest

from sahfl.data.contrast import BETTER_HU, LOW_CONTRAST_HU, contrast_of
from sahfl.data.ct import Scan, read_scan
from sahfl.data.manifest import datalist_sites, read_datalist
from sahfl.data.measures import measure
from sahfl.data.phantom import PROFILES, make_case
from sahfl.data.rules import BY_ID
from sahfl.data.scan_rules import judge_scan

SHAPE = (64, 64, 16)


def bleed(shape=SHAPE):
    """A head with one bleed: on the right, in front and high, with the annotation of it."""
    rng = np.random.default_rng(0)
    x, y, _ = np.indices(shape)
    around = ((x - 32) / 26) ** 2 + ((y - 32) / 30) ** 2
    image = np.where(around < 0.75, 34.0, np.where(around < 1, 1000.0, -1000.0))
    label = np.zeros(shape, bool)
    label[42:48, 35:47, 10:13] = True
    image[label] = 66
    return np.rint(image + rng.normal(0, 4, shape)).astype(np.float32), label


def findings(image, label):
    scan = Scan(image, label, np.diag([2.0, 2.0, 5.0, 1.0]))
    return {item.rule: item for item in judge_scan("x", scan, measure(scan))}


WRONG = {
    "front-back": (lambda label: label[:, ::-1], "with front and back swapped it would be"),
    "head-foot": (lambda label: label[:, :, ::-1], "with head and foot swapped it would be"),
    "turned": (lambda label: label[::-1, ::-1], "with left and right, front and back swapped it would be"),
    "transposed": (lambda label: label.swapaxes(0, 1), "with the axes x and y swapped it would be"),
    "turned-by-90": (lambda label: np.rot90(label), "with the axes x and y, front and back swapped it would be"),
    "all": (lambda label: label[::-1, ::-1, ::-1], "with left and right, front and back, head and foot swapped"),
    "two-lower": (lambda label: np.roll(label, -3, 2), "with the annotation 3 slice(s) higher it would be"),
    "elsewhere": (lambda label: np.roll(label, (-12, -9), (0, 1)), "no swap of its axes and no near slice fits better"),
}


@pytest.mark.parametrize("which", WRONG)
def test_an_annotation_beside_its_blood_is_a_warning_that_names_what_would_fit(which):
    image, label = bleed()
    change, text = WRONG[which]
    found = findings(image, change(label))["label_contrast"]
    assert found.severity == "warning"
    assert text in found.text, found.text
    assert re.match(r"case x: contrast -?\d HU to the tissue around it; ", found.text)


def test_a_right_annotation_has_no_such_warning_and_neither_has_the_one_that_was_turned_as_the_finding_says():
    image, label = bleed()
    assert not {"label_contrast", "left_right"} & set(findings(image, label))
    transposed = label.swapaxes(0, 1)[:, ::-1]
    text = findings(image, transposed)["label_contrast"].text
    assert "with the axes x and y, left and right swapped" in text
    assert not {"label_contrast", "left_right"} & set(findings(image, transposed.swapaxes(0, 1)[::-1]))


def test_left_and_right_swapped_is_named_by_its_own_rule_alone():
    image, label = bleed()
    found = findings(image, label[::-1])
    assert "left_right" in found
    assert "label_contrast" not in found


def test_an_annotation_on_air_is_refused_naming_what_would_fit():
    image, label = bleed()
    label = np.roll(label, (13, 14), (0, 1))
    image = np.roll(image, (13, 14), (0, 1))
    found = findings(image, label[::-1, ::-1])["label_place"]
    assert found.text.endswith("with left and right, front and back swapped it would fit")


def test_axes_are_swapped_only_if_the_shape_stays():
    image, label = bleed((64, 60, 16))
    assert contrast_of(image, label[:, ::-1]).better.change == "front and back swapped"


# --- how often it warns ---------------------------------------------------------------------------------------------


def warned(scans, change):
    """How many annotations have the warning after a change, and of how many."""
    counted = [
        contrast_of(scan.image, np.ascontiguousarray(label)).here_hu
        for index, scan in enumerate(scans)
        if (label := change(scan.label, index)) is not None and label.any() and label.shape == scan.label.shape
    ]
    return sum(hu is None or hu <= LOW_CONTRAST_HU for hu in counted), len(counted)


def rates(scans):
    changes = {
        "right": lambda label, _: label,
        "front-back": lambda label, _: label[:, ::-1],
        "turned": lambda label, _: label[::-1, ::-1],
        "another's": lambda _, index: scans[(index + 1) % len(scans)].label,
    }
    return {name: warned(scans, change) for name, change in changes.items()}


def test_real_annotations_are_rarely_warned_of_and_wrong_ones_mostly(realct):
    path = realct / "datalist.json"
    found = rates([read_scan(case) for site in datalist_sites(path) for case in read_datalist(path, site)])
    print("real slices with the warning:", ", ".join(f"{name} {n} of {of}" for name, (n, of) in found.items()))
    right, wrong = found.pop("right"), found.values()
    assert right[0] <= 2
    assert sum(n for n, _ in wrong) >= 0.85 * sum(of for _, of in wrong)


@pytest.mark.slow
def test_phantoms_are_rarely_warned_of_whatever_the_age_of_their_blood():
    """Among 140 phantoms are isodense, chronic and mixed subdurals, after which blood is no brighter than brain."""
    scans = []
    for seed in range(10):
        for kind in ("tbi", "sah"):
            for number, profile in enumerate(PROFILES.values()):
                made = make_case(
                    1000 * number + seed, kind=kind, profile=profile, shape=(96, 112, 24), spacing_mm=(2.0, 2.0, 5.0)
                )
                scans.append(Scan(made.image.astype(np.float32), made.label > 0, made.affine))
    found = rates([scan for scan in scans if scan.label.any()])
    refused = [rule for scan in scans for rule in _errors(scan)]
    print("phantoms with the warning:", ", ".join(f"{name} {n} of {of}" for name, (n, of) in found.items()))
    print(f"phantoms that are refused: {len(refused)} of {len(scans)} {refused}")
    right, wrong = found.pop("right"), found.values()
    assert right[0] <= 0.08 * right[1]
    assert sum(n for n, _ in wrong) >= 0.75 * sum(of for _, of in wrong)
    assert refused == []


def _errors(scan):
    return [item.rule for item in judge_scan("x", scan, measure(scan)) if BY_ID[item.rule].severity == "error"]


def test_a_fit_has_to_be_clearly_better():
    image, label = bleed()
    rng = np.random.default_rng(1)
    flat = np.where((image > 0) & (image < 150), 34 + rng.normal(0, 4, image.shape), image).astype(np.float32)
    assert contrast_of(flat, label).better is None
    assert contrast_of(image, label[:, ::-1]).better.contrast_hu >= BETTER_HU
