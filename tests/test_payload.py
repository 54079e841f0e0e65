"""What arrives is exactly what was sent, or it is refused by name before anything uses it."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import sahfl
from sahfl.adapters import digest
from sahfl.errors import PayloadError
from sahfl.payload import MOST_VOLUMES, Header, check_header, check_training, layout, pack, unpack

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
STATES = st.dictionaries(
    st.text(min_size=1, max_size=5),
    arrays.arrays(np.float32, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3), elements=FINITE),
    max_size=4,
)


def a_state():
    return {
        "a.up": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b.down": np.arange(4, dtype=np.float32) - 7,
        "c.scale": np.full((2, 1), 0.1, np.float32),
    }


# --- round trip -----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(STATES)
def test_a_round_trip_is_exact_to_the_last_bit(state):
    again = unpack(pack(state).tobytes(), layout(state), like=state)
    assert layout(again) == layout(state)
    for name, value in state.items():
        assert again[name].dtype == np.float32
        assert again[name].tobytes() == value.tobytes()


def test_the_body_is_the_tensors_behind_one_another_little_endian():
    assert pack({"x": np.array([[1, 2]], np.float32), "a": np.array([-0.5], np.float32)}).tobytes() == bytes.fromhex(
        "0000803f 00000040 000000bf"
    )


def test_an_empty_state_has_an_empty_body():
    assert pack({}).tobytes() == b""
    assert unpack(b"", (), like={}) == {}


def test_what_was_unpacked_can_be_changed_without_changing_what_was_received():
    body = pack(a_state()).tobytes()
    first = unpack(body, layout(a_state()), like=a_state())
    first["a.up"][:] = 99
    assert (unpack(body, layout(a_state()), like=a_state())["a.up"] == a_state()["a.up"]).all()


def test_the_values_of_like_do_not_matter():
    zeros = {name: np.zeros_like(value) for name, value in a_state().items()}
    received = unpack(pack(a_state()).tobytes(), layout(a_state()), like=zeros)
    assert all((received[name] == value).all() for name, value in a_state().items())


# --- refusals -------------------------------------------------------------------------------------------------------

A, B, C = layout(a_state())
LAYOUTS = {
    "missing": ((A, C), "^tensor 'b.down' is missing$"),
    "extra": ((A, B, C, ("d.up", (1,))), "^unexpected tensor 'd.up'$"),
    "renamed": ((A, ("B.down", (4,)), C), "^tensor 'b.down' is missing$"),
    "reshaped": ((("a.up", (3, 2)), B, C), r"^tensor 'a.up': got shape \(3, 2\), expected \(2, 3\)$"),
    "would-broadcast": ((A, ("b.down", ()), C), r"^tensor 'b.down': got shape \(\), expected \(4,\)$"),
    "reordered": ((B, A, C), "^tensors are in another order or named twice$"),
    "named-twice": ((A, B, C, C), "^tensors are in another order or named twice$"),
    "empty": ((), "^tensor 'a.up' is missing$"),
    "long-name": ((A, B, C, ("x" * 10_000, (1,))), "^unexpected tensor 'x{120}'$"),
}


@pytest.mark.parametrize(("got", "message"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_another_layout_is_refused_naming_the_tensor(got, message):
    with pytest.raises(PayloadError, match=message):
        unpack(pack(a_state()).tobytes(), got, like=a_state())


@pytest.mark.parametrize("size", [0, 44, 47, 49, 96])
def test_a_body_of_another_size_is_refused_with_both_sizes(size):
    body = (pack(a_state()).tobytes() * 2)[:size]
    with pytest.raises(PayloadError, match=f"^body: got {size} bytes, expected 48$"):
        unpack(body, layout(a_state()), like=a_state())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "index"), [("a.up", (0, 0)), ("a.up", (1, 2)), ("b.down", 0), ("c.scale", (1, 0))])
def test_a_tensor_that_is_not_finite_is_refused_by_name(value, name, index):
    state = a_state()
    state[name][index] = value
    with pytest.raises(PayloadError, match=f"^'{name}': contains NaN or inf$"):
        unpack(pack(state).tobytes(), layout(state), like=a_state())


# --- header ---------------------------------------------------------------------------------------------------------

HEADER = Header(study="abc", stage="finetune", method="cp_lora-r8", fold=1, round=2, base="def")


def test_the_header_of_the_request_is_accepted():
    check_header(HEADER.as_dict(), HEADER)
    assert HEADER.as_dict()["sahfl"] == sahfl.__version__


CHANGED = {"study": "abd", "stage": "pretrain", "method": "full", "fold": 2, "round": 3, "base": "", "sahfl": "0.0"}


@pytest.mark.parametrize(("name", "value"), (CHANGED | {"schema": 2}).items())
def test_a_header_that_differs_is_refused_with_the_field_and_both_values(name, value):
    with pytest.raises(PayloadError, match=f"^{name}: got '{value}', expected {getattr(HEADER, name)!r}$"):
        check_header(HEADER.as_dict() | {name: value}, HEADER)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Header)])
def test_a_header_without_a_field_is_refused_naming_it(field):
    got = {name: value for name, value in HEADER.as_dict().items() if name != field}
    with pytest.raises(PayloadError, match=f"^{field}: got 'None', expected"):
        check_header(got, HEADER)


@pytest.mark.parametrize("value", [True, 1.0, "1"])
def test_an_equal_value_of_another_type_is_refused(value):
    with pytest.raises(PayloadError, match=r"^fold: got "):
        check_header(HEADER.as_dict() | {"fold": value}, HEADER)


def test_the_version_is_compared_first():
    with pytest.raises(PayloadError, match=r"^schema: got '2', expected 1$"):
        check_header(dict.fromkeys(HEADER.as_dict(), "x") | {"schema": 2}, HEADER)
    with pytest.raises(PayloadError, match=r"^sahfl: got 'x'"):
        check_header(dict.fromkeys(HEADER.as_dict(), "x") | {"schema": 1}, HEADER)


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(PayloadError, match=r"^study: got 'x{80}', expected 'abc'$"):
        check_header(HEADER.as_dict() | {"study": "x" * 10_000}, HEADER)


# --- what a site says of its training -------------------------------------------------------------------------------


@pytest.mark.parametrize("n_volumes", [1, MOST_VOLUMES])
def test_a_plausible_number_of_volumes_and_a_finite_loss_are_accepted(n_volumes):
    assert check_training(n_volumes, -0.25) == (n_volumes, -0.25)


@pytest.mark.parametrize(
    "n_volumes", [True, "3", 3.0, float("nan"), 0, -1, 10**12, MOST_VOLUMES + 1, None, [3]], ids=str
)
def test_another_number_of_volumes_is_refused(n_volumes):
    with pytest.raises(PayloadError, match=r"^n_volumes: got '.*', expected 1 to 1000000$"):
        check_training(n_volumes, 0.5)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf"), True, 1, "0.5", None], ids=str)
def test_a_loss_that_is_no_finite_number_is_refused(loss):
    with pytest.raises(PayloadError, match=r"^loss: got '.*', expected a finite number$"):
        check_training(3, loss)


# --- digest ---------------------------------------------------------------------------------------------------------


def test_a_digest_is_a_sha256_that_does_not_depend_on_the_order():
    backwards = dict(reversed(a_state().items()))
    assert digest(a_state()) == digest(backwards)
    assert len(bytes.fromhex(digest(a_state()))) == 32


def test_a_digest_does_not_depend_on_how_the_memory_lies():
    assert digest({"x": np.asfortranarray(a_state()["a.up"])}) == digest({"x": a_state()["a.up"]})


def test_a_digest_is_the_same_on_every_machine():
    # printf "(('a', (1,)),)\x00\x00\x80\x3f" | sha256sum
    expected = "cd2a65238522299b54f6daa634343527ee4f9f37b3a9fa40a51124837d6922b5"
    assert digest({"a": np.ones(1, np.float32)}) == expected


def test_a_digest_changes_with_a_name_a_shape_a_value_and_an_order_of_values():
    value = np.array([1, 2, 3, 4], np.float32)
    states = [
        {"a": value},
        {"b": value},
        {"a": value.reshape(2, 2)},
        {"a": np.nextafter(value, np.float32(9))},
        {"a": value[::-1]},
        {"a": value[:2], "b": value[2:]},
        {"b": value[:2], "a": value[2:]},
        {},
    ]
    assert len({digest(state) for state in states}) == len(states)


@settings(deadline=None)
@given(STATES)
def test_a_digest_survives_the_round_trip(state):
    assert digest(unpack(pack(state).tobytes(), layout(state), like=state)) == digest(state)
