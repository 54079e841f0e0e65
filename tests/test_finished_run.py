"""A finished run from Python: tables with the numbers of results.json, networks and predictions as of the commands."""

import json
import re
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import torch
from harness.finished_run import phantom_hu, write_run, write_scan
from harness.import_graph import ROOT
from harness.made_run import around, make_run, results_of
from harness.tiny_study import TINY, changed
from report.test_report_sample import gain

import sahfl as package
from sahfl.adapters.attach import merge
from sahfl.data.views import n_channels
from sahfl.errors import ConfigError, DataRefused, RunError
from sahfl.finished_run import load
from sahfl.prediction.networks import adapted_network, choose_method

IMAGE, _, AFFINE = phantom_hu()
HEAVY = {"torch", "flwr", "monai", "pandas", "matplotlib", "rich"}
MIDDLE = {"zero_shot": 0.4, "cp_lora-r2": 0.6, "cp_lora-r2-repeat2": 0.6}


def modules_after(code):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_sahfl_loads_nothing_else():
    loaded = modules_after("import sahfl; sahfl.__version__; dir(sahfl)")
    assert {name for name in loaded if name.partition(".")[0] == "sahfl"} == {"sahfl"}
    assert not loaded & (HEAVY | {"numpy", "pydantic"})


def test_opening_a_run_loads_no_deep_learning_library():
    loaded = modules_after("import sahfl; sahfl.load")
    assert "sahfl.finished_run" in loaded
    assert not loaded & HEAVY


def test_sahfl_offers_what_it_lists_and_nothing_else():
    assert set(package.__all__) <= set(dir(package))
    assert all(getattr(package, name) for name in package.__all__)
    with pytest.raises(AttributeError, match="module 'sahfl' has no attribute 'lod'"):
        package.lod  # noqa: B018


# --- tables ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    grid = [{"method": "cp_lora", "rank": 2, "repeats": 2}]
    path = tmp_path_factory.mktemp("measured") / "run"
    folder, study = make_run(path, grid, around(lambda id_, site, fold: MIDDLE[id_]))
    folder.write_json("results.json", results_of(folder, study))
    return load(path)


def test_the_frame_has_a_row_per_method_with_the_numbers_of_the_results(measured):
    table = measured.frame()
    assert tuple(table.index) == measured.methods == ("zero_shot", "cp_lora-r2")
    row, (_, method) = table.loc["cp_lora-r2"], measured.results["methods"]
    dice = method["metrics"]["dice"]["overall"]
    assert [row[f"dice_{key}"] for key in ("mean", "low", "high", "n")] == [
        dice[k] for k in ("mean", "low", "high", "n")
    ]
    assert list(table["dice_interval"]) == ["patients", "patients and trainings"]
    assert (row["name"], row["rank"], row["trainable"]) == ("CP-LoRA (rank 2)", 2, method["trainable"])
    (pair,) = measured.results["comparisons"]
    assert row["against_zero_shot"] == pair["metrics"]["dice"]["overall"]["difference"] == pytest.approx(0.2, abs=0.01)
    assert row["verdict"] == pair["verdict"] == "better"
    assert table.loc["zero_shot", ["rank", "verdict"]].isna().all()
    assert set(table) < set(measured.frame(complete=True))


def test_the_comparisons_are_those_with_a_verdict_or_all(measured):
    (row,) = measured.comparisons().to_dict("records")
    assert (row["method"], row["reference"], row["verdict"]) == ("cp_lora-r2", "zero_shot", "better")
    assert len(measured.comparisons(complete=True)) == 6 * (1 + 3 + 3)


def test_a_run_is_opened_and_its_tables_are_made_with_no_heavy_library_but_pandas(measured):
    loaded = modules_after(f"import sahfl; run = sahfl.load({str(measured.folder)!r}); run.frame(); run.comparisons()")
    assert loaded & HEAVY == {"pandas"}


def test_without_pandas_a_table_says_what_to_install(measured, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="needs pandas, which is not installed; pip install pandas"):
        measured.frame()


