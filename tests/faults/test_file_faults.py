"""Damaged and hostile files, by the ids of the fault list: typed errors, and no pickle is ever executed."""

import json
import pickle
import random
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from sahfl.adapters import digest
from sahfl.adapters.files import load_tensors, save_tensors
from sahfl.adapters.folder import CONFIG, TENSORS, AdapterNote, read_adapter
from sahfl.config import load_site, load_study
from sahfl.data.ct import read_scan
from sahfl.data.manifest import Case, read_datalist
from sahfl.errors import AdapterError, ConfigError, DataError, PayloadError, RunError
from sahfl.federation import protocol
from sahfl.payload import Header
from sahfl.report.page import write_report
from sahfl.run.folder import Checkpoint, RunFolder

STATE = {"a.up": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "b": np.full(4, -0.5, np.float32)}
ROOT = Path(__file__).parents[2]


# --- B07: files -------------------------------------------------------------------------------------------------


def damaged(content, rng):
    """A file's bytes with some changed, cut out, doubled or added."""
    body = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(body))
        match rng.randrange(5):
            case 0:
                body[at] = rng.randrange(256)
            case 1:
                del body[at : at + rng.randint(1, 20)]
            case 2:
                body[at:at] = rng.choice(
                    [b"\x00", b"'", b"{", b"[[", b"- ", b": ", b"1e999", b"NaN", b"-1", b"null", b"&a *a"]
                )
            case 3:
                body[at:at] = body[at : at + rng.randint(1, 60)]
            case _:
                del body[at:]
        body = body or bytearray(b" ")
    return bytes(body)


def survives(path, content, action, error, times=300):
    """Run ``action`` on damaged copies; only ``error`` may escape."""
    rng, refused, began = random.Random(11), 0, time.monotonic()
    for _ in range(times):
        path.write_bytes(damaged(content, rng))
        try:
            action()
        except error:
            refused += 1
    assert refused > times // 10
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("name", ["demo.yaml", "real.yaml"])
def test_B07_a_damaged_study_file_ends_in_a_config_error(tmp_path, name):
    path = tmp_path / "study.yaml"
    survives(path, (ROOT / "configs" / name).read_bytes(), lambda: load_study(path), ConfigError, times=100)


def test_B07_a_damaged_site_file_ends_in_a_config_error(tmp_path):
    path = tmp_path / "site.yaml"
    survives(path, (ROOT / "configs" / "site.example.yaml").read_bytes(), lambda: load_site(path), ConfigError)


def test_B07_a_damaged_datalist_ends_in_a_data_error(tmp_path):
    cases = [{"image": f"i{i}.nii.gz", "label": f"l{i}.nii.gz", "patient": f"p{i}", "fold": i % 2} for i in range(4)]
    path = tmp_path / "datalist.json"
    content = json.dumps({"sites": {"bern": cases}, "training": cases}).encode()
    survives(path, content, lambda: read_datalist(path, "bern"), DataError)


def test_B07_a_damaged_nifti_header_ends_in_a_data_error(tmp_path):
    image, label = tmp_path / "image.nii", tmp_path / "label.nii"
    volume = np.arange(4 * 5 * 3, dtype=np.int16).reshape(4, 5, 3)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1, -1, 5, 1.0])), image)
    nibabel.save(nibabel.Nifti1Image((volume > 30).astype(np.uint8), np.diag([-1, -1, 5, 1.0])), label)
    content, rng, began, refused = image.read_bytes(), random.Random(3), time.monotonic(), 0
    for _ in range(400):
        body = bytearray(content)
        for _ in range(rng.randint(1, 6)):
            body[rng.randrange(352)] = rng.randrange(256)
        image.write_bytes(bytes(body))
        try:
            scan = read_scan(Case(id="bern-1", patient="p", image=image, label=label))
        except DataError:
            refused += 1
        else:
            assert np.isfinite(scan.image).all()
            assert scan.image.shape == scan.label.shape
    assert refused > 100
    assert time.monotonic() - began < 60


