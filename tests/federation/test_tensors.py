"""States in messages, in all three encodings; a layout of absurd length is refused by its start."""

import tracemalloc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from sahfl.errors import PayloadError
from sahfl.federation.tensors import LONGEST_SHAPE, RAW, flat_array, read_state, state_records
from sahfl.payload import Header

STATE = {"a.up": np.array([[0.5, -0.25], [1.0, 0.0]], np.float32), "b": np.array(2.0, np.float32)}
HEADER = Header(study="abc", stage="finetune", method="cp_lora-r2", fold=1, round=2, base="def")
ENCODINGS = ["float32", "float16", "int8"]
MILLION = 1_000_000


def message(encoding="float32", **changed):
    content = RecordDict(state_records(HEADER, STATE, encoding))
    content["layout"] = ConfigRecord({**content["layout"], **changed})
    return content


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_state_arrives_in_each_encoding(encoding):
    found = read_state(message(encoding), like=STATE, encoding=encoding)
    assert list(found) == list(STATE)
    for name, value in STATE.items():
        assert found[name].shape == value.shape
        np.testing.assert_allclose(found[name], value, atol=1 / 254)


@pytest.mark.parametrize("sent", ENCODINGS)
@pytest.mark.parametrize("agreed", ENCODINGS)
def test_another_encoding_than_agreed_is_refused_whatever_the_sender_says(sent, agreed):
    if sent == agreed:
        return
    with pytest.raises(PayloadError, match=f"^arrays: got {sent} as raw.little-endian, expected {agreed} as"):
        read_state(message(sent), like=STATE, encoding=agreed)


def test_steps_belong_to_int8_and_to_nothing_else():
    for encoding in ("float32", "float16"):
        with pytest.raises(PayloadError, match=r"^layout: expected names and shapes, and in int8 steps, and nothing"):
            read_state(message(encoding, steps=[1.0, 1.0]), like=STATE, encoding=encoding)
    content = message("int8")
    del content["layout"]["steps"]
    with pytest.raises(PayloadError, match=r"^layout: expected names and shapes, and in int8 steps, and nothing"):
        read_state(content, like=STATE, encoding="int8")


LAYOUTS = {
    "names": ({"names": ["t"] * MILLION, "shapes": ["1"] * MILLION}, "tensor 'a.up' is missing"),
    "right-ones-first": (
        {"names": ["a.up", "b"] + ["t"] * (MILLION - 2), "shapes": ["2,2", ""] + ["1"] * (MILLION - 2)},
        "unexpected tensor 't'",
    ),
    "right-ones-last": (
        {"names": ["t"] * (MILLION - 2) + ["a.up", "b"], "shapes": ["1"] * (MILLION - 2) + ["2,2", ""]},
        "tensor 'a.up' is missing",
    ),
    "axes": ({"shapes": ["1," * (LONGEST_SHAPE * 50), ""]}, r"tensor 'a.up': got shape \(1, 1, "),
    "size": ({"shapes": [str(10**12), ""]}, r"tensor 'a.up': got shape \(1000000000000,\), expected \(2, 2\)"),
}


@pytest.mark.parametrize(("changed", "text"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_B06_a_layout_of_absurd_length_is_refused_in_bounded_memory(changed, text):
    content = message(**changed)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError, match="^" + text) as info:
            read_state(content, like=STATE)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert len(str(info.value)) < 300


def test_B06_a_million_steps_are_refused_by_their_number():
    with pytest.raises(PayloadError, match=r"^steps: got 1000000, expected one for each of 2 tensors$"):
        read_state(message("int8", steps=[1.0] * MILLION), like=STATE, encoding="int8")


@pytest.mark.parametrize(("dtype", "size"), [("uint32", 4), ("uint64", 8), ("float64", 8)])
@pytest.mark.parametrize("more", [-1, 1, 3])
def test_bytes_that_are_no_whole_number_of_elements_are_refused(dtype, size, more):
    content = RecordDict({"sums": ArrayRecord({"flat": Array(dtype, (5,), RAW, bytes(5 * size + more))})})
    with pytest.raises(PayloadError, match="expected as many as the declared shape needs"):
        flat_array(content, "sums", dtype=dtype)
