"""What a site's sums tell of few patients, and what is withheld so that they do not. numpy only: a hospital audits it.

Two thresholds count *patients*, never scans: ``smallest_group`` for results, ``smallest_bootstrap`` for bootstrap sums
and histograms. The cases with blood are summed as a whole and split twice, by volume and by extent. Of that, the first
of these forms that is allowed leaves:

1. with replicates and histograms, if all patients with blood are ``smallest_bootstrap``: both splits if nothing that
   can be worked out from them is over fewer; else one of them, by volume before by extent; else the whole alone;
2. without replicates and histograms, if they are ``smallest_group``: the same choice, by that threshold;
3. otherwise nothing but the fact.

What can be worked out: a number over every group, and over every combination of groups. If all patients but one of a
volume stratum are all that a group of extent has, the difference of the two sums is that patient. Two splits are a
graph: groups are its nodes, and the patients who are in a stratum and in an extent are the edge between the two. A
combination of sums gives each node a number, and tells of the patients of those edges whose ends differ: of a cut.
So the smallest cut of the graph, in patients, is the smallest number that any combination is over (``smallest_cut``).

A single small group is never withheld alone: the others, and the sums of all, would give it away by subtraction.
Cases without blood are a group of their own, whose counts leave or do not. Which form a site sends depends on its
patients alone, so methods that are compared are withheld alike. Numbers of patients are not withheld: every result
needs its n, and how many there are says nothing about one of them.

What replicates tell: all methods share their weights, so the replicates of n / 5 methods and more are n patients mixed
in as many channels. Of weights that are not normal, such as Poisson's, such a mixture can be separated into one row of
values per patient (independent component analysis). Normal weights are as likely before as after any rotation of the
patients, so all replicates of all methods together tell the sums of the values and the sums of their products, of any
two metrics and methods, and nothing else: from these alone, patients cannot be told from mixtures of them (Comon 1994,
Signal Processing 36:287).

Why they need more patients all the same, as histograms do: a histogram of few patients lists their values, rounded to
its bins, and products say which values belong together. Five patients are found that way in a second, most of ten if
there are 24 methods; of twenty none then, and one at the end of all histograms if there are 73
(``tests/statistics/test_disclosure.py``). Sums are rounded to a ``Metric.step`` (1/1024 of Dice, 1/16 mm, 1/16 mL), so
that their last digits do not tell the patients apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from sahfl.statistics.agreement import VolumeSums
from sahfl.statistics.cases import CaseResult, Settings, extent_of, n_groups, stratum_of
from sahfl.statistics.groups import MOST, STEPS, GroupSums
from sahfl.statistics.sums import EvaluationSums, Withheld

Cells = Sequence[Sequence[frozenset[str]]]
"""Patients by volume stratum and group of extent."""


@dataclass(frozen=True)
class Groups:
    """Numbers of patients behind the sums of a site, each the fewest that its sums tell of; 0 where there are none."""

    strata: int
    """If split by volume."""
    extents: int
    """If split by extent."""
    both: int
    """If split both ways, by any combination of sums."""
    blood: int
    """If not split."""
    no_blood: int

    @classmethod
    def of(cls, cases: Sequence[CaseResult], settings: Settings) -> Groups:
        """Count patients, whose scans share a key; one with scans in two groups counts in both."""
        n_strata, n_extents = n_groups(settings)
        cells: list[list[set[str]]] = [[set() for _ in range(n_extents)] for _ in range(n_strata)]
        for case in cases:
            if case.volume_ml > 0:
                cells[stratum_of(case, settings)][extent_of(case, settings)].add(case.key)
        frozen = [[frozenset(cell) for cell in row] for row in cells]
        strata = [frozenset[str]().union(*row) for row in frozen]
        extents = [frozenset[str]().union(*column) for column in zip(*frozen, strict=True)]
        no_blood = {case.key for case in cases if case.volume_ml == 0}
        whole = len(frozenset[str]().union(*strata))
        return cls(_fewest(strata), _fewest(extents), smallest_cut(frozen), whole, len(no_blood))

    def splits(self, least: int) -> Withheld | None:
        """What is withheld so that nothing is over fewer patients than ``least``; None if everything must be."""
        if self.blood < least:
            return None
        if self.both >= least:
            return Withheld()
        if self.strata >= least:
            return Withheld(extents=1)
        return Withheld(strata=1) if self.extents >= least else Withheld(strata=1, extents=1)


def smallest_cut(cells: Cells) -> int:
    """The fewest patients, but not none, that a combination of the sums of groups of two splits can tell of.

    A group of the first split and one of the second that share patients are joined by them. A combination gives every
    group a number, and tells of the patients between groups whose numbers differ (with the sign of one split turned);
    two different numbers suffice, so all ways to give each group 0 or 1 are tried, without mirrored ones.
    """
    first, second = len(cells), len(cells[0])
    found = []
    for sides in product((0, 1), repeat=first + second - 1):
        ends = (0, *sides)
        cut = [cells[i][j] for i in range(first) for j in range(second) if ends[i] != ends[first + j]]
        if n := len(frozenset[str]().union(*cut)):
            found.append(n)
    return min(found, default=0)


def withhold(sums: EvaluationSums, groups: Groups, *, smallest_group: int, smallest_bootstrap: int) -> EvaluationSums:
    """The sums that may leave.

    Guarantees: with both thresholds at 1, they are what they were; no number over 1 to ``smallest_group`` - 1 patients
    is left, nor can it be worked out from what is left; a group of none stays a group of none, and is told apart.
    """
    if smallest_bootstrap == 1:
        return sums
    kept = Withheld(no_blood=int(0 < groups.no_blood < smallest_group))
    if kept.no_blood:
        sums = replace(sums, n_no_blood=0, n_false_positive=0)
    if groups.blood == 0:
        return replace(sums, withheld=kept)
    splits = groups.splits(smallest_bootstrap)
    if splits is None:
        sums, splits = _without_replicates(sums), groups.splits(smallest_group)
    if splits is None:
        return replace(_nothing(sums), withheld=kept + Withheld(blood=1))
    return replace(_rounded(_unsplit(sums, splits)), withheld=kept + splits)


def say_withheld(sums: EvaluationSums) -> str:
    """What one site withheld, in words; empty if nothing."""
    withheld = sums.withheld
    said = ["the split by volume"] * withheld.strata + ["the split by extent"] * withheld.extents
    said += ["all results of patients with blood"] * withheld.blood
    said += ["the bootstrap sums and histograms"] * bool(sums.overall.bare)
    return ", ".join(said + ["counts of patients without blood"] * withheld.no_blood)


def _fewest(groups: Sequence[frozenset[str]]) -> int:
    return min((len(group) for group in groups if group), default=0)


def _each_group(sums: EvaluationSums, change: Callable[[GroupSums], GroupSums]) -> EvaluationSums:
    by_volume, by_extent = tuple(map(change, sums.by_volume)), tuple(map(change, sums.by_extent))
    return replace(sums, overall=change(sums.overall), by_volume=by_volume, by_extent=by_extent)


def _none(groups: tuple[GroupSums, ...]) -> tuple[GroupSums, ...]:
    return tuple(GroupSums.zero(group.weights.size) for group in groups)


def _nothing(sums: EvaluationSums) -> EvaluationSums:
    """Nothing of the cases with blood."""
    sums = _each_group(sums, lambda group: GroupSums.zero(group.weights.size))
    return replace(sums, volume=VolumeSums.zero(), volume_counts=np.zeros_like(sums.volume_counts))


def _unsplit(sums: EvaluationSums, splits: Withheld) -> EvaluationSums:
    by_volume = _none(sums.by_volume) if splits.strata else sums.by_volume
    by_extent = _none(sums.by_extent) if splits.extents else sums.by_extent
    return replace(sums, by_volume=by_volume, by_extent=by_extent)


def _without_replicates(sums: EvaluationSums) -> EvaluationSums:
    def bare(group: GroupSums) -> GroupSums:
        nothing = GroupSums.zero(group.weights.size)
        return replace(nothing, n=group.n, totals=group.totals, squares=group.squares, bare=group.n)

    return replace(_each_group(sums, bare), volume_counts=np.zeros_like(sums.volume_counts))


def _rounded(sums: EvaluationSums) -> EvaluationSums:
    return _each_group(sums, _round_group)


def _round_group(sums: GroupSums) -> GroupSums:
    """Down to whole steps, squares up but never above what the totals allow: still sums that some cases can have."""
    totals = np.floor(sums.totals / STEPS) * STEPS
    squares = np.minimum(np.ceil(sums.squares / STEPS) * STEPS, totals * MOST)
    weighted = np.round(sums.weighted / STEPS[:, None]) * STEPS[:, None]
    return replace(sums, totals=totals, squares=squares, weighted=weighted)
