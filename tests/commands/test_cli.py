"""The command: results on stdout, one clear message on stderr, the right exit code, never a traceback."""

import json
import os
import re
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from harness.tiny_study import TINY, changed
from report.test_report_sample import gain

from sahfl import __version__
from sahfl.commands.app import app
from sahfl.config import Study, load_study, parse
from sahfl.run.folder import RunFolder

SAHFL = Path(sys.executable).with_name("sahfl")
COMMANDS = [command.callback.__name__ for command in app.registered_commands]


def bad_study(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(changed(TINY, seed=-1, rounds__quorum=2.0, views__sise=3, name="Muster Hans")))
    return path


# --- help -----------------------------------------------------------------------------------------------------------


def test_the_commands_are_known_to_these_tests():
    assert {"simulate", "check", "report"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_a_help_with_an_example(sahfl, command, option):
    code, out, err = sahfl(command, option)
    assert (code, err) == (0, "")
    assert f"Example: sahfl {command} " in out


def test_the_installed_command_tells_what_it_can_do():
    result = subprocess.run([SAHFL, "-h"], capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
    assert (result.returncode, result.stderr) == (0, "")
    for command in COMMANDS:
        assert re.search(rf"^\W*{command}  ", result.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "arguments", [("chek",), ("report",), ("check", "a", "--fast"), ("simulate", "--workers", "0")]
)
def test_a_wrong_call_is_a_user_error(sahfl, arguments):
    code, out, err = sahfl(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: " in err


# --- check ----------------------------------------------------------------------------------------------------------


def test_check_prints_the_study_with_every_default(sahfl, study_file, tmp_path):
    code, out, err = sahfl("check", study_file)
    assert (code, err) == (0, "the settings are right\n")
    assert yaml.safe_load(out) == load_study(study_file).model_dump(mode="json")
    (tmp_path / "whole.yaml").write_text(out)
    assert load_study(tmp_path / "whole.yaml") == load_study(study_file)
    assert len(out.splitlines()) < 100


def test_check_puts_another_datalist_into_the_study(sahfl, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(changed(TINY, data={"source": "datalist", "path": "old.json"})))
    entry = {"image": "a.nii.gz", "label": "b.nii.gz", "patient": "p"}
    sites = {site: [entry] for site in ("tbi_a", "tbi_b", "sah_a", "sah_b", "sah_c")}
    (tmp_path / "new.json").write_text(json.dumps({"sites": sites}))
    code, out, _ = sahfl("check", path, "--datalist", tmp_path / "new.json")
    assert code == 0
    assert yaml.safe_load(out)["data"]["path"] == str(tmp_path / "new.json")
    code, out, err = sahfl("check", path)
    assert (code, out) == (2, "")
    assert "old.json: No such file" in err


def test_another_datalist_needs_a_study_of_a_datalist(sahfl, study_file):
    code, out, err = sahfl("check", study_file, "--datalist", "new.json")
    assert (code, out) == (2, "")
    assert err == f"error: {study_file}: a datalist was named; it needs a study whose data.source is 'datalist'\n"


def listed(folder, *patients):
    """A study whose sites have a datalist with these patients each."""
    entries = [{"image": f"{name}.nii.gz", "label": f"{name}-mask.nii.gz", "patient": name} for name in patients]
    (folder / "list.json").write_text(json.dumps({"sites": dict.fromkeys(TINY["data"]["sites"], entries)}))
    return changed(TINY, data={"source": "datalist", "path": "list.json"})


def test_check_warns_of_folds_in_which_a_site_tests_nobody(sahfl, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(changed(listed(tmp_path, "a", "b", "c"), finetune__folds=4)))
    code, _, err = sahfl("check", path)
    text = "3 patients in finetune.folds: 4, so that some folds test nobody there; choose fewer"
    assert (code, err.splitlines()[:-1]) == (0, [f"warning: {site}: {text}" for site in TINY["finetune"]["sites"]])
    path.write_text(yaml.safe_dump(changed(listed(tmp_path, "a", "b", "c"), finetune__folds=3)))
    assert "warning" not in sahfl("check", path)[2]


def test_check_reads_each_site_s_list_of_scans_and_names_the_problems_of_all(sahfl, tmp_path):
    for site in ("sah_a", "sah_b"):
        for part in ("imagesTr", "labelsTr"):
            (tmp_path / site / part).mkdir(parents=True)
        (tmp_path / site / "imagesTr" / "x_0000.nii.gz").touch()
        (tmp_path / site / "labelsTr" / "x.nii.gz").touch()
        labels = {"background": 0, "lesion": 1}
        settings = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": 1}
        (tmp_path / site / "dataset.json").write_text(json.dumps(settings))
    study = changed(TINY, data={"source": "folder", "sites": {"sah_a": "sah_a", "sah_b": "sah_b"}}, base="phantom")
    study |= {"views": {}, "finetune": study["finetune"] | {"sites": ["sah_a", "sah_b"]}}
    for name in ("pretrain", "model"):
        study.pop(name, None)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    code, out, err = sahfl("check", path)
    assert (code, out) == (2, "")
    assert err.count("labels.lesion: is not named as blood") == 2
    study["data"]["blood"] = {"sah_a": ["lesion"], "sah_b": [1]}
    path.write_text(yaml.safe_dump(study))
    code, _, err = sahfl("check", path)
    assert code == 0, err


@pytest.mark.parametrize("command", ["check", "simulate"])
def test_a_bad_study_tells_all_its_problems_and_leaves_no_folder(sahfl, tmp_path, command):
    code, out, err = sahfl(command, bad_study(tmp_path))
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {tmp_path / 'bad.yaml'}: 4 problems\n")
    for problem in (" name: ", " seed: ", " rounds.quorum: ", " views.sise: is not a setting; did you mean size?"):
        assert problem in err
    assert list(Path.cwd().iterdir()) == []


def test_the_installed_command_ends_with_the_exit_code_of_the_error(tmp_path):
    result = subprocess.run([SAHFL, "check", bad_study(tmp_path)], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read (No such file or directory)"), (b"\xff\xfe", "not a text file"), (b"[1", "is not YAML")],
)
def test_a_file_that_is_no_study_is_a_user_error(sahfl, tmp_path, content, message):
    path = tmp_path / "study.yaml"
    if content is not None:
        path.write_bytes(content)
    for command in ("check", "simulate"):
        code, out, err = sahfl(command, path)
        assert (code, out) == (2, "")
        assert message in err
        assert list(Path.cwd().iterdir()) == []


# --- simulate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("both", [False, True])
def test_simulate_takes_either_a_study_or_a_run_to_resume(sahfl, study_file, both):
    code, out, err = sahfl("simulate", *((study_file, "--resume", "run") if both else ()))
    assert (code, out) == (2, "")
    assert err == "error: simulate: expected either a study file or --resume RUN_DIR; see sahfl simulate -h\n"


@pytest.mark.parametrize("option", ["--out", "--datalist"])
def test_a_resumed_run_keeps_its_folder_and_data(sahfl, tmp_path, option):
    code, out, err = sahfl("simulate", "--resume", tmp_path, option, tmp_path / "other")
    assert (code, out) == (2, "")
    assert "--resume goes on with the run's own folder and data; leave out the other options" in err
    assert not (tmp_path / "other").exists()


def test_a_folder_without_a_run_cannot_be_resumed(sahfl, tmp_path):
    code, out, err = sahfl("simulate", "--resume", tmp_path / "absent")
    assert (code, out) == (2, "")
    assert err == f"error: {tmp_path / 'absent'}: holds no run to resume (study.json is missing)\n"


@pytest.mark.parametrize(
    ("holds", "hint"), [("study.json", ", or go on with sahfl simulate --resume {}"), ("thesis.txt", "")]
)
def test_a_folder_that_is_not_empty_is_refused_with_what_to_do(sahfl, study_file, tmp_path, holds, hint):
    run = tmp_path / "run"
    run.mkdir()
    (run / holds).touch()
    code, out, err = sahfl("simulate", study_file, "--out", run)
    assert (code, out) == (2, "")
    assert err == f"error: {run}: is not empty; name another folder (--out){hint.format(run)}\n"


def test_a_folder_that_cannot_be_made_is_a_user_error(sahfl, study_file):
    code, out, err = sahfl("simulate", study_file, "--out", study_file / "run")
    assert (code, out) == (2, "")
    assert "cannot be written (Not a directory); name another folder (--out)" in err


def test_a_datalist_that_lacks_a_site_of_the_study_is_a_user_error(sahfl, tmp_path):
    study, datalist = tmp_path / "study.yaml", tmp_path / "list.json"
    study.write_text(yaml.safe_dump(changed(TINY, data={"source": "datalist", "path": "list.json"})))
    datalist.write_text('{"sites": {"tbi_a": []}}')
    code, out, err = sahfl("simulate", study, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert "has no site sah_a, sah_b, sah_c, tbi_b (it has: tbi_a)" in err


# --- report ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path):
    folder = RunFolder.create(tmp_path / "run", parse(Study, TINY, where="test"))
    folder.write_json("results.json", gain())
    return folder


def test_the_help_of_report_names_the_extras(sahfl):
    _, out, _ = sahfl("report", "-h")
    assert "needs the package tensorboardX" in out
    assert "needs mlflow-skinny, alembic and sqlalchemy" in out


def test_report_writes_the_page_again_from_the_results(sahfl, finished):
    page = finished.path / "report.html"
    code, out, err = sahfl("report", finished.path)
    assert (code, out, err) == (0, f"{page}\n", "")
    first = page.read_bytes()
    page.write_text("damaged")
    assert sahfl("report", finished.path)[0] == 0
    assert page.read_bytes() == first
    assert b"c0ffee" in first


@pytest.mark.slow
def test_report_exports_to_a_tracker_where_it_is_installed(sahfl, finished, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    code, out, err = sahfl("report", finished.path, "--tensorboard", tmp_path / "events")
    assert (code, out) == (2, f"{finished.path / 'report.html'}\n")
    assert err == "error: tensorboardX is not installed; pip install tensorboardX\n"
    monkeypatch.undo()
    pytest.importorskip("tensorboardX", reason="pip install tensorboardX")
    code, out, err = sahfl("report", finished.path, "--tensorboard", tmp_path / "events")
    assert (code, out.splitlines()[1]) == (0, str(tmp_path / "events" / "demo-c0ffeec0"))


@pytest.mark.parametrize("name", ["run", "absent"])
def test_report_of_an_unfinished_run_tells_how_to_go_on(sahfl, finished, tmp_path, name):
    (finished.path / "results.json").unlink()
    folder = tmp_path / name
    code, out, err = sahfl("report", folder)
    assert (code, out) == (2, "")
    how = f"sahfl simulate --resume {folder}, or the same call again; a server goes on by itself"
    assert err == f"error: {folder}: has no results.json; the run is not finished ({how})\n"
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "results.json: is damaged; delete it to have it made again"),
        ("[]", "results.json is not a mapping; delete it to have it made again"),
        (
            '{"schema": 3, "name": "demo"}',
            "results: 17 problem(s); delete results.json and go on with the run, which makes it again",
        ),
        (
            '{"schema": 2}',
            "results: got schema 2, expected 3; delete results.json and go on with the run, which makes it again",
        ),
        ('{"schema": 4}', "results: got schema 4, expected 3; use the sahfl that wrote them"),
    ],
)
def test_report_of_damaged_results_is_a_user_error(sahfl, finished, content, message):
    (finished.path / "results.json").write_text(content)
    code, out, err = sahfl("report", finished.path)
    assert (code, out) == (2, "")
    assert message in err


@contextmanager
def no_room(n_bytes):
    """Nothing can be written beyond so many bytes of a file, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


HOW_TO_GO_ON = {
    "simulate": (["simulate", "--resume", "my run"], "sahfl simulate --resume 'my run'"),
    "study": (["study", "tiny.yaml", "--out", "my run"], "sahfl study tiny.yaml --out 'my run'"),
}


@pytest.mark.parametrize(("arguments", "again"), HOW_TO_GO_ON.values(), ids=HOW_TO_GO_ON.keys())
def test_a_full_disk_ends_a_run_with_the_command_that_goes_on(sahfl, study_file, arguments, again):
    study_file.rename("tiny.yaml")
    RunFolder.create(Path("my run"), load_study(Path("tiny.yaml")))
    with no_room(10):
        code, out, err = sahfl(*arguments)
    assert (code, out) == (3, "")
    what = "cannot be written (File too large); what was committed is whole; make room, then go on"
    assert err == f"the run can go on: {again}\nerror: {Path.cwd()}/my run/journal.jsonl: {what}\n"


def test_a_full_disk_is_a_failed_run_with_what_to_do(sahfl, finished):
    with no_room(1000):
        code, out, err = sahfl("report", finished.path)
    assert (code, out) == (3, "")
    assert err == "error: File too large; make room, then go on\n"


def test_the_version_is_printed(sahfl):
    assert sahfl("--version") == (0, f"sahfl {__version__}\n", "")
