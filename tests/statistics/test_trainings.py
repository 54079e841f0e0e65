"""Intervals over patients and trainings: their variances against an analysis of variance."""

import math

import numpy as np
import pytest
from harness.made_cases import a_case
from scipy import stats

from sahfl.statistics.estimates import contrast, difference, estimate
from sahfl.statistics.groups import GroupSums
from sahfl.statistics.variances import Sample

MANY = 20_000
"""Replicates: their randomness is 0.5 % of a standard error."""


def sums_of(dice, replicates=MANY):
    cases = [a_case(f"p{i}", 20.0, 18.0, float(value)) for i, value in enumerate(dice)]
    return GroupSums.of(cases, replicates=replicates, seed=1)


def sample(dice, replicates=MANY, *, first=1):
    """The sample of a method whose patients (rows) have these Dice in its trainings (columns)."""
    each = {number: sums_of(column, replicates) for number, column in enumerate(np.asarray(dice).T, start=first)}
    return Sample(sums_of(np.mean(dice, 1), replicates), each)


def untrained(dice, replicates=MANY):
    return Sample(sums_of(dice, replicates), trained=False)


def made(patients=12, trainings=3, *, sd=(0.05, 0.05, 0.03), seed=0):
    random = np.random.default_rng(seed)
    values = 0.5 + random.normal(0, sd[0], (patients, 1)) + random.normal(0, sd[1], trainings)
    return values + random.normal(0, sd[2], (patients, trainings))


def by_analysis_of_variance(values, extreme=None):
    """Half-width of the interval of a crossed layout, and p of a mean of 0, from its mean squares.

    With ``extreme``, half a patient of that value more is in the variance between patients, as at the end of a mean.
    """
    patients, trainings = values.shape
    of_patient, of_training = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    rest = values - of_patient - of_training + values.mean()
    between_patients = trainings * of_patient.var(ddof=1)
    between_trainings = patients * of_training.var(ddof=1)
    both = (rest**2).sum() / ((patients - 1) * (trainings - 1))
    if extreme is not None:
        squares = between_patients / trainings * (patients - 1)
        squares += (values.mean() - extreme) ** 2 * patients * 0.5 / (patients + 0.5)
        between_patients = squares * values.size / ((patients + 0.5) * (patients - 0.5))
    variance = (between_patients + between_trainings - both) / values.size
    squares = between_patients**2 / (patients - 1) + between_trainings**2 / (trainings - 1)
    squares += both**2 / ((patients - 1) * (trainings - 1))
    freedom = max((between_patients + between_trainings - both) ** 2 / squares, min(patients, trainings) - 1)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    return half, 2 * stats.t.sf(abs(values.mean()) / math.sqrt(variance), freedom)


@pytest.mark.parametrize("seed", range(4))
def test_the_interval_of_a_mean_is_that_of_a_crossed_analysis_of_variance(seed):
    values = made(seed=seed)
    found, (below, _), (above, _) = (
        estimate(sample(values), "dice"),
        *(by_analysis_of_variance(values, v) for v in (0, 1)),
    )
    assert (found.value, found.trainings) == (pytest.approx(values.mean()), 3)
    assert (found.value - found.low, found.high - found.value) == pytest.approx((below, above), rel=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_a_difference_from_an_untrained_method_has_the_variance_of_the_trained_one(seed):
    values, reference = made(seed=seed), made(12, 1, seed=100 + seed)[:, 0] - 0.1
    found = difference(sample(values), untrained(reference), "dice")
    half, p = by_analysis_of_variance(values - reference[:, None])
    assert ((found.high - found.low) / (2 * half), found.p) == (pytest.approx(1, abs=0.02), pytest.approx(p, rel=0.1))
    assert found.trainings == 3


def test_trainings_of_equal_numbers_are_paired():
    """Random numbers that two methods share cancel out: the second method is the first one, 0.02 better."""
    values = made(sd=(0.05, 0.08, 0.001))
    other = values + made(sd=(0.004, 0.002, 0.001), seed=9) - 0.48
    paired = difference(sample(other), sample(values), "dice")
    half, p = by_analysis_of_variance(other - values)
    assert (paired.low, paired.high) == pytest.approx((paired.value - half, paired.value + half), abs=1e-4)
    assert paired.p == pytest.approx(p, rel=0.1)
    apart = difference(sample(other, first=4), sample(values), "dice")
    assert apart.high - apart.low > 20 * (paired.high - paired.low)


def test_the_variances_of_trainings_that_are_no_pairs_are_added():
    ours, theirs = made(trainings=3, seed=1), made(trainings=4, seed=2)
    found = difference(sample(ours), sample(theirs), "dice")
    parts = [(values.mean(0).var(ddof=1) / values.shape[1], values.shape[1] - 1) for values in (ours, theirs)]
    gaps = ours.mean(1) - theirs.mean(1)
    shared = []
    for values in (ours, theirs):
        rest = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
        shared.append((rest**2).sum() / 11 / (values.shape[1] - 1) / values.size)
    variance = gaps.var(ddof=1) / 12 + sum(v for v, _ in parts) - sum(shared)
    squares = (gaps.var(ddof=1) / 12) ** 2 / 11 + sum(v**2 / n for v, n in parts)
    squares += sum(v**2 / (11 * n) for v, (_, n) in zip(shared, parts, strict=True))
    half = stats.t.ppf(0.975, variance**2 / squares) * math.sqrt(variance)
    assert (found.high - found.low) / (2 * half) == pytest.approx(1, abs=0.02)
    assert found.trainings == 3


def test_one_training_gives_an_interval_over_patients_and_no_p():
    values = made()
    once, never = sample(values[:, :1]), untrained(values[:, 0])
    assert estimate(once, "dice").trainings == 1
    ends = [(found.low, found.high) for found in (estimate(once, "dice"), estimate(never, "dice"))]
    assert ends[0] == ends[1]
    reference = untrained(values[:, 1])
    found, known = difference(once, reference, "dice"), difference(never, reference, "dice")
    assert (found.low, found.high, found.trainings, found.p) == (known.low, known.high, 1, None)
    assert (known.trainings, known.p is None) == (0, False)
    assert difference(sample(values), once, "dice").trainings == 1


def test_trainings_that_differ_no_more_than_their_patients_do_add_nothing():
    """The mean of each training is the same, so that the spread over patients is all there is."""
    values = made(sd=(0.05, 0.0, 0.03))
    values -= values.mean(0) - 0.5
    found, alone = estimate(sample(values), "dice"), estimate(untrained(values.mean(1)), "dice")
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high))
    assert found.trainings == 3


