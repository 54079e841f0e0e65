"""One evaluated case, and its two groups: the stratum of its hemorrhage volume and the group of its extent."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from sahfl.statistics.metrics import METRICS


class Settings(Protocol):
    """Settings of the evaluation on which the sums depend; ``config.EvaluationConfig`` has them."""

    @property
    def volume_edges_ml(self) -> tuple[float, ...]:
        """Edges between the strata of annotated volume, mL."""

    @property
    def extent_edges_mm(self) -> tuple[float, ...]:
        """Edges between the groups of craniocaudal extent, mm."""

    @property
    def replicates(self) -> int:
        """Number of bootstrap replicates."""


@dataclass(frozen=True)
class CaseResult:
    """One evaluated case; it stays at the site.

    Raises:
        ValueError: a number is negative or not finite, or two numbers contradict each other.
    """

    key: str
    """Salted pseudonym of the patient; seeds the bootstrap weights. Scans with the same key are resampled together."""
    volume_ml: float
    """Annotated volume, mL."""
    predicted_ml: float
    """Predicted volume, mL."""
    dice: float | None
    """None if annotation and prediction are both empty; 0.0 for a false positive on a scan without blood."""
    surface_dice: float | None = None
    """Share of both surfaces that lies within the study's tolerance of the other; None without annotated blood."""
    hd95_mm: float | None = None
    """95th percentile of the distances between the surfaces; None without annotated blood, and for a missed case."""
    lesion_f1: float | None = None
    """F1 over connected components; None without annotated blood."""
    extent_mm: float = 0.0
    """Distance from the lowest to the highest annotated slice, mm; 0 without annotated blood."""

    def __post_init__(self) -> None:
        volumes = self.volume_ml, self.predicted_ml
        if not all(0 <= volume < math.inf for volume in volumes):
            raise ValueError(f"case result: got volumes {volumes} mL, expected finite numbers >= 0")
        if (self.dice is None) != (volumes == (0, 0)) or not 0 <= (self.dice or 0) <= 1:
            raise ValueError(f"case result: got dice={self.dice}, expected [0, 1], or None if both volumes are 0")
        if not 0 <= self.extent_mm < math.inf or (self.extent_mm > 0) != (self.volume_ml > 0):
            raise ValueError(f"case result: got extent_mm={self.extent_mm}, expected a number > 0, or 0 without blood")
        for metric in METRICS[1:]:
            value, without = getattr(self, metric.name), self.volume_ml == 0 or (metric.detected_only and self.missed)
            if (value is None) != without or not 0 <= (value or 0) <= metric.most:
                expected = f"[0, {metric.most:g}], or None without annotated blood"
                expected += " or predicted blood" if metric.detected_only else ""
                raise ValueError(f"case result: got {metric.name}={value}, expected {expected}")

    @property
    def missed(self) -> bool:
        """Whether there is annotated blood and nothing was predicted."""
        return self.volume_ml > 0 and self.predicted_ml == 0

    @property
    def volume_error_ml(self) -> float | None:
        """Absolute difference of predicted and annotated volume, mL; None without annotated blood."""
        return abs(self.predicted_ml - self.volume_ml) if self.volume_ml > 0 else None

    def values(self) -> tuple[float, ...]:
        """All metrics of a case with blood, in the order of ``METRICS``; 0 for a metric that a missed case lacks."""
        return tuple(float(getattr(self, metric.name) or 0) for metric in METRICS)

    def row(self) -> dict[str, float | str | None]:
        """All numbers by name, for files that stay at the site."""
        return vars(self) | {"volume_error_ml": self.volume_error_ml}


def stratum_labels(edges_ml: Sequence[float]) -> tuple[str, ...]:
    """Names of the volume strata, one more than there are edges: ``< 10 mL``, ``10 to 30 mL``, ``>= 30 mL``.

    Raises:
        ValueError: the edges are not positive and increasing.
    """
    return _labels(edges_ml, "volume", "mL")


def extent_labels(edges_mm: Sequence[float]) -> tuple[str, ...]:
    """Names of the extent groups, one more than there are edges: ``< 30 mm``, ``30 to 60 mm``, ``>= 60 mm``.

    Raises:
        ValueError: the edges are not positive and increasing.
    """
    return _labels(edges_mm, "extent", "mm")


def _labels(edges: Sequence[float], name: str, unit: str) -> tuple[str, ...]:
    edges = list(edges)
    if any(not 0 < edge < math.inf for edge in edges) or any(a >= b for a, b in pairwise(edges)):
        raise ValueError(f"{name} edges: got {edges}, expected positive, increasing numbers of {unit}")
    if not edges:
        return (f"any {name}",)
    between = [f"{low:g} to {high:g} {unit}" for low, high in pairwise(edges)]
    return (f"< {edges[0]:g} {unit}", *between, f">= {edges[-1]:g} {unit}")


def stratum_of(case: CaseResult, settings: Settings) -> int:
    """Index of the volume stratum of a case with blood; a volume on an edge belongs to the larger stratum."""
    return bisect_right(settings.volume_edges_ml, case.volume_ml)


def extent_of(case: CaseResult, settings: Settings) -> int:
    """Index of the extent group of a case with blood; an extent on an edge belongs to the larger group."""
    return bisect_right(settings.extent_edges_mm, case.extent_mm)


def n_groups(settings: Settings) -> tuple[int, int]:
    """Count the groups that the settings define: (volume strata, extent groups)."""
    return len(stratum_labels(settings.volume_edges_ml)), len(extent_labels(settings.extent_edges_mm))
