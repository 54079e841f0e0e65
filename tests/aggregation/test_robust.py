"""What bounds a single site: exact arithmetic, no cost without an attacker, and means that ignore extremes."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sahfl.aggregation.mean import mean
from sahfl.aggregation.robust import bound, change_norm, median, trimmed_mean
from sahfl.aggregation.update import SiteUpdate
from sahfl.errors import PayloadError

LIKE = {"down": np.full((2, 3), 0.5, np.float32), "up": np.zeros((4, 2), np.float32)}
RULES = {
    "mean": mean,
    "median": median,
    "trimmed-mean": lambda updates, *, like: trimmed_mean(updates, like=like, trim=0.2),
    "bound": lambda updates, *, like: mean(bound(updates, like=like, most_share=0.5, most_norm=1.5).updates, like=like),
}
SHARES = st.sampled_from([0.02, 0.1, 0.25, 1 / 3, 0.5, 0.6, 0.7, 0.9, 1.0])
COUNTS = st.lists(st.integers(1, 1_000_000), min_size=1, max_size=60)


def update(site, change, n_volumes=10):
    """A site that moved every number by ``change``: by sqrt(14) times as much in all."""
    return SiteUpdate(site, n_volumes, {name: value + np.float32(change) for name, value in LIKE.items()})


def random_updates(n_sites, seed=0, size=1.0):
    rng = np.random.default_rng(seed)
    return [
        SiteUpdate(
            f"site{i}",
            int(rng.integers(1, 50)),
            {
                name: (value + size * rng.standard_normal(value.shape)).astype(np.float32)
                for name, value in LIKE.items()
            },
        )
        for i in range(n_sites)
    ]


def bounded(updates, most_share=0.7, most_norm=3.0):
    return bound(updates, like=LIKE, most_share=most_share, most_norm=most_norm)


# --- the share of a site --------------------------------------------------------------------------------------------


def volumes(counts, most_share):
    updates = [update(f"site{i:02d}", 1.0, count) for i, count in enumerate(counts)]
    return [u.n_volumes for u in bounded(updates, most_share).updates]


@pytest.mark.parametrize(
    ("counts", "most_share", "expected"),
    [
        ([70, 30], 0.7, [70, 30]),  # exactly the share: nothing is cut
        ([71, 29], 0.7, [67, 29]),  # 67.67 of 96.67 is 0.7, rounded down
        ([1000, 10], 0.5, [10, 10]),
        ([1000, 10], 0.2, [10, 10]),  # two sites: at least one half
        ([10**6, 10, 10], 0.5, [20, 10, 10]),
        ([900, 800, 10, 10], 0.3, [15, 15, 10, 10]),  # c = 0.3 (2 c + 20)
        ([6] * 49, 0.02, [6] * 49),  # a 49th each, more than 0.02
        ([1] * 48 + [7], 0.02, [1] * 49),
        ([5], 0.1, [5]),
    ],
)
def test_the_largest_sites_are_cut_to_the_share_by_hand(counts, most_share, expected):
    assert volumes(counts, most_share) == expected


@given(COUNTS, SHARES)
@settings(deadline=None)
def test_no_site_keeps_more_than_its_share_and_none_more_than_needed_is_cut(counts, most_share):
    found, share = volumes(counts, most_share), max(most_share, 1 / len(counts))
    assert max(found) <= share * sum(found) * (1 + 1e-12)
    assert min(found) >= 1
    cap = max(found)
    assert all(new == min(old, cap) for old, new in zip(counts, found, strict=True))
    if found != counts:  # one volume more would be too many
        more = [min(old, cap + 1) for old in counts]
        assert cap + 1 > share * sum(more) * (1 - 1e-12)


@given(st.integers(1, 1_000_000), st.integers(1, 60), st.floats(0.001, 1))
@settings(deadline=None)
def test_equal_sites_are_never_cut(count, n_sites, most_share):
    assert volumes([count] * n_sites, most_share) == [count] * n_sites


def test_what_was_cut_is_told_as_a_share_of_the_weight():
    found = bounded([update("bern", 1.0, 900), update("graz", 1.0, 100)], most_share=0.5)
    assert found.lightened == {"bern": pytest.approx(0.9 - 0.5)}
    assert found.shortened == {}


# --- the length of a change -----------------------------------------------------------------------------------------


def test_a_change_that_is_far_longer_than_the_others_is_shortened_by_hand():
    changes = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 1000.0, "e": 0.5}
    found = bounded([update(site, change) for site, change in changes.items()])
    assert found.norms["d"] == pytest.approx(1000 * np.sqrt(14))
    assert found.shortened == {"d": pytest.approx(3 * 2.0 / 1000)}  # three times the median, 2
    np.testing.assert_allclose(found.updates[3].state["down"], 0.5 + 6.0, rtol=1e-6)


@pytest.mark.parametrize("factor", [1000.0, -1.0, -1000.0, 1e30])
def test_B04_an_update_times_a_factor_moves_the_mean_by_no_more_than_the_bound(factor):
    honest = random_updates(5)
    changed = {name: LIKE[name] + np.float32(factor) * (value - LIKE[name]) for name, value in honest[2].state.items()}
    hostile = [*honest[:2], SiteUpdate("site2", 1_000_000, changed), *honest[3:]]
    found = bounded(hostile)
    total = sum(u.n_volumes for u in found.updates)
    moved = found.updates[2].n_volumes / total * change_norm(found.updates[2].state, LIKE)
    assert moved <= 0.7 * 3.0 * np.median(list(found.norms.values())) * (1 + 1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(0, 999), st.floats(1, 5), st.floats(0.05, 1), st.floats(1, 1e6))
def test_no_change_stays_longer_than_the_bound(n_sites, seed, most_norm, most_share, factor):
    updates = random_updates(n_sites, seed)
    updates[0] = SiteUpdate(
        "site0", 5, {name: (factor * value).astype(np.float32) for name, value in updates[0].state.items()}
    )
    found = bounded(updates, most_share, most_norm)
    longest = most_norm * np.median(list(found.norms.values()))
    for u in found.updates:
        assert change_norm(u.state, LIKE) <= longest * (1 + 1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(0, 999))
def test_without_an_attacker_the_updates_come_back_bit_for_bit(n_sites, seed):
    updates = random_updates(n_sites, seed)
    updates = [SiteUpdate(u.site, 10, u.state) for u in updates]
    found = bounded(updates)
    assert (found.shortened, found.lightened) == ({}, {})
    assert all(
        after.n_volumes == 10 and after.state is before.state
        for before, after in zip(updates, found.updates, strict=True)
    )


def test_of_two_sites_the_longer_is_shortened_only_beyond_three_times_the_mean_of_both():
    assert bounded([update("a", 0.0), update("b", 9.0)]).shortened == {}
    found = bounded([update("a", 1.0), update("b", 9.0)], most_norm=1.5)
    assert found.shortened == {"b": pytest.approx(1.5 * 5 / 9)}


def test_where_most_sites_changed_nothing_no_change_is_let_through():
    found = bounded([update("a", 0.0), update("b", 0.0), update("c", 1.0)])
    assert all((found.updates[2].state[name] == value).all() for name, value in LIKE.items())


# --- median and trimmed mean ----------------------------------------------------------------------------------------


def test_the_median_counts_each_site_once_by_hand():
    updates = [update("a", 1.0, 999), update("b", 2.0), update("c", 30.0)]
    np.testing.assert_array_equal(median(updates, like=LIKE)["up"], np.full((4, 2), 2.0))
    np.testing.assert_array_equal(median(updates[:2], like=LIKE)["up"], np.full((4, 2), 1.5))


@pytest.mark.parametrize(
    ("changes", "trim", "expected"),
    [
        ([1, 2, 30], 0.2, 2.0),  # three sites: one off each end
        ([1, 3], 0.4, 2.0),  # fewer than three: none
        ([0, 1, 2, 3, 100], 0.2, 2.0),
        ([0, 1, 2, 3, 100], 0.0, 21.2),
        ([0, 1, 2, 9, 100], 0.5, 2.0),  # at least one site is left
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 999], 0.2, 4.5),
    ],
)
def test_the_trimmed_mean_leaves_out_both_ends_by_hand(changes, trim, expected):
    updates = [update(f"site{i}", change) for i, change in enumerate(changes)]
    np.testing.assert_allclose(trimmed_mean(updates, like=LIKE, trim=trim)["up"], expected, rtol=1e-6)


VALUES = arrays.arrays(np.float32, (4, 2), elements=st.floats(-1e6, 1e6, width=32))
HOSTILE = arrays.arrays(np.float32, (4, 2), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


def with_ups(values):
    return [SiteUpdate(f"site{i}", 1, {"down": LIKE["down"], "up": up}) for i, up in enumerate(values)]


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=3, max_size=6), st.data())
def test_the_median_lies_between_honest_numbers_while_fewer_than_half_are_hostile(honest, data):
    hostile = data.draw(st.lists(HOSTILE, max_size=len(honest) - 1))
    found = median(with_ups([*honest, *hostile]), like=LIKE)["up"]
    assert (np.min(honest, axis=0) <= found).all()
    assert (found <= np.max(honest, axis=0)).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=8, max_size=8), st.lists(HOSTILE, max_size=2))
def test_the_trimmed_mean_lies_between_honest_numbers_while_no_more_than_the_trim_are_hostile(honest, hostile):
    found = trimmed_mean(with_ups([*honest, *hostile]), like=LIKE, trim=0.2)["up"]
    width = 1e-6 * np.abs(honest).max()
    assert (np.min(honest, axis=0) - width <= found).all()
    assert (found <= np.max(honest, axis=0) + width).all()


# --- every rule -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("names", [("a", "b", "c", "d"), ("site10", "site9", "Site1", "\u00e4")], ids=str)
def test_the_order_of_replies_does_not_change_a_bit(rule, names):
    updates = [SiteUpdate(name, u.n_volumes, u.state) for name, u in zip(names, random_updates(4), strict=True)]
    found = {b"".join(value.tobytes() for value in rule(order, like=LIKE).values()) for order in permutations(updates)}
    assert len(found) == 1


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_the_result_is_finite_and_has_names_shapes_and_types_of_the_global_state(rule):
    largest = float(np.finfo(np.float32).max)
    states = [{name: np.full_like(value, sign * largest) for name, value in LIKE.items()} for sign in (1, 1, -1)]
    found = rule([SiteUpdate(f"s{i}", 3 + i, state) for i, state in enumerate(states)], like=LIKE)
    assert [(k, v.shape, v.dtype) for k, v in found.items()] == [(k, v.shape, v.dtype) for k, v in LIKE.items()]
    assert all(np.isfinite(value).all() for value in found.values())


UNUSABLE = {
    "nan": (SiteUpdate("graz", 1, LIKE | {"up": np.full((4, 2), np.nan, np.float32)}), "'up': contains NaN or inf"),
    "would-broadcast": (SiteUpdate("graz", 1, LIKE | {"up": np.ones((1, 2), np.float32)}), r"'up': got \(1, 2\)"),
    "double": (SiteUpdate("graz", 1, LIKE | {"up": np.ones((4, 2))}), r"'up': got \(4, 2\) float64"),
    "renamed": (SiteUpdate("graz", 1, {"Up": LIKE["up"], "down": LIKE["down"]}), r"tensors \['Up', 'up'\]"),
    "volumes": (SiteUpdate("graz", 10**12, LIKE), "n_volumes=1000000000000, expected"),
}


@pytest.mark.parametrize(("bad", "message"), UNUSABLE.values(), ids=UNUSABLE.keys())
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_B02_B03_an_unusable_update_is_refused_naming_the_site(rule, bad, message):
    with pytest.raises(PayloadError, match="site 'graz'.*" + message):
        rule([update("bern", 1.0), bad], like=LIKE)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_B05_a_site_that_occurs_twice_is_refused_by_name(rule):
    with pytest.raises(PayloadError, match="site 'graz': occurs twice in one round"):
        rule([update("graz", 1.0), update("bern", 1.0), update("graz", 2.0)], like=LIKE)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_a_round_without_updates_is_refused(rule):
    with pytest.raises(PayloadError, match="no site updates to average"):
        rule([], like=LIKE)
