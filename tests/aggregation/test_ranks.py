"""An adapter at another rank: the same kernels at a higher one, near ones at a lower; and rounds of unlike ranks."""

from itertools import permutations

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
    with_rank,
)

from sahfl.aggregation.lowrank import at_rank_of, project
from sahfl.aggregation.robust import bound, change_norm
from sahfl.aggregation.update import SiteUpdate
from sahfl.errors import PayloadError

CP = [name for name in METHODS if name.startswith("cp")]
ALL = pytest.mark.parametrize("name", METHODS)
SCALINGS = pytest.mark.parametrize("scaling", ["steps", "rank", "sqrt_rank"])


def bits(state):
    return b"".join(value.tobytes() for value in state.values())


def brought(method, state, rank):
    like, layers = start_of(with_rank(method, rank))
    return at_rank_of(state, like=like, layers=layers)


def shapes(state):
    return {name: (value.shape, value.dtype) for name, value in state.items()}


# --- to a higher rank, or the same ----------------------------------------------------------------------------------


@ALL
@SCALINGS
@pytest.mark.parametrize("rank", [4, 7, 40])
def test_a_higher_rank_holds_the_same_kernels_and_can_train_all_its_terms(name, scaling, rank):
    method = METHODS[name].model_copy(update={"scaling": scaling})
    state = trained(method, 0)
    found = brought(method, state, rank)
    like, layers = start_of(with_rank(method, rank))
    wanted = kernels(method, state)
    assert shapes(found) == shapes(like)
    assert distance(kernels(method, found, rank), wanted) < 1e-6 * distance(base_kernels(), wanted)
    assert dead_terms(found, layers) == 0
    for layer in layers:
        new = like[layer.up].shape[1] - state[layer.up].shape[1]
        assert new > 0
        assert not found[layer.up][:, -new:].any()
        for factor in layer.inner:
            axis = layer.form.rank_axes(layer)[factor]
            own, fresh = np.moveaxis(found[factor], axis, 0), np.moveaxis(like[factor], axis, 0)
            assert (own[:-new] == np.moveaxis(state[factor], axis, 0)).all()
            assert (own[-new:] == fresh[-new:]).all()


@ALL
def test_the_same_rank_holds_the_same_bits(name):
    state = trained(METHODS[name], 0)
    assert bits(brought(METHODS[name], state, METHODS[name].rank)) == bits(state)


@ALL
def test_up_to_a_higher_rank_and_back_is_the_way_to_the_same_kernels(name):
    method = METHODS[name]
    state = trained(method, 0)
    again = brought(method, brought(method, state, 6), method.rank)
    assert distance(kernels(method, again), kernels(method, state)) < 1e-5 * distance(
        base_kernels(), kernels(method, state)
    )


# --- to a lower rank ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora_c", "conv_lora"])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_lower_rank_holds_the_nearest_kernels(name, rank):
    method = METHODS[name]
    state = trained(method, 0)
    found, wanted, base = kernels(method, brought(method, state, rank), rank), kernels(method, state), base_kernels()
    for layer, kernel in wanted.items():
        update = as_matrix(method, layer, kernel - base[layer])
        kept = rank * (kernel.shape[-1] if name == "lora_c" else 1)
        left_out = np.sqrt(np.square(np.linalg.svd(update, compute_uv=False)[kept:]).sum())
        got = np.linalg.norm(as_matrix(method, layer, found[layer]) - as_matrix(method, layer, kernel))
        assert got == pytest.approx(left_out, rel=1e-4, abs=1e-5 * np.linalg.norm(update))


def first_terms(state, layers, like):
    """HetLoRA's truncation: the first terms, with the scale of the lower rank."""
    found = dict(state)
    for layer in layers:
        kept = like[layer.up].shape[1]
        for name, axis in layer.form.rank_axes(layer).items():
            found[name] = found[name].take(range(kept), axis)
        found[layer.up] = found[layer.up] * np.float32(layer.scale(state[layer.up].shape[1]) / layer.scale(kept))
    return found