def test_results_per_scan_of_reused_cells_are_in_another_run(measured, tmp_path):
    run = copy_of(measured, tmp_path)
    line = {"event": "reused", "cell": "cp_lora-r2/fold-1"}
    (run.folder / "journal.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(RunError, match=r"1 of 6 cells, such as cp_lora-r2/fold-1, came from an earlier run"):
        run.cases()


def test_results_per_scan_of_hospitals_stay_there(measured, tmp_path):
    run = copy_of(measured, tmp_path, data={"source": "sites"}, common_random_numbers=None, rounds={"unmasked": True})
    with pytest.raises(RunError, match="stay at the hospitals"):
        run.cases()


def test_a_run_without_the_folders_of_its_sites_has_no_results_per_scan(measured):
    with pytest.raises(RunError, match=r"no results per scan in sites/\*/cases.jsonl; copy the whole folder"):
        measured.cases()


def copy_of(run, folder, **changes):
    settings = json.loads((run.folder / "study.json").read_text()) | changes
    (folder / "study.json").write_text(json.dumps(settings))
    (folder / "results.json").write_text((run.folder / "results.json").read_text())
    return load(folder)


def test_a_folder_without_a_finished_run_is_refused(measured, tmp_path):
    with pytest.raises(RunError, match=r"is no folder of a run \(study.json is missing\)"):
        load(tmp_path)
    (tmp_path / "study.json").write_text((measured.folder / "study.json").read_text())
    with pytest.raises(RunError, match=r"has no results.json; the run is not finished"):
        load(str(tmp_path))


# --- networks --------------------------------------------------------------------------------------------------------


def trained_run(folder, **changes):
    write_run(folder, changed(TINY, **changes))
    results = gain() | {"methods": gain()["methods"][:1], "comparisons": []}  # they recommend no method
    (folder / "results.json").write_text(json.dumps(results))
    return load(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def scan(tmp_path):
    return write_scan(tmp_path / "scan.nii.gz", IMAGE, AFFINE, "LPS")


@torch.no_grad()
def test_a_network_is_plain_and_computes_what_the_run_trained(trained):
    slices = torch.rand(2, n_channels(trained.study.views), 64, 48, generator=torch.Generator().manual_seed(0))
    for fold, given in ((0, None), (1, 1)):
        net = trained.network("cp_lora-r2", fold=given)
        expected, _ = adapted_network(
            trained.folder, trained.study, choose_method(trained.study, "cp_lora-r2", "run"), fold
        )
        merge(expected)
        assert torch.equal(net(slices), expected.eval()(slices))
        assert net(slices).shape == (2, 1, 64, 48)
    assert not net.training
    assert not [name for name, _ in net.named_parameters() if "update" in name]
    assert not torch.equal(trained.network("zero_shot")(slices), net(slices))


@torch.no_grad()
def test_where_each_view_has_a_network_a_view_is_named(tmp_path):
    run = trained_run(tmp_path / "run", model={"planes": "per_view"}, views__weights={"axial": 1.0, "coronal": 0.5})
    slices = torch.rand(1, n_channels(run.study.views), 48, 48, generator=torch.Generator().manual_seed(0))
    whole, _ = adapted_network(run.folder, run.study, choose_method(run.study, "cp_lora-r2", "run"), 0)
    found = {view: run.network(view=view)(slices) for view in ("axial", "coronal")}
    assert not torch.equal(found["axial"], found["coronal"])
    for view, logits in found.items():
        torch.testing.assert_close(logits, whole.eval()(slices, view), rtol=1e-4, atol=1e-4)
    with pytest.raises(RunError, match="each view has a network of its own; name a view: axial, coronal"):
        run.network()
    with pytest.raises(RunError, match="has no view 'sagittal'; name a view: axial, coronal"):
        run.network(view="sagittal")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("cp_lora-r9",), r"no method 'cp_lora-r9' \(it has: zero_shot, cp_lora-r2\)"), ((None, 2), "has no fold 2")],
)
def test_a_network_that_is_not_there_is_an_error_with_those_that_are(trained, arguments, message):
    with pytest.raises(RunError, match=message):
        trained.network(*arguments)


def test_a_prediction_is_that_of_the_command_on_the_scan_s_own_voxels(sahfl, trained, scan, tmp_path):
    found = trained.predict(scan, threshold=0.02)
    code, _, err = sahfl(
        *("predict", trained.folder, scan, "--threshold", "0.02", "--probability", "--out", tmp_path / "out")
    )
    assert code == 0, err
    mask, probability = (nibabel.load(tmp_path / "out" / f"{name}.nii.gz") for name in ("mask", "probability"))
    assert found.mask.any()
    np.testing.assert_array_equal(found.mask, np.asarray(mask.dataobj) > 0)
    np.testing.assert_array_equal(found.probability, np.asarray(probability.dataobj))
    np.testing.assert_array_equal(found.affine, nibabel.load(scan).affine)
    note = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert round(found.volume_ml, 3) == note["volume_ml"]
    assert (found.method, list(found.folds), found.threshold) == (note["method"], note["folds"], note["threshold"])
    assert list(found.warnings) == [finding["text"] for finding in note["findings"]]
    assert list(found.unlike) == [difference["text"] for difference in note["unlike"]]
    assert (found.interval_text, found.interval_ml) == (note["interval"]["text"], None)
    assert re.fullmatch(r"no interval: \d+ held-out scans with blood, fewer than 19", found.interval_text)
    assert found.files == ()
    assert "mask=" not in repr(found)


def test_a_prediction_writes_its_files_where_asked_and_not_over_others(trained, scan, tmp_path):
    found = trained.predict(str(scan), "zero_shot", out=str(tmp_path / "out"))
    assert sorted(path.name for path in found.files) == ["mask.nii.gz", "overlay.png", "prediction.json"]
    assert all(path.is_file() for path in found.files)
    assert found.folds == ()
    with pytest.raises(RunError, match=r"holds mask.nii.gz"):
        trained.predict(scan, out=tmp_path / "out")
    assert trained.predict(scan, out=tmp_path / "out", replace=True).files == found.files


def test_a_prediction_says_which_part_of_a_method_its_networks_lack(tmp_path, scan):
    methods = [{"method": "cp_lora", "rank": 2, "private_rank": 1}]
    found = trained_run(tmp_path / "run", finetune__methods=methods).predict(scan)
    assert "a part of this method stays at each site; these networks are without any of it" in found.warnings


def test_a_prediction_refuses_a_threshold_that_is_no_probability_and_a_scan_that_is_no_head(trained, scan, tmp_path):
    with pytest.raises(ConfigError, match="threshold: got 1, expected a number between 0 and 1"):
        trained.predict(scan, threshold=1)
    with pytest.raises(DataRefused, match="expected a head CT in HU"):
        trained.predict(write_scan(tmp_path / "air.nii.gz", np.full_like(IMAGE, -1000), AFFINE), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
