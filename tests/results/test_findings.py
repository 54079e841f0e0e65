"""The findings, judged on made-up results: every claim in every verdict, and what is compared for it."""

import pytest

from sahfl.results.findings import CLAIMS, judge

NAMES = [claim.id for claim in CLAIMS]
VERDICTS = ("better", "not worse", "worse", "undecided", "one training: no verdict")


def gap(value=0.03, half=0.02, n=30, p_holm=0.01, trainings=3):
    ends = (None, None) if half is None else (value - half, value + half)
    numbers = {"n": n, "difference": value, "low": ends[0], "high": ends[1], "p": p_holm, "p_holm": p_holm}
    return {"stratum": "all with blood", **numbers, "trainings": trainings}


def row(id_, *, rank=None, trained_at=None, trainable=100, growth=None, part=None, plain=None, rounds=None):
    method = id_.partition("-")[0]
    start = None if id_ == "zero_shot" else "scratch" if "scratch" in id_ else "base"
    where = {"trained_at": trained_at, "start": start, "part": part, "plain": plain, "rounds": rounds}
    where["aggregation"] = None if id_ == "zero_shot" else "mean"
    return {"id": id_, "method": method, "rank": rank, **where, "trainable": trainable, "growth": growth}


def against(method, reference, verdict="better", blank=False, differs=(), **numbers):
    metrics = {"dice": {"overall": gap(**numbers)}}
    about = {"method": method, "reference": reference, "verdict": verdict, "blank": blank, "differs": list(differs)}
    return about | {"metrics": metrics}


ZERO, FULL = row("zero_shot"), row("full")
CP, CONV = row("cp_lora-r8", rank=8, trainable=20), row("conv_lora-r8", rank=8)
LOW, HIGH = row("cp_lora-r1", rank=1), row("cp_lora-r64", rank=64)
EACH, POOLED, OTHERS = (row(f"cp_lora-r8-{at}", rank=8, trained_at=at) for at in ("each", "pooled", "others"))
STEPS = row("cp_lora-r8-pooled_steps", rank=8, trained_at="pooled_steps")
OWN = row("cp_lora-r8-private4", rank=8, part="personal", plain="cp_lora-r8")
FROM_EACH = row("cp_lora-r8-from-each", rank=8, trained_at="from-each")
TESTED = {
    "fine_tuning": ([ZERO, CP], ("cp_lora-r8", "zero_shot")),
    "adapters": ([FULL, CP], ("cp_lora-r8", "full")),
    "parts": ([FULL, row("decoder")], ("decoder", "full")),
    "federated_base": ([CP, FROM_EACH], ("cp_lora-r8", "cp_lora-r8-from-each")),
    "pretraining": ([CP, row("full-scratch")], ("cp_lora-r8", "full-scratch")),
    "cp_lora": ([CP, CONV], ("cp_lora-r8", "conv_lora-r8")),
    "ranks": ([LOW, HIGH], ("cp_lora-r64", "cp_lora-r1")),
    "pooled": ([CP, POOLED], ("cp_lora-r8", "cp_lora-r8-pooled")),
    "single_site": ([CP, EACH], ("cp_lora-r8", "cp_lora-r8-each")),
    "own_part": ([CP, OWN], ("cp_lora-r8-private4", "cp_lora-r8")),
    "pooled_steps": ([CP, STEPS], ("cp_lora-r8", "cp_lora-r8-pooled_steps")),
    "new_hospital": ([ZERO, OTHERS], ("cp_lora-r8-others", "zero_shot")),
    "taking_part": ([CP, OTHERS], ("cp_lora-r8", "cp_lora-r8-others")),
}
KINDS = {"cp_lora": 40, "conv_lora": 100}
WANTED = {"parts": "not worse", "cp_lora": "not worse", "pooled": "not worse", "pooled_steps": "not worse"}


def finding(name, methods, comparisons=()):
    (found,) = [item for item in judge(methods, comparisons) if item["id"] == name]
    return found


@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize("name", TESTED)
def test_a_finding_about_one_pair_has_the_verdict_of_its_comparison(name, verdict):
    methods, pair = TESTED[name]
    found = finding(name, methods, [against(*pair, verdict)])
    wanted = WANTED.get(name, "better")
    supported = {"better": True, "not worse": True if wanted == "not worse" else None, "worse": False}
    assert (found["verdict"], found["wanted"]) == (verdict, wanted)
    assert found["supported"] is supported.get(verdict)
    assert (found["difference"], found["low"], found["n"]) == (0.03, pytest.approx(0.01), 30)


