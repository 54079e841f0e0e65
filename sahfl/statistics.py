"""Sums that a hospital returns instead of cases, and the estimates computed from them.

A site adds up its own cases (``EvaluationSums.of``), sends one flat array, and the coordinator adds the arrays of all
sites. Every estimate equals the one that the pooled cases would give, although no case leaves its site.

The 95 % intervals are over patients: they say how far an estimate would move with other patients of the same kind.
They do NOT include the randomness of training (initialisation, sampling, order of sites).

What the sums reveal: with one case, ``total`` is its Dice; with two, ``total`` and ``squares`` give both. Whoever
knows the keys can solve the replicate sums for the Dice of every case, so keys must be salted with a secret of the
site; in a small group even that is weak. The sums hold no image and no identity. Suppressing small groups is the job
of the site's policy, not of this module.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import reduce
from itertools import pairwise
from operator import add

import numpy as np
from numpy.typing import NDArray

from sahfl.agreement import Floats, VolumeSums, check, deviation, read_count

SMALLEST_INTERVAL = 5
"""Below this number of cases no interval is given."""


@dataclass(frozen=True)
class CaseResult:
    """One evaluated case; it stays at the site.

    Raises:
        ValueError: a volume is negative or not finite, or Dice does not fit the volumes.

    """

    key: str
    """Salted pseudonym; seeds the bootstrap weights. Scans that share a key are resampled together."""
    volume_ml: float
    """Annotated blood."""
    predicted_ml: float
    """Predicted blood."""
    dice: float | None
    """None: annotated and predicted both empty; 0.0 for a false positive on an empty case."""

    def __post_init__(self) -> None:
        volumes = self.volume_ml, self.predicted_ml
        if not all(0 <= volume < math.inf for volume in volumes):
            raise ValueError(f"case result: got volumes {volumes} mL, expected finite numbers >= 0")
        if (self.dice is None) != (volumes == (0, 0)) or not 0 <= (self.dice or 0) <= 1:
            raise ValueError(f"case result: got dice={self.dice}, expected [0, 1], or None if both volumes are 0")


@dataclass(frozen=True, eq=False)
class DiceSums:
    """Sums over the cases of one volume stratum.

    Replicate b of the bootstrap has the mean ``weighted[b] / weights[b]``, each case entering with its own Poisson(1)
    weight: a resampling that needs no list of all cases.

    Guarantees: the weights of a case depend on its key, the seed and the number of replicates only, so they are the
    same for every method and at every site; the order of ``cases`` does not change a bit of the result.

    Source: Hanley & MacGibbon 2006, Comput. Methods Programs Biomed. 83:57, section 2.
    """

    n: int
    total: float
    squares: float
    weights: Floats  # (replicates,), whole numbers
    weighted: Floats  # (replicates,), sums of weight * Dice

    @classmethod
    def zero(cls, replicates: int) -> DiceSums:
        """Return sums over no case."""
        return cls(0, 0.0, 0.0, np.zeros(replicates), np.zeros(replicates))

    @classmethod
    def of(cls, cases: Sequence[CaseResult], *, replicates: int, seed: int) -> DiceSums:
        """Add up ``cases``; those without a Dice (both empty) are not counted."""
        scored = sorted((case.key, case.dice) for case in cases if case.dice is not None)
        weights, weighted = np.zeros(replicates), np.zeros(replicates)
        for key, dice in scored:
            draws = poisson_weights(key, replicates=replicates, seed=seed)
            weights += draws
            weighted += draws * dice
        values = [dice for _, dice in scored]
        return cls(len(values), math.fsum(values), math.fsum(dice * dice for dice in values), weights, weighted)

    def __add__(self, other: DiceSums) -> DiceSums:
        if self.weights.size != other.weights.size:
            raise ValueError(f"Dice sums: got {other.weights.size} replicates, expected {self.weights.size}")
        return DiceSums(*map(add, astuple(self), astuple(other)))

    def replicate_means(self) -> Floats:
        """Mean Dice of every replicate, shape (replicates,); NaN where no case was drawn."""
        means = np.full(self.weights.size, np.nan)
        return np.divide(self.weighted, self.weights, out=means, where=self.weights > 0)


@dataclass(frozen=True, eq=False)
class EvaluationSums:
    """All that a site reports of one method's evaluation."""

    strata: tuple[DiceSums, ...]
    """One per volume stratum, of the cases with blood."""
    n_no_blood: int
    """Cases without annotated blood; they are in no stratum and not in ``volume``."""
    n_false_positive: int
    """Those of them in which blood was predicted."""
    volume: VolumeSums
    """Over the cases with blood."""

    @classmethod
    def of(
        cls, cases: Sequence[CaseResult], *, edges_ml: Sequence[float], replicates: int, seed: int
    ) -> EvaluationSums:
        """Add up the cases of a site; stratum i holds ``edges_ml[i-1] <= volume < edges_ml[i]``.

        Raises:
            ValueError: the edges are not positive and increasing.

        """
        groups: list[list[CaseResult]] = [[] for _ in stratum_labels(edges_ml)]
        empty = [case for case in cases if case.volume_ml == 0]
        blood = [case for case in cases if case.volume_ml > 0]
        for case in blood:
            groups[bisect_right(edges_ml, case.volume_ml)].append(case)
        strata = tuple(DiceSums.of(group, replicates=replicates, seed=seed) for group in groups)
        n_false_positive = sum(case.predicted_ml > 0 for case in empty)
        volume = VolumeSums.of((case.volume_ml, case.predicted_ml) for case in blood)
        return cls(strata, len(empty), n_false_positive, volume)

    @classmethod
    def zero(cls, *, n_strata: int, replicates: int) -> EvaluationSums:
        """Return sums over no case; the start of a sum over sites."""
        return cls((DiceSums.zero(replicates),) * n_strata, 0, 0, VolumeSums.zero())

    def __add__(self, other: EvaluationSums) -> EvaluationSums:
        if len(self.strata) != len(other.strata):
            raise ValueError(f"evaluation sums: got {len(other.strata)} strata, expected {len(self.strata)}")
        counts = self.n_no_blood + other.n_no_blood, self.n_false_positive + other.n_false_positive
        return EvaluationSums(tuple(map(add, self.strata, other.strata)), *counts, self.volume + other.volume)

    def to_array(self) -> Floats:
        """Return the flat array that travels, float64, shape (8 + n_strata * (3 + 2 * replicates),).

        n_no_blood, n_false_positive, six volume sums; of every stratum n, total, squares, weights, weighted.
        """
        head = [self.n_no_blood, self.n_false_positive, *astuple(self.volume)]
        return np.hstack([np.asarray(head, np.float64), *(value for s in self.strata for value in astuple(s))])

    @classmethod
    def from_array(cls, array: NDArray[np.generic], *, n_strata: int, replicates: int) -> EvaluationSums:
        """Read what a site sent.

        Guarantees: counts are whole numbers, and every sum is one that some cases could have given (Dice in [0, 1]).

        Raises:
            PayloadError: anything else, naming the sum.

        """
        length = 8 + n_strata * (3 + 2 * replicates)
        check(array.dtype == np.float64, "dtype", array.dtype, "float64")
        check(array.shape == (length,), "shape", array.shape, f"({length},)")
        check(bool(np.isfinite(array).all()), "array", "NaN or inf", "finite numbers")
        head, rows = np.split(array.astype(np.float64), [8])
        strata = tuple(_read_stratum(row, f"stratum {i}") for i, row in enumerate(rows.reshape(n_strata, -1)))
        n_no_blood, n_false_positive = read_count(head[0], "n_no_blood"), read_count(head[1], "n_false_positive")
        check(n_false_positive <= n_no_blood, "n_false_positive", n_false_positive, f"<= n_no_blood={n_no_blood}")
        volume = VolumeSums.from_array(head[2:], n=sum(stratum.n for stratum in strata))
        return cls(strata, n_no_blood, n_false_positive, volume)


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval over patients; None where there are too few cases."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    sd: float | None = None
    """Spread between cases (ddof 1); None for a difference, whose spread the sums do not hold."""


