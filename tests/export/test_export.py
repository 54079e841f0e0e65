"""``sahfl export``: each form computes what the run's network computes, in the program it is for."""

import json

import numpy as np
import pytest
import torch
from harness.finished_run import phantom_hu, write_run, write_scan
from harness.tiny_study import TINY, changed
from monai.bundle import ConfigParser, ConfigWorkflow

from sahfl.adapters.attach import merge
from sahfl.adapters.folder import put_adapter, read_adapter
from sahfl.config import Study, parse
from sahfl.data.new_scan import read_new_scan
from sahfl.errors import ExportDiffers, RunError
from sahfl.export.folders import export
from sahfl.export.parity import MOST_DIFFERENCE, compare
from sahfl.networks import base_network, plain_network
from sahfl.prediction.networks import adapted_network, read_base
from sahfl.prediction.segment import read_networks, segment

IMAGE, LABEL, AFFINE = phantom_hu()
METHODS = [
    {"method": "zero_shot"},
    {"method": "cp_lora", "rank": 2},
    {"method": "conv_dora", "rank": 2},
    {"method": "full"},
]
STUDY = changed(TINY, views__weights={"axial": 1.0, "sagittal": 0.5}, finetune__methods=METHODS)
IN_PLANE = {"axial": (48, 64), "sagittal": (64, 48)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    return folder, write_run(folder, STUDY)


def adapted(run, method_id, fold):
    folder, study = run
    method = next(item for item in study.finetune.methods if item.id == method_id)
    return adapted_network(folder, study, method, fold)[0].eval()


@torch.no_grad()
def largest(found, net, channels=9):
    slices = torch.rand(3, channels, 80, 32, generator=torch.Generator().manual_seed(1))
    return max(float((found(slices, view) - net(slices, view)).abs().max()) for view in IN_PLANE)


@pytest.mark.parametrize("method", ["cp_lora-r2", "conv_dora-r2", "full", "zero_shot"])
def test_weights_are_read_back_and_segment_as_the_run_does(run, tmp_path, method):
    fold = None if method == "zero_shot" else 0
    (written,) = export(run[0], tmp_path, ["safetensors"], method=method, fold=fold)
    assert written.difference <= MOST_DIFFERENCE
    exported = read_networks(tmp_path)
    assert largest(exported.nets[0], adapted(run, method, 0)) < 1e-4
    new = read_new_scan(write_scan(tmp_path / "scan.nii.gz", IMAGE, AFFINE))
    by_run = read_networks(run[0], method=method, fold=fold)
    np.testing.assert_array_equal(segment(new, exported).probability, segment(new, by_run).probability)


def test_an_export_of_all_folds_segments_as_their_mean_and_by_the_command(sahfl, run, tmp_path):
    code, out, err = sahfl("export", run[0], "--method", "cp_lora-r2", "--to", tmp_path / "ex")
    assert code == 0, err
    assert out.count("largest difference of logits") == 2
    both = read_networks(tmp_path / "ex")
    assert both.folds == (0, 1)
    assert both.hashes == read_networks(run[0]).hashes
    scan = write_scan(tmp_path / "scan.nii.gz", IMAGE, AFFINE)
    code, out, err = sahfl("predict", tmp_path / "ex", scan, "--fold", "1")
    assert code == 0, err
    assert "(tiny, cp_lora-r2, fold 1; threshold 0.5)" in out


def test_a_bundle_is_built_by_monai_with_equal_output(run, tmp_path):
    (written,) = export(run[0], tmp_path, ["bundle"], method="cp_lora-r2", fold=0)
    parser = ConfigParser()
    parser.read_config(str(written.folder / "configs" / "inference.json"))
    parser.read_meta(str(written.folder / "configs" / "metadata.json"))
    parser["bundle_root"] = str(written.folder)
    assert largest(parser.get_parsed_content("network"), adapted(run, "cp_lora-r2", 0)) < 1e-4
    inputs = parser.get("_meta_")["network_data_format"]["inputs"]["image"]
    assert (inputs["num_channels"], len(inputs["channel_def"])) == (9, 9)
    assert "not a medical device" in parser.get("_meta_")["intended_use"]
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pt", ".pth", ".ts", ".pkl")]


def test_a_bundle_runs_as_monai_runs_it(run, tmp_path):
    (written,) = export(run[0], tmp_path, ["bundle"], method="cp_lora-r2", fold=0)
    scan = write_scan(tmp_path / "scan.nii.gz", IMAGE, AFFINE)
    workflow = ConfigWorkflow(
        config_file=str(written.folder / "configs" / "inference.json"),
        meta_file=str(written.folder / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(written.folder),
        scan=str(scan),
        output_dir=str(tmp_path / "out"),
    )
    workflow.run()
    assert json.loads((tmp_path / "out" / "prediction.json").read_text())["method"] == "cp_lora-r2"


@pytest.mark.parametrize("planes", ["shared", pytest.param("per_view", marks=pytest.mark.slow)])
def test_onnx_is_run_by_onnxruntime_with_equal_output_at_any_size(tmp_path, planes):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    settings = changed(STUDY, model={"planes": planes}, finetune__methods=METHODS[1:2])
    one = (tmp_path / "run", write_run(tmp_path / "run", settings, folds=1))
    (written,) = export(one[0], tmp_path / "ex", ["onnx"], method="cp_lora-r2", fold=0)
    names = {"shared": {"network.onnx"}, "per_view": {"axial.onnx", "sagittal.onnx"}}[planes]
    assert {path.name for path in written.folder.iterdir()} == names | {"config.json"}
    views = one[1].views.weights
    files = file_names_of(written.folder, views, planes)

    def by_onnx(slices, view):
        session = runtime.InferenceSession(files[view], providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(["logits"], {"slices": slices.numpy()})[0])

    assert largest(by_onnx, adapted(one, "cp_lora-r2", 0)) < 1e-3


def file_names_of(folder, views, planes):
    return {view: str(folder / (f"{view}.onnx" if planes == "per_view" else "network.onnx")) for view in views}


def test_the_adapter_alone_goes_on_the_base_again(run, tmp_path):
    (written,) = export(run[0], tmp_path, ["adapter"], method="conv_dora-r2", fold=1)
    assert {path.name for path in written.folder.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    net = base_network(run[1].views, run[1].model, read_base(run[0]))
    put_adapter(net, read_adapter(written.folder))
    merge(net)
    assert largest(net.eval(), adapted(run, "conv_dora-r2", 1)) < 1e-4
    assert "not a\nmedical device" in (written.folder / "README.md").read_text()


# --- what is refused ------------------------------------------------------------------------------------------------


def test_a_network_that_computes_something_else_is_refused():
    study = parse(Study, STUDY, where="study")
    net, other = (plain_network(study.views, study.model, seed=0) for _ in range(2))
    assert compare("same", other, net, study.views) == 0
    with torch.no_grad():
        other.get_parameter("net.head.1.bias").add_(2 * MOST_DIFFERENCE)
    with pytest.raises(ExportDiffers, match=r"other: differs by 0\.002 from the run's network, expected 0\.001"):
        compare("other", other, net, study.views)


def test_what_differs_is_not_kept(run, tmp_path, monkeypatch):
    monkeypatch.setattr("sahfl.export.parity.MOST_DIFFERENCE", -1.0)
    with pytest.raises(ExportDiffers):
        list(export(run[0], tmp_path / "ex", ["safetensors"], method="cp_lora-r2", fold=0))
    assert not list((tmp_path / "ex" / "fold-0").iterdir())


def test_nothing_is_written_over(run, tmp_path):
    list(export(run[0], tmp_path, ["safetensors"], method="cp_lora-r2", fold=0))
    with pytest.raises(RunError, match="is there already; name another folder with --to"):
        list(export(run[0], tmp_path, ["safetensors"], method="cp_lora-r2"))
    assert not (tmp_path / "fold-1").exists()


WRONG = {
    "run": (("elsewhere", "cp_lora-r2"), "elsewhere: is no folder of a run"),
    "method": ((None, "lora"), "has no method 'lora' (it has: zero_shot, cp_lora-r2, conv_dora-r2, full)"),
    "fold": ((None, "cp_lora-r2", "--fold", "5"), "has no fold 5 (it has: 0, 1)"),
    "format": ((None, "cp_lora-r2", "--format", "tflite"), "got 'tflite', expected safetensors, bundle, onnx, adapter"),
    "no-adapter": ((None, "zero_shot", "--format", "adapter"), "zero_shot is the base network, which has no adapter"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_export_is_refused_naming_what_there_is(sahfl, run, tmp_path, arguments, message):
    folder, method, *options = arguments
    code, out, err = sahfl("export", folder or run[0], "--method", method, "--to", tmp_path / "ex", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "ex").exists()


def test_a_folder_that_cannot_be_made_is_a_user_error(sahfl, run, tmp_path):
    (tmp_path / "file").write_text("precious")
    code, out, err = sahfl("export", run[0], "--method", "cp_lora-r2", "--fold", "0", "--to", tmp_path / "file")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {tmp_path / 'file'}")
    assert err.endswith(": Not a directory; name another path\n")


def test_exports_of_two_methods_in_one_folder_are_not_mixed(run, tmp_path):
    list(export(run[0], tmp_path, ["safetensors"], method="cp_lora-r2", fold=0))
    list(export(run[0], tmp_path, ["safetensors"], method="full", fold=1))
    with pytest.raises(RunError, match="several studies or methods"):
        read_networks(tmp_path)
    with pytest.raises(RunError, match="holds cp_lora-r2, fold 0; got --method None, --fold 1"):
        read_networks(tmp_path / "fold-0", fold=1)