def test_not_worse_than_full_fine_tuning_does_not_confirm_the_paper_which_claims_better():
    found = finding("adapters", [FULL, CP], [against("cp_lora-r8", "full", "not worse")])
    assert (found["claim"], found["supported"]) == ("The LoRA family is better than full fine-tuning.", None)
    assert found["paper"] == "the LoRA family is above standard fine-tuning"
    claims_of_the_paper = {claim.id: claim.wanted for claim in CLAIMS if claim.paper is not None}
    assert {id_ for id_, wanted in claims_of_the_paper.items() if wanted == "not worse"} == {"cp_lora"}
    assert "comparable" in next(claim.paper for claim in CLAIMS if claim.id == "cp_lora")


@pytest.mark.parametrize("verdict", VERDICTS)
def test_dice_by_volume_has_the_verdict_of_the_growth(verdict):
    growth = gap(0.4, 0.1, n=20) | {"stratum": ">= 30 mL", "reference": "< 10 mL", "verdict": verdict}
    found = finding("volume", [row("zero_shot", growth=growth)])
    assert found["verdict"] == verdict
    assert found["text"].startswith("Difference of Dice: zero_shot, >= 30 mL against < 10 mL: +0.400 (95 % interval")


def test_every_rank_and_every_setting_of_an_adapter_is_judged():
    project = row("cp_lora-r64-project", rank=64)
    methods = [FULL, LOW, HIGH, project, POOLED | {"trained_at": "pooled"}, row("decoder")]
    pairs = [against(method["id"], "full") for method in methods[1:]]
    found = finding("adapters", methods, pairs)
    names = ["cp_lora-r1", "cp_lora-r64", "cp_lora-r64-project"]
    assert [pair["name"] for pair in found["pairs"]] == [f"{name} against full" for name in names]
    pairs[0]["verdict"] = "worse"
    found = finding("adapters", methods, pairs)
    assert (found["verdict"], found["supported"]) == ("worse", False)
    assert "The comparison with the weakest support: cp_lora-r1 against full" in found["text"]


@pytest.mark.parametrize(
    ("verdicts", "expected", "supported"),
    [
        (("better", "better"), "better", True),
        (("better", "not worse"), "not worse", None),
        (("better", "undecided"), "undecided", None),
        (("undecided", "one training: no verdict"), "one training: no verdict", None),
        (("one training: no verdict", "worse"), "worse", False),
    ],
)
def test_a_claim_has_the_verdict_of_the_comparison_with_the_weakest_support(verdicts, expected, supported):
    ids = ("full", "cp_lora-r8")
    pairs = [against(id_, "zero_shot", verdict) for id_, verdict in zip(ids, verdicts, strict=True)]
    found = finding("fine_tuning", [ZERO, FULL, CP], pairs)
    assert (found["verdict"], found["supported"]) == (expected, supported)
    assert [pair["verdict"] for pair in found["pairs"]] == list(verdicts)


def test_the_text_counts_the_verdicts_and_names_all_that_contradict_the_claim():
    rows = [ZERO, FULL, CP, CONV, row("decoder")]
    pairs = [
        against("full", "zero_shot"),
        against("cp_lora-r8", "zero_shot", "worse", value=-0.05, half=0.01),
        against("conv_lora-r8", "zero_shot", "one training: no verdict", p_holm=None, trainings=1),
        against("decoder", "zero_shot", "worse", value=-0.05, half=0.04, p_holm=0.0002),
    ]
    assert finding("fine_tuning", rows, pairs)["text"] == (
        "1 of 4 comparisons supports the claim (1 better, 1 with one training, 2 worse). The comparison with the "
        "weakest support: decoder against zero_shot: -0.050 (95 % interval -0.090 to -0.010, n = 30, p (Holm) < "
        "0.001). Also against the claim: cp_lora-r8 against zero_shot: -0.050 (95 % interval -0.060 to -0.040, n "
        "= 30, p (Holm) 0.010)."
    )


