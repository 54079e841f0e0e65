"""The findings, judged on made-up results: every claim in every verdict, at the edges of the rules."""

import pytest

from sahfl.results.findings import CLAIMS, MARGIN, judge

NAMES = [id_ for id_, _, _ in CLAIMS]
WIDE = (-0.1, 0.1)


def estimate(stratum, mean, low=None, high=None, n=10, trainings=3):
    numbers = {"n": n, "mean": mean, "sd": 0.1, "median": mean, "low": low, "high": high}
    return {"stratum": stratum, **numbers, "trainings": trainings}


GROWING = (
    estimate("< 10 mL", 0.3, 0.2, 0.4),
    estimate("10 to 30 mL", 0.5, 0.4, 0.6),
    estimate(">= 30 mL", 0.7, 0.6, 0.8),
)


def row(id_, *, rank=None, aggregation="mean", trained_at=None, trainable=100, by_volume=GROWING, mean=0.5):
    return {
        "id": id_,
        "method": id_.partition("-")[0],
        "rank": rank,
        "aggregation": None if id_ == "zero_shot" else aggregation,
        "trained_at": trained_at,
        "trainable": trainable,
        "metrics": {"dice": {"overall": {"mean": mean}, "by_volume": list(by_volume)}},
    }


def against(method, reference, low, high, n=30, trainings=3):
    value = None if low is None or high is None else (low + high) / 2
    overall = {"stratum": "all with blood", "n": n, "difference": value, "low": low, "high": high}
    overall["trainings"] = trainings
    return {"method": method, "reference": reference, "metrics": {"dice": {"overall": overall}}}


ZERO, FULL = row("zero_shot"), row("full")
CP, CONV = row("cp_lora-r8", rank=8, trainable=20), row("conv_lora-r8", rank=8)


def finding(name, methods, comparisons=()):
    (found,) = [item for item in judge(methods, comparisons) if item["id"] == name]
    return found


def verdict(name, methods, *comparisons):
    return finding(name, methods, comparisons)["verdict"]


# --- one pair: the rules --------------------------------------------------------------------------------------------

SUPERIOR = [
    ((0.01, 0.05), "reproduced"),
    ((-0.01, 0.05), "undecided"),
    ((0.0, 0.05), "undecided"),
    ((-0.05, -0.01), "not reproduced"),
    ((None, None), "undecided"),
]
NO_WORSE = [
    ((-0.01, 0.05), "reproduced"),
    ((-0.015, -0.005), "reproduced"),
    ((-0.03, 0.05), "undecided"),
    ((-MARGIN, 0.05), "undecided"),
    ((-0.05, -0.03), "not reproduced"),
    ((None, None), "undecided"),
]


@pytest.mark.parametrize(("interval", "expected"), SUPERIOR)
def test_fine_tuning_beats_zero_shot(interval, expected):
    assert verdict("fine_tuning", [ZERO, CP], against("cp_lora-r8", "zero_shot", *interval)) == expected


@pytest.mark.parametrize(("interval", "expected"), NO_WORSE)
def test_adapters_at_least_equal_full_fine_tuning(interval, expected):
    assert verdict("adapters", [FULL, CP], against("cp_lora-r8", "full", *interval)) == expected


@pytest.mark.parametrize(("interval", "expected"), NO_WORSE)
def test_cp_lora_is_near_conv_lora(interval, expected):
    assert verdict("cp_lora", [CP, CONV], against("cp_lora-r8", "conv_lora-r8", *interval)) == expected


@pytest.mark.parametrize(("interval", "expected"), NO_WORSE)
def test_higher_ranks_do_not_hurt(interval, expected):
    methods = [row("cp_lora-r1", rank=1), row("cp_lora-r64", rank=64)]
    assert verdict("ranks", methods, against("cp_lora-r64", "cp_lora-r1", *interval)) == expected


def test_a_method_that_was_trained_once_decides_nothing():
    found = finding("fine_tuning", [ZERO, CP], [against("cp_lora-r8", "zero_shot", 0.1, 0.2, trainings=1)])
    assert found["verdict"] == "undecided"
    assert found["text"].endswith("(95 % interval +0.100 to +0.200, n = 30); one training.")
    groups = [estimate(name, *found, trainings=1) for name, found in (("<", (0.3, 0.2, 0.4)), (">", (0.7, 0.6, 0.8)))]
    assert verdict("volume", [row("cp_lora-r8", rank=8, by_volume=groups)]) == "undecided"


