"""Where the annotated volume of a new scan may lie, from how a method did on held-out patients.

A run has the number of held-out scans with blood in each pair of bins of annotated and predicted volume
(``results.json``: ``volume.histogram``). The bins grow with the volume, so the distance of two bins is about a ratio of
volumes. The *error* of a scan is the bin of its annotated volume minus the bin of its predicted one. Sorted, the errors
of n held-out scans and of one new scan have the same chance to be in any order, if the new scan is like them. So the
error of the new scan lies between two of the sorted errors with at least the chance ``LEVEL`` (split conformal
prediction), whatever the distribution of the errors is.

Small hemorrhages have larger relative errors than large ones. Where enough scans have a predicted volume near that of
the new scan, only their errors count.

What this assumes: the new scan comes from patients and scanners like those of the study, it shows blood, and the
networks are as good as those that were tested. The mean of all folds' networks was not tested on anybody; each of its
networks was. Patients with several scans count as several.

Source: Vovk, Gammerman & Shafer 2005, Algorithmic Learning in a Random World; Lei et al. 2018, J. Am. Stat. Assoc. 113.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sahfl.errors import RunError
from sahfl.prediction.networks import Trained
from sahfl.run.folder import RunFolder

LEVEL = 0.9
"""The least chance of the interval."""
MOST_SCANS = 1e12
"""More scans than a bin of a histogram that is not damaged has."""
LEAST_SCANS = 19
"""With fewer scans even the smallest and the largest error are not far enough apart: 2 / (1 - 0.9) - 1."""
NEAR_SCANS = 39
"""So many scans near the predicted volume are enough to leave out the others."""


@dataclass(frozen=True)
class Interval:
    """Where the annotated volume lies with the chance ``LEVEL`` or more, mL."""

    low_ml: float
    high_ml: float | None
    """None if it may be of any size above ``low_ml``."""
    n: int
    """Held-out scans whose errors were used."""

    def __str__(self) -> str:
        to = f"to {self.high_ml:g} mL" if self.high_ml is not None else "mL or more"
        return f"{self.low_ml:g} {to} ({LEVEL:.0%} interval from {self.n} held-out scans)"


@dataclass(frozen=True, eq=False)
class Calibration:
    """The errors of a method on held-out scans, or why they are not known."""

    edges_ml: tuple[float, ...] = ()
    counts: NDArray[np.float64] | None = None
    """Held-out scans with blood by the bin of their annotated and of their predicted volume, (bins, bins)."""
    threshold: float | None = None
    """The threshold that they were segmented with."""
    reason: str = ""
    """Why there are no counts."""

    def interval(self, volume_ml: float, threshold: float) -> Interval | str:
        """The interval for a predicted volume, or a text that says why there is none.

        Guarantees: for a scan that is like the held-out ones, the annotated volume lies in it with a chance of
        ``LEVEL`` or more.
        """
        if self.counts is None:
            return f"no interval: {self.reason}"
        if threshold != self.threshold:
            return f"no interval: the held-out patients were segmented at threshold {self.threshold:g}"
        if volume_ml <= 0:
            return "no interval: no blood was found, and it is for scans that show blood"
        n = round(float(self.counts.sum()))
        if n < LEAST_SCANS:
            return f"no interval: {n} held-out scans with blood, fewer than {LEAST_SCANS}"
        place = min(bisect_right(self.edges_ml, volume_ml), len(self.edges_ml) - 1) - 1
        errors = self._errors_near(place)
        low, high = place + _rank(errors, low=True), place + _rank(errors, low=False)
        last = len(self.edges_ml) - 2
        high_ml = self.edges_ml[high + 1] if high < last else None
        return Interval(self.edges_ml[min(max(low, 0), last)], high_ml, round(sum(errors.values())))

    def _errors_near(self, place: int) -> dict[int, float]:
        """Number of scans by error: of those predicted within the fewest bins that hold enough, or of all."""
        assert self.counts is not None
        predicted = self.counts.sum(axis=0)
        far = np.abs(np.arange(predicted.size) - place)
        wide = next((w for w in range(predicted.size) if predicted[far <= w].sum() >= NEAR_SCANS), predicted.size)
        errors: dict[int, float] = {}
        for annotated, column in zip(*np.nonzero(self.counts), strict=True):
            if far[column] <= wide:
                error = int(annotated) - int(column)
                errors[error] = errors.get(error, 0.0) + float(self.counts[annotated, column])
        return errors


def _rank(errors: Mapping[int, float], *, low: bool) -> int:
    """The error at the rank that leaves (1 - LEVEL) / 2 of the chance beyond it, from below or from above."""
    n = sum(errors.values())
    rank = math.floor((n + 1) * (1 - LEVEL) / 2 + 1e-9)
    counted = 0.0
    ordered = sorted(errors, reverse=not low)
    for error in ordered:
        counted += errors[error]
        if counted >= rank - 1e-9:
            return error
    return ordered[-1]


def read_calibration(run: Path, trained: Trained) -> Calibration:
    """What a folder has of a method's errors on held-out patients; with a reason where it has nothing.

    Raises:
        RunError: ``results.json`` is damaged.
    """
    if not (run / "study.json").is_file():
        return Calibration(reason="this folder has no results of held-out patients; the run's folder has them")
    if not (run / "results.json").is_file():
        return Calibration(reason="the run is not finished, so its results of held-out patients are not there")
    if trained.part != "whole":
        return Calibration(reason="the held-out patients were segmented with a part of the method that stays at a site")
    with reading_results(run):
        return _calibration(RunFolder(run).results(), trained)


@contextmanager
def reading_results(run: Path) -> Iterator[None]:
    """Turn what the content of a ``results.json`` of another form causes in the block into a RunError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise RunError(f"{run}: results.json is not one of sahfl; run sahfl report on the run to see more") from error


def _calibration(results: Mapping[str, Any], trained: Trained) -> Calibration:
    row = next((row for row in results["methods"] if row["id"] == trained.method), None)
    found = row and (row.get("volume") or {}).get("histogram")
    if not found:
        n = (row and (row.get("volume") or {}).get("n")) or 0
        why = f"{n} held-out scans with blood, fewer than {LEAST_SCANS}" if n < LEAST_SCANS else None
        return Calibration(reason=why or "every site withheld its histogram of volumes")
    counts = np.asarray(found["counts"], np.float64)
    edges = tuple(map(float, found["edges_ml"]))
    countable = ((counts >= 0) & (counts <= MOST_SCANS)).all()
    if counts.shape != (len(edges) - 1, len(edges) - 1) or not countable or list(edges) != sorted(edges):
        raise ValueError("no histogram")
    return Calibration(edges, counts, trained.threshold)
