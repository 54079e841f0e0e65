"""One array with the sums of a site and the numbers of patients behind them, which adds up over all sites.

Where the sites' arrays are masked (``sahfl.masking``), nobody sees the sums of one site, and no site sees the others'.
So no site can withhold what is small in all sites together. Instead each adds how many of its patients are in each
volume stratum and extent group, and ``withheld_total`` applies the rules of ``disclosure`` to the total, before it is
written or shown. numpy only, for audits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sahfl.errors import PayloadError
from sahfl.statistics.agreement import read_count
from sahfl.statistics.cases import CaseResult, Settings, extent_of, n_groups, stratum_of
from sahfl.statistics.disclosure import Groups, PatientTable, withhold_small
from sahfl.statistics.metrics import Floats
from sahfl.statistics.sums import EvaluationSums, array_length

VOLUME_STEP = 2.0**-20
"""Volumes in mL are whole multiples of this, one millionth of a millilitre."""


@dataclass(frozen=True)
class Thresholds:
    """Fewest patients behind what is shown; ``config.SitePolicy`` has the same two."""

    smallest_group: int
    smallest_bootstrap: int

    @classmethod
    def strictest(cls, found: Iterable[Thresholds]) -> Thresholds:
        """The thresholds that meet those of several sites."""
        pairs = [(one.smallest_group, one.smallest_bootstrap) for one in found]
        return cls(*(max(column) for column in zip(*pairs, strict=True)))


def total_length(settings: Settings) -> int:
    """How many numbers the array has."""
    return array_length(settings) + _n_counts(settings)


def site_part(cases: Sequence[CaseResult], settings: Settings, *, seed: int) -> Floats:
    """The array of one site, float64, shape (``total_length(settings)``,): its whole sums, then its patients.

    Volumes are rounded up to a ``VOLUME_STEP``, so that sums of their squares and products have no rounding error where
    numbers are multiples of 2^-40 (``masking.ring``); otherwise a total could be none that any cases give.

    The patients are those with blood by stratum and extent, those of them who were detected, and those without blood. A
    patient with scans in several groups counts in the first of them, so that no group looks larger than it is, and in
    a second table in each of the others.
    """
    cases = [_with_whole_steps(case) for case in cases]
    sums = EvaluationSums.of(cases, settings, seed=seed)
    blood = [case for case in cases if case.volume_ml > 0]
    detected = [case for case in blood if not case.missed]
    tables = [table.ravel() for some in (blood, detected) for table in _count(some, settings)]
    no_blood = len({case.key for case in cases if case.volume_ml == 0})
    return np.concatenate([sums.to_array(), *tables, [float(no_blood)]])


def withheld_total(total: Floats, settings: Settings, thresholds: Thresholds) -> EvaluationSums:
    """Read the total of several sites, and withhold what covers too few patients.

    Raises:
        PayloadError: no cases could have given these numbers.
    """
    if total.shape != (total_length(settings),):
        raise PayloadError(f"evaluation sums: got {total.size} numbers, expected {total_length(settings)}")
    sums = EvaluationSums.from_array(total[: array_length(settings)], settings)
    counts = [read_count(float(value), "patients") for value in total[array_length(settings) :]]
    n_strata, n_extents = n_groups(settings)
    blood, detected = np.array(counts[:-1], np.int64).reshape(2, 2, n_strata, n_extents)
    if blood.sum() > sums.overall.n or detected.sum() > blood.sum() or counts[-1] > sums.n_no_blood:
        raise PayloadError("evaluation sums, patients: are more than scans, or more were detected than there are")
    both = (Groups.of_table(_invented(*table), no_blood=counts[-1]) for table in (blood, detected))
    # Somebody who is in several groups may be counted twice in some numbers (``_invented``).
    twice = int(thresholds.smallest_bootstrap > 1 and bool(blood[1].any() or detected[1].any()))
    least = {name: value + twice for name, value in vars(thresholds).items()}
    return withhold_small(sums, *both, **least)


def _with_whole_steps(case: CaseResult) -> CaseResult:
    true, predicted = (math.ceil(ml / VOLUME_STEP) * VOLUME_STEP for ml in (case.volume_ml, case.predicted_ml))
    return replace(case, volume_ml=true, predicted_ml=predicted)


def _n_counts(settings: Settings) -> int:
    n_strata, n_extents = n_groups(settings)
    return 4 * n_strata * n_extents + 1


def _count(cases: Sequence[CaseResult], settings: Settings) -> Floats:
    """Patients by stratum and extent, in the first of their cells and in the others: (2, strata, extents)."""
    cells = dict[str, set[tuple[int, int]]]()
    for case in cases:
        cells.setdefault(case.key, set()).add((stratum_of(case, settings), extent_of(case, settings)))
    tables = np.zeros((2, *n_groups(settings)))
    for found in cells.values():
        first, *others = sorted(found)
        for place, cell in [(0, first), *((1, other) for other in others)]:
            tables[place, *cell] += 1
    return tables


def _invented(first: NDArray[np.int64], others: NDArray[np.int64]) -> PatientTable:
    """A table of patients with these counts, as all sites' patients differ; one stands for all in further cells.

    That one makes such a cell no empty one. It may have been counted in its first cell already, so a number of patients
    is at most one too large.
    """
    table = zip(first.tolist(), others.tolist(), strict=True)
    return [
        [
            frozenset(f"{i} {j} {k}" for k in range(n)) | ({"one of several"} if more else set())
            for j, (n, more) in enumerate(zip(*both, strict=True))
        ]
        for i, both in enumerate(table)
    ]
