"""Estimates from the sums that hospitals send: means, medians, intervals, paired differences, corrected p values.

A method's mean depends on the patients and on the training, in which random numbers choose the adapter's start and the
slices. Case i in training r has the value ``mean + a_i + b_r + e_ir``. The variance of the mean over I patients and R
trainings is ``var(a) / I + var(b) / R + var(e) / (I R)``. It is estimated from three numbers:

* *over patients*: the spread of the bootstrap replicates of the average over trainings. With one scan per patient it is
  the variance of that average between patients, divided by I. It estimates ``var(a) / I + var(e) / (I R)``.
* *between trainings*: the variance of the trainings' means, divided by R. It estimates ``var(b) / R + var(e) / (I R)``.
* *both*: the share ``var(e) / (I R)``, which the two others contain twice, from the replicates of each training's
  distance from the average. It is subtracted once, as far as the second number allows.

A 95 % interval is the estimate plus and minus its standard error times a quantile of Student's t. The degrees of
freedom follow from those of the three numbers (I - 1, R - 1, and their product), after Satterthwaite. The p value uses
the same t. A method that was trained once has an interval over patients only and no p value, because nothing is known
about other trainings. Zero-shot is not trained, so its intervals over patients are complete. All trainings of a study
start from one base network, so no interval contains the randomness of pretraining.

Replicates keep the pairing of methods: a site can report each method separately, without storing the results of the
others. The randomness of replicates is 2 % of the standard error with 1000 replicates.

Source: Satterthwaite 1946, Biometrics Bulletin 2:110; crossed random effects as in Searle, Casella & McCulloch 1992,
Variance Components, 4.4. ``benchmarks/intervals.py`` measures how often the intervals contain the true value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

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
class Sample:
    """What is known about one method over one group of cases."""

    sums: GroupSums
    """Averaged over the method's trainings."""
    trainings: Mapping[int, GroupSums] = field(default_factory=dict)
    """The sums of each training, by its number, over cases that all trainings share: those of ``sums`` or fewer."""
    trained: bool = True
    """False for zero-shot: a method without randomness of training."""

    @property
    def n_trainings(self) -> int:
        """Trainings whose spread is known: 0 for a method without training, 1 if the spread is unknown."""
        if not self.trained:
            return 0
        comparable = len(self.trainings) > 1 and all(sums.n for sums in self.trainings.values())
        return len(self.trainings) if comparable else 1


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


class Between(NamedTuple):
    """Variance of a mean between trainings."""

    variance: float
    """Variance of the trainings' means, divided by their number."""
    shared: float
    """The part of ``variance`` that the variance over patients contains too."""
    trainings: int


def estimate(sample: Sample, metric: str) -> Estimate:
    """Mean of a metric with its SD between cases, median and interval; the interval is cut to the range of the metric.

    Guarantees: never NaN. A value is None if its data are missing: the mean needs 1 case and the SD 2; the interval
    needs 5 cases of at least 3 patients, and the replicates of all; the median needs the histograms of all.

    Raises:
        ValueError: there is no such metric.
    """
    index, sums = NAMES.index(metric), sample.sums
    total = float(sums.totals[index])
    mean = total / sums.n if sums.n else None
    sd = deviation(sums.n, total, float(sums.squares[index]))
    median = None if sums.bare else METRICS[index].median(histogram_of(index, sums.counts))
    between = [_between(list(sample.trainings.values()), [], metric)] if sample.n_trainings > 1 else []
    low, high, _ = _interval(sums, mean, sums.replicate_means(metric), between)
    if low is not None and high is not None:
        low, high = max(low, 0.0), min(high, METRICS[index].most)
    return Estimate(mean, low, high, sums.n, sample.n_trainings, sd, median)


