"""Sums that a hospital returns instead of cases.

A site adds up its own cases (``EvaluationSums.of``), sends one flat array, and the coordinator adds the arrays of all
sites. An estimate of ``statistics`` equals the one that the pooled cases would give, although no case leaves its site.

What the sums reveal: with one case, ``total`` is its Dice; with two, ``total`` and ``squares`` give both. Whoever
knows the keys can solve the replicate sums for the Dice of every case, so keys must come from what only the site has;
in a small group even that is weak. The sums hold no image and no identity. What a site withholds of small groups is
decided in ``disclosure``; here it is written down, so that nobody takes withheld for empty.
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

from sahfl.agreement import Floats, VolumeSums, check, read_count

HEAD = 12
"""Numbers of a site's array before its strata."""


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
    bare: int = 0
    """Cases among the n whose replicates a site withheld; with any, there is no interval."""

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


@dataclass(frozen=True)
class Withheld:
    """How many sites kept results of small groups to themselves."""

    strata: int = 0
    """Sites that sent their cases with blood as one group."""
    blood: int = 0
    """Sites that sent nothing on cases with blood."""
    no_blood: int = 0
    """Sites that sent nothing on cases without blood."""

    def __add__(self, other: Withheld) -> Withheld:
        return Withheld(*map(add, astuple(self), astuple(other)))


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
    merged: DiceSums
    """Cases with blood of sites that do not say in which stratum they are."""
    withheld: Withheld = Withheld()
    """What is missing here, and of how many sites; never the same as empty."""

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
            groups[stratum_of(case, edges_ml)].append(case)
        strata = tuple(DiceSums.of(group, replicates=replicates, seed=seed) for group in groups)
        n_false_positive = sum(case.predicted_ml > 0 for case in empty)
        volume = VolumeSums.of((case.volume_ml, case.predicted_ml) for case in blood)
        return cls(strata, len(empty), n_false_positive, volume, DiceSums.zero(replicates))

    @classmethod
    def zero(cls, *, n_strata: int, replicates: int) -> EvaluationSums:
        """Return sums over no case; the start of a sum over sites."""
        nothing = DiceSums.zero(replicates)
        return cls((nothing,) * n_strata, 0, 0, VolumeSums.zero(), nothing)

    def __add__(self, other: EvaluationSums) -> EvaluationSums:
        if len(self.strata) != len(other.strata):
            raise ValueError(f"evaluation sums: got {len(other.strata)} strata, expected {len(self.strata)}")
        strata = tuple(map(add, self.strata, other.strata))
        counts = self.n_no_blood + other.n_no_blood, self.n_false_positive + other.n_false_positive
        merged, withheld = self.merged + other.merged, self.withheld + other.withheld
        return EvaluationSums(strata, *counts, self.volume + other.volume, merged, withheld)

    def to_array(self) -> Floats:
        """Return the flat array that travels, float64, shape (12 + n_strata * (3 + 2 * replicates),).

        n_no_blood, n_false_positive, six volume sums; 1 or 0 for withheld strata, blood, no_blood and replicates; of
        every stratum n, total, squares, weights, weighted. Cases that are in no stratum stand in the first one's place.

        Raises:
            ValueError: sites that withheld different parts are added up in it; that never travels.
        """
        split = self.withheld.strata == 0
        whole = overall(self)
        elsewhere = self.merged.n if split else sum(stratum.n for stratum in self.strata)
        if elsewhere or whole.bare not in (0, whole.n):
            raise ValueError("evaluation sums: hold several sites that withheld different parts, expected one site")
        rows = self.strata if split else (self.merged, *self.strata[1:])
        flags = [*astuple(self.withheld), whole.bare > 0]
        head = [self.n_no_blood, self.n_false_positive, *astuple(self.volume), *flags]
        parts = [(row.n, row.total, row.squares, row.weights, row.weighted) for row in rows]
        return np.hstack([np.asarray(head, np.float64), *(value for part in parts for value in part)])

    @classmethod
    def from_array(cls, array: NDArray[np.generic], *, n_strata: int, replicates: int) -> EvaluationSums:
        """Read what a site sent.

        Guarantees: counts are whole numbers, and every sum is one that some cases could have given (Dice in [0, 1]);
        what is said to be withheld is not there.

        Raises:
            PayloadError: anything else, naming the sum.

        """
        length = HEAD + n_strata * (3 + 2 * replicates)
        check(array.dtype == np.float64, "dtype", array.dtype, "float64")
        check(array.shape == (length,), "shape", array.shape, f"({length},)")
        check(bool(np.isfinite(array).all()), "array", "NaN or inf", "finite numbers")
        head, body = np.split(array.astype(np.float64), [HEAD])
        rows = body.reshape(n_strata, -1)
        withheld, bare = _read_withheld(head, rows)
        strata = tuple(_read_stratum(row, f"stratum {i}", bare=bare) for i, row in enumerate(rows))
        n_no_blood, n_false_positive = read_count(head[0], "n_no_blood"), read_count(head[1], "n_false_positive")
        check(n_false_positive <= n_no_blood, "n_false_positive", n_false_positive, f"<= n_no_blood={n_no_blood}")
        volume = VolumeSums.from_array(head[2:8], n=sum(stratum.n for stratum in strata))
        merged = nothing = DiceSums.zero(replicates)
        if withheld.strata:
            merged, strata = strata[0], (nothing,) * n_strata
        return cls(strata, n_no_blood, n_false_positive, volume, merged, withheld)


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


def stratum_of(case: CaseResult, edges_ml: Sequence[float]) -> int:
    """The stratum that a case with blood belongs to."""
    return bisect_right(edges_ml, case.volume_ml)


def overall(sums: EvaluationSums) -> DiceSums:
    """All strata together: every case with blood."""
    return reduce(add, [*sums.strata, sums.merged])


def _read_withheld(head: Floats, rows: Floats) -> tuple[Withheld, bool]:
    """What a site withheld, and whether its replicates too; what is withheld must be zeros."""
    check(bool(np.isin(head[8:], (0, 1)).all()), "withheld", head[8:].tolist(), "0 or 1 each")
    strata, blood, no_blood, bare = map(int, head[8:])
    check(not (strata and blood), "withheld", "strata and all cases with blood", "one of them")
    parts = {"strata": (strata, rows[1:]), "cases with blood": (blood, rows), "replicates": (bare, rows[:, 3:])}
    parts |= {"volumes": (blood, head[2:8]), "cases without blood": (no_blood, head[:2])}
    for name, (missing, values) in parts.items():
        check(not (missing and values.any()), name, "numbers that are said to be withheld", "zeros")
    return Withheld(strata, blood, no_blood), bool(bare)


def _read_stratum(row: Floats, name: str, *, bare: bool) -> DiceSums:
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
    return DiceSums(n, total, squares, weights, weighted, n if bare else 0)
