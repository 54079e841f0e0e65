"""Estimates from the sums that hospitals send: means, medians, intervals, paired differences, corrected p values.

A 95 % interval is the estimate plus and minus its standard error over patients and trainings (``variances``) times a
quantile of Student's t. The p value uses the same t. A method that was trained once has an interval over patients only
and no p value, because nothing is known about other trainings. Zero-shot is not trained, so its intervals over patients
are complete. All trainings of a study start from one base network, so no interval contains the randomness of
pretraining.

Replicates keep the pairing of methods: a site can report each method separately, without storing the results of the
others. The randomness of replicates is 2 % of the standard error with 1000 replicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sahfl.statistics.agreement import deviation
from sahfl.statistics.metrics import METRICS, NAMES, histogram_of
from sahfl.statistics.variances import (
    Sample,
    Spread,
    Variance,
    between_both,
    between_trainings,
    between_values,
    over_detected,
    over_patients,
    satterthwaite,
    spread,
    with_trainings,
)


@dataclass(frozen=True)
class Estimate:
    """A mean or a paired difference of means, with its 95 % interval; None where there are too few cases."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    trainings: int
    """Trainings that the interval is over, besides patients: 1 means patients only, 0 a method without training."""
    sd: float | None = None
    """Standard deviation between cases (ddof 1); None for a difference, because the sums do not contain it."""
    median: float | None = None
    """From the histogram, with an error below the width of a bin; None for a difference."""
    p: float | None = None
    """Two-sided p value of the hypothesis that a difference is zero; None for a mean, and with one training."""
    p_margin: float | None = None
    """One-sided p value of the hypothesis that a difference is at or below minus a margin; None as ``p``."""


def estimate(sample: Sample, metric: str) -> Estimate:
    """Mean of a metric with its SD between cases, median and interval; the interval is cut to the range of the metric.

    A mean of HD95 is over detected cases, and so is its n.

    Guarantees: never NaN. A value is None if its data are missing: the mean needs 1 case and the SD 2; the interval
    needs 5 cases of at least 3 patients, and the replicates of all; the median needs the histograms of all.

    Raises:
        ValueError: there is no such metric.
    """
    index, sums = NAMES.index(metric), sample.sums
    if METRICS[index].detected_only and (sums.missed or sums.hidden):
        return _over_detected(sample, index)
    total = float(sums.totals[index])
    mean = total / sums.n if sums.n else None
    sd = deviation(sums.n, total, float(sums.squares[index]))
    median = None if sums.bare else METRICS[index].median(histogram_of(index, sums.counts))
    between = [between_trainings(list(sample.trainings.values()), [], metric)] if sample.n_trainings > 1 else []
    found = spread(sums, sums.replicate_means(metric) - (mean or 0.0), between)
    if mean is None or found is None:
        return Estimate(mean, None, None, sums.n, sample.n_trainings, sd, median)
    return Estimate(mean, *_cut(mean, found, index), sums.n, sample.n_trainings, sd, median)


def _over_detected(sample: Sample, index: int) -> Estimate:
    """The estimate of a metric that missed cases lack. Replicates do not show which cases were missed."""
    sums = sample.sums
    n, total = sums.detected, float(sums.totals[index])
    mean, sd = total / n if n else None, deviation(n, total, float(sums.squares[index]))
    median = None if sums.bare else METRICS[index].median(histogram_of(index, sums.counts))
    each = [(float(part.totals[index]), part.detected) for part in sample.trainings.values()]
    trainings = sample.n_trainings if all(detected for _, detected in each) else min(sample.n_trainings, 1)
    alone = None if sd is None else over_detected(sums, sd)
    if mean is None or alone is None:
        return Estimate(mean, None, None, round(n), trainings, sd, median)
    between = [between_values([part / detected for part, detected in each])] if trainings > 1 else []
    found = with_trainings(alone, between)
    return Estimate(mean, *_cut(mean, found, index), round(n), trainings, sd, median)


