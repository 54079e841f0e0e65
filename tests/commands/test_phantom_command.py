"""The command ``sahfl phantom``."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from harness.tiny_study import TINY, changed
from rich.console import Console

from sahfl.console import counting
from sahfl.data.manifest import datalist_sites

SAHFL = Path(sys.executable).with_name("sahfl")
SITES = {"tbi_a": {"kind": "tbi", "n_cases": 2}, "sah_a": {"kind": "sah", "n_cases": 1, "profile": "sharp"}}


def run(*arguments):
    return subprocess.run([SAHFL, "phantom", *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture
def small_study(tmp_path):
    data = {"source": "phantom", "shape": [32, 36, 8], "spacing_mm": [6.4, 6.4, 12.0], "sites": SITES}
    stages = {
        "pretrain": {**TINY["pretrain"], "sites": ["tbi_a"]},
        "finetune": {**TINY["finetune"], "sites": ["sah_a"]},
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(changed(TINY, data=data, **stages)))
    return path


def test_it_writes_the_cohort_and_its_pictures_and_names_them_on_stdout(tmp_path, small_study):
    out = tmp_path / "out"
    result = run(out, "--study", small_study)
    assert result.returncode == 0, result.stderr
    names = ["datalist.json", "montage-sah_a.png", "montage-tbi_a.png", "volumes.png"]
    assert result.stdout.split() == [str(out / name) for name in names]
    assert all((out / name).is_file() for name in names)
    assert set(datalist_sites(out / "datalist.json")) == {"tbi_a", "sah_a"}
    assert "tbi_a: 2 cases" in result.stderr


def test_a_second_run_finds_everything_done(tmp_path, small_study):
    first, second = (run(tmp_path / "out", "--study", small_study) for _ in range(2))
    assert (second.returncode, second.stdout, second.stderr) == (0, first.stdout, "")


def test_a_folder_of_another_cohort_is_refused_with_exit_code_2(tmp_path, small_study):
    run(tmp_path / "out", "--study", small_study)
    result = run(tmp_path / "out")
    assert (result.returncode, result.stdout) == (2, "")
    assert re.match(r"error: .*datalist\.json: holds phantom spec", result.stderr)


def test_a_study_on_real_scans_is_refused_with_exit_code_2(tmp_path):
    study = tmp_path / "real.yaml"
    study.write_text(yaml.safe_dump(changed(TINY, data={"source": "datalist", "path": "x.json"})))
    result = run(tmp_path / "out", "--study", study)
    assert (result.returncode, result.stdout) == (2, "")
    assert "data.source is 'datalist', expected 'phantom'" in result.stderr
    assert not (tmp_path / "out").exists()


def test_every_example_in_the_help_text_is_a_phantom_command():
    examples = re.findall(r"Example: (sahfl \w+)", run("-h").stdout)
    assert examples == ["sahfl phantom"] * 2


def test_a_terminal_shows_a_bar_per_site():
    console = Console(force_terminal=True, record=True, width=100)
    with counting(["bern", "graz"], console) as show:
        show("bern", 3, 3)
    text = console.export_text()
    assert re.search(r"bern .* 3/3", text)
    assert re.search(r"graz .* 0/\?", text)
