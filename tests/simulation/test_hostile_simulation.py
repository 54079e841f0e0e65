"""Hostile sites through the command, with real worker processes: a study file that names them runs to its report."""

import json

import pytest
from harness.commands import journal, run, tensors, write
from harness.tiny_study import TINY, changed

STUDY = changed(TINY, finetune__methods=[{"method": "cp_lora", "rank": 2}])


def simulate(folder, hostile):
    code, _, err = run(write(folder / "study.yaml", STUDY | {"hostile": hostile}), "--out", folder / "run")
    assert code == 0, err
    return [line for line in journal(folder / "run", "round") if line["stage"] == "finetune"], err


@pytest.mark.slow
def test_B01_a_site_that_sends_nan_is_refused_by_name_in_each_round_and_the_run_finishes(tmp_path):
    lines, err = simulate(tmp_path, {"sah_b": "nan", "tbi_a": "sign_flip"})
    assert len(lines) == 2 * 2
    for line in lines:
        (refused,) = line["refused"]
        assert refused["site"] == "sah_b"
        assert "contains NaN or inf" in refused["reason"]
        assert [used["site"] for used in line["used"]] == ["sah_a", "sah_c"]
    assert "warning: hostile sites, by the study's settings: sah_b (nan), tbi_a (sign_flip)" in err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["hostile"] == {"sah_b": "nan", "tbi_a": "sign_flip"}
    assert "event=hostile act=nan site=sah_b" in (tmp_path / "run" / "logs" / "sah_b.log").read_text()
    assert "event=hostile" not in (tmp_path / "run" / "logs" / "sah_a.log").read_text()


@pytest.mark.slow
def test_B04_a_change_times_1000_is_shortened_in_each_round_and_the_run_finishes(tmp_path):
    lines, _ = simulate(tmp_path, {"sah_b": "times_1000", "tbi_b": "label_flip"})
    assert [sorted(line["shortened"]) for line in lines] == [["sah_b"]] * 4
    assert [line["shortened"]["sah_b"] for line in lines] == pytest.approx([0.003] * 4, abs=0.003)
    assert len(tensors(tmp_path / "run")) == 3


def test_an_unknown_hostile_site_is_refused_with_exit_code_2_before_anything_is_written(tmp_path):
    study = write(tmp_path / "study.yaml", STUDY | {"hostile": {"sah_x": "nan"}})
    code, _, err = run(study, "--out", tmp_path / "run")
    assert code == 2
    assert "hostile: unknown site(s) sah_x; the study's are sah_a, sah_b, sah_c, tbi_a, tbi_b" in err
    assert not (tmp_path / "run").exists()
