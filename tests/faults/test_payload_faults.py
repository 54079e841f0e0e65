"""Hostile replies, by the ids of the fault list: typed errors or valid values, and nothing else."""

import random
import time
import tracemalloc
import warnings

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord

from sahfl.errors import PayloadError
from sahfl.federation import protocol
from sahfl.payload import Header

STATE = {"a.up": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "b": np.full(4, -0.5, np.float32)}
HEADER = Header(study="abc", stage="finetune", method="cp_lora-r2", fold=1, round=2, base="def")
ENCODINGS = ["float32", "float16", "int8"]


def reply(encoding="float32", header=HEADER, **numbers):
    numbers = {"n_volumes": 7, "loss": 0.25, "seconds": 1.5} | numbers
    return protocol.train_reply(header, STATE, encoding=encoding, **numbers)


def read(content, encoding="float32"):
    return protocol.read_train_reply(content, header=HEADER, like=STATE, most_volumes=7, encoding=encoding)


def is_valid(got):
    same = [(name, value.shape) for name, value in got.state.items()] == [(n, v.shape) for n, v in STATE.items()]
    finite = all(value.dtype == np.float32 and np.isfinite(value).all() for value in got.state.values())
    return same and finite and 1 <= got.n_volumes <= 7 and np.isfinite([got.loss, got.seconds]).all()


# --- B02, B03, B05 --------------------------------------------------------------------------------------------

OTHER_STATES = {
    "would-broadcast": ({"a.up": np.ones((1, 3), np.float32), "b": STATE["b"]}, r"'a.up': got shape \(1, 3\)"),
    "scalar": ({"a.up": STATE["a.up"], "b": np.float32(1).reshape(())}, r"tensor 'b': got shape \(\)"),
    "rank": ({"a.up": np.ones((2, 4), np.float32), "b": STATE["b"]}, r"'a.up': got shape \(2, 4\), expected \(2, 3\)"),
    "transposed": ({"a.up": STATE["a.up"].T, "b": STATE["b"]}, r"tensor 'a.up': got shape \(3, 2\)"),
    "missing": ({"b": STATE["b"]}, "tensor 'a.up' is missing"),
    "renamed": ({"a.UP": STATE["a.up"], "b": STATE["b"]}, "tensor 'a.up' is missing"),
    "extra": (STATE | {"c": np.ones(1, np.float32)}, "unexpected tensor 'c'"),
    "other-order": (dict(reversed(STATE.items())), "tensors are in another order or named twice"),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("state", "message"), OTHER_STATES.values(), ids=OTHER_STATES.keys())
def test_B02_another_state_is_refused_naming_the_tensor(state, message, encoding):
    content = protocol.train_reply(HEADER, state, n_volumes=7, loss=0.25, seconds=1.5, encoding=encoding)
    with pytest.raises(PayloadError, match=message):
        read(content, encoding)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int8", "int32", "object", ""])
def test_B02_another_type_is_refused(dtype):
    content = reply()
    content["state"] = ArrayRecord({"flat": Array(dtype, (10,), "raw.little-endian", bytes(40))})
    with pytest.raises(PayloadError, match=f"^arrays: got {dtype} as raw.little-endian, expected float32"):
        read(content)


@pytest.mark.parametrize("n_volumes", [0, -7, float("nan"), 10**12, 8, 7.0, 2**62], ids=str)
def test_B03_a_number_of_volumes_that_cannot_be_is_refused(n_volumes):
    with pytest.raises(PayloadError, match=r"^n_volumes: got "):
        read(reply(n_volumes=n_volumes))


def test_B03_a_number_of_volumes_in_words_is_refused():
    content = reply()
    del content["metrics"]
    content["metrics"] = ConfigRecord({"n_volumes": "7", "loss": 0.25, "seconds": 1.5})
    with pytest.raises(PayloadError, match=r"^n_volumes: got 'None'"):
        read(content)


OTHERS = {"round": 1, "fold": 0, "study": "another run", "base": "fed", "stage": "pretrain", "method": "full"}


@pytest.mark.parametrize(("field", "value"), OTHERS.items())
def test_B05_a_replay_or_an_update_for_something_else_is_refused_by_the_field(field, value):
    header = Header(**{**HEADER.as_dict(), field: value})
    with pytest.raises(PayloadError, match=f"^{field}: got '{value}', expected {getattr(HEADER, field)!r}$"):
        read(reply(header=header))


