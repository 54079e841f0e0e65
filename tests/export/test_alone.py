"""A bundle and an ONNX folder give the mask of ``sahfl predict`` where sahfl does not exist."""

import ast
import json
import re
import shlex

import nibabel
import numpy as np
import pytest
import torch
from harness.finished_run import phantom_hu, write_run, write_scan
from harness.tiny_study import TINY, changed
from harness.without_sahfl import TORCH, Elsewhere

import sahfl.unet
from sahfl.config import ViewsConfig
from sahfl.data.new_scan import read_new_scan
from sahfl.data.phantom import PROFILES, make_case
from sahfl.data.views import fuse, make_views, windows
from sahfl.export.folders import export
from sahfl.export.scripts import head_ct, predict_bundle, predict_onnx
from sahfl.export.scripts.head_ct import HeadCT
from sahfl.prediction.segment import read_networks, segment

IMAGE, _, AFFINE = phantom_hu()
METHOD = "cp_lora-r2"
STUDY = changed(
    TINY,
    views__weights={"axial": 1.0, "coronal": 0.5, "sagittal": 0.25},
    finetune__methods=[{"method": "cp_lora", "rank": 2}],
    evaluation__threshold=0.1,
)
FEW_VOXELS = 2
"""Other kernels round differently, so that voxels at the threshold may differ; with the pinned versions, none does."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run of two folds, its exports, and a scan whose axes are stored as most scanners do, with sahfl's own mask."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("alone")
    write_run(folder / "run", STUDY)
    list(export(folder / "run", folder / "to", ["bundle", "onnx"], method=METHOD))
    scan = write_scan(folder / "scan.nii.gz", IMAGE, AFFINE, "LPS")
    new, trained = read_new_scan(scan), read_networks(folder / "run", method=METHOD)
    found = segment(new, trained)
    expected = np.asarray(new.on_source(found.mask.astype(np.uint8)).dataobj)
    assert 0.005 < expected.mean() < 0.5
    return folder, scan, expected, found.volume_ml


def check_mask(path, exported):
    _, scan, expected, volume_ml = exported
    mask, source = nibabel.load(path), nibabel.load(scan)
    differing = int((np.asarray(mask.dataobj) != expected).sum())
    assert differing <= FEW_VOXELS
    np.testing.assert_array_equal(mask.affine, source.affine)
    for name in ("sform_code", "qform_code", "xyzt_units"):
        assert mask.header[name] == source.header[name]
    return volume_ml


def as_its_readme_says(elsewhere, folder, scan, mask):
    """What an export's first two commands print: ``pip install``, which leaves exactly its packages, and ``python``."""
    run = (folder / "README.md").read_text().partition("## Run")[2].strip("\n").partition("\n\n")[0]
    install, command = (shlex.split(line) for line in run.replace("\\\n", "").splitlines())
    assert (install[:2], command[0]) == (["pip", "install"], "python")
    elsewhere.keep_only(install[2:])
    places = {"scan.nii.gz": str(scan), "mask.nii.gz": str(mask)}
    arguments = [re.sub("|".join(places), lambda found: places[found[0]], part) for part in command[1:]]
    return elsewhere.run(*arguments, cwd=folder)


@pytest.mark.slow
def test_onnx_gives_the_mask_of_sahfl_predict_where_there_is_no_sahfl_and_no_torch(exported, tmp_path):
    elsewhere, folder = Elsewhere(tmp_path, hidden=(*TORCH, "scipy")), exported[0] / "to" / "onnx"
    for name in ("sahfl", "torch"):
        assert f"No module named '{name}'" in elsewhere.run("-c", f"import {name}", cwd=folder)[2]
    code, out, err = as_its_readme_says(elsewhere, folder, exported[1], tmp_path / "mask.nii.gz")
    assert code == 0, err
    volume_ml = check_mask(tmp_path / "mask.nii.gz", exported)
    assert abs(float(out.split()[0]) - volume_ml) < 0.2 * FEW_VOXELS
    assert "not a medical device" in out


@pytest.mark.slow
def test_a_bundle_gives_the_mask_of_sahfl_predict_where_there_is_no_sahfl(exported, tmp_path):
    elsewhere, folder = Elsewhere(tmp_path), exported[0] / "to" / "bundle"
    assert "No module named 'sahfl'" in elsewhere.run("-c", "import sahfl", cwd=folder)[2]
    code, out, err = as_its_readme_says(elsewhere, folder, exported[1], tmp_path / "mask.nii.gz")
    assert code == 0, err
    check_mask(tmp_path / "mask.nii.gz", exported)
    assert "mL of blood; for research use only" in out


