"""Which results of small groups a site withholds, so that its sums reveal no single patient. numpy only, for audits.

Two thresholds count *patients*, never scans: ``smallest_group`` for results, ``smallest_bootstrap`` for bootstrap sums
and histograms. The cases with blood are summed over all, by volume stratum and by extent group. A site sends the first
of these forms that is allowed:

1. With replicates and histograms, if at least ``smallest_bootstrap`` patients have blood. Both splits are sent if no
   number that can be derived from them covers fewer patients; otherwise the split by volume; otherwise the split by
   extent; otherwise the totals alone.
2. Without replicates and histograms, if at least ``smallest_group`` patients have blood. Splits are chosen as in 1,
   with this threshold.
3. Nothing except the fact that results were withheld.

A receiver can add and subtract the sums of groups. Example: if an extent group holds all patients of a volume stratum
but one, the difference of the two sums belongs to that one patient. The two splits form a graph: each group is a node,
and the patients in a stratum and an extent group are the edge between these two nodes. A combination of sums assigns
each node a number, and its result depends on the patients on those edges whose ends differ, which are a cut of the
graph. The smallest cut, counted in patients, is therefore the fewest patients behind any derived number
(``smallest_cut``). A small group is never withheld alone, because subtraction would reveal it.

Cases without blood are a separate group, whose counts are sent or withheld. The form depends only on a site's patients,
so all compared methods are withheld alike. Numbers of patients are always sent: every result needs its n, and a count
reveals nothing about a single patient.

Misses and HD95 depend on the method too. HD95 is summed over the detected cases of a group, which may be few although
the group is large: if 19 of 20 patients are missed, the sum is one patient's HD95, and the number of misses shows that
the sums of the other metrics are this patient's as well. A site therefore sends a group's misses and HD95 only if no
number that can be derived from them covers fewer detected patients than the threshold, except none at all. Otherwise it
sends those over all cases, or, if these are too few too, neither. There are no replicates of misses: their products
with those of another metric would be the sums of that metric over the missed patients, of whom there may be one.

What replicates reveal: all methods share their bootstrap weights, so the replicates of n / 5 or more methods are n
patients mixed in as many channels. With weights that are not normal, such as Poisson's, independent component analysis
can separate such a mixture into one row of values per patient. The distribution of normal weights does not change when
the patients are rotated. All replicates of all methods together therefore reveal only the sums of the values and the
sums of their products, of any two metrics and methods. These do not distinguish patients from mixtures of patients
(Comon 1994, Signal Processing 36:287).

Why replicates and histograms still need more patients: a histogram of few patients lists their values, rounded to its
bins, and the products show which values belong together. With 24 methods, this attack finds five patients within a
second and most of ten, but none of twenty; with 73 methods it finds one of twenty, at the edge of all histograms
(``tests/statistics/test_disclosure.py``). Sums are rounded to a ``Metric.step`` (1/1024 of Dice, 1/16 mm, 1/16 mL), so
that their last digits do not identify patients.
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

PatientTable = Sequence[Sequence[frozenset[str]]]
"""Keys of the patients in each volume stratum (rows) and extent group (columns)."""


@dataclass(frozen=True)
class Groups:
    """The fewest patients behind any number in a site's sums, for each way to split them; 0 without such cases."""

    strata: int
    """If the sums are split by volume alone."""
    extents: int
    """If the sums are split by extent alone."""
    both: int
    """If both splits are sent; counts every combination of their sums."""
    blood: int
    """If the sums are not split."""
    no_blood: int

    @classmethod
    def of(cls, cases: Sequence[CaseResult], settings: Settings) -> Groups:
        """Count the patients of a site's cases; a patient with scans in two groups counts in both."""
        n_strata, n_extents = n_groups(settings)
        cells: list[list[set[str]]] = [[set() for _ in range(n_extents)] for _ in range(n_strata)]
        for case in cases:
            if case.volume_ml > 0:
                cells[stratum_of(case, settings)][extent_of(case, settings)].add(case.key)
        frozen = [[frozenset(cell) for cell in row] for row in cells]
        return cls.of_table(frozen, no_blood=len({case.key for case in cases if case.volume_ml == 0}))

    @classmethod
    def of_table(cls, table: PatientTable, *, no_blood: int) -> Groups:
        """Count the patients of a table, and those without blood."""
        strata = [frozenset[str]().union(*row) for row in table]
        extents = [frozenset[str]().union(*column) for column in zip(*table, strict=True)]
        whole = len(frozenset[str]().union(*strata))
        return cls(_fewest(strata), _fewest(extents), smallest_cut(table), whole, no_blood)

    def fewest(self, splits: Withheld) -> int:
        """The fewest patients with blood behind any number, if these splits are withheld."""
        if not splits.strata and not splits.extents:
            return self.both
        return self.blood if splits.strata and splits.extents else self.extents if splits.strata else self.strata

    def splits(self, least: int) -> Withheld | None:
        """Which splits to withhold so that no number covers fewer than ``least`` patients; None: withhold all sums."""
        if self.blood < least:
            return None
        if self.both >= least:
            return Withheld()
        if self.strata >= least:
            return Withheld(extents=1)
        return Withheld(strata=1) if self.extents >= least else Withheld(strata=1, extents=1)


