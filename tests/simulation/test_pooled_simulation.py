"""Pooled and single-site training through the command, with real worker processes, to the rows of the results."""

import json

import pytest
from harness.commands import run, write
from harness.tiny_study import TINY, changed

LORA = {"method": "cp_lora", "rank": 2}


@pytest.mark.slow
def test_a_study_of_places_and_repeats_ends_in_rows_comparisons_and_findings(tmp_path):
    settings = changed(TINY, finetune__rounds=1)
    settings["finetune"]["grid"] = [LORA | {"trained_at": [None, "each", "pooled"]}, LORA | {"repeats": 2}]
    code, _, err = run(write(tmp_path / "study.yaml", settings), "--out", tmp_path / "run")
    assert code == 0, err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    rows = {row["id"]: row for row in results["methods"]}
    assert list(rows) == [
        "zero_shot", "cp_lora-r2", "cp_lora-r2-each", "cp_lora-r2-at-sah_a", "cp_lora-r2-at-sah_b",
        "cp_lora-r2-at-sah_c", "cp_lora-r2-pooled",
    ]  # fmt: skip
    assert [part["repeat"] for part in rows["cp_lora-r2"]["repeats"]] == [1, 2]
    n = {id_: row["metrics"]["dice"]["overall"]["n"] for id_, row in rows.items()}
    assert n == dict.fromkeys(rows, 7) | {f"cp_lora-r2-at-sah_{site}": n for site, n in (("a", 3), ("b", 2), ("c", 2))}
    pairs = {(row["method"], row["reference"]) for row in results["comparisons"]}
    assert {("cp_lora-r2", "cp_lora-r2-pooled"), ("cp_lora-r2", "cp_lora-r2-each")} <= pairs
    tested = {finding["id"] for finding in results["findings"] if finding["verdict"] != "not tested"}
    assert tested == {"fine_tuning", "volume", "pooled", "single_site"}
    assert [gain["site"] for gain in results["gains"]] == ["sah_a", "sah_b", "sah_c"]
    kept = json.loads((tmp_path / "run" / "study.json").read_text())["finetune"]
    assert "grid" not in kept
    assert len(kept["methods"]) == 7
    assert (tmp_path / "run" / "logs" / "pooled.log").exists()
