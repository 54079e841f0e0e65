"""Estimates from the sums that hospitals send: means, medians, intervals, paired differences, corrected p values.

A 95 % interval is the estimate plus and minus its standard error over patients and trainings (``variances``) times a
quantile of Student's t. Each end has its own standard error, which contains half a patient more with an extreme value:

* of a mean of a share (Dice, surface Dice, lesion F1), a patient with 0 at the lower end and with 1 at the upper end;
* of a mean in mm or mL, a patient with twice the largest value at the upper end;
* of a difference of shares, where one of the methods missed a case, a patient whom one method misses and the other one
  segments as it does on average. Differences without misses, and those in mm or mL, have equal ends.

The p value uses the standard error of the end towards the hypothesis. A method that was trained once has an interval
over patients only and no p value, because nothing is known about other trainings. Zero-shot is not trained, so its
intervals over patients are complete. The base of all trauma centres is trained once in a study, so no interval contains
the randomness of its pretraining.

Replicates keep the pairing of methods: a site can report each method separately, without storing the results of the
others. The randomness of replicates is 2 % of the standard error with 1000 replicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sahfl.statistics.agreement import deviation
from sahfl.statistics.groups import GroupSums
from sahfl.statistics.metrics import METRICS, NAMES, histogram_of
from sahfl.statistics.variances import (
    Between,
    Sample,
    Variance,
    between_both,
    between_trainings,
    between_values,
    over_detected,
    over_patients,
    satterthwaite,
    widened,
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
    needs 5 cases of about 3 patients with equally many scans, and the replicates of all; the median needs the
    histograms of all.

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
    alone = over_patients(sums, sums.replicate_means(metric) - (mean or 0.0))
    if mean is None or alone is None:
        return Estimate(mean, None, None, sums.n, sample.n_trainings, sd, median)
    between = [between_trainings(list(sample.trainings.values()), [], metric)] if sample.n_trainings > 1 else []
    ends = _cut(mean, _ends(sums, mean, alone, index), between, index)
    return Estimate(mean, *ends, sums.n, sample.n_trainings, sd, median)


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
    ends = _cut(mean, _ends(sums, mean, alone, index), between, index)
    return Estimate(mean, *ends, round(n), trainings, sd, median)


Ends = tuple[Variance, Variance]
"""Variance over patients at the lower and at the upper end of an interval."""


def _ends(sums: GroupSums, mean: float, alone: Variance, index: int) -> Ends:
    """The variances of a mean, each with half a patient more at the extreme of its side."""
    metric = METRICS[index]
    if not metric.open_end:
        return widened(alone, mean), widened(alone, metric.most - mean)
    return alone, widened(alone, 2 * metric.largest(histogram_of(index, sums.counts)) - mean)


def _cut(mean: float, ends: Ends, between: Sequence[Between], index: int) -> tuple[float, float]:
    low, high = (with_trainings(end, between).half for end in ends)
    return max(mean - low, 0.0), min(mean + high, METRICS[index].most)


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
    alone = over_patients(a, replicates - value)
    if alone is None:
        return Estimate(value, None, None, a.n, trainings)
    ends = alone, alone
    if not METRICS[index].open_end and any((a.missed, a.hidden, b.missed, b.hidden)):
        our_mean, their_mean = (float(sums.totals[index]) / sums.n for sums in (a, b))
        ends = widened(alone, value + their_mean), widened(alone, our_mean - value)
    between = between_both(ours, theirs, metric) if trainings > 1 else []
    return _tested(value, ends, between, a.n, trainings, margin)


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
    first, second = (over_patients(sums, apart) for sums, apart in zip((a, b), around, strict=True))
    value = means[0] - means[1]
    if first is None or second is None:
        return Estimate(value, None, None, n, trainings)
    shared = 2 * float((around[0] * around[1]).mean())
    ours, theirs = _ends(a, means[0], first, index), _ends(b, means[1], second, index)
    ends = _sum(ours[0], theirs[1], shared), _sum(ours[1], theirs[0], shared)
    between = between_both(group, other, metric) if trainings > 1 else []
    return _tested(value, ends, between, n, trainings, 0.0)


def _sum(first: Variance, second: Variance, shared: float) -> Variance:
    alone = first.variance + second.variance
    return Variance(max(0.0, alone - shared), satterthwaite(alone, (first, second)))


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


def _tested(value: float, ends: Ends, between: Sequence[Between], n: int, trainings: int, margin: float) -> Estimate:
    """A difference with its interval and, unless it is over patients only, with p values."""
    below, above = (with_trainings(end, between) for end in ends)
    low, high = value - below.half, value + above.half
    if trainings == 1:
        return Estimate(value, low, high, n, trainings)
    p = 2 * (below.p_below(value) if value > 0 else above.p_below(-value))
    return Estimate(value, low, high, n, trainings, p=p, p_margin=below.p_below(value + margin))