def by_welch(larger, smaller):
    """The ends of the interval of a difference of two groups, with half a patient more in each, and p."""
    value, found = larger.mean() - smaller.mean(), []
    for extremes in ((0, 1), (1, 0)):
        parts = []
        for group, extreme in zip((larger, smaller), extremes, strict=True):
            n, squares = len(group), group.var(ddof=0) * len(group)
            squares += (group.mean() - extreme) ** 2 * n * 0.5 / (n + 0.5)
            parts.append((squares / ((n + 0.5) * (n - 0.5)), n - 1))
        variance = sum(v for v, _ in parts)
        found.append((math.sqrt(variance), variance**2 / sum(v**2 / n for v, n in parts)))
    ends = [error * stats.t.ppf(0.975, freedom) for error, freedom in found]
    error, freedom = found[int(value < 0)]
    return value - ends[0], value + ends[1], 2 * stats.t.sf(abs(value) / error, freedom)


def test_two_groups_of_patients_without_training_are_compared_as_by_welch_with_half_a_patient_more_in_each():
    values = made(20, 1, sd=(0.1, 0, 0))[:, 0]
    small, large = values[:8], values[8:] * 0.5 + 0.4
    found = contrast(Sample(others(large), trained=False), untrained(small), "dice")
    assert (found.value, found.n, found.trainings) == (pytest.approx(large.mean() - small.mean()), 20, 0)
    assert (found.low, found.high, found.p) == pytest.approx(by_welch(large, small), abs=0.003)


def others(dice):
    """Sums of patients whom no other group has."""
    return GroupSums.of([a_case(f"q{i}", 40.0, 36.0, float(d)) for i, d in enumerate(dice)], replicates=MANY, seed=1)


def test_a_contrast_of_groups_takes_the_spread_of_its_own_value_over_trainings():
    """Trainings are better or worse in both groups alike, so that their contrast hardly changes."""
    small, large = made(8, 3, sd=(0.05, 0.1, 0.001)), made(12, 3, sd=(0.05, 0.1, 0.001), seed=1) + 0.1
    large += small.mean(0) - large.mean(0) + 0.1
    each = {number: others(column) for number, column in enumerate(large.T, start=1)}
    found = contrast(Sample(others(large.mean(1)), each), sample(small), "dice")
    low, high, _ = by_welch(large.mean(1), small.mean(1))
    assert (found.trainings, found.value) == (3, pytest.approx(0.1))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.003)
    once = contrast(Sample(others(large[:, 0])), sample(small[:, :1]), "dice")
    assert (once.trainings, once.p, once.low is None) == (1, None, False)


def test_a_group_of_few_patients_has_no_interval_of_its_contrast():
    few = contrast(untrained(made(4)[:, 0]), Sample(others(made()[:, 0]), trained=False), "dice")
    assert (few.value is None, few.low, few.p) == (False, None, None)
    nobody = contrast(untrained([]), untrained(made()[:, 0]), "dice")
    assert (nobody.value, nobody.n) == (None, 12)


def test_the_p_value_of_a_margin_is_that_of_the_one_sided_t_test():
    values, reference = made(30, 1)[:, 0], made(30, 1, seed=1)[:, 0]
    found = difference(untrained(values), untrained(reference), "dice", margin=0.02)
    expected = stats.ttest_1samp(values - reference, -0.02, alternative="greater").pvalue
    assert found.p_margin == pytest.approx(expected, rel=0.1)
    assert (found.p_margin < 0.025) == (found.low > -0.02)
    equal = difference(untrained(values), untrained(values), "dice", margin=0.02)
    assert (equal.p, equal.p_margin) == (1.0, 0.0)


def test_few_patients_have_no_interval_however_many_trainings_there_are():
    found = estimate(sample(made(patients=4, trainings=5)), "dice")
    assert (found.low, found.high, found.trainings) == (None, None, 5)
    assert estimate(sample(made(), replicates=0), "dice").low is None
