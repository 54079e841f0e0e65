"""Fixed-point numbers: sums are right to half a step for each site, cannot wrap, and what cannot be is refused."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sahfl.errors import PayloadError
from sahfl.masking.ring import DTYPES, FixedPoint, decode_counts, decode_exact, encode_counts, encode_exact


def test_the_step_is_a_power_of_two_that_the_docstring_states():
    assert FixedPoint(32, bound=1.0, n_sites=20).step == 2.0**-30
    assert FixedPoint(64, bound=1.0, n_sites=20).step == 2.0**-62
    assert FixedPoint(16, bound=1.0, n_sites=20).step == 2.0**-14
    assert FixedPoint(32, bound=1.0, n_sites=20, weights=20).step == 2.0**-26
    assert FixedPoint(32, bound=1e9, n_sites=2).step == 0.5


@given(st.sampled_from([16, 32, 64]), st.floats(1e-6, 1e6), st.integers(1, 30), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_sum_is_right_to_half_a_step_for_each_site_even_at_the_bound(bits, bound, n_sites, seed):
    rng = np.random.default_rng(seed)
    form = FixedPoint(bits, bound, n_sites)
    volumes = rng.integers(1, 1000, n_sites)
    values = rng.choice([bound, -bound, 0.0, bound / 3], (n_sites, 50))
    values[:, 0], values[:, 1] = bound, -bound
    weights = volumes / volumes.sum()
    total = np.zeros(50, DTYPES[bits])
    for value, weight in zip(values, weights, strict=True):
        total += form.encode(value, weight=float(min(weight, 1.0)))
    expected = (values * weights[:, None]).sum(0)
    allowed = n_sites * form.step / 2 + n_sites * 2.0**-50 * bound
    assert np.abs(form.decode(total) - expected).max() <= allowed


def test_multiples_of_the_step_are_exact_with_weight_one():
    form = FixedPoint(64, bound=2.0**20, n_sites=100, weights=100)
    values = np.random.default_rng(0).integers(-(2**40), 2**40, 500) * 2.0**-20
    assert form.step <= 2.0**-20
    np.testing.assert_array_equal(form.decode(3 * form.encode(values)), 3 * values)


def test_the_largest_sum_of_the_most_sites_does_not_wrap():
    for bits in (16, 32, 64):
        form = FixedPoint(bits, bound=7.0, n_sites=1000, weights=1000) if bits > 16 else FixedPoint(16, 7.0, 10, 10)
        one = form.encode(np.array([7.0, -7.0]))
        total = (one * np.array(form.n_sites, one.dtype)).astype(one.dtype)
        np.testing.assert_allclose(form.decode(total), [7 * form.n_sites, -7 * form.n_sites], rtol=1e-3)
        assert form.most < 2 ** (bits - 1)


BAD = {
    "NaN": (np.array([0.0, np.nan]), 1.0, "got one of size nan"),
    "infinity": (np.array([-np.inf]), 1.0, "got one of size inf"),
    "beyond the bound": (np.array([0.1, -1.001], np.float32), 1.0, r"got one of size 1\.001, expected at most 1"),
    "weight 0": (np.zeros(1), 0.0, "weight: got 0.0"),
    "weight above all": (np.zeros(1), 1.01, "weight: got 1.01"),
    "weight NaN": (np.zeros(1), float("nan"), "weight: got nan"),
}


@pytest.mark.parametrize(("values", "weight", "message"), BAD.values(), ids=BAD.keys())
def test_numbers_that_cannot_be_written_are_refused(values, weight, message):
    with pytest.raises(PayloadError, match=message):
        FixedPoint(32, bound=1.0, n_sites=3).encode(values, weight=weight)


@pytest.mark.parametrize(
    ("bits", "bound", "n_sites", "message"),
    [
        (8, 1.0, 3, "got 8 bits"),
        (32, 0.0, 3, "expected finite numbers above 0"),
        (32, float("inf"), 3, "expected finite numbers above 0"),
        (32, 1.0, 0, "expected finite numbers above 0"),
        (16, 1.0, 20_000, "20000 sites need more than 16 bits"),
    ],
)
def test_a_ring_that_cannot_be_is_refused(bits, bound, n_sites, message):
    with pytest.raises(PayloadError, match=message):
        FixedPoint(bits, bound, n_sites)


def test_a_total_beyond_what_honest_sites_can_send_is_refused():
    form = FixedPoint(32, bound=1.0, n_sites=3)
    form.decode(np.array([form.most, 2**32 - form.most], np.uint32))
    for broken in (form.most + 1, 2**32 - form.most - 1, 2**31):
        with pytest.raises(PayloadError, match="larger than the bound allows"):
            form.decode(np.array([0, broken], np.uint32))
    with pytest.raises(PayloadError, match="got uint64, expected uint32"):
        form.decode(np.zeros(1, np.uint64))


def test_counts_are_exact():
    counts = np.array([[0, 1], [65_000, 1_000_000]])
    total = sum(encode_counts(counts, bits=64, most=1_000_000, n_sites=50) for _ in range(50))
    np.testing.assert_array_equal(decode_counts(total, bits=64, most=1_000_000, n_sites=50), 50 * counts)


@pytest.mark.parametrize(
    ("values", "bits", "most", "message"),
    [
        (np.array([-1]), 32, 10, "got -1 to -1, expected 0 to 10"),
        (np.array([11]), 32, 10, "got 11 to 11"),
        (np.array([1.0]), 32, 10, "got float64, expected whole numbers"),
        (np.array([1]), 16, 10_000, "5 sites with up to 10000 each do not fit a ring of 16 bits"),
    ],
)
def test_counts_that_cannot_be_are_refused(values, bits, most, message):
    with pytest.raises(PayloadError, match=message):
        encode_counts(values, bits=bits, most=most, n_sites=5)


def test_a_sum_of_counts_outside_its_range_is_refused():
    for broken in (51, 2**32 - 1):
        with pytest.raises(PayloadError, match="outside 0 to 50"):
            decode_counts(np.array([broken], np.uint32), bits=32, most=10, n_sites=5)


@given(
    st.lists(st.lists(st.floats(-1e9, 1e9), min_size=3, max_size=3), min_size=1, max_size=6),
)
def test_numbers_in_two_words_add_up_exactly_in_any_order(rows):
    values = np.rint(np.array(rows) * 2.0**20) / 2.0**20
    parts = [encode_exact(row, n_sites=len(rows)) for row in values]
    total = sum(parts[1:], parts[0])
    expected = [float(sum(map(Fraction, column))) for column in values.T]
    assert decode_exact(total, n_sites=len(rows)).tolist() == expected
    assert np.array_equal(sum(parts[::-1][1:], parts[-1]), total)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**41, -(2.0**41)])
def test_a_number_that_does_not_fit_two_words_is_refused(value):
    with pytest.raises(PayloadError, match="numbers to mask"):
        encode_exact(np.array([1.0, value]), n_sites=3)


def test_a_sum_of_two_words_is_refused_where_honest_sites_cannot_have_sent_it():
    good = encode_exact(np.array([1.5, -2.25]), n_sites=3)
    for place, change in ((0, 1 << 43), (2, 1 << 43), (3, -(1 << 42))):
        bad = good.copy()
        bad[place] += np.uint64(change % 2**64)
        with pytest.raises(PayloadError, match="larger than the bound"):
            decode_exact(bad, n_sites=3)
    with pytest.raises(PayloadError, match="two for each number"):
        decode_exact(good[:3], n_sites=3)
    for n_sites in (0, 1 << 30):
        with pytest.raises(PayloadError, match="do not fit numbers of two words"):
            decode_exact(good, n_sites=n_sites)
