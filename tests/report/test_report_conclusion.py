"""The first box says which method to use, at what price, where it is worse, and what is not known."""

import re

import pytest
from harness.grid_results import grid
from harness.made_run import around, make_run, results_of
from test_report_sample import VARIANTS, comparison, failed, gain, once, sample

from sahfl.report.summary import conclude

TWICE = {"method": "cp_lora", "rank": 2, "repeats": 2}
CP = "CP-LoRA (rank 8)"


def against_full(gap, verdict, half=0.014, **more):
    """The sample with CP-LoRA's difference from full fine-tuning."""
    results = gain()
    found = comparison("cp_lora-r8", gap, half, reference="full", before=0.527)
    results["comparisons"].append(found | {"verdict": verdict} | more)
    return results


def points(results):
    return {point.label: point.text for point in conclude(results).points}


USES = {
    "not worse": ("gain", f"Use {CP}."),
    "better": ("gain", f"Use {CP}."),
    "undecided": (
        "gain",
        f"Use full fine-tuning, or {CP} if a site is to send only 12 % of the bytes. Against full fine-tuning, Dice of "
        f"{CP} differs by −0.016 (95 % interval −0.030 to −0.002), undecided after the correction for 2 differences.",
    ),
    "worse": (
        "gain",
        f"Use full fine-tuning, or {CP} if a site is to send only 12 % of the bytes. Against full fine-tuning, Dice of "
        f"{CP} differs by −0.016 (95 % interval −0.030 to −0.002), worse.",
    ),
}


@pytest.mark.parametrize(("verdict", "expected"), USES.items(), ids=USES.keys())
def test_the_first_sentence_says_what_to_use_by_the_verdict_against_full_fine_tuning(verdict, expected):
    found = conclude(against_full(-0.016, verdict))
    assert (found.tone, found.use) == expected


def without_full(results):
    results["methods"] = [method for method in results["methods"] if method["id"] != "full"]
    results["comparisons"] = [c for c in results["comparisons"] if c["method"] != "full"]
    return results


NOTHING = {
    "once": (
        "once",
        f"No method can be recommended: {CP} was trained once, and one training decides nothing. Train it at least "
        "twice (an entry of finetune.grid with repeats: 2).",
    ),
    "loss": (
        "loss",
        "Use the pretrained network without fine-tuning (zero-shot): fine-tuning made Dice worse.",
    ),
    "unclear": (
        "unclear",
        f"No method can be recommended: whether {CP} is better than zero-shot is undecided.",
    ),
    "failed": ("none", "No method can be recommended: no method that all sites train together has a result."),
    "nothing_tuned": (
        "none",
        "No method can be recommended: no method was fine-tuned for the patients of all sites.",
    ),
    "few_patients": ("none", "No method can be recommended: the study has too few patients for an interval."),
}


@pytest.mark.parametrize(("variant", "expected"), NOTHING.items(), ids=NOTHING.keys())
def test_without_a_better_method_nothing_is_recommended_and_the_reason_is_named(variant, expected):
    found = conclude(without_full(VARIANTS[variant]()))
    assert (found.tone, found.use) == expected


def test_where_no_method_is_better_the_verdicts_are_counted():
    results = gain()
    for compared, verdict in zip(results["comparisons"], ("undecided", "worse"), strict=True):
        compared["verdict"] = verdict
    found = conclude(results)
    assert found.use == (
        "No method can be recommended: none of 2 is shown to be better than zero-shot (1 undecided, 1 worse)."
    )
    assert found.tone == "unclear"


def test_the_points_have_dice_with_both_references_and_three_decimals_everywhere():
    text = points(against_full(-0.004, "not worse", half=0.01))[CP]
    assert text == (
        "Dice 0.503, without fine-tuning 0.412: +0.091 (95 % interval +0.050 to +0.132), better; 30 patients in 3 "
        "folds. Against full fine-tuning: −0.004 (95 % interval −0.014 to +0.006), not worse."
    )


