"""The deployment demo, as ``make deploy-demo`` runs it."""

import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "deployment" / "demo.py"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Folder and output of the demo."""
    if not Path(sys.executable).with_name("sahfl-server").exists():
        pytest.skip("sahfl is not installed beside this Python: no command sahfl-server")
    out = tmp_path_factory.mktemp("demo") / "demo"
    run = [sys.executable, DEMO, "--out", out]
    return out, subprocess.run(run, capture_output=True, text=True, timeout=900, check=True)


@pytest.mark.slow
def test_the_deployment_demo_survives_the_end_of_its_server_and_runs_to_its_report(demo):
    _, done = demo
    report = Path(done.stdout.strip().splitlines()[-1])
    assert report.is_file()
    assert "the sites, on SIGTERM, with [0, 0, 0]" in done.stdout
    assert len(re.findall(r"^  cp_lora-r8, fold [01], round [12]: ", done.stdout, re.MULTILINE)) == 4
    assert len(re.findall(r"^whole: \d+ lines", done.stdout, re.MULTILINE)) == 3
    results = json.loads((report.parent / "results.json").read_text())
    dice = {method["id"]: method["metrics"]["dice"]["overall"]["mean"] for method in results["methods"]}
    assert min(dice.values()) > 0.05


def numbers_of(hospital):
    """Every number of a hospital's cases, and its totals of each evaluation, but round ones, which may come twice."""
    cases = [json.loads(line) for line in (hospital / "cases.jsonl").read_text().splitlines()]
    measured = [{name: value for name, value in case.items() if type(value) is float} for case in cases]
    totals = {}
    for case, values in zip(cases, measured, strict=True):
        sums = totals.setdefault((case["method"], case["fold"]), {})
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
    return {
        value
        for values in (*measured, *totals.values())
        for value in values.values()
        if value * 64 % 1 and value != round(value, 2)
    }


@pytest.mark.slow
def test_no_result_of_a_hospital_is_in_any_file_page_or_log_of_the_server(demo):
    out, _ = demo
    files = [path for path in (*(out / "server").rglob("*"), *out.glob("server*.log")) if path.is_file()]
    everything = b"\0".join(path.read_bytes() for path in files)
    written = set(re.findall(rb"\d+\.\d+(?:e-?\d+)?", everything))
    assert b"masked_evaluation" in everything
    for hospital in (out / "hospitals").iterdir():
        numbers = numbers_of(hospital)
        assert len(numbers) > 50
        assert not [n for n in numbers if repr(n).encode() in written or struct.pack("<d", n) in everything]
