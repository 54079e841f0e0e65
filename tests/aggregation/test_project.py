"""Bringing the exact mean back to a rank: as near as can be, trainable again, the same every time."""

import numpy as np
import pytest
from harness.site_updates import (
    METHODS,
    as_matrix,
    base_kernels,
    dead_terms,
    distance,
    kernels,
    mean_kernels,
    start_of,
    trained,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from sahfl.aggregation.lowrank import mean_of_factors, project
from sahfl.aggregation.nearest import nearest_cp, nearest_matrix
from sahfl.aggregation.update import SiteUpdate

MATRICES = [name for name in METHODS if not name.startswith("cp")]
CP = [name for name in METHODS if name.startswith("cp")]


def updates_of(method, n_sites=3, size=0.2, seed=0, ranks=None):
    ranks = ranks or [method.rank] * n_sites
    return [
        SiteUpdate(f"site{i}", 1 + 3 * i, trained(method, 10 * seed + i, rank, size=size))
        for i, rank in enumerate(ranks)
    ]


# --- matrices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora_c", "conv_lora"])
def test_the_error_is_that_of_the_truncated_singular_values(name):
    method = METHODS[name]
    like, layers = start_of(method)
    updates = updates_of(method)
    found, exact, base = kernels(method, project(updates, like=like, layers=layers)), None, base_kernels()
    exact = mean_kernels(method, updates)
    for layer, kernel in exact.items():
        wanted = as_matrix(method, layer, kernel - base[layer])
        rank = method.rank * (kernel.shape[-1] if name == "lora_c" else 1)
        left_out = np.sqrt(np.square(np.linalg.svd(wanted, compute_uv=False)[rank:]).sum())
        got = np.linalg.norm(as_matrix(method, layer, found[layer] - base[layer]) - wanted)
        assert got == pytest.approx(left_out, rel=1e-4, abs=1e-5 * np.linalg.norm(wanted))


def test_with_magnitudes_the_rest_is_as_small_as_the_rows_times_d_allow():
    method, plain = METHODS["conv_dora"], METHODS["conv_lora"]
    like, layers = start_of(method)
    updates = updates_of(method)
    exact, base = mean_kernels(method, updates), base_kernels()
    found = kernels(method, project(updates, like=like, layers=layers))
    for layer, kernel in exact.items():
        d = 0
        for update in updates:
            factors = {name: value for name, value in update.state.items() if "magnitude" not in name}
            lengths = np.linalg.norm(kernels(plain, factors)[layer].reshape(len(kernel), -1), axis=1)
            d = d + update.n_volumes / 12 * update.state[f"{layer}.magnitude"] / lengths
        wanted = kernel.reshape(len(kernel), -1) - d[:, None] * base[layer].reshape(len(kernel), -1)
        left_out = np.sqrt(np.square(np.linalg.svd(wanted, compute_uv=False)[method.rank :]).sum())
        got = np.linalg.norm(found[layer] - kernel)
        assert got == pytest.approx(left_out, rel=1e-3, abs=1e-5 * np.linalg.norm(wanted))


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("ranks", [[1, 2], [2, 1], [1, 1, 1]], ids=str)
def test_a_mean_of_no_higher_rank_is_kept_whole(name, ranks):
    method = METHODS[name]
    like, layers = start_of(method)
    updates = updates_of(method, ranks=ranks)
    found = kernels(method, project(updates, like=like, layers=layers))
    exact = mean_kernels(method, updates, ranks)
    assert distance(found, exact) < 1e-6 * distance(base_kernels(), exact)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 8), st.integers(1, 9), st.integers(0, 2**20))
def test_no_matrix_of_that_rank_is_nearer(rows, columns, n_terms, rank, seed):
    rng = np.random.default_rng(seed)
    terms = [rng.standard_normal((rows, n_terms)), rng.standard_normal((columns, n_terms))]
    up, down = nearest_matrix([term.copy() for term in terms], np.ones((columns, rank)), size=0.3)
    wanted = terms[0] @ terms[1].T
    left_out = np.sqrt(np.square(np.linalg.svd(wanted, compute_uv=False)[rank:]).sum())
    assert np.linalg.norm(wanted - up @ down.T) == pytest.approx(left_out, abs=1e-9)
    assert down.any(axis=0).all()


