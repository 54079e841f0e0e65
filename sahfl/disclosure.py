"""What a site's sums tell of few patients, and what is withheld so that they do not. numpy only: a hospital audits it.

Two thresholds count *patients*, never scans: ``smallest_group`` for results, ``smallest_bootstrap`` for the bootstrap.
Of the cases with blood, the first of these forms that is allowed leaves:

1. every stratum that is not empty has ``smallest_bootstrap`` patients: all of it;
2. together they are ``smallest_bootstrap``: one group, not split by volume, with its replicates;
3. every stratum that is not empty has ``smallest_group``: the strata, without replicates;
4. together they are ``smallest_group``: one group, without replicates;
5. otherwise nothing but the fact.

A single small stratum is never withheld alone: the others, and the volume sums of all, would give it away by
subtraction. Cases without blood are a group of their own, whose counts leave or do not. Which form a site sends depends
on its patients alone, so methods that are compared are withheld alike. Numbers of patients are not withheld: every
result needs its n, and how many there are says nothing about one of them.

Why replicates need more: with n patients, a replicate draws exactly one scan with a chance of n exp(-n), 3 % of 1000
replicates at n = 5, and is then that patient's Dice. At 20 patients, 3 draws or fewer come once in 300 000. Sums of
Dice are rounded to 1/1024, so that their last digits do not tell the patients apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sahfl.sums import CaseResult, DiceSums, EvaluationSums, overall, stratum_of

STEP = 2.0**-10
"""Sums of Dice leave in multiples of it."""


@dataclass(frozen=True)
class Groups:
    """Numbers of patients behind the sums of a site."""

    strata: tuple[int, ...]
    blood: int
    no_blood: int

    @classmethod
    def of(cls, cases: Sequence[CaseResult], *, edges_ml: Sequence[float]) -> Groups:
        """Count patients, whose scans share a key; one with scans in two strata counts in both."""
        blood = [case for case in cases if case.volume_ml > 0]
        strata: list[set[str]] = [set() for _ in range(len(edges_ml) + 1)]
        for case in blood:
            strata[stratum_of(case, edges_ml)].add(case.key)
        no_blood = {case.key for case in cases if case.volume_ml == 0}
        return cls(tuple(map(len, strata)), len({case.key for case in blood}), len(no_blood))

    def fewest(self) -> int:
        """Patients of the smallest stratum that is not empty."""
        return min((n for n in self.strata if n), default=0)


def withhold(sums: EvaluationSums, groups: Groups, *, smallest_group: int, smallest_bootstrap: int) -> EvaluationSums:
    """The sums that may leave.

    Guarantees: with both thresholds at 1, they are what they were; no number over 1 to ``smallest_group`` - 1 patients
    is left, nor can it be worked out from what is left; a group of none stays a group of none, and is told apart.
    """
    if smallest_bootstrap == 1:
        return sums
    if groups.no_blood and groups.no_blood < smallest_group:
        sums = replace(sums, n_no_blood=0, n_false_positive=0, withheld=replace(sums.withheld, no_blood=1))
    if groups.blood == 0 or groups.fewest() >= smallest_bootstrap:
        return _rounded(sums)
    replicates = sums.merged.weights.size
    if groups.blood < smallest_group:
        nothing = EvaluationSums.zero(n_strata=len(sums.strata), replicates=replicates)
        return replace(sums, strata=nothing.strata, volume=nothing.volume, withheld=replace(sums.withheld, blood=1))
    if groups.blood < smallest_bootstrap and groups.fewest() >= smallest_group:
        return _rounded(replace(sums, strata=tuple(map(_without_replicates, sums.strata))))
    merged = overall(sums) if groups.blood >= smallest_bootstrap else _without_replicates(overall(sums))
    empty = (DiceSums.zero(replicates),) * len(sums.strata)
    return _rounded(replace(sums, strata=empty, merged=merged, withheld=replace(sums.withheld, strata=1)))


def say_withheld(sums: EvaluationSums) -> str:
    """What one site withheld, in words; empty if nothing."""
    withheld = sums.withheld
    said = ["the split by volume"] * withheld.strata + ["all results of patients with blood"] * withheld.blood
    said += ["the bootstrap sums"] * bool(overall(sums).bare) + ["counts of patients without blood"] * withheld.no_blood
    return ", ".join(said)


def _without_replicates(sums: DiceSums) -> DiceSums:
    nothing = np.zeros(sums.weights.size)
    return replace(sums, weights=nothing, weighted=nothing, bare=sums.n)


def _rounded(sums: EvaluationSums) -> EvaluationSums:
    return replace(sums, strata=tuple(map(_round_dice, sums.strata)), merged=_round_dice(sums.merged))


def _round_dice(sums: DiceSums) -> DiceSums:
    """Down to whole steps, squares up but never above the total: still sums that some Dice in [0, 1] can have."""
    total = float(np.floor(sums.total / STEP) * STEP)
    squares = min(float(np.ceil(sums.squares / STEP) * STEP), total)
    return replace(sums, total=total, squares=squares, weighted=np.floor(sums.weighted / STEP) * STEP)
