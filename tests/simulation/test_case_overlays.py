"""Overlays of the best, the median and the worst case of a simulated study."""

import json

import pytest
import torch
from harness.finished_run import write_run
from harness.made_cases import a_case
from harness.tiny_study import TINY, changed

from sahfl.federation.requests import Requests
from sahfl.federation.site.case_results import keep_results
from sahfl.federation.site.site import Site
from sahfl.run.folder import RunFolder
from sahfl.simulation.case_overlays import Scored, add_overlays, choose_cases, draw_overlays, read_scores
from sahfl.simulation.simulate import site_configs

METHODS = [
    {"method": "zero_shot"},
    {"method": "full"},
    {"method": "cp_lora", "rank": 2},
    {"method": "cp_lora", "rank": 4},
]
STUDY = changed(TINY, finetune__methods=METHODS)


def scored(dice, site="a", case=None):
    return Scored(site, case or f"{site}-{dice}", 0, dice, 10.0, 9.0)


def test_best_median_and_worst_are_chosen_by_dice():
    chosen = choose_cases([scored(dice) for dice in (0.5, 0.1, 0.9, 0.7, 0.3)])
    assert {which: item.dice for which, item in chosen.items()} == {"best": 0.9, "median": 0.5, "worst": 0.1}


@pytest.mark.parametrize(
    ("n", "which"), [(0, []), (1, ["best"]), (2, ["best", "worst"]), (3, ["best", "median", "worst"])]
)
def test_each_is_another_case(n, which):
    chosen = choose_cases([scored(0.0, case=f"a-{i}") for i in range(n)])
    assert list(chosen) == which
    assert len({item.case for item in chosen.values()}) == n


def test_cases_without_blood_are_left_out_and_the_last_result_of_a_case_counts(tmp_path):
    folder = RunFolder.create(tmp_path / "run", write_run(tmp_path / "other", STUDY, folds=0))
    study = folder.study()
    (site, *_) = site_configs(study, folder.path / "sites")
    site.folder.mkdir(parents=True)
    for id_, dice, case, volume_ml in (
        ("cp_lora-r2", 0.2, "x", 3.0),
        ("cp_lora-r2", 0.4, "x", 3.0),
        ("cp_lora-r2", None, "y", 0.0),
        ("full", 0.9, "x", 3.0),
    ):
        keep(site, study, 1, [(case, a_case("key", volume_ml, 2.0 if volume_ml else 0.0, dice))], id_)
    keep(site, study.model_copy(update={"seed": 99}), 1, [("x", a_case("key", 3.0, 2.0, 0.9))])
    with (site.folder / "cases.jsonl").open("a") as stream:
        stream.write('{"torn')
    (found,) = read_scores([site], study, "cp_lora-r2")
    assert (found.case, found.dice, found.fold) == ("x", 0.4, 1)


def keep(config, study, fold, results, id_="cp_lora-r2"):
    """Results per case of a training, as the site's evaluation keeps them."""
    (method,) = [method for method in study.finetune.methods if method.id == id_]
    requests = Requests(study, study.fingerprint(), "0" * 64)
    task, header = requests.evaluation(method, fold), requests.header("finetune", method.id, fold)
    keep_results(config.folder, task, header, [(case, "", result) for case, result in results], took_part=True)


@pytest.fixture
def finished(tmp_path):
    """A run whose sites have their scans, and results of made-up Dice."""
    study = write_run(tmp_path / "run", STUDY)
    folder = RunFolder(tmp_path / "run")
    sites = site_configs(study, folder.path / "sites")
    for config in sites[2:4]:
        site = Site(config)
        site.prepare(lambda done, total: None)
        n = 0
        for fold in range(2):
            for item in site.held_out_cases(fold=fold, n_folds=2, seed=study.seed):
                dice = n / 10 + (config.name == "sah_b") / 20
                keep(config, study, fold, [(item.case.id, a_case(str(n), item.volume_ml, 1.0, dice))])
                n += 1
    folder.write_json("results.json", {"schema": 3, "overlays": []})
    return folder, study, sites


def test_pictures_and_their_numbers_come_into_the_results(finished):
    folder, study, sites = finished
    threads = torch.get_num_threads()
    results = add_overlays(folder, study, sites)
    assert folder.read_json("results.json") == results
    assert results["schema"] == 3
    rows = results["overlays"]
    assert [row["case"] for row in rows] == ["best", "median", "worst"]
    assert [row["dice"] for row in rows] == sorted((row["dice"] for row in rows), reverse=True)
    assert {row["method"] for row in rows} == {"cp_lora-r2"}
    for row in rows:
        content = (folder.path / row["png"]).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert row["site"].encode() not in content
    assert torch.get_num_threads() == threads
    assert draw_overlays(folder, study, sites) == rows
    assert json.dumps(rows)


def test_a_scan_that_went_missing_costs_its_own_picture_only(finished):
    folder, study, sites = finished
    worst = next(row for row in draw_overlays(folder, study, sites) if row["case"] == "worst")
    config = next(site for site in sites if site.name == worst["site"])
    site = Site(config)
    for item in site.held_out_cases(fold=worst["fold"], n_folds=2, seed=study.seed):
        item.case.image.unlink()
    assert len(draw_overlays(folder, study, sites)) < 3


def test_a_study_without_an_adapter_has_no_overlays(tmp_path):
    study = write_run(tmp_path / "run", changed(STUDY, finetune__methods=METHODS[:2]))
    assert draw_overlays(RunFolder(tmp_path / "run"), study, ()) == []


def test_a_method_of_which_a_fold_was_taken_over_from_an_earlier_run_is_passed_over(finished):
    folder, study, sites = finished
    folder.note({"event": "reused", "cell": "cp_lora-r2/fold-1", "entry": "0" * 64})
    assert draw_overlays(folder, study, sites) == []
