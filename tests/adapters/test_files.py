import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from sahfl.adapters import files
from sahfl.adapters.files import MOST_TENSORS, load_tensors, save_tensors
from sahfl.errors import AdapterError

NOTE = {"round": 3, "sites": ["bern", "linz"], "method": "cp_lora"}


def a_state():
    random = np.random.default_rng(0)
    return {
        "up": random.normal(size=(4, 3)).astype(np.float32),
        "down": random.normal(size=(2, 3, 3)).astype(np.float32),
        "scale": np.float32(2).reshape(()),
        "empty": np.zeros((0, 3), np.float32),
    }


def test_what_is_saved_is_what_is_loaded_in_alphabetical_order(tmp_path):
    save_tensors(tmp_path / "a", a_state(), NOTE)
    loaded, note = load_tensors(tmp_path / "a")
    assert note == NOTE
    assert list(loaded) == ["down", "empty", "scale", "up"]
    for name, value in a_state().items():
        assert (loaded[name].shape, loaded[name].dtype) == (value.shape, np.float32)
        np.testing.assert_array_equal(loaded[name], value)


def test_a_file_without_a_note_has_an_empty_one(tmp_path):
    save_tensors(tmp_path / "a", a_state())
    assert load_tensors(tmp_path / "a")[1] == {}


def test_equal_states_and_notes_give_equal_bytes_whatever_their_order_and_memory(tmp_path):
    one = a_state()
    other = {name: np.array(value, order="F") for name, value in reversed(a_state().items())}
    save_tensors(tmp_path / "one", one, NOTE)
    save_tensors(tmp_path / "other", other, dict(reversed(NOTE.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


@pytest.mark.parametrize("change", ["value", "name", "note"])
def test_another_state_or_note_gives_other_bytes(tmp_path, change):
    state, note = a_state(), dict(NOTE)
    save_tensors(tmp_path / "one", state, note)
    match change:
        case "value":
            state["up"][0, 0] += 1
        case "name":
            state["UP"] = state.pop("up")
        case "note":
            note["round"] = 4
    save_tensors(tmp_path / "other", state, note)
    assert (tmp_path / "one").read_bytes() != (tmp_path / "other").read_bytes()


class Trap:
    """Unpickling this leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_a_pickle_is_refused_and_never_unpickled(tmp_path, write):
    with (tmp_path / "a").open("wb") as stream:
        write(Trap(tmp_path / "sprung"), stream)
    with pytest.raises(AdapterError, match="a: is damaged or not safetensors"):
        load_tensors(tmp_path / "a")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("dtype", ["float16", "float64", "int64", "bool"])
def test_another_type_than_float32_is_refused_naming_tensor_and_type(tmp_path, dtype):
    (tmp_path / "a").write_bytes(save({"fine": np.zeros(2, np.float32), "odd": np.zeros(2, dtype)}))
    with pytest.raises(AdapterError, match=f"a: tensor 'odd' is {dtype}, expected float32"):
        load_tensors(tmp_path / "a")


def raw_file(path, header, body=bytes(4)):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def test_a_type_that_numpy_does_not_have_is_refused(tmp_path):
    path = raw_file(tmp_path / "a", {"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}})
    with pytest.raises(AdapterError, match="a: holds tensors of type BF16, expected float32"):
        load_tensors(path)


ONE_TENSOR = {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}


@pytest.mark.parametrize("note", ["{", "[1]", "null", "[" * 100_000], ids=["not-json", "list", "null", "deep"])
def test_a_note_that_is_no_mapping_is_refused(tmp_path, note):
    path = raw_file(tmp_path / "a", ONE_TENSOR | {"__metadata__": {"sahfl": note}})
    with pytest.raises(AdapterError, match="is damaged or not safetensors"):
        load_tensors(path)


def test_a_file_of_another_program_has_an_empty_note(tmp_path):
    for metadata in ({"__metadata__": None}, {"__metadata__": {"format": "pt"}}, {}):
        assert load_tensors(raw_file(tmp_path / "a", ONE_TENSOR | metadata))[1] == {}


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    save_tensors(tmp_path / "whole", a_state(), NOTE)
    content = (tmp_path / "whole").read_bytes()
    for length in range(len(content)):
        (tmp_path / "part").write_bytes(content[:length])
        with pytest.raises(AdapterError, match="part: is damaged or not safetensors"):
            load_tensors(tmp_path / "part")


def test_a_longer_file_is_refused(tmp_path):
    save_tensors(tmp_path / "a", a_state())
    with (tmp_path / "a").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(AdapterError, match="is damaged"):
        load_tensors(tmp_path / "a")


@pytest.mark.parametrize(("name", "reason"), [("no", "No such file"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read_is_refused_with_the_systems_reason(tmp_path, name, reason):
    with pytest.raises(AdapterError, match=reason):
        load_tensors(tmp_path / name)


def test_tensors_are_counted_before_they_are_made(tmp_path, monkeypatch):
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(f'"{n}":{entry}' for n in range(300_000)) + "}").encode()
    monkeypatch.setattr(json, "loads", None)
    (tmp_path / "many").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(AdapterError, match=f"many: holds 300000 tensors, expected at most {MOST_TENSORS}"):
        load_tensors(tmp_path / "many")


@pytest.mark.parametrize(
    "entry",
    [
        '"{}":{{"\\u0064type":"F32","shape":[0],"data_offsets":[0,0]}}',
        '"{}\\\\" : {{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
        '"{}\\"{{" :\n{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
    ],
    ids=["escaped-type", "name-with-backslash", "name-with-quote"],
)
def test_tensors_are_counted_however_their_header_is_written(tmp_path, monkeypatch, entry):
    monkeypatch.setattr(files, "MOST_TENSORS", 10)
    for n, count in ((12, 12), (10, None)):
        header = ("{" + ",".join(entry.format(k) for k in range(n)) + "}").encode()
        (tmp_path / "many").write_bytes(len(header).to_bytes(8, "little") + header)
        if count is None:
            assert len(load_tensors(tmp_path / "many")[0]) == n
        else:
            with pytest.raises(AdapterError, match=f"holds {count} tensors, expected at most 10"):
                load_tensors(tmp_path / "many")


def test_a_note_of_many_parts_is_no_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_TENSORS", 10)
    note = {str(n): {"a\\": {"b": 1}, 'x"': {}} for n in range(100)}
    save_tensors(tmp_path / "a", a_state(), note)
    assert load_tensors(tmp_path / "a")[1] == note


@pytest.mark.parametrize("header", [b"[]", b"1", b'"a"', b"null", b"[" * 100_000])
def test_a_header_that_is_no_mapping_is_refused(tmp_path, header):
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(AdapterError, match="is damaged or not safetensors"):
        load_tensors(tmp_path / "a")


def test_a_device_or_a_pipe_in_the_place_of_tensors_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "pipe"), (Path("/dev/zero"), "device")):
        with pytest.raises(AdapterError, match=f"is a {kind}, expected a regular file"):
            load_tensors(path)
