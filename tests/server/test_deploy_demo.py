"""The deployment demo, as ``make deploy-demo`` runs it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "deployment" / "demo.py"


@pytest.mark.slow
def test_the_deployment_demo_survives_the_end_of_its_server_and_runs_to_its_report(tmp_path):
    if not Path(sys.executable).with_name("sahfl-server").exists():
        pytest.skip("sahfl is not installed beside this Python: no command sahfl-server")
    done = subprocess.run(
        [sys.executable, DEMO, "--out", tmp_path / "demo"], capture_output=True, text=True, timeout=900, check=True
    )
    report = Path(done.stdout.strip().splitlines()[-1])
    assert report.is_file()
    assert "the sites, on SIGTERM, with [0, 0, 0]" in done.stdout
    assert len(re.findall(r"^  cp_lora-r8, fold [01], round [1-3]: ", done.stdout, re.MULTILINE)) == 6
    assert len(re.findall(r"^whole: \d+ lines", done.stdout, re.MULTILINE)) == 3
    results = json.loads((report.parent / "results.json").read_text())
    dice = {method["id"]: method["metrics"]["dice"]["overall"]["mean"] for method in results["methods"]}
    assert min(dice.values()) > 0.05
