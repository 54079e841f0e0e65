"""The first sentence says what the interval says, whichever way the study came out."""

import pytest
from harness.grid_results import grid
from harness.made_run import around, make_run, results_of
from test_report_sample import VARIANTS, comparison, gain

from sahfl.report.summary import headline, tiles

TWICE = {"method": "cp_lora", "rank": 2, "repeats": 2}
TUNED = "Fine-tuning with CP-LoRA (rank 8)"
COST = "sending 0.41 MB per site and round, 12 % of the bytes of the full model."
SENTENCES = {
    "gain": (
        "gain",
        f"{TUNED} raised Dice from 0.41 to 0.50: +0.09 (95 % interval +0.05 to +0.13) "
        f"over 30 patients in 3 folds, {COST}",
    ),
    "loss": (
        "loss",
        f"{TUNED} lowered Dice from 0.41 to 0.35: −0.06 (95 % interval −0.10 to −0.02) "
        f"over 30 patients in 3 folds, {COST}",
    ),
    "unclear": (
        "unclear",
        f"{TUNED} made no clear change to Dice, from 0.41 to 0.43: +0.02 (95 % interval −0.02 to +0.06, "
        f"p (Holm) 0.002) over 30 patients in 3 folds, {COST}",
    ),
    "once": (
        "once",
        f"{TUNED}: Dice was 0.41 before and 0.50 after: +0.09 (95 % interval over patients only, +0.05 to +0.13; "
        f"trained once, so without a verdict) over 30 patients in 3 folds, {COST}",
    ),
    "failed": ("none", f"{TUNED} has no result: fold 2, round 3: 1 of 2 sites replied, quorum is 2."),
    "nothing_tuned": (
        "none",
        "Without fine-tuning, the pretrained network reached Dice 0.41 (95 % interval 0.35 to 0.47) "
        "over 30 patients in 3 folds; no method was fine-tuned.",
    ),
    "few_patients": (
        "none",
        f"{TUNED}: Dice was 0.41 before and 0.50 after: +0.09, with too few patients for an interval, "
        f"over 4 patients in 3 folds, {COST}",
    ),
}


@pytest.mark.parametrize(("variant", "expected"), SENTENCES.items(), ids=SENTENCES.keys())
def test_the_headline_says_what_the_interval_says(variant, expected):
    found = headline(VARIANTS[variant]())
    assert (found.verdict, found.sentence) == expected


def test_other_methods_follow_the_headline_with_their_cost():
    (other,) = headline(gain()).others
    assert other.startswith("Full fine-tuning raised Dice from 0.41 to 0.53: +0.12 (95 % interval +0.07 to +0.16)")
    assert other.endswith("sending 3.25 MB per site and round, as much as the full model.")


DIGITS = {  # before, after, half width -> what the sentence shows
    "two decimals that do not add up": (0.414, 0.496, 0.03, "from 0.414 to 0.496: +0.082 (95 % interval +0.052 to"),
    "a gain that would look like zero": (0.410, 0.414, 0.003, "from 0.410 to 0.414: +0.004 (95 % interval +0.001 to"),
}


@pytest.mark.parametrize(("before", "after", "half", "shown"), DIGITS.values(), ids=DIGITS.keys())
def test_a_third_decimal_is_shown_where_two_would_mislead(before, after, half, shown):
    results = gain()
    results["comparisons"][0] = comparison("cp_lora-r8", after - before, half, before=before)
    assert shown in headline(results).sentence


def test_among_many_methods_the_others_are_counted_by_outcome():
    found = headline(grid())
    assert found.sentence.startswith("Fine-tuning with LoRA-C (rank 1) raised Dice")
    full, counted = found.others
    assert full.startswith("Full fine-tuning raised Dice")
    assert counted == "Of 24 other methods: 22 raised Dice over zero-shot, 1 made no clear change, 1 without a result."


def test_methods_that_were_trained_once_are_counted_apart():
    results = grid()
    for compared in results["comparisons"]:
        if "conv_" in compared["method"]:
            compared["verdict"] = "one training: no verdict"
    (_, counted) = headline(results).others
    assert "4 without a verdict for lack of trainings" in counted


