import numpy as np
import pytest
import torch
from torch import nn

from sahfl.adapters import exchanged
from sahfl.errors import AdapterError


def small_net():
    """Two layers: the weight of one and both tensors of the other are exchanged."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"b": nn.Linear(3, 2), "a": nn.Linear(2, 4)})
    exchanged.declare(net["b"], ("weight",))
    exchanged.declare(net["a"], ("weight", "bias"))
    return net


def a_state(**changes):
    return {
        "a.bias": np.arange(4, dtype=np.float32),
        "a.weight": np.arange(8, dtype=np.float32).reshape(4, 2),
        "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    } | changes


def test_exchanged_parameters_are_those_declared_in_alphabetical_order():
    net = small_net()
    assert list(exchanged.parameters(net)) == list(exchanged.read(net)) == ["a.bias", "a.weight", "b.weight"]
    assert exchanged.parameters(net)["b.weight"] is net["b"].weight


def test_the_nets_own_parameters_have_no_path():
    net = nn.Linear(2, 2)
    exchanged.declare(net, ("bias",))
    assert list(exchanged.parameters(net)) == ["bias"]


def test_a_network_that_declares_nothing_exchanges_nothing():
    assert exchanged.read(nn.Linear(2, 2)) == {}


def test_what_is_loaded_is_what_is_read():
    net = small_net()
    exchanged.load(net, a_state())
    again = exchanged.read(net)
    assert {name: value.dtype for name, value in again.items()} == dict.fromkeys(a_state(), np.float32)
    for name, value in a_state().items():
        np.testing.assert_array_equal(again[name], value)


def test_loading_leaves_what_is_not_exchanged_alone():
    net = small_net()
    before = net["b"].bias.clone()
    exchanged.load(net, a_state())
    assert torch.equal(net["b"].bias, before)


def test_a_read_state_is_a_copy():
    net = small_net()
    before = exchanged.read(net)
    with torch.no_grad():
        net["b"].weight.zero_()
    assert (before["b.weight"] != 0).all()


def test_a_loaded_state_is_a_copy():
    net, given = small_net(), a_state()
    exchanged.load(net, given)
    given["b.weight"][:] = 7
    assert (exchanged.read(net)["b.weight"] != 7).all()


@pytest.mark.parametrize("form", ["read-only", "backwards", "fortran", "float64"])
def test_arrays_of_any_form_are_loaded_by_value(form):
    net, value = small_net(), a_state()["b.weight"]
    match form:
        case "read-only":
            value.flags.writeable = False
        case "backwards":
            value = value[::-1]
        case "fortran":
            value = np.asfortranarray(value)
        case "float64":
            value = value.astype(np.float64)
    exchanged.load(net, a_state(**{"b.weight": value}))
    np.testing.assert_array_equal(exchanged.read(net)["b.weight"], value)


UNFIT = {
    "missing": ({"a.bias": None}, "state has missing or unexpected tensors: a.bias$"),
    "extra": ({"c.bias": np.zeros(1, np.float32)}, "missing or unexpected tensors: c.bias$"),
    "shape": ({"b.weight": np.zeros((3, 2), np.float32)}, r"'b.weight': got shape \(3, 2\), expected \(2, 3\)"),
    "would-broadcast": ({"b.weight": np.zeros((1, 3), np.float32)}, r"'b.weight': got shape \(1, 3\), expected \(2, 3"),
    "scalar": ({"b.weight": np.zeros((), np.float32)}, r"'b.weight': got shape \(\), expected \(2, 3\)"),
    "many": ({f"x{i}": np.zeros(1) for i in range(8)}, "x0, x1, x2, x3, x4 and 3 more"),
}


@pytest.mark.parametrize(("changes", "message"), UNFIT.values(), ids=UNFIT.keys())
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(changes, message):
    net = small_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    unfit = {name: value for name, value in a_state(**changes).items() if value is not None}
    with pytest.raises(AdapterError, match=message):
        exchanged.load(net, unfit)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_forgetting_takes_every_declaration_back():
    net = small_net()
    exchanged.forget(net)
    assert exchanged.parameters(net) == {}
