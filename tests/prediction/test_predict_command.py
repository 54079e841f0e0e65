"""``sahfl predict`` as a user calls it: files, numbers, exit codes."""

import json
import re
import shutil
import sys

import nibabel
import numpy as np
import pydicom
import pytest
from harness.dicom_files import CANARIES, write_series
from harness.finished_run import phantom_hu, write_run, write_scan
from harness.tiny_study import TINY, changed
from PIL import Image

from sahfl.data.dicom import read_segmentation, read_series
from sahfl.data.new_scan import read_new_scan
from sahfl.data.views import make_views
from sahfl.errors import AdapterError, RunError
from sahfl.evaluation import predict
from sahfl.prediction.networks import read_trained
from sahfl.prediction.segment import read_networks, segment
from sahfl.prediction.written import NOTICE

IMAGE, LABEL, AFFINE = phantom_hu()
METHODS = [
    {"method": "zero_shot"},
    {"method": "full"},
    {"method": "cp_lora", "rank": 2},
    {"method": "dora_c", "rank": 1},
]
STUDY = changed(TINY, views__weights={"axial": 1.0, "coronal": 0.5}, finetune__methods=METHODS)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    write_run(folder, STUDY)
    return folder


@pytest.fixture
def scan(tmp_path):
    return write_scan(tmp_path / "scan.nii.gz", IMAGE, AFFINE, "LPS")


def test_a_scan_becomes_a_mask_on_its_own_grid_a_volume_a_picture_and_a_note(sahfl, run, scan, tmp_path):
    code, out, err = sahfl("predict", run, scan, "--out", tmp_path / "out", "--threshold", "0.02", "--probability")
    assert code == 0, err
    source, mask = nibabel.load(scan), nibabel.load(tmp_path / "out" / "mask.nii.gz")
    probability = nibabel.load(tmp_path / "out" / "probability.nii.gz")
    np.testing.assert_array_equal(mask.affine, source.affine)
    assert mask.get_data_dtype() == np.uint8
    found = np.asarray(mask.dataobj)
    assert 0 < found.sum() < found.size
    np.testing.assert_array_equal(found > 0, np.asarray(probability.dataobj) >= np.float32(0.02))
    volume = found.sum() * abs(np.linalg.det(source.affine[:3, :3])) / 1000
    note = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert note["volume_ml"] == pytest.approx(volume, abs=1e-3)
    assert (note["method"], note["folds"], note["threshold"], note["notice"]) == ("cp_lora-r2", [0, 1], 0.02, NOTICE)
    assert f"{volume:.2f} mL of blood (tiny, cp_lora-r2, folds 0, 1; threshold 0.02)" in out
    assert "not a medical device" in out
    assert "warning: voxels of 4.00" in err
    assert "scan.nii.gz" not in json.dumps(note)
    picture = np.asarray(Image.open(tmp_path / "out" / "overlay.png").convert("RGB")).astype(int)
    assert (np.abs(picture - (0x4C, 0xC3, 0xFF)).sum(-1) < 60).sum() > 20  # contours are there


def test_the_folds_networks_are_averaged(run, scan):
    new = read_new_scan(scan)
    both, *each = (read_trained(run, fold=fold) for fold in (None, 0, 1))
    views = make_views(new.scan, both.views)
    apart = [predict(trained.nets[0], views, trained.views) for trained in each]
    assert not np.allclose(*apart, atol=1e-3)
    np.testing.assert_allclose(segment(new, both).probability, np.mean(apart, axis=0), atol=1e-5)


