"""Sums of volumes give the agreement of the pooled cases, and only sums that volumes can have are accepted."""

import dataclasses
import math
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sahfl.errors import PayloadError
from sahfl.statistics.agreement import MOST_CASES, MOST_ML, VolumeSums, deviation, read_count


def pairs(n, seed):
    random = np.random.default_rng(seed)
    annotated = random.uniform(2, 80, n)
    return list(zip(annotated.tolist(), (0.9 * annotated + random.normal(0, 3, n)).clip(0.1).tolist(), strict=True))


SITES = [pairs(20, 1), pairs(9, 2), pairs(31, 3)]
POOLED = [pair for site in SITES for pair in site]
ANNOTATED, PREDICTED = np.array(POOLED).T


def test_agreement_of_the_sites_sums_equals_scipy_and_numpy_on_the_pooled_cases():
    agreement = reduce(add, map(VolumeSums.of, SITES)).agreement()
    gap = PREDICTED - ANNOTATED
    assert agreement.n == 60
    assert agreement.pearson_r == pytest.approx(stats.pearsonr(ANNOTATED, PREDICTED).statistic, abs=1e-12)
    assert agreement.bias_ml == pytest.approx(gap.mean(), abs=1e-10)
    assert agreement.loa_low_ml == pytest.approx(gap.mean() - 1.96 * gap.std(ddof=1), abs=1e-10)
    assert agreement.loa_high_ml == pytest.approx(gap.mean() + 1.96 * gap.std(ddof=1), abs=1e-10)


def icc_of_an_anova(annotated, predicted):
    """ICC(2,1) as McGraw & Wong 1996 give it, from the table of cases x {annotated, predicted}."""
    table = np.stack([annotated, predicted], axis=1)
    n, k = table.shape
    rows = k * ((table.mean(1) - table.mean()) ** 2).sum() / (n - 1)
    columns = n * ((table.mean(0) - table.mean()) ** 2).sum() / (k - 1)
    residual = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    error = (residual**2).sum() / ((n - 1) * (k - 1))
    return (rows - error) / (rows + (k - 1) * error + k / n * (columns - error))


def test_the_icc_of_the_sites_sums_equals_the_anova_of_the_pooled_cases():
    agreement = reduce(add, map(VolumeSums.of, SITES)).agreement()
    assert agreement.icc == pytest.approx(icc_of_an_anova(ANNOTATED, PREDICTED), abs=1e-10)
    assert agreement.icc < agreement.pearson_r  # predictions are 10 % too small


def test_a_prediction_that_equals_the_annotation_has_an_icc_of_one_and_a_constant_none():
    assert VolumeSums.of([(5, 5), (7, 7), (9, 9)]).agreement().icc == pytest.approx(1.0)
    assert VolumeSums.of([(5, 5), (5, 5), (5, 5)]).agreement().icc is None


def test_sums_by_hand():
    assert VolumeSums.of([(2, 1), (4, 5)]) == VolumeSums(n=2, x=6.0, y=6.0, xx=20.0, yy=26.0, xy=22.0)


def test_the_order_of_cases_does_not_change_a_bit():
    assert VolumeSums.of(POOLED) == VolumeSums.of(POOLED[::-1])


def test_no_case_gives_none():
    assert VolumeSums.of([]) == VolumeSums.zero()
    assert VolumeSums.of(POOLED) + VolumeSums.zero() == VolumeSums.of(POOLED)
    assert dataclasses.astuple(VolumeSums.zero().agreement()) == (0, None, None, None, None, None)


AGREEMENTS = {  # volumes -> (r is None, limits are None)
    "one case": ([(5, 4)], True, True),
    "two cases": ([(5, 4), (7, 9)], True, False),
    "same volume in all": ([(5.1, 4), (5.1, 9), (5.1, 6)], True, False),
    "nothing predicted": ([(5, 0), (7, 0), (9, 0)], True, False),
    "three cases": ([(5, 4), (7, 9), (9, 8)], False, False),
}


@pytest.mark.parametrize(("volumes", "no_r", "no_limits"), AGREEMENTS.values(), ids=AGREEMENTS.keys())
def test_agreement_is_none_where_too_few_cases_decide(volumes, no_r, no_limits):
    agreement = VolumeSums.of(volumes).agreement()
    assert (agreement.pearson_r is None, agreement.loa_low_ml is None) == (no_r, no_limits)
    assert agreement.bias_ml == pytest.approx(np.mean([y - x for x, y in volumes]))


volume = st.one_of(st.just(0.0), st.floats(1e-3, 2000))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(volume, volume), max_size=8))
def test_whatever_the_volumes_they_travel_exactly_and_never_give_nan(volumes):
    sums = VolumeSums.of(volumes)
    assert VolumeSums.from_array(np.array(dataclasses.astuple(sums), np.float64), n=len(volumes)) == sums
    numbers = [number for number in dataclasses.astuple(sums.agreement()) if number is not None]
    assert all(map(math.isfinite, numbers))


REFUSED = {  # index into the array, value, what the message names
    "negative count": (0, -1.0, "volume, n: got -1.0, expected a whole number"),
    "half a case": (0, 0.5, "volume, n: got 0.5, expected a whole number"),
    "another number of cases": (0, 59.0, "volume, n: got 59, expected 60, the cases of all strata"),
    "negative volume": (1, -1.0, "volume, x: got -1.0"),
    "mean above the limit": (2, 60 * MOST_ML * 1.01, r"volume, y: got 6.06e\+06|volume, y: got 6060000.0"),
    "squares too small": (3, 0.0, "volume, xx: got 0.0"),
    "squares too large": (4, 1e12, "volume, yy: got 1000000000000.0"),
    "impossible products": (5, 1e9, "volume, xy: got 1000000000.0"),
    "negative products": (5, -1.0, "volume, xy: got -1.0"),
}


@pytest.mark.parametrize(("index", "value", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_sums_that_no_volumes_can_have_are_refused_by_name(index, value, message):
    array = np.array(dataclasses.astuple(VolumeSums.of(POOLED)))
    array[index] = value
    with pytest.raises(PayloadError, match="evaluation sums, " + f"({message})"):
        VolumeSums.from_array(array, n=60)


def test_a_count_is_a_whole_number_up_to_a_million():
    assert [read_count(value, "n") for value in (0.0, 3.0, 1e6)] == [0, 3, MOST_CASES]
    for value in (-1.0, 0.5, 1e6 + 1):
        with pytest.raises(
            PayloadError, match=r"^evaluation sums, n: got .*, expected a whole number in \[0, 1000000\]"
        ):
            read_count(value, "n")


def test_a_deviation_needs_two_values_and_is_never_negative():
    assert deviation(1, 5.0, 25.0) is None
    assert deviation(2, 4.0, 10.0) == pytest.approx(math.sqrt(2))  # values 1 and 3
    assert deviation(3, 0.3, 0.03 - 1e-18) == 0.0
