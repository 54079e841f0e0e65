"""The sums of all sites give what the pooled cases would give, and only sums that cases can have are accepted."""

import dataclasses
import math
from functools import reduce
from itertools import permutations
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sahfl.errors import PayloadError
from sahfl.statistics import (
    CaseResult,
    DiceSums,
    EvaluationSums,
    dice_estimate,
    difference,
    overall,
    poisson_weights,
    stratum_labels,
)
from sahfl.sums import HEAD

EDGES = (10.0, 30.0)
REPLICATES = 200


def cases(site="bern", n=20, seed=0, shift=0.0):
    """Cases with blood of 2 to 80 mL; ``shift`` makes another method better on the very same cases."""
    random = np.random.default_rng(seed)
    volumes, noise = random.uniform(2, 80, n), random.normal(0, 3, n)
    dice = np.clip(random.beta(2, 2, n) + shift, 0, 1)
    return [
        CaseResult(f"{site}-{i}", float(v), float(max(0.9 * v + e, 0.1)), float(d))
        for i, (v, e, d) in enumerate(zip(volumes, noise, dice, strict=True))
    ]


def sums(of, replicates=REPLICATES):
    return EvaluationSums.of(of, edges_ml=EDGES, replicates=replicates, seed=7)


def dice_sums(of, replicates=REPLICATES):
    return DiceSums.of(of, replicates=replicates, seed=7)


SITES = [cases("bern", 20, 1), cases("graz", 9, 2), cases("lyon", 31, 3)]
POOLED = [case for site in SITES for case in site]
DICE = np.array([case.dice for case in POOLED])


def test_mean_and_sd_of_the_sites_sums_equal_those_of_the_pooled_cases():
    estimate = dice_estimate(overall(reduce(add, map(sums, SITES))))
    assert estimate.n == 60
    assert estimate.value == pytest.approx(DICE.mean(), abs=1e-12)
    assert estimate.sd == pytest.approx(DICE.std(ddof=1), abs=1e-12)


def test_the_interval_of_the_sites_sums_equals_that_of_the_pooled_cases():
    federated = dice_estimate(overall(reduce(add, map(sums, SITES))))
    pooled = dice_estimate(dice_sums(POOLED))
    assert (federated.low, federated.high) == pytest.approx((pooled.low, pooled.high), abs=1e-12)