def test_earlier_results_are_not_written_over(sahfl, run, scan, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mask.nii.gz").write_text("precious")
    code, out, err = sahfl("predict", run, scan, "--out", tmp_path / "out", "--fold", "0")
    assert (code, out) == (2, "")
    assert "holds mask.nii.gz already; name another folder (--out), or replace these files (--replace)" in err
    assert (tmp_path / "out" / "mask.nii.gz").read_text() == "precious"
    code, _, err = sahfl("predict", run, scan, "--out", tmp_path / "out", "--fold", "0", "--replace")
    assert code == 0, err
    assert nibabel.load(tmp_path / "out" / "mask.nii.gz").shape == IMAGE.shape


def test_dicom_in_dicom_out(sahfl, run, tmp_path):
    write_series(tmp_path / "patient", IMAGE, AFFINE)
    arguments = ("--out", tmp_path / "out", "--threshold", "0.02", "--fold", "1", "--dicom-seg")
    code, out, err = sahfl("predict", run, tmp_path / "patient", *arguments)
    assert code == 0, err
    series = read_series(tmp_path / "patient")
    mask = nibabel.load(tmp_path / "out" / "mask.nii.gz")
    np.testing.assert_array_equal(mask.affine, series.image.affine)
    seg = read_segmentation(tmp_path / "out" / "segmentation.dcm", series)
    np.testing.assert_array_equal(np.asarray(seg.dataobj), np.asarray(mask.dataobj))
    written = out + err + (tmp_path / "out" / "prediction.json").read_text()
    assert not any(canary in written for canary in CANARIES)


DEIDENTIFIED = ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber")


def test_a_de_identified_series_gets_a_segmentation_with_empty_elements(sahfl, run, tmp_path):
    def stripped(data, index):
        for name in (*DEIDENTIFIED, "ReferringPhysicianName", "PatientName", "PatientID"):
            delattr(data, name)

    write_series(tmp_path / "patient", IMAGE, AFFINE, change=stripped)
    options = ("--out", tmp_path / "out", "--threshold", "0.02", "--fold", "0", "--dicom-seg")
    code, _, err = sahfl("predict", run, tmp_path / "patient", *options)
    assert code == 0, err
    made = pydicom.dcmread(tmp_path / "out" / "segmentation.dcm")
    assert all(made[name].is_empty for name in DEIDENTIFIED)
    series = read_series(tmp_path / "patient")
    seg = read_segmentation(tmp_path / "out" / "segmentation.dcm", series)
    mask = nibabel.load(tmp_path / "out" / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(seg.dataobj), np.asarray(mask.dataobj))
    assert not (json.loads((tmp_path / "out" / "prediction.json").read_text())["notes"])


def test_a_segmentation_that_cannot_be_written_costs_nothing_but_itself(sahfl, run, tmp_path, monkeypatch):
    import highdicom

    def lacking(*args, **kwargs):
        raise AttributeError("'Dataset' object has no attribute 'StudyID'")

    monkeypatch.setattr(highdicom.seg, "Segmentation", lacking)
    write_series(tmp_path / "patient", IMAGE, AFFINE)
    (tmp_path / "out").mkdir()
    for name in ("mask.nii.gz", "segmentation.dcm"):
        (tmp_path / "out" / name).write_text("of an earlier scan")
    options = ("--out", tmp_path / "out", "--fold", "0", "--dicom-seg", "--replace")
    code, out, err = sahfl("predict", run, tmp_path / "patient", *options)
    assert code == 3
    why = (
        "segmentation.dcm is missing: no DICOM segmentation: the series' headers lack what a DICOM segmentation has to"
    )
    assert f"warning: {why} repeat (StudyID)" in err
    assert " mL of blood" in out
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["mask.nii.gz", "overlay.png", "prediction.json"]
    assert nibabel.load(tmp_path / "out" / "mask.nii.gz").shape == IMAGE.shape
    (failed,) = json.loads((tmp_path / "out" / "prediction.json").read_text())["failed"]
    assert failed.startswith(why)


def test_a_picture_that_cannot_be_drawn_costs_nothing_but_itself(sahfl, run, scan, tmp_path, monkeypatch):
    def failing(*args, **kwargs):
        raise ValueError("no fonts")

    monkeypatch.setattr("sahfl.prediction.written.draw_overlay", failing)
    code, _, err = sahfl("predict", run, scan, "--out", tmp_path / "out", "--fold", "0")
    assert code == 3
    assert "warning: overlay.png is missing: a library failed (ValueError)" in err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mask.nii.gz", "prediction.json"]


def test_a_missing_extra_is_said_before_the_work(sahfl, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    write_series(tmp_path / "patient", IMAGE, AFFINE)
    code, out, err = sahfl("predict", run, tmp_path / "patient", "--out", tmp_path / "out", "--dicom-seg")
    assert (code, out) == (2, "")
    assert (
        err.splitlines()[-1]
        == "error: a DICOM segmentation needs highdicom, which is not installed; pip install highdicom"
    )
    assert "segmented" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("inside", [False, True])
def test_a_file_in_the_place_of_the_folder_is_a_user_error(sahfl, run, scan, tmp_path, inside):
    out_folder = scan / "out" if inside else scan
    code, out, err = sahfl("predict", run, scan, "--out", out_folder, "--fold", "0")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"error: {out_folder}")


WRONG = {
    "no-run": ({"run": "elsewhere"}, "is neither a run (study.json) nor an export"),
    "method": ({"--method": "lora"}, "has no method 'lora' (it has: zero_shot, full, cp_lora-r2, dora_c-r1)"),
    "fold": ({"--fold": "7"}, "has no fold 7 (it has: 0, 1)"),
    "fold-text": ({"--fold": "one"}, "--fold: got 'one', expected a number from 0, or all"),
    "zero-shot-fold": ({"--method": "zero_shot", "--fold": "0"}, "has no folds; leave out the fold"),
    "seg-of-nifti": ({"--dicom-seg": None}, "got a NIfTI scan, expected a DICOM series"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_call_is_refused_naming_what_there_is(sahfl, run, scan, tmp_path, changes, message):
    changes = dict(changes)
    options = [part for name, value in changes.items() if name != "run" for part in (name, value) if part is not None]
    code, out, err = sahfl("predict", changes.get("run", run), scan, *options)
    assert (code, out) == (2, "")
    assert message in err
    assert not list(tmp_path.glob("cwd/*"))


def test_an_unfinished_run_is_used_fold_by_fold_only(tmp_path):
    write_run(tmp_path / "run", changed(STUDY, finetune__methods=METHODS[2:3]), folds=1)
    with pytest.raises(RunError, match=r"not finished for fold 1 \(finished: 0\)"):
        read_trained(tmp_path / "run")
    assert read_trained(tmp_path / "run", fold=0).folds == (0,)


def test_a_changed_base_is_refused(tmp_path):
    write_run(tmp_path / "run", changed(STUDY, finetune__methods=METHODS[2:3]))
    path = tmp_path / "run" / "base" / "base.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(AdapterError, match="content does not match its hash"):
        read_networks(tmp_path / "run")


def test_an_adapter_in_another_s_folder_is_refused(tmp_path):
    write_run(tmp_path / "run", changed(STUDY, finetune__methods=METHODS[2:3]))
    folder = tmp_path / "run" / "adapters" / "cp_lora-r2"
    shutil.rmtree(folder / "fold-0")
    shutil.copytree(folder / "fold-1", folder / "fold-0")
    with pytest.raises(AdapterError, match="fold-0: holds cp_lora-r2, fold 1, expected cp_lora-r2, fold 0"):
        read_trained(tmp_path / "run")


def test_the_base_network_alone_can_be_used(run):
    trained = read_networks(run, method="zero_shot")
    assert (trained.folds, len(trained.nets)) == ((), 1)


def test_a_part_that_stayed_at_the_sites_is_warned_of(sahfl, scan, tmp_path):
    write_run(tmp_path / "run", changed(STUDY, finetune__methods=[METHODS[2] | {"stays": ["norm"]}]))
    code, _, err = sahfl("predict", tmp_path / "run", scan, "--fold", "0")
    assert code == 0
    assert re.search("warning: a part of this method stays at each site; these networks are without any of it", err)
