"""Two runs over the same patients are compared method by method, and runs over other patients are not compared."""

import json

import pytest
from harness.made_cases import a_case
from harness.tiny_study import TINY, changed

from sahfl.cell_names import cell_of
from sahfl.config import Study, parse
from sahfl.errors import RunError
from sahfl.results.between_runs import compare_runs, comparison_table
from sahfl.run.folder import RunFolder
from sahfl.statistics.sums import EvaluationSums

SITES = ("sah_a", "sah_b", "sah_c")
LORA = {"method": "cp_lora", "rank": 2}
DATA = {site: f"{site}-scans" for site in SITES}


@pytest.fixture
def make(tmp_path):
    """A finished run with made-up Dice: each patient gets that of its method plus a share of its own."""

    def make(name, dice, *, data=DATA, base="0" * 64, **changes):
        study = parse(
            Study,
            changed(TINY, **{"finetune__methods": [LORA | {"repeat": 1}, LORA | {"repeat": 2}]} | changes),
            where="test",
        )
        folder = RunFolder.create(tmp_path / name, study)
        for method in study.finetune.methods:
            for fold in range(study.finetune.folds):
                sums = {}
                for number, site in enumerate(SITES):
                    values = [dice + 0.02 * number + 0.01 * n for n in range(4)]
                    cases = [a_case(f"{site}-{fold}-{n}", 20.0, 20.0, value) for n, value in enumerate(values)]
                    sums[site] = EvaluationSums.of(cases, study.evaluation, seed=study.seed).to_array().tolist()
                folder.write_evaluation(cell_of(method, fold), {"sums": sums, "missing": {}})
        sites = [{"site": site, "data": data[site]} for site in SITES]
        folder.write_json("results.json", {"sites": sites, "base": {"sha256": base}})
        return folder

    return make


def test_the_difference_of_two_runs_is_paired_by_patient(make):
    three, axial = make("three", 0.55), make("axial", 0.5, views__weights={"axial": 1.0, "coronal": 0.5})
    found = compare_runs(three, axial)
    json.dumps(found, allow_nan=False)
    (row,) = found["comparisons"]
    overall = row["metrics"]["dice"]["overall"]
    assert (row["id"], overall["n"], overall["trainings"]) == ("cp_lora-r2", 24, 2)
    assert [overall[name] for name in ("difference", "low", "high")] == pytest.approx([0.05] * 3, abs=2e-3)
    assert row["dice"] == pytest.approx([0.585, 0.535], abs=2e-3)
    assert row["verdict"] == "better"
    assert found["correction"]["n"]["dice"] == 1
    assert found["differs"] == [{"setting": "views.weights.coronal", "run": None, "reference": 0.5}]
    assert comparison_table(found).splitlines()[-1].startswith("| cp_lora-r2 | 0.585 | 0.535 | +0.050 | +0.0")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 4}, "seed"),
        ({"finetune__folds": 3}, "finetune.folds"),
        ({"evaluation__replicates": 200}, "evaluation"),
        ({"data": DATA | {"sah_b": "others"}}, "the scans of sah_b"),
    ],
)
def test_runs_over_other_patients_are_refused_by_what_differs(make, changes, named):
    with pytest.raises(RunError, match=f"cannot be compared, they differ in {named}$"):
        compare_runs(make("one", 0.5), make("other", 0.5, **changes))


def test_every_setting_that_differs_is_named_above_the_table(make):
    slow = [LORA | {"repeat": repeat, "learning_rate": 0.001} for repeat in (1, 2)]
    changes = {"finetune__methods": [*slow, {"method": "decoder"}], "finetune__rounds": 50}
    changes |= {"pretrain__sites": ["tbi_a"]}
    found = compare_runs(make("one", 0.5), make("other", 0.5, **changes))
    expected = [
        ("pretrain.sites", ["tbi_a", "tbi_b"], ["tbi_a"]),
        ("finetune.rounds", 2, 50),
        ("finetune.methods.cp_lora-r2.learning_rate", 0.005, 0.001),
    ]
    assert found["differs"][:3] == [dict(zip(("setting", "run", "reference"), one, strict=True)) for one in expected]
    assert comparison_table(found).splitlines()[:6] == [
        "The runs differ in:",
        "",
        '- pretrain.sites: ["tbi_a", "tbi_b"], of the reference ["tbi_a"]',
        "- finetune.rounds: 2, of the reference 50",
        "- finetune.methods.cp_lora-r2.learning_rate: 0.005, of the reference 0.001",
        "",
    ]


def test_a_difference_that_rounds_to_zero_has_no_sign(make):
    found = compare_runs(make("one", 0.5), make("other", 0.50001))
    assert comparison_table(found).splitlines()[-1].split(" | ")[3:5] == ["0.000", "0.000 to 0.000"]


def test_two_base_networks_that_were_each_pretrained_once_have_no_verdict(make):
    methods = [{"method": "zero_shot"}, *({"method": "cp_lora", "rank": 2, "repeat": n} for n in (1, 2))]
    methods += [{"method": "full", "start": "scratch", "repeat": n} for n in (1, 2)]
    one = make("one", 0.55, finetune__methods=methods)
    same = compare_runs(one, make("same", 0.5, finetune__methods=methods))
    assert {row["id"]: row["verdict"] for row in same["comparisons"]} == dict.fromkeys(
        ("zero_shot", "cp_lora-r2", "full-scratch"), "better"
    )
    other = compare_runs(one, make("other", 0.5, base="1" * 64, finetune__methods=methods))
    assert {
        row["id"]: (row["verdict"], row["metrics"]["dice"]["overall"]["trainings"]) for row in other["comparisons"]
    } == {
        "zero_shot": ("one training: no verdict", 1),
        "cp_lora-r2": ("one training: no verdict", 1),
        "full-scratch": ("better", 2),
    }
    assert other["correction"]["n"]["dice"] == 1
    assert other["comparisons"][0]["metrics"]["dice"]["overall"]["low"] is not None


def test_a_run_that_is_not_finished_and_runs_without_a_common_method_are_refused(make):
    one, other = make("one", 0.5), make("other", 0.5, finetune__methods=[{"method": "full"}])
    with pytest.raises(RunError, match="have no method in common, expected one of the same id"):
        compare_runs(one, other)
    (one.path / "results.json").unlink()
    with pytest.raises(RunError, match=r"one: has no results.json; a run is compared when it is finished"):
        compare_runs(one, other)


def test_the_command_prints_a_table_or_json(make, sahfl):
    one, other = make("one", 0.55), make("other", 0.5)
    code, out, _ = sahfl("compare", one.path, other.path)
    assert (code, out.splitlines()[0].startswith("| method | Dice |")) == (0, True)
    code, out, _ = sahfl("compare", one.path, other.path, "--json")
    assert (code, json.loads(out)["comparisons"][0]["id"]) == (0, "cp_lora-r2")
    code, _, err = sahfl("compare", one.path, make("third", 0.5, seed=9).path)
    assert (code, "they differ in seed" in err) == (2, True)
