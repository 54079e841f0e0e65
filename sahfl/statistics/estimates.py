"""Estimates from the sums that hospitals send: means, medians, intervals, paired differences, corrected p values.

The 95 % intervals are over patients: they show how far an estimate would move with other patients of the same kind.
They do NOT include the randomness of training (initialisation, sampling, order of sites).

An interval is the estimate plus and minus its standard error times a quantile of Student's t; the degrees of freedom
are the number of patients minus 1. The p value uses the same t. The standard error is the spread of the bootstrap
replicates. With one scan per patient, this is the paired t-test on the pooled cases, except for the randomness of the
replicates: 2 % of the standard error with 1000 replicates. Replicates keep the pairing of methods: a site can report
each method separately, without storing the results of the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from sahfl.statistics.agreement import deviation
from sahfl.statistics.groups import GroupSums
from sahfl.statistics.metrics import METRICS, NAMES, Floats, histogram_of

SMALLEST_INTERVAL = 5
"""No interval is given for fewer cases."""
FEWEST_PATIENTS = 2.5
"""No interval is given for fewer patients. ``_n_patients`` estimates their number, so the limit is between 2 and 3."""


@dataclass(frozen=True)
class Estimate:
    """A mean or a paired difference of means, with its 95 % interval; None where there are too few cases."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    sd: float | None = None
    """Standard deviation between cases (ddof 1); None for a difference, because the sums do not contain it."""
    median: float | None = None
    """From the histogram, with an error below the width of a bin; None for a difference."""
    p: float | None = None
    """Two-sided p value of the hypothesis that a difference is zero; None for a mean."""


def estimate(sums: GroupSums, metric: str) -> Estimate:
    """Mean of a metric with its SD between cases, median and interval; the interval is cut to the range of the metric.

    Guarantees: never NaN. A value is None if its data are missing: the mean needs 1 case and the SD 2; the interval
    needs 5 cases of at least 3 patients, and the replicates of all; the median needs the histograms of all.

    Raises:
        ValueError: there is no such metric.
    """
    index = NAMES.index(metric)
    total = float(sums.totals[index])
    mean = total / sums.n if sums.n else None
    sd = deviation(sums.n, total, float(sums.squares[index]))
    median = None if sums.bare else METRICS[index].median(histogram_of(index, sums.counts))
    low, high, _ = _interval(sums, mean, sums.replicate_means(metric))
    if low is not None and high is not None:
        low, high = max(low, 0.0), min(high, METRICS[index].most)
    return Estimate(mean, low, high, sums.n, sd, median)


def difference(a: GroupSums, b: GroupSums, metric: str) -> Estimate:
    """Mean of a metric in ``a`` minus that in ``b``, paired by case, with a two-sided p value.

    Each replicate gives a case the same weight in both methods, so the difficulty of a case cancels out.

    Guarantees: never NaN; None as in ``estimate``. There is a p value whenever there is an interval, and it is below
    0.05 exactly if the interval excludes 0.

    Raises:
        ValueError: ``a`` and ``b`` hold different cases, or there is no such metric.
    """
    # Sums of weights are exact, in any order of sites, so equal cases give equal sums.
    if (a.n, a.bare) != (b.n, b.bare) or not np.array_equal(a.weights, b.weights):
        raise ValueError(f"paired difference: got {a.n} and {b.n} cases, expected the same cases in both")
    index, replicates = NAMES.index(metric), a.replicate_means(metric) - b.replicate_means(metric)
    value = float(a.totals[index] - b.totals[index]) / a.n if a.n else None
    low, high, p = _interval(a, value, replicates)
    return Estimate(value, low, high, a.n, p=p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p values for multiple comparisons; this bounds the chance of any false finding among them.

    The i-th smallest of m values is multiplied by m - i + 1. A corrected value is at least the one before it and at
    most 1. A comparison without p (None) was not tested: it is not counted and stays None.

    Source: Holm 1979, Scand. J. Stat. 6:65.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for before, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - before) * p))
        corrected[place] = largest
    return corrected


def _interval(
    over: GroupSums, value: float | None, replicates: Floats
) -> tuple[float | None, float | None, float | None]:
    """The 95 % interval around a value, and the p value of the hypothesis that it is 0."""
    if value is None or over.n < SMALLEST_INTERVAL or not replicates.size or over.bare:
        return None, None, None
    patients = _n_patients(over)
    if patients < FEWEST_PATIENTS:
        return None, None, None
    # The mean is estimated from the same values, which lowers the spread by one patient's share (as in ddof 1).
    error = math.sqrt(float(((replicates - value) ** 2).mean()) * patients / (patients - 1))
    half = float(stdtrit(patients - 1, 0.975)) * error
    if error <= 1e-12 * abs(value):
        return value - half, value + half, float(value == 0)
    return value - half, value + half, float(2 * stdtr(patients - 1, -abs(value) / error))


def _n_patients(over: GroupSums) -> float:
    """Estimated number of patients, as if each had the same number of scans.

    Scans of a patient share a weight, so the summed weights' variance is the sum of the squared scans per patient.
    """
    variance = float(((over.weights - over.n) ** 2).mean())
    return min(over.n**2 / variance, float(over.n)) if variance else 0.0