def turned(interval):
    low, high = interval
    return (None, None) if low is None else (-high, -low)


@pytest.mark.parametrize(("interval", "expected"), NO_WORSE)
def test_federated_training_is_near_pooled_training(interval, expected):
    pooled = row("cp_lora-r8-pooled", rank=8, trained_at="pooled")
    comparison = against("cp_lora-r8-pooled", "cp_lora-r8", *turned(interval))
    assert verdict("pooled", [CP, pooled], comparison) == expected


@pytest.mark.parametrize(("interval", "expected"), SUPERIOR)
def test_federated_training_is_above_single_sites(interval, expected):
    each = row("cp_lora-r8-each", rank=8, trained_at="each")
    comparison = against("cp_lora-r8-each", "cp_lora-r8", *turned(interval))
    found = finding("single_site", [CP, each], [comparison])
    assert found["verdict"] == expected
    assert (found["low"], found["high"]) == interval
    if interval[0]:
        assert "cp_lora-r8 against cp_lora-r8-each" in found["text"]


VOLUMES = [
    ((0.3, 0.25, 0.35), (0.7, 0.6, 0.8), "reproduced"),
    ((0.5, 0.4, 0.6), (0.6, 0.5, 0.7), "undecided"),
    ((0.7, 0.6, 0.8), (0.3, 0.25, 0.35), "not reproduced"),
    ((0.3, None, None), (0.7, 0.6, 0.8), "undecided"),
    ((None, None, None), (None, None, None), "undecided"),
]


@pytest.mark.parametrize(("small", "large", "expected"), VOLUMES)
def test_dice_grows_with_volume(small, large, expected):
    groups = estimate("< 10 mL", *small), estimate(">= 10 mL", *large)
    assert verdict("volume", [row("zero_shot", by_volume=groups)]) == expected


def test_the_interval_between_two_groups_of_patients_is_that_of_zou_and_donner():
    groups = estimate("< 10 mL", 0.3, 0.26, 0.36, n=8), estimate(">= 10 mL", 0.5, 0.42, 0.53, n=22)
    found = finding("volume", [row("zero_shot", by_volume=groups)])
    # 0.2 - sqrt(0.08**2 + 0.06**2) and 0.2 + sqrt(0.03**2 + 0.04**2)
    assert [found[key] for key in ("difference", "low", "high")] == pytest.approx([0.2, 0.1, 0.25])
    assert found["n"] == 30


# --- several pairs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("intervals", "expected", "least"),
    [
        (((0.02, 0.06), (0.01, 0.05)), "reproduced", "cp_lora-r8"),
        (((-0.02, 0.06), (0.01, 0.05)), "undecided", "full"),
        (((-0.06, -0.01), (0.01, 0.05)), "not reproduced", "full"),
        (((-0.06, -0.01), (-0.5, 0.5)), "not reproduced", "full"),
        (((None, None), (0.01, 0.05)), "undecided", "full"),
    ],
)
def test_all_pairs_must_support_a_claim_and_the_weakest_gives_the_numbers(intervals, expected, least):
    pairs = [against(id_, "zero_shot", *found) for id_, found in zip(("full", "cp_lora-r8"), intervals, strict=True)]
    found = finding("fine_tuning", [ZERO, FULL, CP], pairs)
    assert found["verdict"] == expected
    assert f"Weakest support, difference of Dice: {least} against zero_shot" in found["text"]
    assert (found["low"], found["high"]) == intervals[0 if least == "full" else 1]


def test_the_text_counts_the_pairs_and_names_all_that_speak_against_the_claim():
    rows = [ZERO, FULL, CP, CONV, row("decoder")]
    intervals = {"full": (0.02, 0.06), "cp_lora-r8": (-0.06, -0.04), "conv_lora-r8": WIDE, "decoder": (-0.08, -0.01)}
    found = finding("fine_tuning", rows, [against(id_, "zero_shot", *pair) for id_, pair in intervals.items()])
    assert found["text"] == (
        "For it 1, against it 2, undecided 1 of 4 pairs. Weakest support, difference of Dice: decoder against "
        "zero_shot: -0.045 (95 % interval -0.080 to -0.010, n = 30). Also against it: cp_lora-r8 against zero_shot: "
        "-0.050 (95 % interval -0.060 to -0.040, n = 30)."
    )


