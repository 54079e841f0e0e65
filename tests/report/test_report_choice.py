"""The rule that takes a method looks at verdicts and bytes, never at means."""

import pytest
from harness.grid_results import grid
from test_report_sample import comparison, gain
from test_report_sample import method as one_method

from sahfl.report.choice import choose, first_adapter


def results_of(*methods, **verdicts):
    """Results of federated methods (id, bytes a round); ``a__b="worse"`` is the verdict of a against b."""
    rows = [
        one_method(id_, id_.partition("-")[0], 0.5, rank=8 if "-r" in id_ else None, sent=sent) for id_, sent in methods
    ]
    pairs = {tuple(name.replace("_r", "-r").split("__")): verdict for name, verdict in verdicts.items()}
    found = [comparison(a, 0.0, reference=b) | {"verdict": verdict} for (a, b), verdict in pairs.items()]
    return gain() | {"methods": [one_method("zero_shot", "zero_shot", 0.4), *rows], "comparisons": found}


LORA, CP, FULL = ("lora_c-r8", 400), ("cp_lora-r8", 100), ("full", 3000)
RAISED = {f"{name}__zero_shot": "better" for name in ("lora_c_r8", "cp_lora_r8", "full")}
CASES = {
    "the cheapest that is not worse than full fine-tuning": (
        RAISED | {"lora_c_r8__full": "not worse", "cp_lora_r8__full": "not worse"},
        ("cp_lora-r8", None),
    ),
    "an undecided comparison with full fine-tuning is no reason to take a method": (
        RAISED | {"lora_c_r8__full": "not worse", "cp_lora_r8__full": "undecided"},
        ("lora_c-r8", None),
    ),
    "full fine-tuning where no adapter is shown to be as good, with the first adapter beside it": (
        RAISED | {"lora_c_r8__full": "undecided", "cp_lora_r8__full": "worse"},
        ("full", "lora_c-r8"),
    ),
    "what is better than full fine-tuning comes before what is not worse": (
        RAISED | {"lora_c_r8__full": "better", "cp_lora_r8__full": "not worse"},
        ("lora_c-r8", None),
    ),
    "full fine-tuning that is not better than zero-shot is no measure": (
        RAISED | {"full__zero_shot": "undecided", "cp_lora_r8__full": "undecided"},
        ("cp_lora-r8", None),
    ),
    "a method that another one beats is left out": (
        RAISED | {"full__zero_shot": "undecided", "lora_c_r8__cp_lora_r8": "better"},
        ("lora_c-r8", None),
    ),
    "the same seen from the other side": (
        RAISED | {"full__zero_shot": "undecided", "cp_lora_r8__lora_c_r8": "worse"},
        ("lora_c-r8", None),
    ),
    "one training decides nothing": (dict.fromkeys(RAISED, "one training: no verdict"), (None, None)),
    "not worse than zero-shot is not better": (dict.fromkeys(RAISED, "not worse"), (None, None)),
}


@pytest.mark.parametrize(("verdicts", "expected"), CASES.values(), ids=CASES.keys())
def test_the_rule_takes(verdicts, expected):
    found = choose(results_of(FULL, LORA, CP, **verdicts))
    assert tuple(method and method["id"] for method in (found.method, found.cheaper)) == expected


def test_a_higher_mean_changes_nothing():
    results = results_of(FULL, LORA, CP, **CASES["the cheapest that is not worse than full fine-tuning"][0])
    results["methods"][2]["metrics"]["dice"]["overall"]["mean"] = 0.99
    assert choose(results).method["id"] == "cp_lora-r8"


OUTSIDE = {
    "pooled": {"trained_at": "pooled"},
    "at one site": {"trained_at": "sah_a"},
    "from scratch": {"start": "scratch"},
    "in other rounds": {"rounds": 9},
    "without the sites' parts": {"part": "shared"},
    "failed": {"failed": "fold 1: too few sites", "metrics": None},
}


@pytest.mark.parametrize("change", OUTSIDE.values(), ids=OUTSIDE.keys())
def test_only_what_all_sites_trained_together_can_be_taken(change):
    results = results_of(FULL, LORA, CP, **CASES["the cheapest that is not worse than full fine-tuning"][0])
    results["methods"][3] |= change
    assert choose(results).method["id"] == "lora_c-r8"


def test_a_grid_names_how_many_methods_each_step_left():
    found = choose(grid())
    assert (len(found.candidates), len(found.better), len(found.fit)) == (20, 20, 1)
    assert (found.method["id"], found.cheaper["id"]) == ("full", "lora_c-r1")


def test_the_first_adapter_does_not_depend_on_results():
    results = gain()
    assert first_adapter(results)["id"] == "cp_lora-r8"
    results["methods"][1]["trained_at"] = "pooled"
    assert first_adapter(results)["id"] == "full"
    assert first_adapter(results | {"methods": results["methods"][:1]}) is None
