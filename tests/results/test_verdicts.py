"""Verdicts of comparisons, at the edges of the rules, and the correction over a whole study."""

import pytest

from sahfl.results.verdicts import LEVEL, MARGIN, correct, verdict_of
from sahfl.statistics.estimates import holm


def gap(value=0.03, low=0.01, high=0.05, *, p=0.001, p_holm=None, trainings=3):
    numbers = {"n": 30, "difference": value, "low": low, "high": high, "p": p, "p_holm": p_holm}
    return {"stratum": "all with blood", **numbers, "trainings": trainings}


NOTHING = gap(0.03, None, None, p=None)
VERDICTS = {
    "above 0": (gap(p_holm=0.049), 1.0, "better"),
    "above 0, but not after the correction": (gap(p_holm=0.05), 1.0, "undecided"),
    "above 0, but not after the correction, and surely not far below": (gap(p_holm=0.05), 0.024, "not worse"),
    "near 0": (gap(0.0, -0.015, 0.015, p=1.0, p_holm=1.0), 0.024, "not worse"),
    "near 0, but perhaps further below": (gap(0.0, -0.025, 0.025, p=1.0, p_holm=1.0), 0.025, "undecided"),
    "below 0": (gap(-0.03, -0.05, -0.01, p_holm=0.049), 1.0, "worse"),
    "below 0, but within the margin": (gap(-0.01, -0.015, -0.005, p_holm=0.04), 0.0001, "worse"),
    "below 0, but not after the correction": (gap(-0.01, -0.019, -0.001, p=0.04, p_holm=0.4), 0.01, "undecided"),
    "a margin without meaning": (gap(0.0, -0.015, 0.015, p=1.0, p_holm=1.0), None, "undecided"),
    "one training": (gap(p=None, trainings=1), None, "one training: no verdict"),
    "one training and few patients": (NOTHING | {"trainings": 1}, None, "one training: no verdict"),
    "few patients": (NOTHING, None, "undecided"),
    "no patients": (gap(None, None, None, p=None, trainings=1), None, "undecided"),
    "no training": (gap(p_holm=0.01, trainings=0), None, "better"),
}


@pytest.mark.parametrize(("difference", "p_margin_holm", "expected"), VERDICTS.values(), ids=VERDICTS.keys())
def test_a_difference_has_the_verdict(difference, p_margin_holm, expected):
    assert verdict_of(difference, p_margin_holm) == expected


def comparison(method, reference, overall, *, p_margin=0.001):
    metrics = {name: {"overall": dict(overall)} for name in ("dice", "surface_dice", "hd95_mm")}
    metrics |= {name: {"overall": dict(overall)} for name in ("volume_error_ml", "lesion_f1")}
    return {"method": method, "reference": reference, "p_margin": p_margin, "p_margin_holm": None, "metrics": metrics}


def method(id_, mean=0.5, growth=None):
    return {"id": id_, "metrics": {"dice": {"overall": {"mean": mean}}}, "growth": growth}


def test_the_correction_is_over_all_differences_of_a_metric_in_the_study_whatever_their_reference():
    ps = (0.001, 0.02, None, 0.03)
    comparisons = [comparison(f"m{i}", f"r{i}", gap(p=p, trainings=3 if p else 1)) for i, p in enumerate(ps)]
    growth = gap(p=0.004) | {"reference": "< 10 mL"}
    found = correct(comparisons, [method("zero_shot", growth=growth), method("m0")])
    dice = [part["metrics"]["dice"]["overall"]["p_holm"] for part in comparisons]
    assert [*dice, growth["p_holm"]] == holm([*ps, 0.004])
    assert [part["metrics"]["hd95_mm"]["overall"]["p_holm"] for part in comparisons] == holm(ps)
    assert found["n"] == {"dice": 4, "surface_dice": 3, "hd95_mm": 3, "volume_error_ml": 3, "lesion_f1": 3}
    assert (found["method"], found["level"], found["margin"]) == ("Holm 1979", LEVEL, MARGIN)
    assert growth["verdict"] == "better"
    assert [part["verdict"] for part in comparisons] == ["better", "better", "one training: no verdict", "better"]


def test_many_comparisons_make_a_verdict_harder():
    alone, among = (correct_one(n) for n in (1, 40))
    assert (alone, among) == ("better", "undecided")


def correct_one(n):
    comparisons = [comparison(f"m{i}", "full", gap(p=0.002 if i == 0 else 0.5), p_margin=0.5) for i in range(n)]
    correct(comparisons, [])
    return comparisons[0]["verdict"]


@pytest.mark.parametrize(("means", "expected"), [((0.02, 0.0), "undecided"), ((0.03, 0.01), "not worse")])
def test_two_methods_that_segment_nothing_are_not_called_equal(means, expected):
    found = comparison("cp_lora-r8", "full", gap(0.0, -0.01, 0.01, p=1.0))
    correct([found], [method("full", means[0]), method("cp_lora-r8", means[1])])
    assert (found["verdict"], found["blank"]) == (expected, expected == "undecided")