def test_the_price_is_named_beside_that_of_full_fine_tuning():
    results = against_full(-0.004, "not worse")
    for entry in results["rounds"]:
        for used in entry["used"]:
            used["seconds"] = 12.0 if entry["method"] == "full" else 8.0
    assert points(results)["Cost"] == (
        f"{CP}: 0.41 MB per site and round (12 % of the network), 101,234 trained parameters, 8.0 s of training; Full "
        "fine-tuning: 3.25 MB per site and round (the whole network), 812,345 trained parameters, 12.0 s of training."
    )


def test_what_lies_below_without_a_verdict_is_not_hidden():
    results = against_full(-0.004, "not worse")
    assert points(results)["Where it is worse"] == "In no comparison of this study."
    results["comparisons"].append(
        comparison("cp_lora-r8", -0.016, 0.013, "cp_lora-r8-pooled") | {"verdict": "undecided"}
    )
    results["comparisons"].append(comparison("decoder", 0.02, 0.01, "cp_lora-r8"))  # seen from the other method
    pair = {"method": "cp_lora-r8", "reference": "x", "trainings": 2, "dice": 0.4, "dice_alone": 0.44}
    results["gains"] = [
        pair | {"site": site, "n": 13, "low": gap - 0.02, "high": gap + 0.02, "difference": gap, "verdict": verdict}
        for site, gap, verdict in (("sah_a", 0.04, "better"), ("sah_b", -0.04, "worse"))
    ]
    found = points(results)
    assert found["Where it is worse"] == (
        "than cp_lora-r8-pooled: −0.016 (95 % interval −0.029 to −0.003), undecided after the correction for 2 "
        "differences; than decoder: −0.020 (95 % interval −0.030 to −0.010), worse; at sah_b than training alone "
        "there: −0.040."
    )
    assert found["Each hospital"] == (
        f"Dice of {CP} minus zero-shot: sah_a +0.091, sah_b +0.091; no interval for one hospital. Taking part against "
        "training alone: sah_a +0.040 (better), sah_b −0.040 (worse)."
    )
    assert "alone" not in found["Not known"]


def test_what_is_not_known_is_named():
    assert points(against_full(-0.004, "not worse"))["Not known"] == (
        "Accuracy in patients (the scans are simulated); what another base network would change (there is one); "
        "accuracy at a hospital that took no part; whether a hospital does as well alone; cases too rare to be "
        "among 30 patients."
    )
    assert f"how another training of {CP} would differ (it was trained once)" in points(once())["Not known"]
    assert (
        "whether full fine-tuning is better (the study does not have it)" in points(without_full(gain()))["Not known"]
    )


def test_annotations_that_may_belong_to_another_side_are_named_at_the_top():
    results = against_full(-0.004, "not worse")
    site = results["sites"][-1]
    site["findings"] = {"left_right": site["n_volumes"]}
    found = points(results)["Not known"]
    assert f"whether all annotations of {site['site']} belong to their scans (see the hospitals' data)" in found


def test_the_choice_after_the_results_is_said_with_its_rule():
    assert points(grid())["How chosen"] == (
        "After the results, by a rule that was fixed before. Of 20 methods that all sites trained together, 20 are "
        "better than zero-shot. No other one is shown to be as good as full fine-tuning, so this was taken. The "
        "verdicts are corrected over all 2 differences of the study; a mean decides nothing. Not worse means no more "
        "than 0.02 of Dice below."
    )
    text = points(against_full(-0.004, "not worse"))["How chosen"]
    assert "Of these, 1 is not worse than full fine-tuning; the one that sends least was taken." in text
    assert "better than zero-shot. It was taken." in points(without_full(gain()))["How chosen"]
    assert "How chosen" not in points(once())


def test_simulated_scans_are_called_so_before_everything_else():
    assert conclude(sample()).notices == (
        "SIMULATED. All scans are made by a program. No number here says how accurate a method is in patients.",
    )
    mixed = sample()
    mixed["sites"][0]["source"] = "datalist"
    assert conclude(mixed).notices[0].startswith("SIMULATED IN PART. The scans of 3 of 4 sites are made by a program.")
    real = sample()
    for site in real["sites"]:
        site["source"] = "datalist"
    real["study"]["data"] = {"source": "datalist"}
    assert conclude(real).notices == (
        "SIMULATED FEDERATION. The scans are from files, and one machine computed for all sites.",
    )
    real["study"]["data"] = {"source": "sites"}
    assert conclude(real).notices == ("NOT MASKED. The server saw the updates and results of each site.",)
    real["study"]["rounds"] = {"masking": {"clip": 5.0, "threshold": None}}
    assert conclude(real).notices == ()


