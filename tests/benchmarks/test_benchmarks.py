"""Benchmarks run; what they measure depends on the machine and is not tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_the_loader_s_benchmark_runs_and_prints_ratios_as_json():
    options = ["--studies", "demo", "--cases", "2", "--repeats", "1", "--steps", "1", "--json"]
    command = [sys.executable, FOLDER / "loader.py", *options]
    result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    (row,) = result["rows"]
    assert (row["study"], row["field"], result["target"]) == ("demo", "96x112x64", 5.0)
    assert min(value for value in row.values() if isinstance(value, float)) > 0
    step = min(row["step_full_ms"], row["step_cp_lora_ms"])
    assert abs(row["ratio_in_memory"] - step / row["batch_in_memory_ms"]) < 1e-9


def test_each_benchmark_is_described():
    text = (FOLDER / "README.md").read_text()
    for path in FOLDER.glob("*.py"):
        assert f"python benchmarks/{path.name}" in text


@pytest.mark.slow
def test_the_evaluation_s_benchmark_runs_finds_monai_s_values_and_prints_ratios_as_json():
    options = ["--pixels", "96", "--slices", "8", "--repeats", "1", "--json"]
    command = [sys.executable, FOLDER / "evaluation.py", *options]
    result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert [row["blood"] for row in result["rows"]] == ["spread", "compact"]
    assert min(row["ratio"] for row in result["rows"]) > 0
    assert result["bytes_by_replicates"]["1000"] == 356_296  # as README.md and docs/policy.md say


@pytest.mark.slow
def test_the_adapters_benchmark_runs_and_prints_ratios_as_json():
    options = ["--size", "tiny", "--pixels", "32", "--ranks", "2", "--batch", "2", "--repeats", "1", "--json"]
    command = [sys.executable, "-W", "ignore", FOLDER / "adapters.py", *options, "--only", "cp_lora", "dora_c all"]
    result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    rows = {(row["precision"], row["name"]): row for row in result["rows"]}
    names = ["limit", "full", "cp_lora", "dora_c all"]
    assert list(rows) == [(precision, name) for precision in ("float32", "bfloat16") for name in names]
    for (precision, _), row in rows.items():
        limit = rows[precision, "limit"]
        assert abs(row["times_limit"] - row["step_ms"] / limit["step_ms"]) < 1e-9
        assert abs(row["times_limit_memory"] - row["saved_mib"] / limit["saved_mib"]) < 1e-9
        assert row["saved_mib"] > 0


@pytest.mark.slow
def test_the_adapters_benchmark_times_each_layer_each_way():
    options = ["--size", "tiny", "--pixels", "32", "--ranks", "2", "--batch", "2", "--repeats", "1", "--layers"]
    command = [sys.executable, FOLDER / "adapters.py", *options, "--only", "conv_dora", "--precision", "float32"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0].startswith("conv_dora")
    assert len(lines) > 10
    for line in lines[1:]:
        assert "dense" in line
        assert line.count("*") == 1


@pytest.mark.slow
def test_the_aggregation_benchmark_runs_and_its_memory_does_not_grow_with_the_sites():
    options = ["--size", "tiny", "--rank", "2", "--sites", "3", "60", "--most", "3", "--json"]
    command = [sys.executable, FOLDER / "aggregation_cost.py", *options]
    result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    rows = {(row["rule"], row["sites"]): row for row in result["rows"]}
    assert list(rows) == [("alternate", 3), ("alternate", 60), ("project", 3)]
    assert rows["alternate", 60]["peak_mib"] < 1.1 * rows["alternate", 3]["peak_mib"]
    assert result["alternate"]["aim_s_for_1000"] == 1.0


@pytest.mark.slow
def test_the_deployment_benchmark_runs_and_leaves_the_first_round_out():
    command = [
        sys.executable,
        FOLDER / "deployment.py",
        "--ways",
        "simulation",
        "--rounds",
        "3",
        "--sites",
        "2",
        "--json",
    ]
    result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    (row,) = result["rows"]
    assert (row["way"], row["rounds"]) == ("simulation", 2)
    assert 0 < row["fastest_s"] <= row["median_s"] <= row["slowest_s"]
    assert 2 * 65_000 < row["bytes_down"] < 2 * 90_000  # the factors of rank 8, to two sites


@pytest.mark.slow
def test_the_prediction_benchmark_compares_three_ways_on_the_same_scans():
    options = ["--steps", "1", "--scans", "1", "--turns", "1", "--threads", "1", "--json"]
    command = [sys.executable, "-W", "ignore", FOLDER / "prediction.py", *options]
    result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    rows = result["rows"]
    assert len(rows) % 3 == 0
    for first in range(0, len(rows), 3):
        assert rows[first]["way"] == "sahfl"
        assert rows[first]["times_ours"] == 1
        assert len({row["scans"] for row in rows[first : first + 3]}) == 1
    assert result["least_ratio"] == min(row["times_ours"] for row in rows if row["way"] != "sahfl")


@pytest.mark.slow
def test_the_masking_benchmark_sums_rightly_and_finds_flower_s_seeds_folded_to_32_bits():
    options = ["--sites", "8", "--many", "102", "--numbers", "2000", "--json"]
    command = [sys.executable, "-W", "ignore", FOLDER / "masking.py", *options]
    result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert [(row["sites"], row["dropped"], row["is_right"]) for row in result["rows"]] == [
        (8, 0, True),
        (8, 2, True),
        (102, 5, True),
    ]
    assert result["rows"][2]["neighbours"] < 101
    assert result["flower"]["one mask of two seeds"] == 1.0