def smallest_cut(cells: PatientTable) -> int:
    """The smallest number of patients, above 0, that a combination of the sums of two splits can reveal.

    A combination gives every group a number. It reveals the patients who are in two groups with different numbers
    (after the sign of one split is turned). Two different numbers suffice, so the search tries all ways to give each
    group 0 or 1, without mirror images.
    """
    first, second = len(cells), len(cells[0])
    found = []
    for sides in product((0, 1), repeat=first + second - 1):
        ends = (0, *sides)
        cut = [cells[i][j] for i in range(first) for j in range(second) if ends[i] != ends[first + j]]
        if n := len(frozenset[str]().union(*cut)):
            found.append(n)
    return min(found, default=0)


def withhold(
    sums: EvaluationSums,
    cases: Sequence[CaseResult],
    settings: Settings,
    *,
    smallest_group: int,
    smallest_bootstrap: int,
) -> EvaluationSums:
    """The sums over a site's cases that the site may send: those of ``withhold_small``."""
    detected = Groups.of([case for case in cases if not case.missed], settings)
    groups = Groups.of(cases, settings)
    return withhold_small(sums, groups, detected, smallest_group=smallest_group, smallest_bootstrap=smallest_bootstrap)


def withhold_small(
    sums: EvaluationSums, groups: Groups, detected: Groups, *, smallest_group: int, smallest_bootstrap: int
) -> EvaluationSums:
    """The part of some sums that may be shown, by the patients behind them and by those of them who were detected.

    Guarantees: with both thresholds at 1 the sums are unchanged. No number over 1 to ``smallest_group`` - 1 patients is
    sent or can be derived from what is sent; of HD95, detected patients count. An empty group stays empty, and differs
    from a withheld group.
    """
    if smallest_bootstrap == 1:
        return sums
    kept = Withheld(no_blood=int(0 < groups.no_blood < smallest_group))
    if kept.no_blood:
        sums = replace(sums, n_no_blood=0, n_false_positive=0)
    if groups.blood == 0:
        return replace(sums, withheld=kept)
    least, splits = smallest_bootstrap, groups.splits(smallest_bootstrap)
    if splits is None:
        sums, least, splits = _without_replicates(sums), smallest_group, groups.splits(smallest_group)
    if splits is None:
        return replace(_withhold_blood(sums), withheld=kept + Withheld(blood=1))
    sums = _hide_misses(_unsplit(sums, splits), detected, splits, least)
    return replace(_each_group(sums, _round_group), withheld=kept + splits)


def describe_withheld(sums: EvaluationSums) -> str:
    """List in words what one site withheld; empty if it withheld nothing."""
    withheld = sums.withheld
    parts = ["the split by volume"] * withheld.strata + ["the split by extent"] * withheld.extents
    parts += ["all results of patients with blood"] * withheld.blood
    parts += ["the bootstrap sums and histograms"] * bool(sums.overall.bare)
    parts += ["misses and HD95" if sums.overall.hidden else "misses and HD95 of groups"] * _hides(sums)
    return ", ".join(parts + ["counts of patients without blood"] * withheld.no_blood)


def _hides(sums: EvaluationSums) -> bool:
    return bool(sums.overall.hidden) or sums.hides_groups


def _hide_misses(sums: EvaluationSums, detected: Groups, splits: Withheld, least: int) -> EvaluationSums:
    """Withhold misses and HD95 of groups, or of all cases too, in which too few patients were detected."""
    if 0 < detected.blood < least:
        return _each_group(sums, GroupSums.without_detection)
    if 0 < detected.fewest(splits) < least:
        return replace(_each_group(sums, GroupSums.without_detection), overall=sums.overall)
    return sums


def _fewest(groups: Sequence[frozenset[str]]) -> int:
    return min((len(group) for group in groups if group), default=0)


def _each_group(sums: EvaluationSums, change: Callable[[GroupSums], GroupSums]) -> EvaluationSums:
    return sums.with_groups(map(change, sums.groups))


def _none(group: GroupSums) -> GroupSums:
    return GroupSums.zero(group.weights.size)


def _withhold_blood(sums: EvaluationSums) -> EvaluationSums:
    """Set all sums of cases with blood to zero."""
    return replace(_each_group(sums, _none), volume=VolumeSums.zero(), volume_counts=np.zeros_like(sums.volume_counts))


def _unsplit(sums: EvaluationSums, splits: Withheld) -> EvaluationSums:
    by_volume = tuple(map(_none, sums.by_volume)) if splits.strata else sums.by_volume
    by_extent = tuple(map(_none, sums.by_extent)) if splits.extents else sums.by_extent
    return replace(sums, by_volume=by_volume, by_extent=by_extent)


def _without_replicates(sums: EvaluationSums) -> EvaluationSums:
    def bare(group: GroupSums) -> GroupSums:
        nothing = _none(group)
        return replace(group, counts=nothing.counts, weights=nothing.weights, weighted=nothing.weighted, bare=group.n)

    return replace(_each_group(sums, bare), volume_counts=np.zeros_like(sums.volume_counts))


def _round_group(sums: GroupSums) -> GroupSums:
    """Round totals down and squares up to whole steps, within the limits of possible sums of cases."""
    totals = np.floor(sums.totals / STEPS) * STEPS
    squares = np.minimum(np.ceil(sums.squares / STEPS) * STEPS, totals * MOST)
    weighted = np.round(sums.weighted / STEPS[:, None]) * STEPS[:, None]
    return replace(sums, totals=totals, squares=squares, weighted=weighted)
