"""The metrics of a case with blood, and the fixed histogram bins from which medians are computed.

Every metric but HD95 is defined for every case with annotated blood. A missed hemorrhage has Dice, surface Dice and
lesion F1 of 0. HD95 is defined for detected cases alone, those in which anything was predicted, because no distance
describes a miss; the number of misses is given beside it (``detection``). All metrics of a group share one set of
bootstrap weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOST_MM = 10_000.0
"""Upper limit of any distance in a scan, mm."""
MOST_ML = 100_000.0
"""Upper limit of any volume, mL; a whole head scan has about 10 000 mL."""


@dataclass(frozen=True)
class Metric:
    """One metric of a case, with values from 0 to ``edges[-1]``."""

    name: str
    edges: tuple[float, ...]
    """Edges of the histogram; bin i holds ``edges[i] <= value < edges[i+1]``, and the last bin also its upper edge."""
    step: float
    """A site rounds sums to multiples of this number before it sends them (``disclosure``)."""
    open_end: bool = False
    """The last bin collects all larger values; a median in it is not given."""
    detected_only: bool = False
    """Missed cases have no value; they add 0 to the sums and nothing to the histogram."""

    @property
    def most(self) -> float:
        """The largest value."""
        return self.edges[-1]

    @property
    def n_bins(self) -> int:
        """Bins of the histogram."""
        return len(self.edges) - 1

    def count(self, values: Sequence[float] | Floats) -> Floats:
        """Histogram of values, shape (n_bins,)."""
        return np.histogram(values, bins=self.edges)[0].astype(np.float64)

    def largest(self, counts: Floats) -> float:
        """Upper edge of the highest bin with a value, or the lower edge of an open one; 0 without a value."""
        filled = np.flatnonzero(counts)
        if not filled.size:
            return 0.0
        last = int(filled[-1])
        return self.edges[last] if self.open_end and last == self.n_bins - 1 else self.edges[last + 1]

    def median(self, counts: Floats) -> float | None:
        """Median of a histogram of shape (n_bins,): its middle value, or the mean of its two middle values.

        The k-th smallest of the c values in a bin is placed at ``(k - 0.5) / c`` of the bin's width. The error is below
        the width of one bin; of the wider one, if the two middle values lie in different bins.

        Guarantees: never NaN; None without a value, or if a middle value lies in the open last bin (``open_end``).
        """
        n = round(float(counts.sum()))  # an average of repeats has fractional counts, which add up to n
        if n == 0:
            return None
        middle = {(n + 1) // 2, (n + 2) // 2}
        places = [self._place(counts, rank - 0.5) for rank in sorted(middle)]
        return None if any(place is None for place in places) else float(np.mean([p for p in places if p is not None]))

    def _place(self, counts: Floats, rank: float) -> float | None:
        ends = np.cumsum(counts)
        bin_ = min(int(np.searchsorted(ends, rank)), self.n_bins - 1)
        if self.open_end and bin_ == self.n_bins - 1:
            return None
        low, high = self.edges[bin_ : bin_ + 2]
        return low + (high - low) * float((rank - ends[bin_] + counts[bin_]) / counts[bin_])


def _edges(*ranges: tuple[float, float, float]) -> tuple[float, ...]:
    """Edges of consecutive ranges (first, last, step); each range begins where the previous one ends."""
    parts = [np.linspace(low, high, round((high - low) / step) + 1)[1:] for low, high, step in ranges]
    return (ranges[0][0], *(float(edge) for part in parts for edge in part))


SHARE_EDGES = _edges((0, 1, 0.02))
MM_EDGES = (*_edges((0, 20, 1), (20, 60, 2), (60, 120, 5), (120, 300, 10), (300, 600, 50)), MOST_MM)
ML_EDGES = (*_edges((0, 10, 0.5), (10, 30, 1), (30, 60, 2), (60, 100, 5), (100, 200, 10), (200, 500, 50)), MOST_ML)
VOLUME_EDGES_ML = (0.0, 0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 300)
"""Bin edges, on both axes, of predicted against annotated volume; the last bin also holds larger volumes."""

METRICS = (
    Metric("dice", SHARE_EDGES, step=2.0**-10),
    Metric("surface_dice", SHARE_EDGES, step=2.0**-10),
    Metric("hd95_mm", MM_EDGES, step=2.0**-4, open_end=True, detected_only=True),
    Metric("volume_error_ml", ML_EDGES, step=2.0**-4, open_end=True),
    Metric("lesion_f1", SHARE_EDGES, step=2.0**-10),
)
NAMES = tuple(metric.name for metric in METRICS)
N_BINS = tuple(metric.n_bins for metric in METRICS)
"""Number of bins of each metric; the histograms are stored in this order."""


def histogram_of(index: int, counts: Floats) -> Floats:
    """Histogram of one metric, shape (bins of the metric,), taken from those of all metrics."""
    start = sum(N_BINS[:index])
    return counts[start : start + N_BINS[index]]


def count_volumes(pairs: Sequence[tuple[float, float]]) -> Floats:
    """Count pairs of (annotated, predicted) volume in mL, (bins, bins); larger volumes count in the last bin."""
    edges = np.asarray(VOLUME_EDGES_ML)
    inside = np.minimum(np.asarray(pairs, np.float64).reshape(-1, 2), edges[-1])
    return np.histogram2d(inside[:, 0], inside[:, 1], bins=[edges, edges])[0]
