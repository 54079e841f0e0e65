"""``sahfl gain``: what taking part gives a hospital, from its site file or a simulated site's folder."""

import json

import numpy as np
import pytest
import yaml
from harness.asking import METHOD, evaluating, header_of
from harness.commands import run, write
from harness.made_cases import a_case
from harness.tiny_study import TINY, changed

from sahfl.federation.site.case_results import keep_results

LORA = {"method": "cp_lora", "rank": 2}


@pytest.fixture
def folder(tmp_path):
    """The folder of the site sah_a, which a study trained three times with the others and three times alone."""
    folder = tmp_path / "sites" / "sah_a"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for repeat in (1, 2, 3):
        for at, more in ((None, 0.02), ("sah_a", 0.0)):
            method = METHOD.model_copy(update={"trained_at": at, "repeat": repeat})
            task = evaluating(method)
            dice = np.linspace(0.3, 0.6, 12) + more + random.normal(0, 0.003, 12)
            results = [(f"case-{i}", "", a_case(f"p{i}", 20.0, 18.0, value)) for i, value in enumerate(dice.tolist())]
            keep_results(folder, task, header_of(task), results, took_part=True)
    return folder


def test_a_simulated_site_s_folder_shows_the_gain_in_a_sentence(sahfl, folder):
    code, out, err = sahfl("gain", folder)
    assert (code, err) == (0, "")
    head, line = out.splitlines()
    assert head == "study aaaaaaaaaaaa"
    assert line.startswith("  cp_lora-r2: taking part gains you 0.02")
    assert line.endswith("n = 12")


def test_a_site_file_names_the_folder(sahfl, folder, tmp_path):
    settings = {"name": "sah_a", "folder": str(folder), "data": {"source": "datalist", "path": "datalist.json"}}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(settings))
    code, out, _ = sahfl("gain", tmp_path / "site.yaml", "--json")
    (row,) = json.loads(out)
    assert (code, row["method"], row["n"], row["trainings"]) == (0, "cp_lora-r2", 12, 3)
    assert row["difference"] == pytest.approx(row["dice"] - row["dice_alone"])
    assert row["low"] < row["difference"] < row["high"]


def test_a_folder_is_that_of_the_site_which_trained_alone_in_it_whatever_its_name(sahfl, folder):
    other = folder.rename(folder.with_name("data"))
    code, out, _ = sahfl("gain", other)
    assert (code, "taking part gains you 0.02" in out) == (0, True)


def test_a_folder_without_results_is_an_error(sahfl, tmp_path):
    code, _, err = sahfl("gain", tmp_path)
    assert code == 2
    assert "has no cases.jsonl; expected a site file or the folder of a site that evaluated something" in err


def test_a_site_that_measured_nothing_is_told_so(sahfl, tmp_path):
    (tmp_path / "cases.jsonl").touch()
    code, out, _ = sahfl("gain", tmp_path)
    assert code == 0
    assert out.startswith("nothing was measured: no study has evaluated a method here that was also trained at this")


def test_a_file_that_does_not_exist_is_an_error(sahfl, tmp_path):
    code, _, err = sahfl("gain", tmp_path / "site.yaml")
    assert (code, err) == (
        2,
        f"error: {tmp_path / 'site.yaml'}: does not exist; expected a site file or the folder of a simulated site\n",
    )


@pytest.mark.slow
def test_a_simulation_that_requires_more_than_a_site_gains_ends_with_exit_code_3_and_its_report(sahfl, tmp_path):
    settings = changed(
        TINY, require_gain=1.0, finetune__sites=["sah_a"], finetune__rounds=1, pretrain__rounds=1,
        data__sites__sah_a__n_cases=6,
    )  # fmt: skip
    settings["finetune"]["methods"] = [{"method": "zero_shot"}]
    settings["finetune"]["grid"] = [LORA | {"trained_at": [None, "each"], "repeats": 2}]
    code, _, err = run(write(tmp_path / "study.yaml", settings), "--out", tmp_path / "run")
    assert code == 3
    assert (
        "study tiny: require_gain: expected a gain of 1 or more over each site alone, got\n  sah_a, cp_lora-r2:" in err
    )
    assert (tmp_path / "run" / "report.html").exists()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    (gain,) = results["gains"]
    assert (gain["n"], gain["trainings"]) == (6, 2)
    code, out, _ = sahfl("gain", tmp_path / "run" / "sites" / "sah_a", "--json")
    (own,) = json.loads(out)
    assert own["difference"] == pytest.approx(gain["difference"])
    assert own["low"] == pytest.approx(gain["low"], abs=0.2 * (gain["high"] - gain["low"]))
    code, _, err = sahfl("study", tmp_path / "study.yaml", "--out", tmp_path / "run")
    assert (code, "finished already" in err, "expected a gain of 1 or more" in err) == (3, True, True)
