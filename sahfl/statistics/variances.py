"""Variance of an estimate over patients and over trainings, with its degrees of freedom.

A method's mean depends on the patients and on the training, in which random numbers choose the adapter's start and the
slices. Case i in training r has the value ``mean + a_i + b_r + e_ir``. The variance of the mean over I patients and R
trainings is ``var(a) / I + var(b) / R + var(e) / (I R)``. It is estimated from three numbers:

* *over patients*: the spread of the bootstrap replicates of the average over trainings. With one scan per patient it is
  the variance of that average between patients, divided by I. It estimates ``var(a) / I + var(e) / (I R)``.
* *between trainings*: the variance of the trainings' means, divided by R. It estimates ``var(b) / R + var(e) / (I R)``.
* *shared*: ``var(e) / (I R)``, which the two others contain twice, from the replicates of each training's distance from
  the average. It is subtracted once, as far as the second number allows.

Their degrees of freedom are I - 1, R - 1, and the product of both; those of the sum follow after Satterthwaite.

Few patients often do not show how far a rare one lies from the others: if one patient of ten is missed, 43 of 100
cohorts of eight hold no miss, and their values lie close together around a mean that is too high. The variance over
patients is therefore computed for each end of an interval as if it were over half a patient more, whose value is the
extreme one on that side (``widened``). The third moment of a sample cannot replace this: a cohort with a rare value has
both the skewness and the wide interval, and a cohort without it neither.

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

from sahfl.statistics.groups import GroupSums
from sahfl.statistics.metrics import NAMES, Floats

SMALLEST_INTERVAL = 5
"""No interval is given for fewer cases."""
EXTRA = 0.5
"""Patients with an extreme value that the variance over patients contains besides those who are there."""
FEWEST_PATIENTS = 2.5
"""No interval is given for fewer patients. ``n_patients`` estimates their number, so the limit is between 2 and 3."""


@dataclass(frozen=True)
class Sample:
    """What is known about one method over one group of cases."""

    sums: GroupSums
    """Averaged over the method's trainings."""
    trainings: Mapping[int, GroupSums] = field(default_factory=dict)
    """The sums of each training, by its number, over the cases of ``sums``; none if they are not known of all."""
    trained: bool = True
    """False for zero-shot: a method without randomness of training."""

    @property
    def n_trainings(self) -> int:
        """Trainings whose spread is known: 0 for a method without training, 1 if the spread is unknown."""
        if not self.trained:
            return 0
        comparable = len(self.trainings) > 1 and all(sums.n for sums in self.trainings.values())
        return len(self.trainings) if comparable else 1


class Between(NamedTuple):
    """Variance of a mean between trainings."""

    variance: float
    """Variance of the trainings' means, divided by their number."""
    shared: float
    """The part of ``variance`` that the variance over patients contains too."""
    trainings: int


def between_both(ours: Sample, theirs: Sample, metric: str) -> list[Between]:
    """Variance of a difference between trainings: of the pairs of equal number, or of each method."""
    if ours.trainings.keys() == theirs.trainings.keys():
        pairs = [(ours.trainings[number], theirs.trainings[number]) for number in sorted(ours.trainings)]
        return [between_trainings([a for a, _ in pairs], [b for _, b in pairs], metric)]
    return [
        between_trainings(list(sample.trainings.values()), [], metric) for sample in (ours, theirs) if sample.trained
    ]


def between_trainings(sums: Sequence[GroupSums], minus: Sequence[GroupSums], metric: str) -> Between:
    """Variance of a mean between at least two trainings; with ``minus``, of the difference from its trainings."""
    means = np.stack([_mean_and_replicates(part, metric) for part in sums])  # (trainings, 1 + replicates)
    if minus:
        means = means - np.stack([_mean_and_replicates(part, metric) for part in minus])
    n, patients = len(means), n_patients(sums[0])
    apart = means - means.mean(0)  # of each training from the average of all
    variance = float((apart[:, 0] ** 2).sum()) / (n - 1) / n
    if patients < FEWEST_PATIENTS:
        return Between(variance, 0.0, n)
    shared = ((apart[:, 1:] - apart[:, :1]) ** 2).mean(1).sum() * patients / (patients - 1)
    return Between(variance, float(shared) / (n - 1) / n, n)


