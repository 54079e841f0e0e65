"""Studies from Python: the page docs/python.md as a script, and every refusal before anything is written."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from harness.finished_run import phantom_hu, write_scan
from harness.import_graph import ROOT
from harness.tiny_study import TINY, changed

from sahfl.config import Study, parse
from sahfl.errors import ConfigError, DataError, LosingSite, RunError
from sahfl.finished_run import load
from sahfl.local_study import simulate
from sahfl.run.folder import RunFolder

QUICK = changed(TINY, pretrain__rounds=1, finetune__rounds=1)
FILTERS = ["-W", "error", "-W", "ignore:'click.utils:DeprecationWarning"]  # as in pyproject.toml
PLAIN = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}


def run_script(code, folder):
    """Output of a plain script, without a guard for processes that import it."""
    (folder / "script.py").write_text(code)
    environment = PLAIN | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "MPLCONFIGDIR": str(folder)}
    environment |= {"OMP_WAIT_POLICY": "PASSIVE"}  # threads that wait would take the processor from other tests
    command = [sys.executable, *FILTERS, "script.py"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Folder, output and messages of the page's code as one script."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "study.yaml").write_text(yaml.safe_dump(QUICK))
    image, _, affine = phantom_hu()
    write_scan(folder / "scan.nii.gz", image, affine)
    blocks = re.findall(r"```python\n(.+?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    ending = "import os\nprint('threads', os.environ.get('OMP_NUM_THREADS'))\n"
    return folder, *run_script("print('begun')\n" + "".join(blocks) + ending, folder)


@pytest.mark.slow
def test_the_code_of_the_page_runs_as_a_script_whose_workers_do_not_run_it_again(page):
    folder, out, err = page
    assert out.splitlines().count("begun") == 1
    assert {"report.html", "results.json"} <= {path.name for path in (folder / "runs" / "a").iterdir()}
    assert sorted(path.name for path in (folder / "prediction").iterdir())[0] == "mask.nii.gz"
    assert "pretrain" in err
    assert "cp_lora-r2/fold-0, round 1 of 1 committed" in err


@pytest.mark.slow
def test_a_simulation_leaves_the_environment_of_its_process_as_it_was(page):
    assert page[1].splitlines()[-1] == "threads None"


@pytest.mark.slow
def test_a_finished_run_is_opened_as_it_is(page):
    folder, before = page[0] / "runs" / "a", (page[0] / "runs" / "a" / "results.json").read_bytes()
    journal = (folder / "journal.jsonl").read_bytes()
    run = simulate(page[0] / "study.yaml", out=folder)
    assert run == load(folder)
    assert run.methods == ("zero_shot", "cp_lora-r2")
    assert run.report.is_file()
    assert ((folder / "results.json").read_bytes(), (folder / "journal.jsonl").read_bytes()) == (before, journal)


@pytest.mark.slow
def test_a_run_that_stopped_before_its_results_is_continued_and_without_progress_in_silence(page, tmp_path, capfd):
    folder = shutil.copytree(page[0] / "runs" / "a", tmp_path / "run")
    for name in ("results.json", "report.html"):
        (folder / name).unlink()
    run = simulate(page[0] / "study.yaml", out=folder, workers=1, lanes=1, progress=False)
    assert run.results["interruptions"] == 1
    assert run.results["methods"] == load(page[0] / "runs" / "a").results["methods"]
    assert run.report.is_file()
    assert "committed" not in capfd.readouterr().err


@pytest.mark.slow
def test_the_results_per_scan_are_those_of_the_results(page):
    run = load(page[0] / "runs" / "a")
    cases = run.cases()
    assert not cases.duplicated(["method", "site", "case"]).any()
    assert "key" not in cases
    with_blood = cases[cases["volume_ml"] > 0].fillna({"dice": 0.0})
    for method in run.results["methods"]:
        dice = with_blood[with_blood["method"] == method["id"]]["dice"]
        assert len(dice) == method["metrics"]["dice"]["overall"]["n"]
        assert dice.mean() == pytest.approx(method["metrics"]["dice"]["overall"]["mean"], abs=1e-6)


@pytest.mark.slow
def test_each_result_per_scan_names_the_file_that_was_scored(page):
    cases = load(page[0] / "runs" / "a").cases()
    assert len(set(cases["image"])) == len(set(cases["case"])) == 7
    for _, row in cases.drop_duplicates("case").iterrows():
        image = Path(row["image"])
        label = nibabel.load(image.parent.parent / "labels" / image.name)
        voxel_ml = abs(np.linalg.det(label.affine[:3, :3])) / 1000
        assert np.asarray(label.dataobj).astype(bool).sum() * voxel_ml == pytest.approx(row["volume_ml"], rel=1e-3)


@pytest.mark.slow
def test_of_two_evaluations_of_a_scan_the_last_one_counts(page):
    path = page[0] / "runs" / "a" / "sites" / "sah_a" / "cases.jsonl"
    before, run = path.read_text(), load(page[0] / "runs" / "a")
    line = json.loads(before.splitlines()[0])
    n = len(run.cases())
    try:
        path.write_text(
            before + json.dumps(line | {"surface_dice": 0.123}) + "\n" + json.dumps(line | {"study": "other"})
        )
        cases = run.cases()
    finally:
        path.write_text(before)
    assert len(cases) == n
    chosen = cases[(cases[["method", "site", "case"]] == [line["method"], "sah_a", line["case"]]).all(axis=1)]
    assert list(chosen["surface_dice"]) == [0.123]


def test_a_loss_that_the_study_does_not_allow_is_an_error_each_time(tmp_path):
    grid = [{"method": "cp_lora", "rank": 2, "repeats": 2} | place for place in ({}, {"trained_at": "each"})]
    study = parse(Study, changed(TINY, finetune__methods=[], finetune__grid=grid, require_gain=0.0), where="test")
    folder = RunFolder.create(tmp_path / "run", study)
    gain = {"site": "sah_a", "method": "cp_lora-r2", "trainings": 2, "difference": -0.2, "low": -0.3, "high": -0.1}
    folder.write_json("results.json", {"methods": [], "gains": [gain]})
    (folder.path / "report.html").write_text("")
    with pytest.raises(LosingSite, match=r"sah_a, cp_lora-r2: -0.200"):
        simulate(study, out=folder.path)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


REFUSED = {
    "settings": (changed(QUICK, seed="one", name="Tiny"), {}, ConfigError, r"(?s)^study: 2 problem.*seed"),
    "file": ("missing.yaml", {}, ConfigError, r"missing.yaml: cannot be read"),
    "hospitals": (
        changed(QUICK, data={"source": "sites"}, rounds__unmasked=True),
        {},
        ConfigError,
        "each site's own file says where",
    ),
    "workers": (QUICK, {"workers": 0}, ConfigError, "workers: got 0, expected 1 or more"),
    "lanes": (QUICK, {"lanes": -1}, ConfigError, "lanes: got -1, expected 1 or more"),
    "scans": (
        changed(QUICK, data={"source": "folder", "sites": {name: f"{name}/scans" for name in TINY["data"]["sites"]}}),
        {},
        DataError,
        r"tbi_b/scans: got nothing \(no such file or folder\), expected a datalist",
    ),
}


@pytest.mark.parametrize(("study", "options", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_simulated_is_refused_before_anything_is_written(here, study, options, error, message):
    with pytest.raises(error, match=message):
        simulate(study, **options)
    assert not list(here.iterdir())


def test_a_relative_path_in_a_mapping_starts_at_the_current_folder(here):
    study = changed(QUICK, data={"source": "folder", "sites": {name: name for name in TINY["data"]["sites"]}})
    with pytest.raises(DataError, match=re.escape(str(here / "tbi_a"))):
        simulate(study)


def test_a_folder_of_another_study_is_refused(here):
    RunFolder.create(here / "run", parse(Study, changed(QUICK, seed=4), where="test"))
    with pytest.raises(RunError, match="run: holds another study"):
        simulate(QUICK, out="run")


@pytest.mark.slow
def test_the_lines_of_the_readme_run(page, tmp_path):
    for name in ("study.yaml", "scan.nii.gz"):
        shutil.copy(page[0] / name, tmp_path)
    study = parse(Study, QUICK, where="test")  # finished already, where the README's study would be
    shutil.copytree(page[0] / "runs" / "a", tmp_path / "runs" / f"{study.name}-{study.fingerprint()[:8]}")
    (code,) = re.findall(r"```python\n(.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    out, _ = run_script(code.replace("-r8", "-r2") + "print(run.frame().index.tolist())\n", tmp_path)
    assert out.splitlines()[-1] == "['zero_shot', 'cp_lora-r2']"
