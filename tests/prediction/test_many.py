"""Many scans: a row for each, whatever is wrong with one, and a second call goes on where the first ended."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from harness.dicom_files import uid, write_series
from harness.finished_run import phantom_hu, write_run, write_scan
from harness.tiny_study import TINY, changed

from sahfl.prediction import many
from sahfl.prediction.many import write_table
from sahfl.prediction.scan_list import list_scans
from sahfl.prediction.segment import read_predictor
from sahfl.prediction.workers import Job, runner
from sahfl.prediction.written import FILES, Wanted

IMAGE, LABEL, AFFINE = phantom_hu()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    write_run(folder, changed(TINY, finetune__methods=[{"method": "cp_lora", "rank": 2}]), folds=1)
    return folder


@pytest.fixture
def scans(tmp_path):
    """Two scans, one that is no CT in HU, and one that is no scan."""
    folder = tmp_path / "scans"
    folder.mkdir()
    write_scan(folder / "a.nii.gz", IMAGE, AFFINE, "LPS")
    write_scan(folder / "Muster_Hans.nii.gz", IMAGE[:, :, 1:], AFFINE)
    nibabel.save(nibabel.Nifti1Image(np.clip(IMAGE, 0, 80), AFFINE), folder / "c.nii.gz")
    (folder / "d.nii.gz").write_bytes(b"no volume")
    return folder


def table(out):
    with (out / "results.csv").open(newline="") as stream:
        return {row["case"]: row for row in csv.DictReader(stream)}


def test_each_scan_has_a_row_and_a_folder_and_a_bad_one_ends_nothing(sahfl, run, scans, tmp_path):
    out = tmp_path / "out"
    code, shown, err = sahfl("predict", run, scans, "--out", out, "--fold", "0", "--threshold", "0.02")
    assert code == 3, err
    rows = table(out)
    assert list(rows) == ["Muster_Hans", "a", "c", "d"]
    assert [row["status"] for row in rows.values()] == ["done", "done", "refused", "refused"]
    mask = nibabel.load(out / "a" / "mask.nii.gz")
    volume = np.asarray(mask.dataobj).sum() * abs(np.linalg.det(mask.affine[:3, :3])) / 1000
    assert float(rows["a"]["volume_ml"]) == pytest.approx(volume, abs=1e-3)
    assert volume > 0
    assert rows["a"]["interval"].startswith("no interval: the run is not finished")
    assert "spacing" in rows["a"]["warnings"]
    assert "windowed: values from 0 to 80" in rows["c"]["reason"]
    assert "unreadable" in rows["d"]["reason"]
    assert rows["c"]["scan"] == str(scans / "c.nii.gz")
    assert not (out / "c").exists()
    assert "4 scans: 2 segmented, 2 refused" in shown
    assert "4 of 4 scans done, 2 refused" in err
    assert "Muster" not in shown + err  # a name of a file may be a patient's
    assert (out / "results.csv").stat().st_mode & 0o777 == 0o600


def test_what_is_finished_is_not_computed_again(sahfl, run, scans, tmp_path, monkeypatch):
    out, arguments = tmp_path / "out", ("--fold", "0")
    sahfl("predict", run, scans, "--out", out, *arguments)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*")}
    write_scan(scans / "c.nii.gz", IMAGE[:, 1:], AFFINE)  # the refused one was exported again
    (scans / "d.nii.gz").unlink()
    (out / "results.csv").unlink()
    code, shown, err = sahfl("predict", run, scans, "--out", out, *arguments)
    assert code == 0, err
    assert "3 scans (2 of them by an earlier call): 3 segmented, 0 refused" in shown
    assert [row["status"] for row in table(out).values()] == ["done", "done", "done"]
    assert before.items() <= {path: path.stat().st_mtime_ns for path in out.glob("*/*")}.items()


def test_results_of_other_networks_are_not_mixed_and_not_written_over(sahfl, run, scans, tmp_path):
    out = tmp_path / "out"
    sahfl("predict", run, scans, "--out", out, "--fold", "0")
    before = (out / "results.csv").read_text()
    code, _, err = sahfl("predict", run, scans, "--out", out, "--fold", "0", "--threshold", "0.3")
    assert code == 2
    assert "other networks or another threshold; name another folder (--out), or replace its results (--replace)" in err
    assert (out / "results.csv").read_text() == before
    code, _, _ = sahfl("predict", run, scans, "--out", out, "--fold", "0", "--threshold", "0.3", "--replace")
    assert code == 3
    assert table(out)["a"]["threshold"] == "0.3"


def test_a_scan_that_changed_is_not_passed_off_as_done(sahfl, run, scans, tmp_path):
    out = tmp_path / "out"
    sahfl("predict", run, scans, "--out", out, "--fold", "0")
    write_scan(scans / "a.nii.gz", IMAGE[1:], AFFINE)
    code, _, _ = sahfl("predict", run, scans, "--out", out, "--fold", "0")
    assert code == 3
    row = table(out)["a"]
    assert (row["status"], row["volume_ml"]) == ("refused", "")
    assert row["reason"] == "the scan changed since it was segmented; replace its results (replace)"
    assert (out / "a" / "mask.nii.gz").exists()
    sahfl("predict", run, scans, "--out", out, "--fold", "0", "--replace")
    assert table(out)["a"]["status"] == "done"


def test_a_folder_without_its_note_is_unfinished_and_made_again(sahfl, run, scans, tmp_path):
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    (out / "a" / "mask.nii.gz").write_text("half a mask")
    (out / "d").mkdir()
    (out / "d" / "mask.nii.gz").write_text("half a mask")
    (out / "d" / "notes of the reader").write_text("mine")
    sahfl("predict", run, scans, "--out", out, "--fold", "0")
    assert table(out)["a"]["status"] == "done"
    assert nibabel.load(out / "a" / "mask.nii.gz").shape == IMAGE.shape
    assert [path.name for path in (out / "d").iterdir()] == ["notes of the reader"]


def test_a_segmentation_for_a_scan_that_is_no_dicom_is_missing_and_the_mask_is_there(sahfl, run, scans, tmp_path):
    def of_study(data, index):
        data.StudyInstanceUID = uid("another")

    for name in ("c.nii.gz", "d.nii.gz", "Muster_Hans.nii.gz"):
        (scans / name).unlink()
    write_series(scans / "patient", IMAGE, AFFINE, change=of_study)
    out = tmp_path / "out"
    code, shown, _ = sahfl("predict", run, scans, "--out", out, "--fold", "0", "--dicom-seg", "--each")
    assert code == 3
    assert "1 segmented without a file that was asked for; see the column missing" in shown
    rows = table(out)
    assert (rows["a"]["status"], rows["patient"]["status"]) == ("incomplete", "done")
    assert "segmentation.dcm is missing: the scan is no DICOM series" in rows["a"]["missing"]
    assert (out / "a" / "mask.nii.gz").exists()
    assert (out / "patient" / "segmentation.dcm").exists()


def test_a_full_disk_ends_the_work_and_what_is_finished_stays(sahfl, run, scans, tmp_path, monkeypatch):
    real = many.write_prediction

    def full(out, *arguments, **options):
        if out.name == "a":
            raise OSError(28, "No space left on device")
        return real(out, *arguments, **options)

    monkeypatch.setattr(many, "write_prediction", full)
    code, _, err = sahfl("predict", run, scans, "--out", tmp_path / "out", "--fold", "0")
    assert (code, err.splitlines()[-1]) == (3, "error: No space left on device; make room, then go on")
    assert [row["status"] for row in table(tmp_path / "out").values()] == ["done", "waiting", "waiting", "waiting"]


def test_a_cell_that_a_spreadsheet_would_compute_is_a_text(tmp_path):
    (tmp_path / "list.csv").write_text("image\n=HYPERLINK(1).nii\n")
    wishes = list_scans(tmp_path / "list.csv")
    write_table(tmp_path, wishes, {wishes[0].case: many.Outcome(wishes[0], reason="=1+1")})
    (row,) = table(tmp_path).values()
    assert row["reason"] == "'=1+1"


@pytest.mark.slow
def test_several_workers_give_what_one_gives_and_a_dead_one_costs_its_scan(run, scans, tmp_path):
    predictor = read_predictor(run, fold=0)
    wishes = list_scans(scans)
    for name, workers in (("one", 1), ("two", 2)):
        job = Job(run, None, 0, predictor.threshold, tmp_path / name, Wanted())
        many.predict_many(tmp_path / name, wishes, {}, runner(job, predictor, workers))
    assert (tmp_path / "one" / "results.csv").read_text() == (tmp_path / "two" / "results.csv").read_text()
    for case in ("a", "Muster_Hans"):
        masks = [(tmp_path / name / case / "mask.nii.gz").read_bytes() for name in ("one", "two")]
        assert masks[0] == masks[1]


def start(run, scans, out, *options):
    program = Path(sys.executable).with_name("sahfl")
    command = [program, "predict", run, scans, "--out", out, "--fold", "0", *options]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["one-process", "workers"])
def test_a_kill_loses_the_scans_in_work_and_no_other(sahfl, run, tmp_path, options):
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for index in range(12):
        write_scan(scans / f"{index:02d}.nii.gz", IMAGE, AFFINE)
    process = start(run, scans, out, *options)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*/prediction.json"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    rows = table(out)
    finished = [path.parent.name for path in out.glob("*/prediction.json")]
    done = [case for case, row in rows.items() if row["status"] == "done"]
    assert 2 <= len(done) < 12
    assert set(done) <= set(finished)
    assert len(rows) == 12
    before = {name: (out / name / "prediction.json").stat().st_mtime_ns for name in done}
    code, shown, _ = sahfl("predict", run, scans, "--out", out, "--fold", "0")
    assert code == 0
    assert "12 segmented, 0 refused" in shown
    assert before == {name: (out / name / "prediction.json").stat().st_mtime_ns for name in done}
    assert all(set(os.listdir(out / case)) <= set(FILES) for case in rows)


@pytest.mark.slow
def test_a_worker_that_the_system_kills_costs_its_scan(run, scans, tmp_path, monkeypatch):
    out = tmp_path / "out"
    (scans / "killer.nii.gz").write_bytes(b"")
    predictor = read_predictor(run, fold=0)
    wishes = list_scans(scans)
    job = Job(run, None, 0, predictor.threshold, out, Wanted())
    killed = []

    def on_case(done, total, outcome):
        if not killed:
            children = [int(pid) for pid in children_of(os.getpid())]
            busy = [pid for pid in children if b"spawn_main" in command_of(pid)]
            killed.append(busy[0])
            os.kill(busy[0], signal.SIGKILL)

    outcomes = many.predict_many(out, wishes, {}, runner(job, predictor, 2), on_case)
    lost = [item for item in outcomes if item.reason == "its process ended (exit code -9); more memory may help"]
    assert len(lost) == 1
    assert {item.wish.case for item in outcomes if item.note is None} == {"c", "d", "killer", lost[0].wish.case}


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as stream:
        return stream.read().split()


def command_of(pid):
    with open(f"/proc/{pid}/cmdline", "rb") as stream:
        return stream.read()
