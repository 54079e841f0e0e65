"""A scan unlike what the network was made for is flagged, and only by what a run's folder really has."""

import json

import nibabel
import numpy as np
import pytest
from harness.finished_run import phantom_hu, write_scan

from sahfl.config import ViewsConfig
from sahfl.data.new_scan import read_new_scan
from sahfl.errors import RunError
from sahfl.prediction.unlike import Known, differences, read_known

IMAGE, LABEL, AFFINE = phantom_hu()
VIEWS = ViewsConfig(spacing_mm=4.0, size=(64, 64, 64))
NOTHING = Known()


def ids(path, views=VIEWS, known=NOTHING):
    return [item.id for item in differences(read_new_scan(path), views, known)]


def test_a_whole_head_at_the_network_s_grid_has_no_difference(tmp_path):
    assert ids(write_scan(tmp_path / "a.nii", IMAGE, AFFINE, "LPS")) == []


def scaled(factors):
    return AFFINE @ np.diag([*factors, 1.0])


def test_pixels_much_coarser_than_the_network_s_are_a_difference(tmp_path):
    path = write_scan(tmp_path / "a.nii", IMAGE, AFFINE)
    assert ids(path, VIEWS.model_copy(update={"spacing_mm": 2.7, "size": (96, 96, 96)})) == []  # 4.0 mm: 1.48 times
    assert ids(path, VIEWS.model_copy(update={"spacing_mm": 2.6, "size": (96, 96, 96)})) == ["coarse_pixels"]


def test_a_head_larger_than_the_field_is_a_difference_on_each_axis(tmp_path):
    path = write_scan(tmp_path / "a.nii", IMAGE, AFFINE)
    assert ids(path, VIEWS.model_copy(update={"size": (32, 64, 64)})) == ["larger_than_field"]
    assert ids(path, VIEWS.model_copy(update={"size": (32, 32, 64)})) == ["larger_than_field"] * 2


def test_a_head_smaller_than_heads_are_is_a_difference(tmp_path):
    assert "small_head" in ids(write_scan(tmp_path / "a.nii", IMAGE, scaled((0.4, 0.4, 1.0))))


def test_few_slices_and_a_part_of_a_head_are_differences(tmp_path):
    path = write_scan(tmp_path / "a.nii", IMAGE[:, :, 3:8], AFFINE)
    assert ids(path) == ["few_slices", "part_of_head"]
    assert ids(path, VIEWS.model_copy(update={"weights": {"axial": 1.0}})) == ["part_of_head"]


def site(n_volumes=40, volume_ml=100.0, **findings):
    return {"n_volumes": n_volumes, "volume_ml": volume_ml, "findings": findings}


def known(run, *sites):
    run.mkdir(exist_ok=True)
    (run / "study.json").write_text("{}")
    (run / "results.json").write_text(json.dumps({"sites": sites}))
    return read_known(run)


def test_a_warning_that_no_training_scan_had_is_a_difference(tmp_path):
    path = write_scan(tmp_path / "a.nii", IMAGE, AFFINE)
    assert {item.rule for item in read_new_scan(path).findings if item.severity == "warning"} == {"spacing", "slices"}
    found = differences(read_new_scan(path), VIEWS, known(tmp_path / "run", site(spacing=3), site(few_values=None)))
    assert [(item.id, item.text) for item in found] == [
        ("new_slices", "the data check warns of slices, and of none of 80 scans of the study")
    ]
    assert ids(path, known=known(tmp_path / "run", site(spacing=None), site(slices=1))) == []


SILENT = {
    "no-sites": [],
    "no-scans": [site(n_volumes=0, volume_ml=0.0)],
    "withheld": [site(spacing=1), site(volume_ml=None)],
}


@pytest.mark.parametrize("sites", SILENT.values(), ids=SILENT.keys())
def test_nothing_is_said_of_training_scans_that_a_run_does_not_describe(tmp_path, sites):
    path = write_scan(tmp_path / "a.nii", IMAGE, AFFINE)
    assert ids(path, known=known(tmp_path / "run", *sites)) == []


def test_damaged_counts_are_an_error(tmp_path):
    with pytest.raises(RunError, match=r"results\.json is not one of sahfl"):
        known(tmp_path / "run", site(n_volumes="many"))


def test_an_export_has_no_sites_to_compare_with(tmp_path):
    assert read_known(tmp_path) == Known()


def test_a_flag_is_in_the_note_and_said(sahfl, tmp_path):
    from harness.finished_run import write_run
    from harness.tiny_study import TINY, changed

    write_run(tmp_path / "run", changed(TINY, finetune__methods=[{"method": "cp_lora", "rank": 2}]), folds=1)
    nibabel.save(nibabel.Nifti1Image(IMAGE[:, :, 3:8], AFFINE), tmp_path / "a.nii")
    code, _, err = sahfl("predict", tmp_path / "run", tmp_path / "a.nii", "--fold", "0", "--out", tmp_path / "out")
    assert code == 0, err
    note = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert "part_of_head" in [item["id"] for item in note["unlike"]]
    assert "warning: unlike the training data: 60 mm from top to bottom, less than a brain (part_of_head)" in err