def test_the_table_has_every_method_or_those_of_the_conclusion_and_counts_the_others():
    found = conclude(against_full(-0.004, "not worse")).table
    assert [row.cells for row in found.rows] == [
        ("Zero-shot", "0.412 (0.350 to 0.469)", "–", "–", "0", "0 B", "–"),
        (
            "Full fine-tuning",
            "0.527 (0.465 to 0.584)",
            "+0.115 (+0.074 to +0.156)",
            "better",
            "812,345",
            "3.25 MB",
            "9.9 s",
        ),
        (CP, "0.503 (0.441 to 0.560)", "+0.091 (+0.050 to +0.132)", "better", "101,234", "0.41 MB", "9.9 s"),
    ]
    many = conclude(grid()).table
    assert [row.cells[0] for row in many.rows] == ["Zero-shot", "Full fine-tuning", "LoRA-C (rank 1)"]
    assert many.caption.endswith("; 26 more methods in the report")
    lost = next(row for row in conclude(failed()).table.rows if row.cells[0] == CP)
    assert lost.span == "Failed: fold 2, round 3: 1 of 2 sites replied, quorum is 2"


def test_patients_with_several_scans_are_counted_as_scans():
    results = against_full(-0.004, "not worse")
    results["sites"][2]["n_volumes"] += 3
    assert "better; 30 scans in 3 folds." in points(results)[CP]


HARD = {"sah_a": 0.1, "sah_b": 0.1, "sah_c": 0.9}


def test_both_means_of_the_first_box_are_over_the_patients_that_both_methods_have(tmp_path):
    """The network of sah_c, where hemorrhages are easy to find, was lost with that site."""

    def middle(id_, site, fold):
        gained = 0.0 if id_ == "zero_shot" else 0.05
        return None if gained and site == "sah_c" else HARD[site] + gained

    results = results_of(*make_run(tmp_path / "run", [TWICE], around(middle)))
    (compared,) = results["comparisons"]
    assert compared["dice"] == pytest.approx([0.15, 0.1], abs=0.005)
    after, before = compared["dice"]
    text = points(results)["CP-LoRA (rank 2)"]
    assert text.startswith(f"Dice {after:.3f}, without fine-tuning {before:.3f}: {after - before:+.3f} (95 % interval ")
    assert "24 patients in 2 folds" in text


def test_without_zero_shot_nothing_is_recommended_but_the_dice_that_was_reached_is_named(tmp_path):
    grid = [TWICE, {"method": "full", "repeats": 2}]
    results = results_of(*make_run(tmp_path / "run", grid, around(lambda *_: 0.5), methods=[]))
    found = conclude(results)
    assert found.use.startswith("No method can be recommended: the study has no zero-shot")
    assert re.match(r"Dice 0\.(499|50\d) \(0\.\d+ to 0\.\d+\), 36 patients", points(results)["CP-LoRA (rank 2)"])
    assert found.tone == "none"


def test_bases_of_single_trauma_centres_are_no_fine_tuned_methods(tmp_path):
    grid = [{"method": "zero_shot", "base_of": "each"}]
    results = results_of(*make_run(tmp_path / "run", grid, around(lambda *_: 0.5)))
    assert conclude(results).use.startswith("No method can be recommended: no method was fine-tuned")
    assert re.match(r"0\.(499|50\d) \(.+\) without fine-tuning, 36 patients in 2 folds", points(results)["Dice"])


def test_a_method_that_was_trained_more_often_for_some_patients_gets_no_verdict(tmp_path):
    def middle(id_, site, fold):
        return None if id_.endswith("repeat2") and site == "sah_c" else 0.5

    results = results_of(*make_run(tmp_path / "run", [TWICE], around(middle)))
    assert "over patients only" in points(results)["CP-LoRA (rank 2)"]
    assert conclude(results).tone == "once"
