"""Exact aggregation against kernels that torch merged: for every method, every kind of layer and unequal ranks."""

from itertools import permutations

import numpy as np
import pytest
from harness.site_updates import METHODS, base_kernels, distance, kernels, mean_kernels, start_of, trained, with_rank

from sahfl.aggregation.lowrank import aggregation_error, mean_of_factors, project
from sahfl.aggregation.mean import mean
from sahfl.aggregation.update import SiteUpdate
from sahfl.config import AdapterTuning
from sahfl.errors import PayloadError

VOLUMES = {"Graz": 5, "bern": 1, "linz": 3}
ALL = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def updates_of(method, ranks=None, **options):
    ranks = ranks or [method.rank] * len(VOLUMES)
    return [
        SiteUpdate(site, n, trained(method, seed, rank, **options))
        for seed, ((site, n), rank) in enumerate(zip(VOLUMES.items(), ranks, strict=True))
    ]


def share(found, exact):
    """Distance as a share of what the round changed."""
    return distance(found, exact) / distance(base_kernels(), exact)


# --- exact rules ----------------------------------------------------------------------------------------------------


def test_what_belongs_to_no_layer_is_averaged():
    method = METHODS["cp_lora"]
    like, layers = start_of(method)
    own = [{"norm.bias": np.full(2, value, np.float32)} for value in (1, 2, 6)]
    updates = [SiteUpdate(u.site, u.n_volumes, u.state | o) for u, o in zip(updates_of(method), own, strict=True)]
    like = like | {"norm.bias": np.zeros(2, np.float32)}
    for rule in (project, mean_of_factors):
        found = rule(updates, like=like, layers=layers)
        assert list(found) == list(like)
        np.testing.assert_allclose(found["norm.bias"], (5 * 1 + 1 * 2 + 3 * 6) / 9, rtol=1e-6)


WRONG_RANKS = {
    "two-numbers": ("plain.update.factor_in", (6, 2), "got factors of 2, 3 terms, expected one number"),
    "one-term-that-would-broadcast": ("plain.update.factor_in", (6, 1), "got factors of 1, 3 terms"),
    "none": ("plain.update.factor_in", (6, 0), "got factors of 0, 3 terms"),
    "another-axis": ("plain.update.factor_in", (5, 3), r"factor_in': got \(5, 3\) float32, expected \(6, 3\) float32"),
    "fewer-axes": ("plain.update.factor_in", (6,), r"factor_in': got \(6,\) float32, expected"),
}


@pytest.mark.parametrize(("name", "shape", "message"), WRONG_RANKS.values(), ids=WRONG_RANKS.keys())
def test_B02_factors_of_unlike_ranks_are_refused_naming_the_site(name, shape, message):
    method = METHODS["cp_lora"]
    like, layers = start_of(method)
    updates = updates_of(method)
    updates[1].state[name] = np.ones(shape, np.float32)
    with pytest.raises(PayloadError, match="site 'bern', .*" + message):
        project(updates, like=like, layers=layers)


def test_B02_terms_that_are_no_whole_rank_of_the_kernel_are_refused():
    method = METHODS["lora_c"]
    like, layers = start_of(method)
    (layer,) = [layer for layer in layers if layer.up.startswith("plain")]
    state = trained(method, 0)
    state[layer.up], state[layer.inner[0]] = state[layer.up][:, :7], state[layer.inner[0]][:7]
    with pytest.raises(PayloadError, match="got factors of 7 terms"):
        project([SiteUpdate("bern", 1, state)], like=like, layers=[layer])


# --- mean of factors ------------------------------------------------------------------------------------------------


@ALL
def test_the_mean_of_factors_is_exact_where_only_out_side_factors_and_magnitudes_differ(method):
    like, layers = start_of(method)
    own = {layer.up for layer in layers} | {layer.magnitude for layer in layers}
    updates = updates_of(method, only=own.__contains__)
    found = mean_of_factors(updates, like=like, layers=layers)
    assert share(kernels(method, found), mean_kernels(method, updates)) < 1e-6
    assert aggregation_error(updates, found, like=like, layers=layers) < 1e-6


def test_averaging_magnitudes_themselves_would_not_be_exact():
    method = METHODS["conv_dora"]
    like, layers = start_of(method)
    own = {layer.up for layer in layers} | {layer.magnitude for layer in layers}
    updates = updates_of(method, only=own.__contains__)
    assert share(kernels(method, mean(updates, like=like)), mean_kernels(method, updates)) > 0.01


