"""Estimates from the sums that hospitals return: means, medians, intervals, paired differences, corrected p values.

The 95 % intervals are over patients: they say how far an estimate would move with other patients of the same kind.
They do NOT include the randomness of training (initialisation, sampling, order of sites).

An interval is the estimate and, on both sides, its standard error times a quantile of Student's t with one degree of
freedom less than there are patients; p belongs to the same t. The standard error is the spread of the replicates of the
bootstrap. With a scan per patient all this is the paired t-test of the pooled cases, but for the chance in the
replicates: of 1000, 2 % of the standard error. Replicates are there because the pairing is: they let a site report
every method by itself, without keeping the others' results beside it.
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
"""Below this number of cases no interval is given."""
FEWEST_PATIENTS = 2.5
"""Nor below this number of patients, as ``_n_patients`` estimates it: between 2 and 3."""


@dataclass(frozen=True)
class Estimate:
    """A mean or a paired difference of means, with its 95 % interval; None where too few cases decide."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    sd: float | None = None
    """Spread between cases (ddof 1); None for a difference, whose spread the sums do not hold."""
    median: float | None = None
    """From the histogram, off by less than the width of a bin; None for a difference."""
    p: float | None = None
    """Two-sided, that a difference is none; None for a mean."""


def estimate(sums: GroupSums, metric: str) -> Estimate:
    """Mean of a metric, its SD between cases, its median, and its interval, cut off where the metric ends.

    Guarantees: never NaN. Without a case all is None; SD needs 2 cases, the interval 5, of 3 patients at least, and the
    replicates of all, the median the histograms of all.

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

    A replicate weighs the cases of both methods alike, so what makes a case hard for both cancels out.

    Guarantees: never NaN; None as in ``estimate``; p is there whenever the interval is, and below 0.05 where that is on
    one side of 0.

    Raises:
        ValueError: the two were not evaluated on the same cases, or there is no such metric.
    """
    # Sums of weights are exact, in any order of sites.
    if (a.n, a.bare) != (b.n, b.bare) or not np.array_equal(a.weights, b.weights):
        raise ValueError(f"paired difference: got {a.n} and {b.n} cases, expected the same cases in both")
    index, replicates = NAMES.index(metric), a.replicate_means(metric) - b.replicate_means(metric)
    value = float(a.totals[index] - b.totals[index]) / a.n if a.n else None
    low, high, p = _interval(a, value, replicates)
    return Estimate(value, low, high, a.n, p=p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p values for being several: the chance of any false finding among them stays at the level chosen.

    The i-th smallest of m is multiplied by m - i + 1; none gets smaller than one before it, or larger than 1. A
    comparison without p (None) was not tested, is not counted, and stays None.

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
    """The 95 % interval around a value, and p that it is 0."""
    if value is None or over.n < SMALLEST_INTERVAL or not replicates.size or over.bare:
        return None, None, None
    patients = _n_patients(over)
    if patients < FEWEST_PATIENTS:
        return None, None, None
    # Values are taken from their own mean, which costs one patient's worth of spread (as ddof 1 does).
    error = math.sqrt(float(((replicates - value) ** 2).mean()) * patients / (patients - 1))
    half = float(stdtrit(patients - 1, 0.975)) * error
    if error <= 1e-12 * abs(value):
        return value - half, value + half, float(value == 0)
    return value - half, value + half, float(2 * stdtr(patients - 1, -abs(value) / error))


def _n_patients(over: GroupSums) -> float:
    """About how many patients the cases are of, each with as many scans.

    Scans of a patient are weighed together, so the variance of the weights is the sum of the squared numbers of scans.
    """
    variance = float(((over.weights - over.n) ** 2).mean())
    return min(over.n**2 / variance, float(over.n)) if variance else 0.0