def _cut(mean: float, found: Spread, index: int) -> tuple[float, float]:
    return max(mean - found.half, 0.0), min(mean + found.half, METRICS[index].most)


def difference(ours: Sample, theirs: Sample, metric: str, *, margin: float = 0.0) -> Estimate:
    """Mean of a metric in ``ours`` minus that in ``theirs``, paired by case, with a two-sided p value.

    Each replicate gives a case the same weight in both methods, so the difficulty of a case cancels out. Trainings of
    the same numbers are paired too, because they may share random numbers. If the numbers of the two methods differ,
    the two variances between trainings are added.

    HD95 is paired only if no case was missed by either method. Otherwise the two means are over different cases, which
    sums do not tell apart, and there is no difference (n = 0).

    Guarantees: never NaN; None as in ``estimate``. There is a p value whenever there is an interval over trainings, or
    no training, and it is below 0.05 exactly if the interval excludes 0.

    Raises:
        ValueError: ``ours`` and ``theirs`` hold different cases, or there is no such metric.
    """
    a, b = ours.sums, theirs.sums
    # Sums of weights are exact, in any order of sites, so equal cases give equal sums.
    if (a.n, a.bare) != (b.n, b.bare) or not np.array_equal(a.weights, b.weights):
        raise ValueError(f"paired difference: got {a.n} and {b.n} cases, expected the same cases in both")
    trainings = min((sample.n_trainings for sample in (ours, theirs) if sample.trained), default=0)
    unpaired = METRICS[NAMES.index(metric)].detected_only and any((a.missed, a.hidden, b.missed, b.hidden))
    if not a.n or unpaired:
        return Estimate(None, None, None, 0, trainings)
    index, replicates = NAMES.index(metric), a.replicate_means(metric) - b.replicate_means(metric)
    value = float(a.totals[index] - b.totals[index]) / a.n
    found = spread(a, replicates - value, between_both(ours, theirs, metric) if trainings > 1 else [])
    return _tested(value, found, a.n, trainings, margin)


def contrast(group: Sample, other: Sample, metric: str) -> Estimate:
    """Mean of a metric in ``group`` minus that in ``other``: two groups of cases, segmented by the same trainings.

    The variances over the patients of the two groups are added, less what patients with scans in both share; the
    degrees of freedom are Satterthwaite's. Trainings are paired, because one training segments both groups.

    Guarantees: never NaN; None as in ``difference``, if one of the groups has too few cases for an interval.

    Raises:
        ValueError: there is no such metric.
    """
    a, b = group.sums, other.sums
    index, n, trainings = NAMES.index(metric), a.n + b.n, min(group.n_trainings, other.n_trainings)
    if not a.n or not b.n:
        return Estimate(None, None, None, n, trainings)
    means = [float(sums.totals[index]) / sums.n for sums in (a, b)]
    around = [sums.replicate_means(metric) - mean for sums, mean in zip((a, b), means, strict=True)]
    parts = [over_patients(sums, apart) for sums, apart in zip((a, b), around, strict=True)]
    found = None
    if (first := parts[0]) is not None and (second := parts[1]) is not None:
        alone = first.variance + second.variance
        freedom = satterthwaite(alone, [(first.variance, first.freedom), (second.variance, second.freedom)])
        both = max(0.0, alone - 2 * float((around[0] * around[1]).mean()))
        between = between_both(group, other, metric) if trainings > 1 else []
        found = with_trainings(Variance(both, freedom), between)
    return _tested(means[0] - means[1], found, n, trainings, 0.0)


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


def _tested(value: float, found: Spread | None, n: int, trainings: int, margin: float) -> Estimate:
    if found is None:
        return Estimate(value, None, None, n, trainings)
    low, high = value - found.half, value + found.half
    if trainings == 1:
        return Estimate(value, low, high, n, trainings)
    p, p_margin = 2 * found.p_below(abs(value)), found.p_below(value + margin)
    return Estimate(value, low, high, n, trainings, p=p, p_margin=p_margin)
