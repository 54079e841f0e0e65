"""Alternating rounds: who trains when, and that the mean of a turn is the mean of the kernels."""

import numpy as np
import pytest
from harness.site_updates import METHODS, base_kernels, distance, kernels, mean_kernels, start_of, trained

from sahfl.adapters import exchanged
from sahfl.adapters.attach import attach
from sahfl.aggregation.lowrank import aggregation_error, mean_of_factors
from sahfl.aggregation.rules import names_of_turn
from sahfl.aggregation.update import SiteUpdate
from sahfl.config import AdapterTuning, WeightTuning
from sahfl.federation.turns import take_turn
from sahfl.model import MultiViewUNet

PLAIN = [name for name in METHODS if "dora" not in name]
DORA = [name for name in METHODS if "dora" in name]


def turns(method, n_rounds):
    like, layers = start_of(method)
    return [names_of_turn(layers, tuple(like), round_) for round_ in range(1, n_rounds + 1)]


# --- who trains -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_over_the_rounds_every_tensor_has_its_turn_and_odd_rounds_are_the_out_side_s(name):
    method = METHODS[name]
    like, layers = start_of(method)
    most = max(len(layer.inner) for layer in layers)
    found = turns(method, 2 * most)
    assert set().union(*found) == set(like)
    outer = {layer.up for layer in layers} | {layer.magnitude for layer in layers} - {None}
    for round_, names in enumerate(found, start=1):
        assert list(names) == [name for name in like if name in names]  # in the order of the state
        assert set(names) <= outer if round_ % 2 else not set(names) & outer


@pytest.mark.parametrize("name", METHODS)
def test_an_even_round_is_one_factor_s_in_every_layer_one_after_another(name):
    method = METHODS[name]
    _, layers = start_of(method)
    for layer in layers:
        own = [[name for name in names if name in layer.names] for names in turns(method, 4 * len(layer.inner))[1::2]]
        assert own == [[factor] for factor in [*layer.inner, *layer.inner]]


def test_the_turns_of_a_plain_layer_by_name():
    found = turns(METHODS["cp_lora"], 8)
    own = [[name.rsplit("_", 1)[1] for name in names if name.startswith("plain")] for names in found]
    assert own == [["out"], ["in"], ["out"], ["height"], ["out"], ["width"], ["out"], ["in"]]


def test_what_belongs_to_no_layer_trains_in_every_round():
    _, layers = start_of(METHODS["cp_lora"])
    for round_ in range(1, 7):
        assert "head.bias" in names_of_turn(layers, ("head.bias", *layers[0].names), round_)


def a_network(method):
    net = MultiViewUNet(3, size="tiny", seed=0)
    attach(net, method, seed=1, parts=net.parts)
    return net


def test_a_turn_freezes_all_others_and_names_what_trains():
    method = AdapterTuning(method="cp_lora", rank=2, aggregation="alternate", also_train=("head",))
    net = a_network(method)
    for round_ in (1, 2, 3, 4):
        names = take_turn(net, method, round_)
        assert names == tuple(name for name, p in exchanged.parameters(net).items() if p.requires_grad)
        assert any("head" in name for name in names)
        assert 0 < len(names) < len(exchanged.parameters(net))


@pytest.mark.parametrize(
    "method",
    [AdapterTuning(method="cp_dora", rank=2), AdapterTuning(method="lora_c", aggregation="project"), None],
    ids=["mean", "project", "none"],
)
def test_with_another_rule_everything_trains_in_every_round(method):
    net = a_network(method or WeightTuning(method="last_layer"))
    for round_ in (1, 2):
        assert take_turn(net, method, round_) == tuple(exchanged.parameters(net))
        assert all(parameter.requires_grad for parameter in exchanged.parameters(net).values())


# --- exactness ------------------------------------------------------------------------------------------------------


def after_a_turn(method, round_, size=0.3):
    """The share of the round's change that the mean misses, where sites had trained all factors before."""
    before = trained(method, 99)
    _, layers = start_of(method)
    names = names_of_turn(layers, tuple(before), round_)
    rng = np.random.default_rng(round_)
    updates = [
        SiteUpdate(
            f"site{i}",
            1 + 2 * i,
            before | {n: (before[n] + size * rng.standard_normal(before[n].shape)).astype(np.float32) for n in names},
        )
        for i in range(3)
    ]
    found = mean_of_factors(updates, like=before, layers=layers)
    exact = mean_kernels(method, updates)
    share = distance(kernels(method, found), exact) / distance(kernels(method, before), exact)
    assert aggregation_error(updates, found, like=before, layers=layers) == pytest.approx(share, rel=1e-3, abs=1e-6)
    return share


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("round_", range(1, 9))
def test_the_mean_of_every_turn_is_the_mean_of_the_kernels(name, round_):
    assert after_a_turn(METHODS[name], round_) < 2e-6


@pytest.mark.parametrize("name", DORA)
@pytest.mark.parametrize("round_", [1, 3])
def test_with_magnitudes_odd_turns_are_exact(name, round_):
    assert after_a_turn(METHODS[name], round_) < 2e-6


@pytest.mark.parametrize("name", DORA)
def test_with_magnitudes_even_turns_are_near_but_not_exact_as_sites_differ_in_d(name):
    small, large = (max(after_a_turn(METHODS[name], round_, size) for round_ in (2, 4)) for size in (0.02, 0.3))
    assert 1e-6 < small < 0.02
    assert small < large < 0.35


def test_training_all_factors_at_once_would_not_be_exact():
    method = METHODS["cp_lora"]
    _, layers = start_of(method)
    updates = [SiteUpdate(f"site{i}", 1, trained(method, i)) for i in range(3)]
    exact = mean_kernels(method, updates)
    found = kernels(method, mean_of_factors(updates, like=updates[0].state, layers=layers))
    assert distance(found, exact) > 0.1 * distance(base_kernels(), exact)
