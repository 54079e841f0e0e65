"""The weighted mean: whose, of what, in which order; and what it refuses by name."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sahfl.aggregation.mean import mean, mean_of_stream
from sahfl.aggregation.update import SiteUpdate
from sahfl.errors import PayloadError

LIKE = {"down": np.zeros((2, 3), np.float32), "up": np.zeros((4, 2), np.float32)}


def update(site, value, n_volumes=10, **replace):
    state = {name: np.full_like(reference, value) for name, reference in LIKE.items()}
    return SiteUpdate(site, n_volumes, state | replace)


def test_sites_are_weighted_by_volumes():
    result = mean([update("bern", 1.0, n_volumes=30), update("graz", 5.0, n_volumes=10)], like=LIKE)
    np.testing.assert_array_equal(result["up"], np.full((4, 2), 2.0))  # (30 * 1 + 10 * 5) / 40


def test_elements_are_averaged_each_on_its_own():
    one, other = np.arange(6, dtype=np.float32).reshape(2, 3), np.full((2, 3), 2, np.float32)
    result = mean([update("bern", 0.0, 3, down=one), update("graz", 0.0, 1, down=other)], like=LIKE)
    np.testing.assert_array_equal(result["down"], [[0.5, 1.25, 2.0], [2.75, 3.5, 4.25]])  # 0.75 * i + 0.5


def test_the_mean_of_one_site_is_its_own_state():
    result = mean([update("bern", 0.1, n_volumes=7)], like=LIKE)
    np.testing.assert_array_equal(result["up"], np.full((4, 2), 0.1, np.float32))


def test_names_order_shapes_and_types_are_those_of_the_global_state():
    backwards = dict(reversed(update("bern", 1.0).state.items()))
    result = mean([SiteUpdate("bern", 1, backwards)], like=LIKE)
    assert [(k, v.shape, v.dtype) for k, v in result.items()] == [(k, v.shape, v.dtype) for k, v in LIKE.items()]


def test_a_state_without_tensors_has_a_mean_without_tensors():
    assert mean([SiteUpdate("bern", 1, {})], like={}) == {}


def test_sums_run_in_double_precision():
    # In float32, 1e8 + 1 is 1e8: the small sites would vanish.
    updates = [update("a", 1e8), update("b", 1.0), update("c", 1.0), update("d", -1e8)]
    np.testing.assert_array_equal(mean(updates, like=LIKE)["up"], np.full((4, 2), 0.5, np.float32))


VALUES = arrays.arrays(np.float32, (4, 2), elements=st.floats(-1e6, 1e6, width=32))
UPDATES = st.lists(st.tuples(st.integers(1, 1000), VALUES), min_size=2, max_size=6)


@settings(max_examples=50, deadline=None)
@given(UPDATES, st.randoms(use_true_random=False))
def test_the_order_of_replies_does_not_change_a_bit(pairs, random):
    updates = [update(f"site{i}", 0.0, n, up=values) for i, (n, values) in enumerate(pairs)]
    shuffled = random.sample(updates, len(updates))
    assert mean(updates, like=LIKE)["up"].tobytes() == mean(shuffled, like=LIKE)["up"].tobytes()


def test_the_order_of_replies_does_not_matter_even_where_rounding_does():
    # 1e30 + 1 - 1e30 is 0 in float64, 1e30 - 1e30 + 1 is 1: only a fixed order of the sum gives one answer.
    updates = [update("a", 1e30), update("b", 1.0), update("c", -1e30)]
    means = {mean(order, like=LIKE)["up"].tobytes() for order in permutations(updates)}
    assert len(means) == 1


@settings(max_examples=50, deadline=None)
@given(UPDATES)
def test_the_mean_equals_numpys_weighted_average(pairs):
    updates = [update(f"site{i}", 0.0, n, up=values) for i, (n, values) in enumerate(pairs)]
    expected = np.average([values.astype(np.float64) for _, values in pairs], axis=0, weights=[n for n, _ in pairs])
    np.testing.assert_allclose(mean(updates, like=LIKE)["up"], expected, rtol=1e-6, atol=1e-6)


def test_the_largest_numbers_stay_finite():
    largest = float(np.finfo(np.float32).max)
    updates = [update(f"site{i}", largest, n_volumes=n) for i, n in enumerate((1, 3, 7))]
    assert np.isfinite(mean(updates, like=LIKE)["up"]).all()


def test_the_updates_themselves_are_left_alone():
    updates = [update("bern", 1.0), update("graz", 3.0)]
    mean(updates, like=LIKE)["up"][:] = 9
    assert (updates[0].state["up"] == 1).all()
    assert (updates[1].state["up"] == 3).all()


UNUSABLE = {
    "would-broadcast": (update("graz", 1, up=np.ones((1, 2), np.float32)), r"'up': got \(1, 2\) float32, expected \(4"),
    "float64": (update("graz", 1, up=np.ones((4, 2))), r"'up': got \(4, 2\) float64, expected \(4, 2\) float32"),
    "nan": (update("graz", float("nan")), "'down': contains NaN or inf"),
    "inf": (update("graz", 1, up=np.full((4, 2), -np.inf, np.float32)), "'up': contains NaN or inf"),
    "no-volumes": (update("graz", 1, n_volumes=0), "n_volumes=0, expected 1 to 1000000"),
    "negative-volumes": (update("graz", 1, n_volumes=-5), "n_volumes=-5, expected 1 to 1000000"),
    "no-number": (update("graz", 1, n_volumes=float("nan")), "n_volumes=nan, expected 1 to 1000000"),
    "half-a-volume": (update("graz", 1, n_volumes=2.5), r"n_volumes=2\.5, expected 1 to 1000000"),
    "absurd-volumes": (update("graz", 1, n_volumes=10**12), "n_volumes=1000000000000, expected 1 to 1000000"),
    "volumes-in-words": (update("graz", 1, n_volumes="many"), "n_volumes='many', expected 1 to 1000000"),
    "unknown-tensor": (update("graz", 1, extra=np.ones(1)), r"missing or unexpected tensors \['extra'\]"),
    "missing-tensor": (SiteUpdate("graz", 1, {"up": LIKE["up"]}), r"missing or unexpected tensors \['down'\]"),
}


@pytest.mark.parametrize(("bad", "message"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_an_unusable_update_is_refused_naming_the_site(bad, message):
    for updates in ([update("bern", 1.0), bad], [bad, update("linz", 1.0)], [bad]):
        with pytest.raises(PayloadError, match="site 'graz'.*" + message):
            mean(updates, like=LIKE)


def test_a_site_that_occurs_twice_is_refused_by_name():
    with pytest.raises(PayloadError, match="site 'graz': occurs twice in one round"):
        mean([update("graz", 1.0), update("bern", 1.0), update("graz", 2.0)], like=LIKE)


def test_a_round_without_updates_is_refused():
    with pytest.raises(PayloadError, match="no site updates to average"):
        mean([], like=LIKE)


# --- a stream -------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(UPDATES)
def test_a_stream_has_the_mean_of_the_updates_to_the_last_bit(pairs):
    updates = [update(f"site{i}", 0.1, n, up=values) for i, (n, values) in enumerate(pairs)]
    whole, stream = mean(updates, like=LIKE), mean_of_stream(iter(updates), like=LIKE)
    assert all(whole[name].tobytes() == stream[name].tobytes() for name in LIKE)


@pytest.mark.parametrize("sites", [("graz", "bern"), ("bern", "bern")], ids=["unordered", "twice"])
def test_a_stream_out_of_order_is_refused_by_name(sites):
    with pytest.raises(PayloadError, match=f"site 'bern': follows '{sites[0]}', expected each once in the order of"):
        mean_of_stream((update(site, 1.0) for site in sites), like=LIKE)


def test_a_stream_is_refused_at_its_first_unusable_update_and_not_read_on():
    read = []

    def replies():
        for site, value in (("bern", 1.0), ("graz", float("inf")), ("linz", 1.0)):
            read.append(site)
            yield update(site, value)

    with pytest.raises(PayloadError, match="site 'graz', 'down': contains NaN or inf"):
        mean_of_stream(replies(), like=LIKE)
    assert read == ["bern", "graz"]


def test_an_empty_stream_is_refused():
    with pytest.raises(PayloadError, match="no site updates to average"):
        mean_of_stream(iter([]), like=LIKE)


def test_a_tensor_that_does_not_lie_in_order_in_memory_is_read_by_its_axes():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    result = mean([update("bern", 0.0, down=np.asfortranarray(values))], like=LIKE)
    np.testing.assert_array_equal(result["down"], values)
