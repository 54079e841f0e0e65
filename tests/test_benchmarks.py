"""Benchmarks run; what they measure depends on the machine and is not tested."""

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "benchmarks"


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
