"""The coverage benchmark on the patients of a run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from harness.asking import evaluating, header_of
from harness.tiny_study import TINY, changed

from sahfl.config import Study, parse
from sahfl.federation.site.case_results import keep_results
from sahfl.run.folder import RunFolder
from sahfl.statistics.cases import CaseResult

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "intervals.py"
GRID = [{"method": "full", "repeats": 3}, {"method": "cp_lora", "rank": 2, "repeats": 3}]
SETTINGS = changed(TINY, finetune__methods=[{"method": "zero_shot"}]) | {}
GAP = 0.1


@pytest.fixture
def run(tmp_path):
    """A finished run in which one method is better than the other by ``GAP`` in every patient and training."""
    settings = changed(SETTINGS, finetune__grid=GRID)
    study = parse(Study, settings, where="test")
    folder = RunFolder.create(tmp_path / "run", study)
    random = np.random.default_rng(0)
    for site in study.finetune.sites:
        (folder.path / "sites" / site).mkdir(parents=True)
        dice = random.uniform(0.3, 0.6, 12)
        for method in study.finetune.methods[1:]:
            task = evaluating(method)
            values = dice + (GAP if method.method == "full" else 0.0)
            results = [
                (f"case-{i}", "", CaseResult(str(i), 20.0, 18.0, float(value), 0.5, 4.0, 0.5, 40.0))
                for i, value in enumerate(values)
            ]
            keep_results(folder.path / "sites" / site, task, header_of(task), results, took_part=True)
    rows = [("full", "cp_lora-r2"), ("full", "zero_shot")]
    folder.write_json("results.json", {"comparisons": [{"method": a, "reference": b} for a, b in rows]})
    return folder.path


def benchmark(*arguments):
    command = [sys.executable, str(SCRIPT), "--cohorts", "10", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_difference_that_is_the_same_everywhere_is_always_covered_and_found(run):
    found = json.loads(benchmark("--run", run, "--json").stdout)["run"]
    assert [(row["comparison"], row["patients"], row["trainings"]) for row in found] == [
        ("full against cp_lora-r2", 30, 3),
        ("full against cp_lora-r2", 36, 3),
    ]
    for row in found:
        assert row["truth"] == pytest.approx(GAP)
        assert (row["decided"], row["wrong"]) == (1.0, 0.0)


def test_a_run_without_repeats_is_refused(run):
    RunFolder(run).write_json("results.json", {"comparisons": []})
    found = benchmark("--run", run)
    assert found.returncode == 1
    assert found.stderr == f"error: {run} compares no two methods that were each trained twice or more\n"