@pytest.mark.slow
def test_the_scripts_give_the_same_mask_here(exported, tmp_path):
    folder, scan, _, volume_ml = exported
    by_onnx = predict_onnx.predict(scan, tmp_path / "onnx.nii.gz", folder / "to" / "onnx")
    root = folder / "to" / "bundle"
    arguments = json.loads((root / "configs" / "inference.json").read_text())["network_def"]
    arguments.pop("_target_")
    network = sahfl.unet.UNet(**arguments).eval()
    by_bundle = predict_bundle.predict(str(scan), str(tmp_path / "bundle.nii.gz"), network, str(root))
    assert by_onnx == pytest.approx(volume_ml, abs=0.2 * FEW_VOXELS)
    assert by_bundle == pytest.approx(volume_ml, abs=0.2 * FEW_VOXELS)
    check_mask(tmp_path / "onnx.nii.gz", exported)
    check_mask(tmp_path / "bundle.nii.gz", exported)


@pytest.mark.slow
def test_nothing_that_an_export_carries_imports_sahfl(exported):
    written = sorted((exported[0] / "to").rglob("*.py"))
    assert {path.name for path in written} == {"__init__.py", "head_ct.py", "predict.py", "unet.py"}
    for path in written:
        assert "sahfl" not in {name for node in ast.walk(ast.parse(path.read_text())) for name in imported(node)}, path


def imported(node):
    names = [item.name for item in node.names] if isinstance(node, ast.Import) else []
    return [name.partition(".")[0] for name in [*names, *([node.module] if isinstance(node, ast.ImportFrom) else [])]]


@pytest.mark.slow
def test_the_example_is_short(exported):
    for path in (exported[0] / "to").rglob("predict.py"):
        (predict,) = (n for n in ast.parse(path.read_text()).body if getattr(n, "name", "") == "predict")
        assert predict.end_lineno - predict.lineno < 25


@pytest.mark.slow
def test_the_instructions_and_the_settings_name_each_step_in_numbers(exported):
    to = exported[0] / "to"
    settings = json.loads((to / "onnx" / "preprocessing.json").read_text())
    assert (settings["axes"], settings["spacing_mm"], settings["size"]) == ("RAS+", 4.0, [48, 64, 48])
    assert (settings["weights"], settings["threshold"]) == (STUDY["views"]["weights"], 0.1)
    assert settings["networks"]["coronal"] == ["fold-0.onnx", "fold-1.onnx"]
    assert settings["channels"][:4] == [
        "slice -1, window 0 to 80 HU",
        "slice +0, window 0 to 80 HU",
        "slice +1, window 0 to 80 HU",
        "slice -1, window -20 to 180 HU",
    ]
    assert (settings["folds"], settings["method"], settings["part"]) == ([0, 1], METHOD, "whole")
    for form in ("onnx", "bundle"):
        text = (to / form / "README.md").read_text()
        assert all(f"   - {number}: {name}\n" in text for number, name in enumerate(settings["channels"]))
        for said in ("RAS+", "pixels of 4 mm", "axial 1, coronal 0.5, sagittal 0.25"):
            assert said in text
        assert "at least\n   0.1" in text
        assert "not a medical device" in text
        assert "nothing here needs sahfl" in text
        assert "{" not in text


# --- the way from a scan to slices and back ---------------------------------------------------------------------------

SCANS = {
    "as-trained": ((48, 56, 10), (4.0, 4.0, 12.0), {}),
    "fine": ((160, 180, 40), (1.1, 1.0, 3.7), {}),
    "coarser-than-the-grid": ((40, 44, 30), (5.0, 5.2, 5.0), {}),
    "high": ((48, 56, 60), (4.0, 4.0, 6.0), {"size": (48, 64, 32)}),
    "few-slices": ((48, 56, 6), (4.0, 4.0, 20.0), {}),
    "no-neighbours": ((60, 70, 20), (3.0, 3.0, 7.0), {"neighbours": 0, "spacing_mm": 3.1}),
}


def both(tmp_path, shape, spacing_mm, options):
    case = make_case(3, kind="sah", profile=PROFILES["standard"], shape=shape, spacing_mm=spacing_mm)
    path = write_scan(tmp_path / "scan.nii.gz", case.image.astype(np.int16), case.affine, "LAS")
    weights = {"axial": 1.0, "coronal": 0.5, "sagittal": 0.25}
    views = ViewsConfig(**({"spacing_mm": 4.0, "size": (48, 64, 48), "weights": weights} | options))
    settings = views.model_dump(mode="json") | {"air_hu": -1000.0, "head_hu": -300.0, "min_slices": 8}
    head = HeadCT(path, settings | {"bone": {"hu": 300, "mm2": 100.0}})
    return views, make_views(read_new_scan(path).scan, views), head


