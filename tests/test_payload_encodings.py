"""Rounded numbers on the wire: how far they may be off, and what is refused before anything is made of it."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sahfl.errors import PayloadError
from sahfl.payload import LEAST_STEP, layout, pack, steps, unpack


def states(elements):
    values = arrays.arrays(np.float32, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0), elements=elements)
    return st.dictionaries(st.text(min_size=1, max_size=5), values, max_size=4)


ANY = states(st.floats(allow_nan=False, allow_infinity=False, width=32))
LARGEST = 2.0**127 * 1.5
FITTING = states(st.floats(-LARGEST, LARGEST, width=32))
SMALL = states(st.floats(-65504, 65504, width=32))


def round_trip(state, encoding):
    body = pack(state, encoding).tobytes()
    return unpack(body, layout(state), like=state, encoding=encoding, tensor_steps=steps(state))


def doubles(state):
    return [value.astype(np.float64) for value in state.values()]


# --- how far off ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(SMALL)
def test_half_precision_is_off_by_a_2048th_of_each_number(state):
    for value, found in zip(doubles(state), doubles(round_trip(state, "float16")), strict=True):
        assert (np.abs(found - value) <= np.maximum(2.0**-11 * np.abs(value), 2.0**-25)).all()


@settings(deadline=None)
@given(FITTING)
@example({"a": np.full(2, 190 * 2.0**-149, np.float32)})  # a step of 1.5 times the smallest number there is
@example({"a": np.array([3.3e38, -3.3e38, 1.0], np.float32)})
def test_int8_is_off_by_half_a_step(state):
    for value, found, step in zip(doubles(state), doubles(round_trip(state, "int8")), steps(state), strict=True):
        rounding = 2.0**-22 * np.abs(value)
        assert (np.abs(found - value) <= np.maximum(step / 2, 2.0**-119) + rounding).all()


@settings(deadline=None)
@given(ANY, st.sampled_from(["float32", "float16", "int8"]))
def test_what_arrives_has_names_order_shapes_and_type_of_like_and_is_finite(state, encoding):
    refused = ""
    try:
        found = round_trip(state, encoding)
    except PayloadError as error:
        refused = str(error)
    if refused:
        assert f"too large for {encoding}" in refused
        return
    assert layout(found) == layout(state)
    assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in found.values())


@settings(deadline=None)
@given(FITTING)
def test_a_state_that_was_rounded_is_not_rounded_again(state):
    once = round_trip(state, "int8")
    twice = round_trip(once, "int8")
    for first, second, step in zip(doubles(once), doubles(twice), steps(state), strict=True):
        assert (np.abs(first - second) <= 1e-5 * step * 127).all()


def test_int8_by_hand():
    state = {"a": np.array([127.0, -63.5, 0.6, 0.4], np.float32), "b": np.zeros((2, 0), np.float32)}
    assert steps(state) == (1.0, 0.0)
    assert pack(state, "int8").tolist() == [127, -64, 1, 0]


def test_a_tensor_of_almost_zeros_has_step_zero_and_arrives_as_zeros():
    state = {"a": np.full(3, 100 * LEAST_STEP, np.float32), "b": np.zeros(2, np.float32)}
    assert steps(state) == (0.0, 0.0)
    assert not any(value.any() for value in round_trip(state, "int8").values())


@pytest.mark.parametrize(("encoding", "size"), [("float32", 40), ("float16", 20), ("int8", 10)])
def test_the_size_of_a_body_is_that_of_its_numbers(encoding, size):
    state = {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)}
    assert len(pack(state, encoding).tobytes()) == size
    assert len(pack({}, encoding).tobytes()) == 0


# --- refusals -------------------------------------------------------------------------------------------------------

LIKE = {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65520.0])
def test_numbers_that_half_precision_cannot_hold_are_not_sent(value):
    state = {"a": LIKE["a"], "b": np.array([1, 2, value, 3], np.float32)}
    with pytest.raises(PayloadError, match=r"^'b': has a number too large for float16$"):
        pack(state, "float16")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.39e38])
def test_numbers_that_int8_cannot_hold_are_not_sent(value):
    with pytest.raises(PayloadError, match=r"^'b': has a number too large for int8$"):
        pack(LIKE | {"b": np.array([1, 2, value, 3], np.float32)}, "int8")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_half_precision_that_is_not_finite_is_refused_by_name(value):
    body = np.ones(10, "<f2")
    body[7] = value
    with pytest.raises(PayloadError, match=r"^'b': contains NaN or inf$"):
        unpack(body.tobytes(), layout(LIKE), like=LIKE, encoding="float16")


@pytest.mark.parametrize("encoding", ["float32", "float16", "int8"])
@pytest.mark.parametrize("off", [-10, -1, 1, 10_000])
def test_B06_a_body_of_another_size_is_refused(encoding, off):
    body = pack(LIKE, encoding).tobytes()
    body = body[:off] if off < 0 else body + bytes(off)
    with pytest.raises(PayloadError, match=f"^body: got {len(body)} bytes, expected {len(body) - off}$"):
        unpack(body, layout(LIKE), like=LIKE, encoding=encoding, tensor_steps=steps(LIKE))


STEPS = {
    "none": ((), "^steps: got 0, expected one for each of 2 tensors$"),
    "too-many": ((1.0, 1.0, 1.0), "^steps: got 3, expected one for each of 2 tensors$"),
    "negative": ((1.0, -1.0), "^'b': got step '-1.0', expected a finite number of 0 or more$"),
    "nan": ((1.0, float("nan")), "^'b': got step 'nan'"),
    "infinite": ((float("inf"), 1.0), "^'a': got step 'inf'"),
    "overflows": ((2.7e36, 1.0), "^'a': got step '2.7e\\+36'"),
    "whole-number": ((1, 1.0), "^'a': got step '1'"),
    "text": ((1.0, "1.0"), "^'b': got step '1.0'"),
    "truth": ((True, 1.0), "^'a': got step 'True'"),
    "huge-number": ((10**5000, 1.0), "^'a': got step 'a huge number'"),
}


@pytest.mark.parametrize(("found", "message"), STEPS.values(), ids=STEPS.keys())
def test_steps_that_are_no_steps_are_refused_by_name(found, message):
    with pytest.raises(PayloadError, match=message):
        unpack(bytes(10), layout(LIKE), like=LIKE, encoding="int8", tensor_steps=found)


def test_the_largest_step_and_the_lowest_number_are_finite():
    step = float(np.finfo(np.float32).max) / 128
    found = unpack(b"\x80" * 10, layout(LIKE), like=LIKE, encoding="int8", tensor_steps=(step, step))
    assert all(np.isfinite(value).all() for value in found.values())


BAD = {
    "shape": ((*layout(LIKE)[:1], ("b", (10**12,))), 10, "tensor 'b': got shape"),
    "many-tensors": (tuple((f"t{i}", (1,)) for i in range(50_000)), 10, "tensor 'a' is missing"),
    "oversize": (layout(LIKE), 10**6, "body: got"),
    "steps": (layout(LIKE), 10, "steps: got 0"),
}


@pytest.mark.parametrize(("got", "size", "message"), BAD.values(), ids=BAD.keys())
def test_B06_nothing_is_allocated_before_everything_was_compared(got, size, message):
    body, like = bytes(size), {name: np.zeros(value.shape, np.float32) for name, value in LIKE.items()}
    allowed = 200 * len(got) + 20_000
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError, match="^" + message):
            unpack(body, got, like=like, encoding="int8")
        assert tracemalloc.get_traced_memory()[1] < allowed
    finally:
        tracemalloc.stop()