# --- B06 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_B06_absurd_sizes_are_refused_in_bounded_memory(encoding):
    oversize, declared, many = (reply(encoding) for _ in range(3))
    oversize["state"] = ArrayRecord({"flat": Array(encoding, (2**24,), "raw.little-endian", bytes(2**26))})
    declared["state"] = ArrayRecord({"flat": Array(encoding, (10**12,), "raw.little-endian", bytes(40))})
    many["layout"].update({"names": [f"t{i}" for i in range(10**6)], "shapes": ["1"] * 10**6})
    tracemalloc.start()
    try:
        for content in (oversize, declared, many):
            with pytest.raises(PayloadError):
                read(content, encoding)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# --- B07: ten thousand replies ----------------------------------------------------------------------------------

VALUES = [
    0,
    -1,
    7,
    2**63 - 1,
    10**12,
    0.0,
    -0.5,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "x",
    "2,3",
    "-1",
    b"",
    b"\x80\x04",
]
VALUES += [True, [], [0], [1.0, 1.0], ["a.up", "b"], ["2,3", "4"], ["9" * 5000, "4"], ["1e3", "4"], [b"a", b"b"]]
NUMBERS = [value for value in VALUES if type(value) in (int, float)]


def flipped(content, rng):
    """A body with some bytes changed, cut or added."""
    array = content["state"]["flat"]
    body = bytearray(array.data)
    for _ in range(rng.randint(0, 4)):
        body[rng.randrange(len(body))] = rng.randrange(256)
    body = body[: rng.randrange(len(body))] if rng.random() < 0.2 else body + bytes(rng.choice([0, 0, 0, 1, 40]))
    shape = rng.choice([array.shape, array.shape, (len(body),), (-1,), (10**12,), (2, 5), ()])
    dtype = rng.choice([array.dtype, array.dtype, array.dtype, *ENCODINGS, "object"])
    stype = rng.choice([array.stype, array.stype, array.stype, "numpy.ndarray", "pickle"])
    content["state"] = ArrayRecord({rng.choice(["flat", "flat", "x"]): Array(dtype, shape, stype, bytes(body))})


def retyped(content, rng):
    """A value of a record in another type, gone, or under another name."""
    name = rng.choice([name for name in content if name != "state"])
    record, values = content[name], NUMBERS if name == "metrics" else VALUES
    key = rng.choice([*record, "case"])
    if rng.random() < 0.2:
        record.pop(key, None)
    else:
        record[key] = rng.choice(values)


def swapped(content, rng):
    """A record in the place of another, gone, or one too many."""
    one, other = rng.choice(list(content)), rng.choice([*content, "cases"])
    first, second = content.pop(one), content.pop(other, None)
    if rng.random() < 0.7:
        content[other] = first
    if second is not None and rng.random() < 0.7:
        content[one] = second


def shuffled(content, rng):
    """Names, shapes or steps repeated, in another order, or with letters changed."""
    record = content["layout"]
    key = rng.choice(list(record))
    values = list(record[key]) * rng.choice([1, 1, 2, 0])
    rng.shuffle(values)
    if values and key != "steps":
        values[0] = values[0].replace(rng.choice("ab.123,"), rng.choice(["", "0", "-", "\u0663", " "]))
    elif values:
        values[0] = rng.choice([float("nan"), -1.0, 1e38, 1e-45, 2.0])
    record[key] = values


def fuzzed(encoding, rng):
    content = reply(encoding)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        change = rng.choice([flipped, retyped, swapped, shuffled])
        if isinstance(content.get("layout"), ConfigRecord) and isinstance(content.get("state"), ArrayRecord):
            if change is flipped and "flat" not in content["state"]:
                continue
            if change is shuffled and not all(isinstance(v, list) for v in content["layout"].values()):
                continue
            try:
                change(content, rng)
            except (TypeError, ValueError, AttributeError, IndexError):  # the engine's own records refuse it first
                continue
    return content


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_B07_of_ten_thousand_fuzzed_replies_each_is_refused_or_valid(encoding):
    rng, refused, valid, began = random.Random(7), 0, 0, time.monotonic()
    for _ in range(3400):
        content = fuzzed(encoding, rng)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                got = read(content, encoding)
        except PayloadError as error:
            refused += 1
            assert len(str(error)) < 400  # noqa: PT017  # no message grows with what was sent
            continue
        assert is_valid(got)
        valid += 1
    assert refused > 1500
    assert valid > 100
    assert time.monotonic() - began < 60