@pytest.mark.parametrize("name", ["cp_lora", "cp_lora-joint"])
@SCALINGS
@pytest.mark.parametrize("seed", range(3))
def test_in_the_cp_form_a_lower_rank_is_no_farther_than_the_first_terms(name, scaling, seed):
    method = METHODS[name].model_copy(update={"scaling": scaling})
    state, (like, layers) = trained(method, seed, 6), start_of(with_rank(method, 2))
    wanted = kernels(method, state, 6)
    near, cut = (
        distance(kernels(method, found, 2), wanted)
        for found in (at_rank_of(state, like=like, layers=layers), first_terms(state, layers, like))
    )
    assert near <= cut * (1 + 1e-5)
    assert near < 0.99 * cut or seed


@ALL
def test_a_fresh_adapter_is_fresh_at_every_rank(name):
    method = METHODS[name]
    fresh, _ = start_of(method)
    for rank in (1, 2, 5):
        found = brought(method, fresh, rank)
        assert distance(kernels(method, found, rank), base_kernels()) < 1e-6
        assert dead_terms(found, start_of(with_rank(method, rank))[1]) == 0


@ALL
@pytest.mark.parametrize("rank", [1, 5])
def test_what_belongs_to_no_layer_stays_and_the_state_itself_too(name, rank):
    method = METHODS[name]
    state, (like, layers) = trained(method, 0), start_of(with_rank(method, rank))
    own = {"norm.bias": np.float32([0.1, -3.3])}
    before = bits(state)
    runs = [at_rank_of(state | own, like=like | own, layers=layers) for _ in range(2)]
    assert bits(runs[0]) == bits(runs[1])
    assert (runs[0]["norm.bias"] == own["norm.bias"]).all()
    assert bits(state) == before


# --- rounds of unlike ranks -----------------------------------------------------------------------------------------


def updates_of(method, ranks, size=0.2):
    return [
        SiteUpdate(f"site{i}", 1 + 3 * i, trained(method, i, rank, size=size), start_of(with_rank(method, rank))[0])
        for i, rank in enumerate(ranks)
    ]


@ALL
def test_the_order_of_sites_of_unlike_ranks_does_not_change_a_bit(name):
    method = METHODS[name]
    like, layers = start_of(method)
    found = {bits(project(order, like=like, layers=layers)) for order in permutations(updates_of(method, [2, 4, 8]))}
    assert len(found) == 1


@ALL
def test_the_mean_of_unlike_ranks_is_that_of_the_kernels_brought_to_the_global_rank(name):
    """With a global rank as high as all the sites' together nothing is lost; with a lower one it is the nearest."""
    method = with_rank(METHODS[name], 14)
    like, layers = start_of(method)
    updates = updates_of(method, [2, 4, 8])
    exact = mean_kernels(method, updates, [2, 4, 8])
    lost = distance(kernels(method, project(updates, like=like, layers=layers)), exact)
    assert lost < (0.15 if name in CP else 1e-6) * distance(base_kernels(), exact)


@pytest.mark.parametrize("name", ["lora_c", "conv_lora"])
def test_what_a_site_cannot_hold_fades_by_its_share_of_the_volumes(name):
    """Nobody trains: of three volumes, one lies at a site of rank 1, so what is beyond its rank keeps two thirds."""
    method = METHODS[name]
    like, layers = start_of(method)
    state = trained(method, 0)
    cut = brought(method, state, 1)
    updates = [SiteUpdate("bern", 1, cut, cut), SiteUpdate("graz", 2, state, state)]
    found = kernels(method, project(updates, like=like, layers=layers))
    whole, held = kernels(method, state), kernels(method, cut, 1)
    for layer, kernel in found.items():
        np.testing.assert_allclose(kernel - held[layer], 2 / 3 * (whole[layer] - held[layer]), atol=1e-5)


