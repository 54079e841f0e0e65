"""The command ``sahfl phantom``."""

import re

import pytest
import yaml
from harness.tiny_study import TINY, changed
from rich.console import Console

from sahfl.console import counting
from sahfl.data.manifest import datalist_sites

SITES = {"tbi_a": {"kind": "tbi", "n_cases": 2}, "sah_a": {"kind": "sah", "n_cases": 1, "profile": "sharp"}}


@pytest.fixture
def run(sahfl):
    return lambda *arguments: sahfl("phantom", *arguments)


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


def test_it_writes_the_cohort_and_its_pictures_and_a_second_run_finds_everything_done(tmp_path, small_study, run):
    out = tmp_path / "out"
    code, printed, err = run(out, "--study", small_study)
    assert code == 0, err
    names = ["datalist.json", "montage-sah_a.png", "montage-tbi_a.png", "volumes.png"]
    assert printed.split() == [str(out / name) for name in names]
    assert all((out / name).is_file() for name in names)
    assert set(datalist_sites(out / "datalist.json")) == {"tbi_a", "sah_a"}
    assert "tbi_a: 2 cases" in err
    assert run(out, "--study", small_study) == (0, printed, "")
    code, printed, err = run(out)
    assert (code, printed) == (2, "")
    assert re.match(r"error: .*datalist\.json: holds phantom spec", err)


def test_a_study_on_real_scans_is_refused_with_exit_code_2(tmp_path, run):
    study = tmp_path / "real.yaml"
    study.write_text(yaml.safe_dump(changed(TINY, data={"source": "datalist", "path": "x.json"})))
    code, printed, err = run(tmp_path / "out", "--study", study)
    assert (code, printed) == (2, "")
    assert "data.source is 'datalist', expected 'phantom'" in err
    assert not (tmp_path / "out").exists()


def test_every_example_in_the_help_text_is_a_phantom_command(run):
    examples = re.findall(r"Example: (sahfl \w+)", run("-h")[1])
    assert examples == ["sahfl phantom"] * 2


def test_a_terminal_shows_a_bar_per_site():
    console = Console(force_terminal=True, record=True, width=100)
    with counting(["bern", "graz"], console) as show:
        show("bern", 3, 3)
    text = console.export_text()
    assert re.search(r"bern .* 3/3", text)
    assert re.search(r"graz .* 0/\?", text)