def test_B07_a_damaged_results_file_ends_in_a_run_error_or_a_data_error(tmp_path):
    path, content = (
        tmp_path / "results.json",
        {"schema": 3, "study": {"name": "x", "folds": 3}, "methods": [{"dice": 0.5}]},
    )

    def report():
        found = RunFolder(tmp_path).read_json("results.json")
        if isinstance(found, dict):
            write_report(found, tmp_path / "report")

    survives(path, json.dumps(content).encode(), report, (RunError, DataError))
    assert not (tmp_path / "report").exists()


def an_adapter(folder):
    method = {"method": "cp_lora", "rank": 2}
    note = AdapterNote.model_validate(
        {"method": method, "adapted": (), "over_full_rank": (), "without_magnitude": (), "weights": ()}
        | {"base_sha256": "0" * 64, "sha256": digest(STATE), "parameters": 10}
    )
    folder.mkdir(exist_ok=True)
    save_tensors(folder / TENSORS, STATE)
    (folder / CONFIG).write_text(json.dumps({"sahfl": note.model_dump(mode="json")}))
    return folder


def test_B07_a_damaged_adapter_folder_ends_in_an_adapter_error(tmp_path):
    folder = an_adapter(tmp_path / "adapter")
    assert read_adapter(folder).state.keys() == STATE.keys()
    for name in (CONFIG, TENSORS):
        whole = (folder / name).read_bytes()
        survives(folder / name, whole, lambda: read_adapter(folder), AdapterError)
        (folder / name).write_bytes(whole)


# --- B08 --------------------------------------------------------------------------------------------------------


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def pickles(target):
    """The same bomb as a pickle, in torch's and in numpy's files."""
    return {
        "pickle": lambda path: path.write_bytes(pickle.dumps(Bomb(target))),
        "torch": lambda path: torch.save({"a": Bomb(target)}, path),
        "npy": lambda path: save_npy(path, Bomb(target)),
    }


def save_npy(path, value):
    with path.open("wb") as stream:
        np.save(stream, np.array([value], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("kind", ["pickle", "torch", "npy"])
def test_B08_a_pickle_is_never_executed(tmp_path, kind):
    target = tmp_path / "executed"
    write = pickles(target)[kind]
    folder, run = an_adapter(tmp_path / "adapter"), tmp_path / "run"
    for name in (TENSORS, CONFIG):
        whole = (folder / name).read_bytes()
        write(folder / name)
        with pytest.raises(AdapterError):
            read_adapter(folder)
        (folder / name).write_bytes(whole)
    for name in ("adapter.pt", "state.npy", "last.ckpt"):
        write(tmp_path / name)
        with pytest.raises(AdapterError, match="is damaged or not safetensors"):
            load_tensors(tmp_path / name)
    run.mkdir()
    journal = RunFolder(run)
    for round_ in (1, 2):
        journal.commit("cell", Checkpoint(round_, STATE, {"event": "checkpoint", "round": round_}))
    write(sorted((run / "state" / "cell").iterdir())[-1])
    assert journal.last_checkpoint("cell").round == 1
    header = Header(study="abc", stage="finetune", method="cp_lora-r2", fold=1, round=2, base="def")
    content = protocol.train_reply(header, STATE, n_volumes=7, loss=0.25, seconds=1.5)
    content["state"] = ArrayRecord(
        {"flat": Array("float32", (1,), "numpy.ndarray", (tmp_path / "state.npy").read_bytes())}
    )
    with pytest.raises(PayloadError, match=r"as numpy.ndarray, expected float32 as raw.little-endian"):
        protocol.read_train_reply(content, header=header, like=STATE, most_volumes=7)
    assert not target.exists()
    pickle.loads(pickle.dumps(Bomb(target)))  # the bomb does go off where something unpickles it
    assert target.exists()