def test_the_interval_is_close_to_the_percentile_bootstrap_of_scipy():
    reference = stats.bootstrap(
        (DICE,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(0)
    ).confidence_interval
    estimate = dice_estimate(dice_sums(POOLED, replicates=4000))
    # Both intervals are about 0.11 wide; two runs of scipy differ by up to 0.004.
    assert (estimate.low, estimate.high) == pytest.approx((reference.low, reference.high), abs=0.012)


def test_the_interval_covers_the_true_mean_in_about_95_of_100_cohorts():
    true, hits = 0.5, 0
    for seed in range(200):
        estimate = dice_estimate(DiceSums.of(cases(f"s{seed}", 40, seed), replicates=300, seed=seed))
        hits += estimate.low <= true <= estimate.high
    assert 0.89 <= hits / 200 <= 0.99


def test_a_paired_difference_is_narrower_than_an_unpaired_one():
    better = [dataclasses.replace(case, dice=min(1.0, case.dice + 0.05)) for case in POOLED]
    elsewhere = [dataclasses.replace(case, key="other-" + case.key) for case in POOLED]
    paired = difference(dice_sums(better, 1000), dice_sums(POOLED, 1000))
    replicates = dice_sums(better, 1000).replicate_means() - dice_sums(elsewhere, 1000).replicate_means()
    unpaired = np.diff(np.quantile(replicates, [0.025, 0.975])).item()
    assert paired.value == pytest.approx(DICE.clip(max=0.95).mean() + 0.05 - DICE.mean(), abs=1e-12)
    assert paired.high - paired.low < 0.2 * unpaired


def test_a_difference_is_the_same_from_single_sums_and_from_the_sites_in_any_order():
    single = difference(dice_sums(POOLED), dice_sums([dataclasses.replace(c, dice=0.5) for c in POOLED]))
    other = [dice_sums([dataclasses.replace(c, dice=0.5) for c in site]) for site in SITES]
    federated = difference([dice_sums(site) for site in SITES], other[::-1])
    for name in ("value", "low", "high"):
        assert getattr(federated, name) == pytest.approx(getattr(single, name), abs=1e-12)


def test_a_method_compared_with_itself_differs_by_nothing():
    estimate = difference(dice_sums(POOLED), dice_sums(POOLED))
    assert (estimate.value, estimate.low, estimate.high, estimate.sd) == (0.0, 0.0, 0.0, None)


OTHER_CASES = {"fewer": SITES[0][:-1], "others": cases("wien", 20, 1)}


@pytest.mark.parametrize("other", OTHER_CASES.values(), ids=OTHER_CASES.keys())
def test_a_difference_over_other_cases_is_refused(other):
    with pytest.raises(ValueError, match="expected the same cases in both"):
        difference(dice_sums(SITES[0]), dice_sums(other))


def test_the_order_of_cases_and_of_two_sites_does_not_change_a_bit():
    assert np.array_equal(sums(SITES[0]).to_array(), sums(SITES[0][::-1]).to_array())
    a, b = sums(SITES[0]), sums(SITES[1])
    assert np.array_equal((a + b).to_array(), (b + a).to_array())


def test_the_order_of_many_sites_changes_rounding_only():
    arrays = [reduce(add, map(sums, order)).to_array() for order in permutations(SITES)]
    for array in arrays[1:]:
        np.testing.assert_allclose(array, arrays[0], rtol=1e-12)


def test_the_weights_of_a_case_are_poisson_and_depend_on_key_and_seed_only():
    weights = poisson_weights("bern-1", replicates=20_000, seed=7)
    assert np.array_equal(weights, poisson_weights("bern-1", replicates=20_000, seed=7))
    assert weights.mean() == pytest.approx(1.0, abs=0.03)
    assert weights.var() == pytest.approx(1.0, abs=0.05)
    assert not np.array_equal(weights, poisson_weights("bern-1", replicates=20_000, seed=8))
    assert not np.array_equal(weights, poisson_weights("bern-2", replicates=20_000, seed=7))


def test_scans_that_share_a_key_are_resampled_together():
    twins = dice_sums([CaseResult("one", 5.0, 5.0, 0.2), CaseResult("one", 6.0, 6.0, 0.6)])
    assert np.array_equal(twins.weights, 2 * poisson_weights("one", replicates=REPLICATES, seed=7))


def test_a_volume_on_an_edge_belongs_to_the_larger_stratum():
    on_edges = [CaseResult(str(v), v, v, 0.5) for v in (9.99, 10.0, 29.99, 30.0, 31.0)]
    assert [stratum.n for stratum in sums(on_edges).strata] == [1, 2, 2]


def test_cases_without_blood_are_counted_apart():
    evaluation = sums([CaseResult("a", 0, 0, None), CaseResult("b", 0, 3.0, 0.0), CaseResult("c", 5.0, 0.0, 0.0)])
    assert (evaluation.n_no_blood, evaluation.n_false_positive, evaluation.volume.n) == (2, 1, 1)
    assert dice_estimate(overall(evaluation)).value == 0.0


LABELS = {
    (): ("any volume",),
    (10.0,): ("< 10 mL", ">= 10 mL"),
    (10.0, 30.0): ("< 10 mL", "10 to 30 mL", ">= 30 mL"),
    (2.5, 10, 30): ("< 2.5 mL", "2.5 to 10 mL", "10 to 30 mL", ">= 30 mL"),
}


@pytest.mark.parametrize(("edges", "labels"), LABELS.items(), ids=map(str, LABELS))
def test_strata_are_named_by_their_edges(edges, labels):
    assert stratum_labels(edges) == labels
    assert len(EvaluationSums.of([], edges_ml=edges, replicates=3, seed=0).strata) == len(labels)


@pytest.mark.parametrize("edges", [(30, 10), (10, 10), (0, 10), (-1,), (math.inf,), (math.nan,)], ids=str)
def test_edges_that_are_not_positive_and_increasing_are_refused(edges):
    with pytest.raises(ValueError, match="expected positive, increasing numbers of mL"):
        stratum_labels(edges)


def test_no_case_gives_none_and_never_nan():
    nothing = sums([])
    for stratum in (*nothing.strata, overall(nothing)):
        assert dice_estimate(stratum) == difference(stratum, stratum)
        assert dataclasses.astuple(dice_estimate(stratum)) == (None, None, None, 0, None)
    assert dataclasses.astuple(nothing.volume.agreement()) == (0, None, None, None, None)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_few_cases_have_a_mean_but_no_interval(n):
    estimate = dice_estimate(dice_sums(POOLED[:n]))
    assert estimate.value == pytest.approx(DICE[:n].mean())
    assert (estimate.low, estimate.high) == (None, None)
    assert (estimate.sd is None) == (n == 1)


def test_five_cases_have_an_interval_although_some_replicates_draw_none():
    five = dice_sums(POOLED[:5], replicates=2000)
    assert (five.weights == 0).any()
    estimate = dice_estimate(five)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_no_replicates_leave_the_mean_without_an_interval():
    assert dataclasses.astuple(dice_estimate(dice_sums(POOLED, 0)))[1:4] == (None, None, 60)


BAD_CASES = {
    "negative volume": (-1.0, 2.0, 0.5, "volumes"),
    "nan volume": (1.0, math.nan, 0.5, "volumes"),
    "dice above 1": (1.0, 1.0, 1.5, "dice=1.5"),
    "nan dice": (1.0, 1.0, math.nan, "dice=nan"),
    "no dice although blood": (1.0, 0.0, None, "dice=None"),
    "dice although both empty": (0.0, 0.0, 1.0, "dice=1.0"),
}


@pytest.mark.parametrize(("volume", "predicted", "dice", "message"), BAD_CASES.values(), ids=BAD_CASES.keys())
def test_a_case_that_cannot_be_is_refused(volume, predicted, dice, message):
    with pytest.raises(ValueError, match="case result: got " + message):
        CaseResult("a", volume, predicted, dice)


def test_the_array_comes_back_bit_for_bit_and_has_the_stated_length():
    array = sums(POOLED).to_array()
    assert (array.dtype, array.shape) == (np.float64, (HEAD + 3 * (3 + 2 * REPLICATES),))
    back = EvaluationSums.from_array(array, n_strata=3, replicates=REPLICATES)
    assert np.array_equal(back.to_array(), array)
    assert dice_estimate(overall(back)) == dice_estimate(overall(sums(POOLED)))
    assert isinstance(back.n_no_blood, int)


volumes = st.one_of(st.just(0.0), st.floats(1e-3, 2000))
any_case = st.builds(
    lambda key, volume, predicted, dice: CaseResult(
        key, volume, predicted, None if volume == predicted == 0 else dice * (volume > 0 and predicted > 0)
    ),
    st.text(max_size=4),
    volumes,
    volumes,
    st.floats(0, 1),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(any_case, max_size=8), min_size=1, max_size=4))
