"""Estimates from the sums that hospitals return (``sums``): mean Dice, intervals, paired differences.

The 95 % intervals are over patients: they say how far an estimate would move with other patients of the same kind.
They do NOT include the randomness of training (initialisation, sampling, order of sites).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from sahfl.agreement import Floats, deviation
from sahfl.sums import CaseResult, DiceSums, EvaluationSums, Withheld, overall, poisson_weights, stratum_labels

__all__ = [
    "CaseResult",
    "DiceSums",
    "Estimate",
    "EvaluationSums",
    "Withheld",
    "dice_estimate",
    "difference",
    "overall",
    "poisson_weights",
    "stratum_labels",
]
SMALLEST_INTERVAL = 5
"""Below this number of cases no interval is given."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval over patients; None where there are too few cases."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    sd: float | None = None
    """Spread between cases (ddof 1); None for a difference, whose spread the sums do not hold."""


def dice_estimate(sums: DiceSums) -> Estimate:
    """Mean Dice, its SD between cases, and the percentile interval of the replicate means.

    Guarantees: never NaN. Without a case all is None; SD needs 2 cases, the interval 5 and the replicates of all.

    Source: Hanley & MacGibbon 2006, Comput. Methods Programs Biomed. 83:57; percentile interval.
    """
    sd = deviation(sums.n, sums.total, sums.squares)
    return _estimate(sums, sums.total, sums.replicate_means(), sd=sd)


def difference(a: DiceSums | Sequence[DiceSums], b: DiceSums | Sequence[DiceSums]) -> Estimate:
    """Mean Dice of ``a`` minus that of ``b``, paired by case; a sequence is added up first.

    A replicate draws the same cases for both methods, so what makes a case hard for both cancels out.

    Guarantees: never NaN; None as in ``dice_estimate``.

    Raises:
        ValueError: the two were not evaluated on the same cases.

    """
    first, second = (sums if isinstance(sums, DiceSums) else reduce(add, sums) for sums in (a, b))
    # Weights are whole numbers below 2**53: their sums are exact, in any order of sites.
    if (first.n, first.bare) != (second.n, second.bare) or not np.array_equal(first.weights, second.weights):
        raise ValueError(f"paired difference: got {first.n} and {second.n} cases, expected the same cases in both")
    return _estimate(first, first.total - second.total, first.replicate_means() - second.replicate_means())


def _estimate(over: DiceSums, total: float, replicates: Floats, *, sd: float | None = None) -> Estimate:
    """Mean with the percentile 95 % interval of those replicates in which a case was drawn."""
    n, drawn = over.n, replicates[~np.isnan(replicates)]
    if n < SMALLEST_INTERVAL or not drawn.size or over.bare:
        return Estimate(total / n if n else None, None, None, n, sd)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(total / n, float(low), float(high), n, sd)
