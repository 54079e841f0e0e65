"""The miss rate: the share of cases with blood in which nothing was predicted.

Misses are counts without replicates, because replicates of misses would reveal patients (``disclosure``). The interval
of a rate is that of Agresti and Coull: two misses and two detected cases are added, so that a rate of 0 has an interval
too. All scans of a patient count as one. In an interval over trainings, the variance between their rates is added.

Which cases two methods missed is unknown, so the interval of a difference is as wide as if they had segmented different
patients (Agresti and Caffo: one miss and one detected case are added to each). This is wider than needed, because
methods mostly miss the same cases. A difference has no p value.

Source: Agresti & Coull 1998, Am. Stat. 52:119; Agresti & Caffo 2000, Am. Stat. 54:280.
"""

from __future__ import annotations

from collections.abc import Sequence

from sahfl.statistics.estimates import Estimate
from sahfl.statistics.groups import GroupSums
from sahfl.statistics.variances import (
    FEWEST_PATIENTS,
    SMALLEST_INTERVAL,
    Between,
    Sample,
    Variance,
    between_values,
    n_patients,
    satterthwaite,
    with_trainings,
)


def miss_rate(sample: Sample) -> Estimate:
    """The share of missed cases, with its interval cut to [0, 1]; n is the number of cases whose misses are known."""
    sums = sample.sums
    n, trainings = sums.n - sums.hidden, _n_trainings([sample])
    found = _variance(sums, more=4)
    if found is None:
        return Estimate(_rate(sums), None, None, n, trainings)
    middle, variance = found
    spread = with_trainings(variance, _between([sample], trainings))
    return Estimate(_rate(sums), max(middle - spread.half, 0.0), min(middle + spread.half, 1.0), n, trainings)


def miss_difference(ours: Sample, theirs: Sample) -> Estimate:
    """The difference of two miss rates over the same cases, with a cautious interval and no p value."""
    rates = _rate(ours.sums), _rate(theirs.sums)
    trainings = _n_trainings([ours, theirs])
    if rates[0] is None or rates[1] is None or ours.sums.hidden or theirs.sums.hidden:
        return Estimate(None, None, None, 0, trainings)
    value, n = rates[0] - rates[1], ours.sums.n
    first, second = _variance(ours.sums, more=2), _variance(theirs.sums, more=2)
    if first is None or second is None:
        return Estimate(value, None, None, n, trainings)
    parts = first[1], second[1]
    both = sum(part.variance for part in parts)
    spread = with_trainings(Variance(both, satterthwaite(both, parts)), _between([ours, theirs], trainings))
    middle = first[0] - second[0]
    return Estimate(value, max(middle - spread.half, -1.0), min(middle + spread.half, 1.0), n, trainings)


def _rate(sums: GroupSums) -> float | None:
    known = sums.n - sums.hidden
    return float(sums.missed) / known if known else None


def _variance(sums: GroupSums, *, more: int) -> tuple[float, Variance] | None:
    """The rate with ``more`` cases added, half of them missed, and its variance; None with too few patients."""
    known = sums.n - sums.hidden
    patients = n_patients(sums) * known / max(sums.n, 1)
    if known < SMALLEST_INTERVAL or sums.bare or patients < FEWEST_PATIENTS:
        return None
    rate = (sums.missed / known * patients + more / 2) / (patients + more)
    return rate, Variance(rate * (1 - rate) / (patients + more), patients - 1)


def _n_trainings(samples: Sequence[Sample]) -> int:
    return min((sample.n_trainings for sample in samples if sample.trained), default=0)


def _between(samples: Sequence[Sample], trainings: int) -> list[Between]:
    """The variance of rates between trainings, of the pairs of equal number, or of each method."""
    if trainings < 2:
        return []
    rates = [{number: _rate(sums) or 0.0 for number, sums in sample.trainings.items()} for sample in samples]
    if len(rates) == 2 and rates[0].keys() == rates[1].keys():
        return [between_values([rates[0][number] - rates[1][number] for number in rates[0]])]
    return [
        between_values(list(found.values())) for found, sample in zip(rates, samples, strict=True) if sample.trained
    ]
