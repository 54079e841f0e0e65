"""The benchmarks of ``make soak``: their sums, and small runs of each."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from harness.fuzz.targets import SHARES, TARGETS

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = ("machine", "deployment", "fuzzing", "rounds", "polling")


@pytest.fixture(scope="module")
def modules():
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in NAMES}
    sys.path[:] = before
    for name in NAMES:
        del sys.modules[name]


def benchmark(name, *options, cwd):
    command = [sys.executable, "-W", "ignore", FOLDER / f"{name}.py", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=900)


@pytest.mark.parametrize("inputs", [1_000_000, 101])
@pytest.mark.parametrize("only", [list(TARGETS), ["lists", "dicom", "settings"]])
def test_the_inputs_of_all_targets_are_as_many_as_were_asked_for(modules, inputs, only):
    counts = modules["fuzzing"].numbers_of(inputs, only)
    assert list(counts) == only
    assert sum(counts.values()) == inputs
    assert counts[only[-1]] == inputs * SHARES[only[-1]] // sum(SHARES[name] for name in only)


def test_the_slope_of_the_memory_is_in_megabytes_per_hundred_rounds(modules):
    mib = [100 + (number if number <= 200 else 200 + (number - 200) / 100) for number in range(10, 1001, 10)]
    samples = [
        {"round": 10 * place, "processes": {"server": (value, 20 + (place < 5))}} for place, value in enumerate(mib, 1)
    ]
    row = modules["rounds"].row("server", samples, warm=200)
    assert row.mb_per_100_rounds == pytest.approx(2**20 / 1e6)  # a MiB each hundred rounds
    assert (row.most_files, row.most_files_before) == (20, 21)
    assert row.last_mib == pytest.approx(308.0)


@pytest.mark.slow
def test_the_fuzzing_benchmark_writes_down_its_seeds_and_reads_one_input_again(tmp_path):
    done = benchmark("fuzzing", "--inputs", 60, "--first", 5, "--only", "lists", "nifti", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "60 inputs, " in done.stdout
    kept = json.loads((tmp_path / "runs" / "fuzzing" / "run.json").read_text())
    assert kept["first"] == 5
    assert kept["lists"]["accepted"] + kept["lists"]["refused"] == 30
    again = benchmark("fuzzing", "--again", "lists:7", cwd=tmp_path)
    assert again.stdout.startswith("lists:7: ")


@pytest.mark.slow
def test_the_rounds_benchmark_follows_the_three_processes_of_a_real_study(tmp_path):
    done = benchmark("rounds", "--rounds", 20, "--warm", 0, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["process"] for row in result["rows"]] == ["server", "site's service", "its child"]
    assert all(row["last_mib"] > 10 and row["most_files"] > 3 for row in result["rows"])


@pytest.mark.slow
def test_the_polling_benchmark_counts_the_polls_of_all_sites(tmp_path):
    done = benchmark("polling", "--sites", 2, 5, "--seconds", 21, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    few, many = json.loads(done.stdout)
    assert (few["sites"], many["sites"], few["lost"] + many["lost"]) == (2, 5, 0)
    assert many["polls"] >= 5
