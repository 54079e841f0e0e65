"""Made-up cases, and settings of the evaluation with few replicates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sahfl.statistics.cases import CaseResult
from sahfl.statistics.estimates import difference, estimate
from sahfl.statistics.variances import Sample


@dataclass(frozen=True)
class Split:
    """Settings that shape the sums; unlike a study's, with any number of replicates."""

    replicates: int = 200
    volume_edges_ml: tuple[float, ...] = (10.0, 30.0)
    extent_edges_mm: tuple[float, ...] = (30.0, 60.0)


def a_case(key, volume_ml, predicted_ml, dice, *, extent_mm=None, **more):
    """A case, its other metrics made of its Dice; without blood if its volume is 0, missed if none is predicted."""
    if not volume_ml:
        return CaseResult(key, volume_ml, predicted_ml, dice)
    made = {"surface_dice": dice**0.5, "hd95_mm": 300 * (1 - dice) ** 2 if predicted_ml else None}
    made |= {"lesion_f1": dice**2} | more
    return CaseResult(key, volume_ml, predicted_ml, dice, **made, extent_mm=extent_mm or 15 * volume_ml ** (1 / 3))


def made_cases(site="bern", n=20, seed=0):
    """Cases with blood of 2 to 80 mL, 5 to 120 mm, with metrics that are not functions of each other."""
    random = np.random.default_rng(seed)
    volumes, noise = random.uniform(2, 80, n), random.normal(0, 3, n)
    columns = [random.beta(2, 2, n), random.beta(3, 2, n), random.gamma(2, 15, n), random.beta(1, 2, n)]
    columns += [random.uniform(5, 120, n), volumes, np.maximum(0.9 * volumes + noise, 0.1)]
    names = ("dice", "surface_dice", "hd95_mm", "lesion_f1", "extent_mm", "volume_ml", "predicted_ml")
    return [
        CaseResult(f"{site}-{i}", **dict(zip(names, map(float, row), strict=True)))
        for i, row in enumerate(zip(*columns, strict=True))
    ]


def mean_of(sums, metric):
    """The estimate of a mean over patients alone, as of a method without training."""
    return estimate(Sample(sums, trained=False), metric)


def gap_of(ours, theirs, metric):
    """The estimate of a difference over patients alone, as of two methods without training."""
    return difference(Sample(ours, trained=False), Sample(theirs, trained=False), metric)
