"""Estimates from the sums that hospitals return: means, medians, intervals, paired differences, corrected p values.

The 95 % intervals are over patients: they say how far an estimate would move with other patients of the same kind.
They do NOT include the randomness of training (initialisation, sampling, order of sites).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
    """Mean of a metric, its SD between cases, its median, and the percentile interval of the replicate means.

    Guarantees: never NaN. Without a case all is None; SD needs 2 cases, the interval 5, of 3 patients at least, and the
    replicates of all, the median the histograms of all.

    Raises:
        ValueError: there is no such metric.

    Source: Hanley & MacGibbon 2006, Comput. Methods Programs Biomed. 83:57; percentile interval.
    """
    index = NAMES.index(metric)
    total = float(sums.totals[index])
    mean = total / sums.n if sums.n else None
    sd = deviation(sums.n, total, float(sums.squares[index]))
    median = None if sums.bare else METRICS[index].median(histogram_of(index, sums.counts))
    return Estimate(mean, *_interval(sums, sums.replicate_means(metric)), sums.n, sd, median)


def difference(a: GroupSums, b: GroupSums, metric: str) -> Estimate:
    """Mean of a metric in ``a`` minus that in ``b``, paired by case, with a two-sided p value.

    A replicate draws the same cases for both methods, so what makes a case hard for both cancels out. p is twice the
    share of replicates on the rarer side of no difference, ``2 (1 + k) / (1 + replicates)``, at most 1: so 1000
    replicates tell no p below 0.002.

    Guarantees: never NaN; None as in ``estimate``; p is there whenever the interval is.

    Raises:
        ValueError: the two were not evaluated on the same cases, or there is no such metric.

    Source: Davison & Hinkley 1997, Bootstrap Methods and their Application, section 4.4 (the + 1).
    """
    # Weights are whole numbers below 2**53: their sums are exact, in any order of sites.
    if (a.n, a.bare) != (b.n, b.bare) or not np.array_equal(a.weights, b.weights):
        raise ValueError(f"paired difference: got {a.n} and {b.n} cases, expected the same cases in both")
    index, replicates = NAMES.index(metric), a.replicate_means(metric) - b.replicate_means(metric)
    low, high = _interval(a, replicates)
    value = float(a.totals[index] - b.totals[index]) / a.n if a.n else None
    return Estimate(value, low, high, a.n, p=None if low is None else _p(replicates[~np.isnan(replicates)]))


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


def _p(replicates: Floats) -> float:
    rarer = min(int((replicates <= 0).sum()), int((replicates >= 0).sum()))
    return min(1.0, 2 * (1 + rarer) / (1 + replicates.size))


def _interval(over: GroupSums, replicates: Floats) -> tuple[float | None, float | None]:
    """The percentile 95 % interval of those replicates in which a case was drawn."""
    drawn = replicates[~np.isnan(replicates)]
    if over.n < SMALLEST_INTERVAL or not drawn.size or over.bare or _n_patients(over) < FEWEST_PATIENTS:
        return None, None
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _n_patients(over: GroupSums) -> float:
    """About how many patients the cases are of, each with as many scans.

    Scans of a patient are drawn together, so the variance of the weights is the sum of the squared numbers of scans.
    All replicates of a single patient are equal: an interval over them would have no length, however many the scans.
    """
    variance = float(over.weights.var())
    return over.n**2 / variance if variance else 0.0