def test_a_family_is_judged_at_its_highest_rank_with_the_plain_mean():
    methods = [
        FULL,
        row("cp_lora-r1", rank=1),
        row("cp_lora-r64-project", rank=64, aggregation="project"),
        row("cp_lora-r64", rank=64),
        row("cp_lora-r64-pooled", rank=64, trained_at="pooled"),
    ]
    pairs = [against(method["id"], "full", -0.5, -0.4) for method in methods[1:]]
    pairs[2] = against("cp_lora-r64", "full", 0.0, 0.1)
    assert verdict("adapters", methods, *pairs) == "reproduced"


def test_too_many_parameters_speak_against_cp_lora_whatever_its_dice():
    heavy = row("cp_lora-r8", rank=8, trainable=34)
    found = finding("cp_lora", [heavy, CONV], [against("cp_lora-r8", "conv_lora-r8", 0.1, 0.2)])
    assert found["verdict"] == "not reproduced"
    assert found["text"].endswith("n = 30); it has 34% of the parameters.")
    exact = row("cp_lora-r8", rank=8, trainable=33)
    assert verdict("cp_lora", [exact, CONV], against("cp_lora-r8", "conv_lora-r8", 0.1, 0.2)) == "reproduced"


@pytest.mark.parametrize(("means", "expected"), [((0.02, 0.0), "undecided"), ((0.03, 0.01), "reproduced")])
def test_two_methods_that_segment_nothing_are_not_called_equal(means, expected):
    methods = [row("full", mean=means[0]), row("cp_lora-r8", rank=8, mean=means[1])]
    found = finding("adapters", methods, [against("cp_lora-r8", "full", -0.01, 0.0)])
    assert found["verdict"] == expected
    assert ("both segment next to nothing" in found["text"]) == (expected == "undecided")


def test_the_numbers_of_an_undecided_claim_are_those_of_the_pair_that_leaves_it_open():
    dark = [row(f"conv_lora-r{rank}", rank=rank, mean=0.0) for rank in (1, 8)]
    methods = [row("cp_lora-r1", rank=1), CP, *dark]
    pairs = [against("cp_lora-r8", "cp_lora-r1", -0.01, 0.05), against("conv_lora-r8", "conv_lora-r1", 0.0, 0.0)]
    found = finding("ranks", methods, pairs)
    assert (found["verdict"], found["low"], found["high"]) == ("undecided", 0.0, 0.0)
    assert "Weakest support, difference of Dice: conv_lora-r8 against conv_lora-r1" in found["text"]


def test_no_difference_is_not_written_with_a_minus():
    each = row("cp_lora-r8-each", rank=8, trained_at="each")
    found = finding("single_site", [CP, each], [against("cp_lora-r8-each", "cp_lora-r8", 0.0, 0.0)])
    assert "+0.000 (95 % interval +0.000 to +0.000" in found["text"]


# --- nothing to judge -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_claim_about_methods_that_a_study_lacks_is_not_tested(name):
    one_group = row("decoder", by_volume=[estimate("any volume", 0.5, 0.4, 0.6)])
    found = finding(name, [one_group])
    assert found["verdict"] == "not tested"
    assert [found[key] for key in ("difference", "low", "high", "n")] == [None] * 4


def test_every_finding_has_the_same_fields_and_json_values():
    for found in judge([ZERO, FULL, CP], [against("full", "zero_shot", 0.1, 0.2)]):
        assert list(found) == ["id", "claim", "verdict", "text", "difference", "low", "high", "n"]
        assert found["verdict"] in {"reproduced", "not reproduced", "undecided", "not tested"}
    assert len(set(NAMES)) == len(NAMES) == 7


def test_no_interval_is_said_as_such():
    found = finding("fine_tuning", [ZERO, CP], [against("cp_lora-r8", "zero_shot", None, None, n=3)])
    assert found["text"] == "Difference of Dice: cp_lora-r8 against zero_shot: no interval (n = 3)."