def difference(ours: Sample, theirs: Sample, metric: str) -> Estimate:
    """Mean of a metric in ``ours`` minus that in ``theirs``, paired by case, with a two-sided p value.

    Each replicate gives a case the same weight in both methods, so the difficulty of a case cancels out. Trainings of
    the same numbers are paired too, because they may share random numbers. If the numbers of the two methods differ,
    the two variances between trainings are added.

    Guarantees: never NaN; None as in ``estimate``. There is a p value whenever there is an interval over trainings, or
    no training, and it is below 0.05 exactly if the interval excludes 0.

    Raises:
        ValueError: ``ours`` and ``theirs`` hold different cases, or there is no such metric.
    """
    a, b = ours.sums, theirs.sums
    # Sums of weights are exact, in any order of sites, so equal cases give equal sums.
    if (a.n, a.bare) != (b.n, b.bare) or not np.array_equal(a.weights, b.weights):
        raise ValueError(f"paired difference: got {a.n} and {b.n} cases, expected the same cases in both")
    index, replicates = NAMES.index(metric), a.replicate_means(metric) - b.replicate_means(metric)
    value = float(a.totals[index] - b.totals[index]) / a.n if a.n else None
    trainings = min((sample.n_trainings for sample in (ours, theirs) if sample.trained), default=0)
    low, high, p = _interval(a, value, replicates, _between_both(ours, theirs, metric) if trainings > 1 else [])
    return Estimate(value, low, high, a.n, trainings, p=None if trainings == 1 else p)


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


def _between_both(ours: Sample, theirs: Sample, metric: str) -> list[Between]:
    """Variance of a difference between trainings: of the pairs of equal number, or of each method."""
    if ours.trainings.keys() == theirs.trainings.keys():
        pairs = [(ours.trainings[number], theirs.trainings[number]) for number in sorted(ours.trainings)]
        return [_between([a for a, _ in pairs], [b for _, b in pairs], metric)]
    return [_between(list(sample.trainings.values()), [], metric) for sample in (ours, theirs) if sample.trained]


def _between(sums: Sequence[GroupSums], minus: Sequence[GroupSums], metric: str) -> Between:
    """Variance of a mean between at least two trainings; with ``minus``, of the difference from its trainings."""
    means = np.stack([_mean_and_replicates(part, metric) for part in sums])  # (trainings, 1 + replicates)
    if minus:
        means = means - np.stack([_mean_and_replicates(part, metric) for part in minus])
    n, patients = len(means), _n_patients(sums[0])
    apart = means - means.mean(0)  # of each training from the average of all
    variance = float((apart[:, 0] ** 2).sum()) / (n - 1) / n
    if patients < FEWEST_PATIENTS:
        return Between(variance, 0.0, n)
    over_patients = ((apart[:, 1:] - apart[:, :1]) ** 2).mean(1).sum() * patients / (patients - 1)
    return Between(variance, float(over_patients) / (n - 1) / n, n)


def _mean_and_replicates(sums: GroupSums, metric: str) -> Floats:
    return np.append(sums.totals[NAMES.index(metric)] / sums.n, sums.replicate_means(metric))


def _interval(
    over: GroupSums, value: float | None, replicates: Floats, between: Sequence[Between]
) -> tuple[float | None, float | None, float | None]:
    """The 95 % interval around a value, and the p value of the hypothesis that it is 0."""
    patients = _n_patients(over)
    if value is None or over.n < SMALLEST_INTERVAL or over.bare or patients < FEWEST_PATIENTS:
        return None, None, None
    # The mean is estimated from the same values, which lowers the spread by one patient's share (as in ddof 1).
    over_patients = float(((replicates - value) ** 2).mean()) * patients / (patients - 1)
    variance, freedom = _combined(over_patients, patients - 1, between)
    error = math.sqrt(variance)
    half = float(stdtrit(freedom, 0.975)) * error
    if error <= 1e-12 * abs(value):
        return value - half, value + half, float(value == 0)
    return value - half, value + half, float(2 * stdtr(freedom, -abs(value) / error))


def _combined(over_patients: float, freedom: float, between: Sequence[Between]) -> tuple[float, float]:
    """The variance of an estimate over patients and trainings, and its degrees of freedom.

    A variance between trainings that is no larger than what it shares with the variance over patients adds nothing.
    """
    added = [part for part in between if part.variance > part.shared]
    variance = over_patients + sum(part.variance - part.shared for part in added)
    terms = [(over_patients, freedom)]
    terms += [(part.variance, part.trainings - 1.0) for part in added]
    terms += [(part.shared, (part.trainings - 1.0) * freedom) for part in added]
    total = sum(value**2 / free for value, free in terms)
    least = min(free for _, free in terms)
    return variance, max(variance**2 / total, least) if total else freedom


def _n_patients(over: GroupSums) -> float:
    """Estimated number of patients, as if each had the same number of scans; 0 without replicates.

    Scans of a patient share a weight, so the summed weights' variance is the sum of the squared scans per patient.
    """
    variance = float(((over.weights - over.n) ** 2).mean()) if over.weights.size else 0.0
    return min(over.n**2 / variance, float(over.n)) if variance else 0.0