@pytest.mark.parametrize(("shape", "spacing_mm", "options"), SCANS.values(), ids=SCANS.keys())
def test_the_slices_and_the_fused_volume_are_those_of_sahfl(tmp_path, shape, spacing_mm, options):
    views, case, head = both(tmp_path, shape, spacing_mm, options)
    assert head.stacks.keys() == case.stacks.keys()
    for view, stack in case.stacks.items():
        differences = np.abs(head.stacks[view] - stack.image)
        assert (
            differences.max() <= 1
        )  # where torch multiplies and adds apart, a value midway between two whole HU differs
        assert (differences > 0).mean() < 1e-3
    random = np.random.default_rng(0)
    probabilities = {view: random.random(stack.shape, np.float32) for view, stack in head.stacks.items()}
    np.testing.assert_allclose(head.fuse(probabilities), fuse(probabilities, case, views), atol=1e-6)


def test_a_network_gets_each_slice_with_its_neighbours_and_nothing_without_head(tmp_path):
    _, _, head = both(tmp_path, (48, 56, 10), (4.0, 4.0, 12.0), {})
    head.stacks["axial"] = np.arange(10, dtype=np.float32)[:, None, None] + np.zeros((1, 16, 16), np.float32)
    head.stacks["axial"][4] = -1000.0
    seen = []

    def run(slabs):
        seen.extend(slabs[:, :, 0, 0].tolist())
        return np.zeros((len(slabs), 1, 16, 16), np.float32)

    probability = head.segment("axial", run)
    assert seen[:4] == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, -1000]]
    assert seen[-1] == [8, 9, 9]
    assert len(seen) == 9
    assert np.unique(probability[4]) == 0
    assert np.unique(probability[[3, 5]]) == 0.5


def test_the_windows_are_those_of_training():
    slabs = 500 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    windows_hu = ViewsConfig().windows_hu
    np.testing.assert_array_equal(head_ct.windows(slabs.numpy(), windows_hu), windows(slabs, windows_hu).numpy())


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED = {
    "no-volume": (IMAGE[..., 0], 1, r"got an image of shape \(48, 56\), expected a volume of three dimensions"),
    "windowed": (np.clip(IMAGE, 0, 80), 1, "got values from 0 to 80, expected a head CT in HU, from air to bone"),
    "nan": (np.where(IMAGE > 900, np.nan, IMAGE).astype(np.float32), 1, "expected a head CT in HU"),
    "no-orientation": (IMAGE, 0, "got neither sform nor qform, expected one: left and right are not known"),
}


@pytest.mark.parametrize(("image", "code", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_head_ct_is_refused_with_one_sentence(tmp_path, monkeypatch, capsys, image, code, message):
    made = nibabel.Nifti1Image(image, AFFINE)
    made.set_sform(AFFINE, code)
    nibabel.save(made, tmp_path / "scan.nii.gz")
    monkeypatch.setattr("sys.argv", ["predict.py", str(tmp_path / "scan.nii.gz"), str(tmp_path / "mask.nii.gz")])
    with pytest.raises(SystemExit) as ended:
        head_ct.command(lambda scan, mask: HeadCT(scan, {}))
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "mask.nii.gz").exists()
    with pytest.raises(ValueError, match=message):
        HeadCT(tmp_path / "scan.nii.gz", {})


def test_a_scan_of_too_few_slices_for_the_views_is_refused(tmp_path):
    with pytest.raises(ValueError, match="got a scan of 6 slices, expected 8 or more"):
        both_without_axial(tmp_path)


def both_without_axial(tmp_path):
    path = write_scan(tmp_path / "scan.nii.gz", IMAGE[:, :, 2:8], AFFINE)
    settings = {"spacing_mm": 4.0, "size": [48, 64, 48], "weights": {"coronal": 1.0}, "min_slices": 8}
    return HeadCT(path, settings | {"air_hu": -1000.0, "head_hu": -300.0, "bone": {"hu": 300, "mm2": 100.0}})


def test_the_script_explains_its_two_arguments(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["predict.py"])
    with pytest.raises(SystemExit) as ended:
        head_ct.command(lambda scan, mask: 0.0)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "usage: python predict.py SCAN.nii.gz MASK.nii.gz\n"