def test_a_network_that_the_federation_did_not_train_never_makes_the_headline():
    results = gain()
    results["methods"][1]["trained_at"] = "pooled"
    assert headline(results).sentence.startswith("Full fine-tuning raised Dice")


def test_patients_with_several_scans_are_counted_as_scans():
    results = gain()
    results["sites"][2]["n_volumes"] += 3
    assert "over 30 scans in 3 folds" in headline(results).sentence


HARD = {"sah_a": 0.1, "sah_b": 0.1, "sah_c": 0.9}


def test_both_means_of_the_headline_are_over_the_patients_that_both_methods_have(tmp_path):
    """The network of sah_c, where hemorrhages are easy to find, was lost with that site."""

    def middle(id_, site, fold):
        gained = 0.0 if id_ == "zero_shot" else 0.05
        return None if gained and site == "sah_c" else HARD[site] + gained

    results = results_of(*make_run(tmp_path / "run", [TWICE], around(middle)))
    (compared,) = results["comparisons"]
    assert compared["dice"] == pytest.approx([0.15, 0.1], abs=0.005)
    found = headline(results)
    assert found.sentence.startswith("Fine-tuning with CP-LoRA (rank 2) raised Dice from 0.10 to 0.15: +0.05 (95 %")
    assert "over 24 patients in 2 folds" in found.sentence
    before, after, gained, _, listed, *_ = tiles(results)
    assert (before.label, before.value, before.note) == ("Dice, Zero-shot", f"{compared['dice'][1]:.3f}", "n = 24")
    assert (after.value, gained.value) == (
        f"{compared['dice'][0]:.3f}",
        f"{compared['dice'][0] - compared['dice'][1]:+.3f}",
    )
    assert (listed.label, listed.value) == ("Patients, fine-tuning", "36")


def test_trainings_for_one_site_are_no_part_of_the_headline(tmp_path):
    hard = {"sah_a": 0.2, "sah_b": 0.6}
    grid = [TWICE | {"trained_at": [None, "each"]}]
    dice = around(lambda id_, site, fold: hard[site] + (0.0 if id_ == "zero_shot" else 0.03))
    found = headline(results_of(*make_run(tmp_path / "run", grid, dice, finetune__sites=["sah_a", "sah_b"])))
    (other,) = found.others
    assert "(rank 2, each site alone) raised Dice from 0.40 to 0.43: +0.03" in other


def test_without_zero_shot_the_headline_has_the_dice_that_was_reached(tmp_path):
    grid = [TWICE, {"method": "full", "repeats": 2}]
    results = results_of(*make_run(tmp_path / "run", grid, around(lambda *_: 0.5), methods=[]))
    found = headline(results)
    assert found.sentence.startswith("Fine-tuning with CP-LoRA (rank 2) reached Dice 0.50 (95 % interval 0.")
    assert found.sentence.endswith("The study has no zero-shot to compare with.")
    assert (found.verdict, found.others) == ("none", ())


def test_bases_of_single_trauma_centres_are_no_fine_tuned_methods_of_the_headline(tmp_path):
    grid = [{"method": "zero_shot", "base_of": "each"}]
    found = headline(results_of(*make_run(tmp_path / "run", grid, around(lambda *_: 0.5))))
    assert found.sentence.startswith("Without fine-tuning, the pretrained network reached Dice 0.50 (95 % interval")
    assert (found.sentence[-27:], found.others) == ("; no method was fine-tuned.", ())


def test_a_method_that_was_trained_more_often_for_some_patients_is_not_called_trained_once(tmp_path):
    def middle(id_, site, fold):
        return None if id_.endswith("repeat2") and site == "sah_c" else 0.5

    sentence = headline(results_of(*make_run(tmp_path / "run", [TWICE], around(middle)))).sentence
    assert "; not trained equally often for all patients, so without a verdict) over 36 patients" in sentence