def test_whatever_the_cases_sites_add_up_travel_and_never_give_nan(sites):
    parts = [EvaluationSums.of(site, edges_ml=EDGES, replicates=20, seed=0) for site in sites]
    received = [EvaluationSums.from_array(part.to_array(), n_strata=3, replicates=20) for part in parts]
    total = reduce(add, received, EvaluationSums.zero(n_strata=3, replicates=20))
    pooled = EvaluationSums.of([c for site in sites for c in site], edges_ml=EDGES, replicates=20, seed=0)
    np.testing.assert_allclose(total.to_array(), pooled.to_array(), rtol=1e-12, atol=1e-300)
    estimates = [dice_estimate(stratum) for stratum in (*total.strata, overall(total))]
    numbers = [n for e in [*estimates, total.volume.agreement()] for n in dataclasses.astuple(e) if n is not None]
    assert all(map(math.isfinite, numbers))


WIDTH = 3 + 2 * REPLICATES
REFUSED = {  # index into the array, value, what the message names
    "nan": (2, math.nan, "array: got NaN or inf"),
    "infinite": (-1, math.inf, "array: got NaN or inf"),
    "negative count": (0, -1.0, "n_no_blood: got -1.0, expected a whole number"),
    "half a case": (0, 0.5, "n_no_blood: got 0.5, expected a whole number"),
    "absurd count": (HEAD, 1e12, "stratum 0, n: got"),
    "more false positives than empty cases": (1, 3.0, "n_false_positive: got 3, expected <= n_no_blood=0"),
    "mean above 1": (HEAD + 1, 1e3, "stratum 0, total: got 1000.0, expected a sum of"),
    "negative total": (HEAD + 1, -0.5, "stratum 0, total: got -0.5"),
    "squares above total": (HEAD + 2, 1e3, "stratum 0, squares: got 1000.0"),
    "squares too small": (HEAD + 2, 0.0, "stratum 0, squares: got 0.0"),
    "fractional weight": (HEAD + 3, 0.5, "stratum 0, weights: got another number"),
    "huge weight": (HEAD + 3 + WIDTH, 1e6, "stratum 1, weights: got another number"),
    "negative weighted": (HEAD + 3 + REPLICATES, -1.0, "stratum 0, weighted: got a number outside"),
    "weighted above weights": (HEAD + 3 * WIDTH - 1, 1e6, "stratum 2, weighted: got a number outside"),
}


@pytest.mark.parametrize(("index", "value", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_sums_that_no_cases_can_have_are_refused_by_name(index, value, message):
    array = sums(POOLED).to_array()
    array[index] = value
    with pytest.raises(PayloadError, match="evaluation sums, " + message):
        EvaluationSums.from_array(array, n_strata=3, replicates=REPLICATES)


SHAPES = {
    "short": (sums(POOLED).to_array()[:-1], r"shape: got \(1220,\), expected \(1221,\)"),
    "two axes": (sums(POOLED).to_array()[None], r"shape: got \(1, 1221\)"),
    "single precision": (sums(POOLED).to_array().astype(np.float32), "dtype: got float32, expected float64"),
    "objects": (sums(POOLED).to_array().astype(object), "dtype: got object"),
}


@pytest.mark.parametrize(("array", "message"), SHAPES.values(), ids=SHAPES.keys())
def test_an_array_of_another_form_is_refused(array, message):
    with pytest.raises(PayloadError, match="evaluation sums, " + message):
        EvaluationSums.from_array(array, n_strata=3, replicates=REPLICATES)


def test_sums_of_other_strata_or_replicates_do_not_add():
    with pytest.raises(ValueError, match="got 2 strata, expected 3"):
        sums(POOLED) + EvaluationSums.zero(n_strata=2, replicates=REPLICATES)
    with pytest.raises(ValueError, match="got 10 replicates, expected 200"):
        sums(POOLED) + EvaluationSums.zero(n_strata=3, replicates=10)