@pytest.mark.parametrize("name", CP)
def test_terms_that_one_site_alone_has_do_not_fade_from_round_to_round(name):
    method = with_rank(METHODS[name], 8)
    state, layers = start_of(method)
    fresh = {rank: start_of(with_rank(method, rank))[0] for rank in (2, 4, 8)}
    rng = np.random.default_rng(0)

    def size_of_last_terms(state):
        return np.mean([np.sqrt(np.square(state[name][..., 4:]).mean()) for one in layers for name in one.inner])

    before = size_of_last_terms(state)
    for _ in range(8):
        updates = []
        for rank, like in fresh.items():
            sent = at_rank_of(state, like=like, layers=layers)
            moved = {n: (v + 0.02 * rng.standard_normal(v.shape)).astype(np.float32) for n, v in sent.items()}
            updates.append(SiteUpdate(f"site{rank}", 3, moved, sent))
        state = project(updates, like=state, layers=layers)
    assert 0.5 < size_of_last_terms(state) / before < 2


# --- bounds ---------------------------------------------------------------------------------------------------------


def bounded(method, updates, most_norm=3.0):
    return bound(updates, like=start_of(method)[0], most_share=1.0, most_norm=most_norm)


@ALL
def test_lengths_are_those_of_as_many_numbers_as_the_global_state_has(name):
    method = METHODS[name]
    like, _ = start_of(method)
    updates = updates_of(method, [2, 3, 8])
    found = bounded(method, updates)
    for update in updates:
        numbers = [sum(value.size for value in state.values()) for state in (like, update.start)]
        by_hand = change_norm(update.state, update.start) * np.sqrt(numbers[0] / numbers[1])
        assert found.norms[update.site] == pytest.approx(by_hand)
        assert by_hand == pytest.approx(0.2 * np.sqrt(numbers[0]), rel=0.15)  # every number was moved by 0.2
    assert found.shortened == {}
    assert all(one.state is other.state for one, other in zip(found.updates, updates, strict=True))


@pytest.mark.parametrize("name", ["lora_c", "cp_lora", "cp_dora"])
@pytest.mark.parametrize("hostile", [0, 3], ids=["rank-2", "rank-8"])
def test_B04_a_change_times_1000_at_another_rank_is_shortened_to_the_bound(name, hostile):
    method = METHODS[name]
    like, layers = start_of(method)
    updates = updates_of(method, [2, 3, 3, 8], size=0.02)
    honest = project([u for i, u in enumerate(updates) if i != hostile], like=like, layers=layers)
    worse = updates[hostile]
    state = {name: worse.start[name] + 1000 * (worse.state[name] - worse.start[name]) for name in worse.start}
    updates[hostile] = SiteUpdate(worse.site, worse.n_volumes, state, worse.start)
    found = bounded(method, updates)
    assert set(found.shortened) == {worse.site}
    again = bounded(method, found.updates, most_norm=3.001)
    assert again.shortened == {}
    assert again.norms[worse.site] == pytest.approx(3 * np.median(list(found.norms.values())), rel=1e-4)
    plain, within = (
        distance(kernels(method, project(those, like=like, layers=layers)), kernels(method, honest))
        for those in (updates, found.updates)
    )
    assert within < 20 * distance(kernels(method, honest), base_kernels())
    assert plain > 20 * within


def test_without_ranks_of_its_own_a_site_s_start_changes_no_bit_of_the_bounds():
    method = METHODS["cp_lora"]
    like, _ = start_of(method)
    plain = [SiteUpdate(f"s{i}", 2, trained(method, i, size=10.0 ** (2 * i))) for i in range(3)]
    started = [SiteUpdate(u.site, u.n_volumes, u.state, like) for u in plain]
    one, other = bounded(method, plain), bounded(method, started)
    assert (one.norms, one.shortened) == (other.norms, other.shortened)
    assert [bits(u.state) for u in one.updates] == [bits(u.state) for u in other.updates]
    assert one.shortened


def test_B02_another_rank_than_the_site_was_sent_is_refused_by_the_bounds_naming_the_site():
    method = METHODS["cp_lora"]
    updates = updates_of(method, [3, 3])
    updates.append(SiteUpdate("graz", 1, trained(method, 0, 4), start_of(with_rank(method, 5))[0]))
    with pytest.raises(PayloadError, match=r"site 'graz', 'plain.*height': got \(3, 4\) float32, expected \(3, 5\)"):
        bounded(method, updates)