def test_too_many_parameters_speak_against_cp_lora_whatever_its_dice():
    heavy = row("cp_lora-r8", rank=8, trainable=34)
    found = finding("cp_lora", [heavy, CONV], [against("cp_lora-r8", "conv_lora-r8")])
    assert (found["verdict"], found["supported"]) == ("better", False)
    assert found["text"].endswith("p (Holm) 0.010); it has 34% of the parameters.")
    exact = row("cp_lora-r8", rank=8, trainable=33)
    assert finding("cp_lora", [exact, CONV], [against("cp_lora-r8", "conv_lora-r8")])["supported"] is True


def test_pairs_with_too_many_parameters_are_against_the_claim_and_not_worse():
    rows = [row(f"{kind}-r{rank}", rank=rank, trainable=n * rank) for rank in (1, 8) for kind, n in KINDS.items()]
    pairs = [against(f"cp_lora-r{rank}", f"conv_lora-r{rank}", value=0.01 * rank) for rank in (1, 8)]
    assert finding("cp_lora", rows, pairs)["text"] == (
        "0 of 2 comparisons support the claim (2 better). The comparison with the weakest support: cp_lora-r1 against "
        "conv_lora-r1: "
        "+0.010 (95 % interval -0.010 to +0.030, n = 30, p (Holm) 0.010); it has 40% of the parameters. Also against "
        "the claim: cp_lora-r8 against conv_lora-r8: +0.080 (95 % interval +0.060 to +0.100, n = 30, p (Holm) 0.010); "
        "it has 40% of the parameters."
    )


def test_methods_with_a_part_at_each_site_or_in_other_rounds_test_no_claim_about_adapters_or_pretraining():
    fewer = row("cp_lora-r8-rounds2", rank=8, rounds=2)
    scratch = row("full-scratch-rounds25", rounds=25)
    methods = [FULL, CP, OWN, fewer, scratch]
    for name, reference in (("adapters", "full"), ("pretraining", "full-scratch-rounds25")):
        found = finding(name, methods, [against(method["id"], reference) for method in (CP, OWN, fewer)])
        assert [pair["name"] for pair in found["pairs"]] == [f"cp_lora-r8 against {reference}"]


@pytest.mark.parametrize(("name", "place"), [("single_site", "each"), ("pooled", "pooled")])
def test_methods_with_a_part_at_each_site_are_judged_against_single_sites_and_the_pool(name, place):
    pairs = [against(f"cp_lora-r8{own}", f"cp_lora-r8-{place}") for own in ("", "-private4")]
    found = finding(name, [CP, OWN, EACH, POOLED], [*pairs, against("cp_lora-r8-private4", "cp_lora-r8")])
    ids = ("cp_lora-r8", "cp_lora-r8-private4")
    assert [pair["name"] for pair in found["pairs"]] == [f"{id_} against cp_lora-r8-{place}" for id_ in ids]


def test_settings_in_which_two_methods_differ_besides_are_named_and_a_zero_has_no_sign():
    pair = against("cp_lora-r8", "conv_lora-r8", value=-0.0001, differs=["alpha", "rounds"])
    assert finding("cp_lora", [CP, CONV], [pair])["text"] == (
        "Difference of Dice: cp_lora-r8 against conv_lora-r8: 0.000 (95 % interval -0.020 to +0.020, n = 30, "
        "p (Holm) 0.010); they differ in alpha, rounds too."
    )


def test_two_methods_that_segment_nothing_are_marked():
    found = finding("adapters", [FULL, CP], [against("cp_lora-r8", "full", "undecided", blank=True)])
    assert found["text"].endswith("n = 30, p (Holm) 0.010); both segment next to nothing.")


@pytest.mark.parametrize("name", NAMES)
def test_a_claim_about_methods_that_a_study_lacks_is_not_tested(name):
    found = finding(name, [row("decoder")])
    assert (found["verdict"], found["supported"], found["pairs"]) == ("not tested", None, [])
    assert [found[key] for key in ("difference", "low", "high", "n")] == [None] * 4


def test_every_finding_has_the_same_fields():
    keys = ["id", "claim", "wanted", "paper", "verdict", "supported", "text", "pairs", "difference", "low", "high", "n"]
    for found in judge([ZERO, FULL, CP], [against("full", "zero_shot")]):
        assert list(found) == keys
    assert len(set(NAMES)) == len(NAMES) == 14


def test_no_interval_is_said_as_such():
    found = finding("fine_tuning", [ZERO, CP], [against("cp_lora-r8", "zero_shot", "undecided", half=None, n=3)])
    assert found["text"] == "Difference of Dice: cp_lora-r8 against zero_shot: no interval (n = 3)."
