"""Sums over the cases of one group, of all metrics at once, and the checks of sums that another site sent."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from operator import add

import numpy as np

from sahfl.statistics.agreement import check, read_count
from sahfl.statistics.cases import CaseResult
from sahfl.statistics.metrics import METRICS, N_BINS, NAMES, Floats, histogram_of

MOST = np.array([metric.most for metric in METRICS])
STEPS = np.array([metric.step for metric in METRICS])
DETECTED_ONLY = np.array([metric.detected_only for metric in METRICS])
FURTHEST = 8.0
"""Largest distance of a weight from 1; a normal number exceeds it once in 10**15 draws."""
GRAIN = 2.0**-20
"""Weights are multiples of this number, so that their sums are exact in any order of sites."""


@dataclass(frozen=True, eq=False)
class GroupSums:
    """Sums over the cases with blood of one group; metrics are in the order of ``METRICS``.

    In each bootstrap replicate a case has its own random weight, normal with mean 1 and variance 1. The common
    Poisson(1) weights have the same mean and variance, but their sums over several methods would reveal single patients
    (``disclosure``). Sums with normal weights reveal only the sums and the products of the values.

    Guarantees: the weights of a case depend only on its key, the seed and the number of replicates, so they are the
    same for every method, metric and site. The order of ``cases`` does not change the result, not even by rounding.

    Source: the multiplier bootstrap, van der Vaart & Wellner 1996, Weak Convergence and Empirical Processes, 2.9.
    """

    n: int
    totals: Floats  # (metrics,)
    squares: Floats  # (metrics,)
    counts: Floats  # (bins of all metrics,), the histograms of the metrics in a row
    weights: Floats  # (replicates,), multiples of GRAIN
    weighted: Floats  # (metrics, replicates), sums of weight * value
    bare: int = 0
    """How many of the n cases have withheld replicates and histograms; above 0, no interval or median is given."""
    missed: float = 0
    """Cases in which nothing was predicted; a whole number except in an average of repeats."""
    hidden: int = 0
    """How many of the n cases have withheld misses and HD95; they are not in ``missed``."""

    @classmethod
    def zero(cls, replicates: int) -> GroupSums:
        """Sums over no case."""
        each, bins = np.zeros(len(METRICS)), np.zeros(sum(N_BINS))
        return cls(0, each, each, bins, np.zeros(replicates), np.zeros((len(METRICS), replicates)))

    @classmethod
    def of(cls, cases: Sequence[CaseResult], *, replicates: int, seed: int) -> GroupSums:
        """Add up cases with blood."""
        rows = sorted((case.key, case.values(), case.missed) for case in cases)
        nothing = cls.zero(replicates)
        weights, weighted = nothing.weights.copy(), nothing.weighted.copy()
        for key, values, _ in rows:
            draws = normal_weights(key, replicates=replicates, seed=seed)
            weights += draws
            weighted += np.outer(values, draws)
        columns = np.array([values for _, values, _ in rows]).reshape(-1, len(METRICS)).T
        missed = np.array([lost for *_, lost in rows], bool)
        totals = np.array([math.fsum(column) for column in columns])
        squares = np.array([math.fsum(column * column) for column in columns])
        known = [
            column[~missed] if metric.detected_only else column for metric, column in zip(METRICS, columns, strict=True)
        ]
        counts = np.hstack([metric.count(values) for metric, values in zip(METRICS, known, strict=True)])
        return cls(len(rows), totals, squares, counts, weights, weighted, missed=int(missed.sum()))

    def __add__(self, other: GroupSums) -> GroupSums:
        if self.weights.size != other.weights.size:
            raise ValueError(f"group sums: got {other.weights.size} replicates, expected {self.weights.size}")
        return GroupSums(*(add(getattr(self, part.name), getattr(other, part.name)) for part in fields(self)))

    @property
    def detected(self) -> float:
        """Cases in which anything was predicted, without those whose misses are withheld."""
        return self.n - self.hidden - self.missed

    def without_detection(self) -> GroupSums:
        """The same sums with withheld misses, and without all sums of metrics that missed cases lack."""
        seen = ~DETECTED_ONLY
        counts = self.counts * np.repeat(seen, N_BINS)
        sums = {"totals": self.totals * seen, "squares": self.squares * seen, "weighted": self.weighted * seen[:, None]}
        return replace(self, **sums, counts=counts, missed=0, hidden=self.n)

    def replicate_means(self, metric: str) -> Floats:
        """Mean of a metric over all n cases in every replicate, shape (replicates,); NaN for a group without cases.

        The mean is linearised in the weights, because their sum may be near 0 for few cases and cannot be a divisor.
        """
        if self.n == 0:
            return np.full(self.weights.size, np.nan)
        index = NAMES.index(metric)
        mean = self.totals[index] / self.n
        return mean + (self.weighted[index] - mean * self.weights) / self.n

    def to_row(self) -> Floats:
        """The numbers that are sent, shape (row_length(replicates),).

        Their order: n, missed, totals, squares, counts, weights, weighted.
        """
        head = [np.array([float(self.n), self.missed]), self.totals, self.squares, self.counts, self.weights]
        return np.hstack([*head, self.weighted.ravel()])

    @classmethod
    def from_row(cls, row: Floats, name: str, *, bare: bool, hidden: bool) -> GroupSums:
        """Read the sums of one group that a site sent, shape (row_length(replicates),).

        Guarantees: some cases could have given every sum. Their metrics lie in range and, unless histograms are
        withheld, in the bins of the histograms; missed cases have values of 0.

        Args:
            row: the numbers, as from ``to_row``.
            name: the group's name in an error.
            bare: whether the site withheld replicates and histograms.
            hidden: whether it withheld misses and HD95.

        Raises:
            PayloadError: a sum is impossible; the message names it.
        """
        each, bins = len(METRICS), sum(N_BINS)
        replicates = (row.size - 2 - 2 * each - bins) // (1 + each)
        n, missed = read_count(row[0], f"{name}, n"), read_count(row[1], f"{name}, missed")
        check(missed <= (0 if hidden else n), f"{name}, missed", missed, f"<= {0 if hidden else n}")
        totals, squares, counts, weights, weighted = np.split(row[2:].copy(), np.cumsum([each, each, bins, replicates]))
        kept = n if bare else 0, missed, n if hidden else 0
        sums = cls(n, totals, squares, counts, weights, weighted.reshape(each, -1), *kept)
        for index in range(each):
            sums._check_metric(index, name)
        if bare:
            return sums
        # Weights further from 1 than an honest site's would outweigh the other sites.
        with np.errstate(over="ignore"):  # a number beyond all others is no multiple either
            whole = bool(((np.abs(weights - n) <= FURTHEST * n) & (weights / GRAIN == np.floor(weights / GRAIN))).all())
        check(whole, f"{name}, weights", "another number", f"multiples of {GRAIN:g} within {FURTHEST:g} n of n = {n}")
        # Values are positive, so sums of (weight - 1) * value are at most the furthest weight times the total.
        gaps = np.abs(sums.weighted - totals[:, None]) - 2 * STEPS[:, None]
        fits = bool((gaps <= FURTHEST * (1 + 1e-9) * totals[:, None]).all())
        check(fits, f"{name}, weighted", "another number", f"sums within {FURTHEST:g} totals of the total")
        return sums

    def _check_metric(self, index: int, name: str) -> None:
        """Check ``total**2 / n <= squares <= most * total``, and that the sums fit the histogram's bins."""
        metric = METRICS[index]
        total, squares, counts = float(self.totals[index]), float(self.squares[index]), histogram_of(index, self.counts)
        # Missed cases have 0 in every metric but the volume error, and no HD95 at all.
        n = int(self.detected if metric.detected_only else self.n)
        above_0 = self.n if metric.name == "volume_error_ml" else min(n, int(self.n - self.missed))
        name = f"{name}, {metric.name}"
        slack = 1e-9 * (1 + n * metric.most)
        expected = f"a sum of {above_0} in [0, {metric.most:g}]"
        check(0 <= total <= above_0 * metric.most + slack, f"{name}, total", total, expected)
        least, most = total * total / max(above_0, 1), metric.most * total
        fits = least * (1 - 1e-9) - slack <= squares <= most * (1 + 1e-9) + slack
        check(fits, f"{name}, squares", squares, f"in [{least:g}, {most:g}]")
        whole = bool(((counts >= 0) & (counts == np.floor(counts))).all())
        there = 0 if self.bare else n
        check(whole and counts.sum() == there, f"{name}, histogram", "another", f"whole numbers of {there} cases")
        zeros = there - above_0
        check(
            counts[0] >= zeros or not there, f"{name}, histogram", f"{counts[0]:g} cases near 0", f"{zeros} missed ones"
        )
        if there:
            low, high = np.asarray(metric.edges[:-1]), np.asarray(metric.edges[1:])
            for what, value, power in (("total", total, 1), ("squares", squares, 2)):
                bounds = float(counts @ low**power) - 2 * metric.step, float(counts @ high**power) + 2 * metric.step
                fits = bounds[0] - 1e-9 * bounds[1] <= value <= bounds[1] * (1 + 1e-9)
                check(fits, f"{name}, {what}", value, f"in [{bounds[0]:g}, {bounds[1]:g}], as the histogram requires")


def row_length(replicates: int) -> int:
    """How many numbers a site sends for one group."""
    return 2 + 2 * len(METRICS) + sum(N_BINS) + (1 + len(METRICS)) * replicates


def normal_weights(key: str, *, replicates: int, seed: int) -> Floats:
    """Normal bootstrap weights of a case (mean 1, variance 1), shape (replicates,), seeded from seed and key."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    draws = np.random.default_rng(int.from_bytes(digest, "big")).standard_normal(replicates)
    return 1 + np.round(draws.clip(-FURTHEST, FURTHEST) / GRAIN) * GRAIN