# --- CP form --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CP)
@pytest.mark.parametrize("size", [0.02, 0.2, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_projection_is_never_farther_than_the_mean_of_factors(name, size, seed):
    method = METHODS[name]
    like, layers = start_of(method)
    updates = updates_of(method, size=size, seed=seed)
    exact = mean_kernels(method, updates)
    near, plain = (
        distance(kernels(method, rule(updates, like=like, layers=layers)), exact) for rule in (project, mean_of_factors)
    )
    assert near <= plain * (1 + 1e-5)


def test_on_the_whole_a_projection_is_clearly_nearer_than_the_mean_of_factors():
    method = METHODS["cp_lora"]
    like, layers = start_of(method)
    gains = []
    for seed in range(6):
        updates = updates_of(method, size=0.3, seed=seed)
        exact = mean_kernels(method, updates)
        near, plain = (kernels(method, rule(updates, like=like, layers=layers)) for rule in (project, mean_of_factors))
        gains.append(distance(near, exact) / distance(plain, exact))
    assert np.median(gains) < 0.9


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(2, 4), st.integers(0, 2**20), st.sampled_from([1e-6, 1, 1e6]))
def test_least_squares_never_end_farther_than_they_start(rank, n_terms, n_axes, seed, size):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, n_axes)
    terms = [size * rng.standard_normal((n, n_terms)) for n in sizes]
    start = [rng.standard_normal((n, rank)) * rng.integers(0, 2, rank) for n in sizes]

    def dense(factors):
        product = factors[0]
        for factor in factors[1:]:
            product = (product[:, None] * factor[None]).reshape(-1, factor.shape[1])
        return product.sum(axis=1)

    wanted, found = dense(terms), nearest_cp(terms, start)
    before, after = np.linalg.norm(dense(start) - wanted), np.linalg.norm(dense(found) - wanted)
    assert after <= before * (1 + 1e-9) + 1e-7 * np.linalg.norm(wanted)


@pytest.mark.parametrize("name", CP)
def test_sites_that_agree_are_projected_onto_themselves(name):
    method = METHODS[name]
    like, layers = start_of(method)
    same = trained(method, 3)
    updates = [SiteUpdate("bern", 4, same), SiteUpdate("graz", 9, same)]
    exact = mean_kernels(method, updates)
    assert distance(kernels(method, project(updates, like=like, layers=layers)), exact) < 1e-5 * distance(
        base_kernels(), exact
    )


@pytest.mark.parametrize("name", CP)
def test_sites_that_differ_in_the_out_side_only_are_projected_exactly(name):
    method = METHODS[name]
    like, layers = start_of(method)
    ups = {layer.up for layer in layers}
    updates = [SiteUpdate(f"s{i}", 1 + i, trained(method, i, only=ups.__contains__)) for i in range(3)]
    exact = mean_kernels(method, updates)
    found = kernels(method, project(updates, like=like, layers=layers))
    assert distance(found, exact) < 1e-5 * distance(base_kernels(), exact)


# --- trainable again ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("rank", [2, 3, 40])
def test_after_a_round_that_changed_nothing_every_term_can_train(name, rank):
    method = METHODS[name].model_copy(update={"rank": rank})
    like, layers = start_of(method)
    updates = [SiteUpdate("bern", 4, like), SiteUpdate("graz", 9, like)]
    found = project(updates, like=like, layers=layers)
    assert dead_terms(found, layers) == 0
    assert distance(kernels(method, found), base_kernels()) < 1e-6


@pytest.mark.parametrize("name", METHODS)
def test_terms_that_no_site_has_can_train(name):
    method = METHODS[name].model_copy(update={"rank": 6})
    like, layers = start_of(method)
    updates = updates_of(method, ranks=[2, 1])
    found = project(updates, like=like, layers=layers)
    assert dead_terms(found, layers) == 0
    assert all(np.isfinite(value).all() for value in found.values())


@pytest.mark.parametrize("name", METHODS)
def test_factors_that_cancel_or_vanish_leave_terms_that_can_train(name):
    method = METHODS[name]
    like, layers = start_of(method)
    one = trained(method, 0)
    inner = {name for layer in layers for name in layer.inner}
    flipped = {name: -value if name in inner else value for name, value in one.items()}
    gone = {name: 0 * value if name in inner else value for name, value in one.items()}
    for sites in ([one, flipped], [gone, gone]):
        updates = [SiteUpdate(f"site{i}", 2, state) for i, state in enumerate(sites)]
        found = project(updates, like=like, layers=layers)
        assert dead_terms(found, layers) == 0
        assert all(np.isfinite(value).all() for value in found.values())


@pytest.mark.parametrize("name", METHODS)
def test_a_projection_keeps_the_size_of_the_in_side_factors(name):
    method = METHODS[name]
    like, layers = start_of(method)
    updates = updates_of(method, size=0.05)
    found = project(updates, like=like, layers=layers)
    for layer in layers:
        sizes = [np.sqrt(np.square(state[layer.inner[0]]).mean()) for state in (found, updates[0].state)]
        assert 0.4 < sizes[0] / sizes[1] < 2.5


@pytest.mark.parametrize("name", METHODS)
def test_the_same_updates_give_the_same_bits_and_stay_as_they_are(name):
    method = METHODS[name]
    like, layers = start_of(method)
    updates = updates_of(method)
    before = {u.site: {name: value.copy() for name, value in u.state.items()} for u in updates}
    one, again = (project(updates, like=like, layers=layers) for _ in range(2))
    assert all(one[name].tobytes() == again[name].tobytes() for name in one)
    assert all((u.state[name] == value).all() for u in updates for name, value in before[u.site].items())