def test_without_magnitudes_the_mean_of_factors_is_the_mean():
    method = METHODS["cp_lora"]
    like, layers = start_of(method)
    updates = updates_of(method)
    found = mean_of_factors(updates, like=like, layers=layers)
    assert all((found[name] == value).all() for name, value in mean(updates, like=like).items())


@pytest.mark.parametrize("rule", [mean_of_factors, project])
def test_magnitudes_that_cancel_or_are_all_zero_leave_a_finite_result(rule):
    method = METHODS["cp_dora"]
    like, layers = start_of(method)
    one, other = trained(method, 0), trained(method, 0)
    for layer in layers:
        other[layer.magnitude] = -other[layer.magnitude]
    zeros = [
        SiteUpdate(u.site, 1, u.state | {layer.magnitude: 0 * u.state[layer.magnitude] for layer in layers})
        for u in updates_of(method)
    ]
    for updates in ([SiteUpdate("bern", 2, one), SiteUpdate("graz", 2, other)], zeros):
        found = rule(updates, like=like, layers=layers)
        assert all(np.isfinite(value).all() and np.abs(value).max() < 1e4 for value in found.values())


def test_a_kernel_of_zeros_has_length_one_as_in_the_layer():
    method = METHODS["conv_dora"]
    like, layers = start_of(method)
    (layer,) = [layer for layer in layers if layer.up.startswith("plain")]
    layer.kernel[:] = 0
    like = {name: np.zeros_like(like[name]) for name in layer.names} | {layer.magnitude: like[layer.magnitude]}
    found = mean_of_factors([SiteUpdate("bern", 1, like)], like=like, layers=[layer])
    assert all((found[name] == value).all() for name, value in like.items())


# --- any rule -------------------------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("rule", [mean_of_factors, project])
@pytest.mark.parametrize(
    "names", [("a", "b", "c"), ("site10", "site9", "Site1"), ("\u00e4", "z", "\U0001f3e5")], ids=str
)
def test_the_order_of_replies_does_not_change_a_bit(method, rule, names):
    like, layers = start_of(method)
    renamed = [SiteUpdate(name, u.n_volumes, u.state) for name, u in zip(names, updates_of(method), strict=True)]
    found = {
        b"".join(value.tobytes() for value in rule(order, like=like, layers=layers).values())
        for order in list(permutations(renamed))[::2]
    }
    assert len(found) == 1


@ALL
@pytest.mark.parametrize("rule", [mean_of_factors, project])
def test_names_shapes_and_types_are_those_of_the_global_state(method, rule):
    like, layers = start_of(method)
    found = rule(updates_of(method), like=like, layers=layers)
    assert [(k, v.shape, v.dtype) for k, v in found.items()] == [(k, v.shape, v.dtype) for k, v in like.items()]
    assert all(np.isfinite(value).all() for value in found.values())


# --- the error that is reported -------------------------------------------------------------------------------------


@ALL
def test_the_error_that_is_reported_is_that_of_the_merged_kernels(method):
    like, layers = start_of(method)
    updates = updates_of(method)
    found, exact = mean_of_factors(updates, like=like, layers=layers), mean_kernels(method, updates)
    by_hand = distance(kernels(method, found), exact) / distance(kernels(method, like), exact)
    assert aggregation_error(updates, found, like=like, layers=layers) == pytest.approx(by_hand, rel=1e-4)
    assert by_hand > 0.01


def test_no_error_is_reported_without_layers_or_change_or_where_it_is_no_number():
    method = METHODS["cp_lora"]
    like, layers = start_of(method)
    same = [SiteUpdate("bern", 1, like)]
    assert aggregation_error(same, like, like=like, layers=()) is None
    assert aggregation_error(same, like, like=like, layers=layers) is None
    huge = [SiteUpdate("bern", 1, {name: np.full_like(value, 3e38) for name, value in like.items()})]
    with np.errstate(over="ignore", invalid="ignore"):
        wide = AdapterTuning(method="cp_lora", rank=3, alpha=4096.0)
        assert aggregation_error(huge, like, like=like, layers=start_of(with_rank(wide, 3))[1]) is None