def poisson_weights(key: str, *, replicates: int, seed: int) -> Floats:
    """Poisson(1) weights of a case, shape (replicates,), seeded by SHA-256 of seed and key."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest, "big"))
    return generator.poisson(1.0, replicates).astype(np.float64)


def stratum_labels(edges_ml: Sequence[float]) -> tuple[str, ...]:
    """Names of the volume strata, one more than edges: ``< 10 mL``, ``10 to 30 mL``, ``>= 30 mL``.

    Raises:
        ValueError: the edges are not positive and increasing.

    """
    edges = list(edges_ml)
    if any(not 0 < edge < math.inf for edge in edges) or any(a >= b for a, b in pairwise(edges)):
        raise ValueError(f"volume edges: got {edges}, expected positive, increasing numbers of mL")
    if not edges:
        return ("any volume",)
    between = [f"{low:g} to {high:g} mL" for low, high in pairwise(edges)]
    return (f"< {edges[0]:g} mL", *between, f">= {edges[-1]:g} mL")


def overall(sums: EvaluationSums) -> DiceSums:
    """All strata together: every case with blood."""
    return reduce(add, sums.strata)


def dice_estimate(sums: DiceSums) -> Estimate:
    """Mean Dice, its SD between cases, and the percentile interval of the replicate means.

    Guarantees: never NaN. Without a case all is None; SD needs 2 cases, the interval 5.

    Source: Hanley & MacGibbon 2006, Comput. Methods Programs Biomed. 83:57; percentile interval.
    """
    sd = deviation(sums.n, sums.total, sums.squares)
    return _estimate(sums.n, sums.total, sums.replicate_means(), sd=sd)


def difference(a: DiceSums | Sequence[DiceSums], b: DiceSums | Sequence[DiceSums]) -> Estimate:
    """Mean Dice of ``a`` minus that of ``b``, paired by case; a sequence is added up first.

    A replicate draws the same cases for both methods, so what makes a case hard for both cancels out.

    Guarantees: never NaN; None as in ``dice_estimate``.

    Raises:
        ValueError: the two were not evaluated on the same cases.

    """
    first, second = (sums if isinstance(sums, DiceSums) else reduce(add, sums) for sums in (a, b))
    # Weights are whole numbers below 2**53: their sums are exact, in any order of sites.
    if first.n != second.n or not np.array_equal(first.weights, second.weights):
        raise ValueError(f"paired difference: got {first.n} and {second.n} cases, expected the same cases in both")
    return _estimate(first.n, first.total - second.total, first.replicate_means() - second.replicate_means())


def _estimate(n: int, total: float, replicates: Floats, *, sd: float | None = None) -> Estimate:
    """Mean with the percentile 95 % interval of those replicates in which a case was drawn."""
    drawn = replicates[~np.isnan(replicates)]
    if n < SMALLEST_INTERVAL or not drawn.size:
        return Estimate(total / n if n else None, None, None, n, sd)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(total / n, float(low), float(high), n, sd)


def _read_stratum(row: Floats, name: str) -> DiceSums:
    """Check one stratum: for Dice in [0, 1], ``total**2 / n <= squares <= total <= n``."""
    n, total, squares = read_count(row[0], f"{name}, n"), float(row[1]), float(row[2])
    weights, weighted = np.split(row[3:].copy(), 2)
    slack = 1e-9 * (n + 1)
    check(0 <= total <= n + slack, f"{name}, total", total, f"a sum of {n} Dice in [0, 1]")
    least = total * total / max(n, 1)
    check(least - slack <= squares <= total + slack, f"{name}, squares", squares, f"in [{least:g}, {total:g}]")
    # A Poisson(1) number lies above 20 once in 10**19 draws; larger weights would drown the other sites.
    most = 20 * n
    whole = bool(((weights >= 0) & (weights <= most) & (weights == np.floor(weights))).all())
    check(whole, f"{name}, weights", "another number", f"whole numbers in [0, {most}]")
    fits = bool(((weighted >= 0) & (weighted <= weights * (1 + 1e-9))).all())
    check(fits, f"{name}, weighted", "a number outside", "between 0 and the weights")
    return DiceSums(n, total, squares, weights, weighted)
