"""``sahfl export``: each form computes what the run's network computes, in the program it is for."""

import json
import sys

import numpy as np
import pytest
import torch
from harness.finished_run import phantom_hu, write_run, write_scan
from harness.tiny_study import TINY, changed
from monai.bundle import ConfigParser

from sahfl.adapters.attach import merge
from sahfl.adapters.folder import put_adapter, read_adapter
from sahfl.config import Study, parse
from sahfl.data.new_scan import read_new_scan
from sahfl.data.views import windows
from sahfl.errors import ExportDiffers, RunError
from sahfl.export.folders import export
from sahfl.export.parity import MOST_DIFFERENCE, compare, from_hu
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


def test_a_bundle_is_built_by_monai_with_equal_output(run, tmp_path, monkeypatch):
    (written,) = export(run[0], tmp_path, ["bundle"], method="cp_lora-r2", fold=0)
    assert written.folder == tmp_path / "bundle"
    monkeypatch.syspath_prepend(written.folder)  # as a program in the bundle's folder has it
    parser = ConfigParser()
    parser.read_config(str(written.folder / "configs" / "inference.json"))
    parser.read_meta(str(written.folder / "configs" / "metadata.json"))
    parser["bundle_root"] = str(written.folder)
    try:
        network = parser.get_parsed_content("network")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
            del sys.modules[name]
    assert type(network).__module__ == "scripts.unet"
    assert largest(lambda slices, view: network(slices), adapted(run, "cp_lora-r2", 0)) < 1e-4
    inputs = parser.get("_meta_")["network_data_format"]["inputs"]["image"]
    assert (inputs["num_channels"], len(inputs["channel_def"])) == (9, 9)
    assert "not a medical device" in parser.get("_meta_")["intended_use"]
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pt", ".pth", ".ts", ".pkl")]


@pytest.mark.parametrize("planes", ["shared", "per_view"])
def test_a_bundle_has_a_file_per_fold_or_per_fold_and_view(tmp_path, planes):
    model = {"planes": planes, "deep_supervision": True}
    settings = changed(STUDY, model=model, finetune__methods=METHODS[1:2])
    write_run(tmp_path / "run", settings)
    (written,) = export(tmp_path / "run", tmp_path / "ex", ["bundle"], method="cp_lora-r2")
    names = {path.stem for path in (written.folder / "models").iterdir()}
    assert (
        names
        == {
            "shared": {"fold-0", "fold-1"},
            "per_view": {f"fold-{k}-{view}" for k in (0, 1) for view in IN_PLANE},
        }[planes]
    )
    listed = json.loads((written.folder / "configs" / "preprocessing.json").read_text())["networks"]
    assert {name for files in listed.values() for name in files} == {f"models/{name}.safetensors" for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("planes", ["shared", "per_view"])
def test_onnx_is_run_by_onnxruntime_with_equal_output_at_any_size(tmp_path, planes, monkeypatch):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    settings = changed(STUDY, model={"planes": planes}, finetune__methods=METHODS[1:2])
    one = (tmp_path / "run", write_run(tmp_path / "run", settings))
    made, real = [], torch.onnx.export
    monkeypatch.setattr("torch.onnx.export", lambda *args, **options: made.append(args) or real(*args, **options))
    (written,) = export(one[0], tmp_path / "ex", ["onnx"], method="cp_lora-r2")
    stems = {"shared": [""], "per_view": ["-axial", "-sagittal"]}[planes]
    assert len(made) == len(stems)  # once for all folds
    names = {f"fold-{k}{stem}.onnx" for k in (0, 1) for stem in stems}
    beside = {"README.md", "predict.py", "head_ct.py", "preprocessing.json"}
    assert {path.name for path in written.folder.iterdir()} == names | beside

    for fold in (0, 1):
        net, windows_hu = adapted(one, "cp_lora-r2", fold), one[1].views.windows_hu

        def by_onnx(slabs, view, fold=fold):
            name = f"fold-{fold}-{view}.onnx" if planes == "per_view" else f"fold-{fold}.onnx"
            session = runtime.InferenceSession(written.folder / name, providers=["CPUExecutionProvider"])
            return torch.from_numpy(session.run(["logits"], {"slices_hu": slabs.numpy()})[0])

        for n, size in ((1, (80, 32)), (3, (32, 160))):
            slabs = 100 * torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(1))
            for view in IN_PLANE:
                with torch.no_grad():
                    expected = net(windows(slabs, windows_hu), view)
                assert float((by_onnx(slabs, view) - expected).abs().max()) < 1e-3


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
    found = from_hu(other, study.views)
    assert compare("same", found, net, study.views) == 0
    with torch.no_grad():
        other.get_parameter("net.head.1.bias").add_(2 * MOST_DIFFERENCE)
    with pytest.raises(ExportDiffers, match=r"other: differs by 0\.002 from the run's network, expected 0\.001"):
        compare("other", found, net, study.views)


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
    with pytest.raises(RunError, match="holds cp_lora-r2, fold 0; got method None, fold 1"):
        read_networks(tmp_path / "fold-0", fold=1)