def _mean_and_replicates(sums: GroupSums, metric: str) -> Floats:
    return np.append(sums.totals[NAMES.index(metric)] / sums.n, sums.replicate_means(metric))


class Variance(NamedTuple):
    """Variance of an estimate, and its degrees of freedom."""

    variance: float
    freedom: float


class Spread(NamedTuple):
    """Standard error of an estimate, and its degrees of freedom."""

    error: float
    freedom: float

    @property
    def half(self) -> float:
        """Distance of the end of the 95 % interval from the estimate."""
        return self.error * float(stdtrit(self.freedom, 0.975))

    def p_below(self, value: float) -> float:
        """One-sided p value of an estimate that lies ``value`` above the hypothesis."""
        if self.error <= 1e-12 * abs(value):
            return 0.5 if value == 0 else float(value < 0)
        return float(stdtr(self.freedom, -value / self.error))


def between_values(values: Sequence[float]) -> Between:
    """Variance between trainings of an estimate without replicates, so that nothing is known about the shared part.

    Nothing is subtracted then, and an interval is a little too wide.
    """
    return Between(float(np.var(values, ddof=1)) / len(values), 0.0, len(values))


def over_patients(over: GroupSums, around: Floats) -> Variance | None:
    """Variance over the patients of ``over``, from the replicates minus the estimate; None with too few patients."""
    patients = n_patients(over)
    if over.n < SMALLEST_INTERVAL or over.bare or patients < FEWEST_PATIENTS:
        return None
    # The mean is estimated from the same values, which lowers the spread by one patient's share (as in ddof 1).
    return Variance(float((around**2).mean()) * patients / (patients - 1), patients - 1)


def over_detected(over: GroupSums, sd: float) -> Variance | None:
    """Variance of a mean over the detected cases of ``over``, from their SD; None with too few patients.

    All scans of a patient count as one, and every patient is taken to have the same share of detected scans.
    """
    patients = n_patients(over) * over.detected / max(over.n, 1)
    if over.detected < SMALLEST_INTERVAL or over.bare or patients < FEWEST_PATIENTS:
        return None
    return Variance(sd**2 / patients, patients - 1)


def n_patients(over: GroupSums) -> float:
    """Estimated number of patients, as if each had the same number of scans; 0 without replicates.

    Scans of a patient share a weight, so the summed weights' variance is the sum of the squared scans per patient.
    """
    variance = float(((over.weights - over.n) ** 2).mean()) if over.weights.size else 0.0
    return min(over.n**2 / variance, float(over.n)) if variance else 0.0


def widened(alone: Variance, distance: float) -> Variance:
    """The variance over patients with ``EXTRA`` patients more, ``distance`` from the estimate; at least ``alone``."""
    n = alone.freedom + 1
    squares = alone.variance * n * (n - 1) + distance**2 * n * EXTRA / (n + EXTRA)
    return Variance(max(alone.variance, squares / ((n + EXTRA) * (n + EXTRA - 1))), alone.freedom)


def with_trainings(alone: Variance, between: Sequence[Between]) -> Spread:
    """Add variances between trainings to the one over patients; one that is no larger than its share adds nothing."""
    added = [part for part in between if part.variance > part.shared]
    variance = alone.variance + sum(part.variance - part.shared for part in added)
    terms = [(alone.variance, alone.freedom)]
    terms += [(part.variance, part.trainings - 1.0) for part in added]
    terms += [(part.shared, (part.trainings - 1.0) * alone.freedom) for part in added]
    return Spread(math.sqrt(variance), satterthwaite(variance, terms))


def satterthwaite(variance: float, terms: Sequence[tuple[float, float]]) -> float:
    """Satterthwaite's degrees of freedom of a variance, from the variances that it was made of and theirs."""
    least = min(free for _, free in terms)
    total = sum(value**2 / free for value, free in terms)
    return max(variance**2 / total, least) if total else least
