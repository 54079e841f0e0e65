"""Agreement of predicted with annotated hemorrhage volume, computed from sums that add up over sites.

The module also holds what the other sums need: a standard deviation from sums, and checks of received numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from operator import add

import numpy as np

from sahfl.errors import PayloadError
from sahfl.statistics.metrics import MOST_ML, Floats

MOST_CASES = 1_000_000
"""The largest number of cases accepted from one site."""


@dataclass(frozen=True)
class VolumeAgreement:
    """Agreement of predicted with annotated volume over the cases with blood; None where there are too few cases."""

    n: int
    pearson_r: float | None
    icc: float | None
    """ICC(2,1): absolute agreement of single measurements."""
    bias_ml: float | None
    """Mean of predicted minus annotated volume."""
    loa_low_ml: float | None
    loa_high_ml: float | None


@dataclass(frozen=True)
class VolumeSums:
    """Sums of annotated (x) and predicted (y) volume in mL, and of their products."""

    n: int
    x: float
    y: float
    xx: float
    yy: float
    xy: float

    @classmethod
    def zero(cls) -> VolumeSums:
        """Sums over no case."""
        return cls(0, 0.0, 0.0, 0.0, 0.0, 0.0)

    @classmethod
    def of(cls, volumes_ml: Iterable[tuple[float, float]]) -> VolumeSums:
        """Add up pairs of (annotated, predicted) volume in mL; their order does not change the result by a bit."""
        pairs = sorted(volumes_ml)
        x, y = np.array(pairs, np.float64).reshape(-1, 2).T
        return cls(len(pairs), *(float(values.sum()) for values in (x, y, x * x, y * y, x * y)))

    @classmethod
    def from_array(cls, array: Floats, *, n: int) -> VolumeSums:
        """Read the six sums that a site sent: n, x, y, xx, yy, xy; float64, shape (6,), finite.

        Guarantees: n is that of the site's other sums, means lie in [0, MOST_ML], and squares and products are possible
        for such volumes.

        Raises:
            PayloadError: a sum is impossible; the message names it.
        """
        sums = cls(read_count(array[0], "volume, n"), *map(float, array[1:]))
        check(sums.n == n, "volume, n", sums.n, f"{n}, the cases of all strata")
        for name, total, squares in (("x", sums.x, sums.xx), ("y", sums.y, sums.yy)):
            check(0 <= total <= n * MOST_ML, f"volume, {name}", total, f"in [0, {n * MOST_ML:g}]")
            least, most = total * total / max(n, 1), total * total
            fits = least * (1 - 1e-9) <= squares <= most * (1 + 1e-9)
            check(fits, f"volume, {name}{name}", squares, f"in [{least:g}, {most:g}]")
        most = math.sqrt(sums.xx * sums.yy) * (1 + 1e-9)
        check(0 <= sums.xy <= most, "volume, xy", sums.xy, f"in [0, {most:g}]")
        return sums

    def __add__(self, other: VolumeSums) -> VolumeSums:
        return VolumeSums(*map(add, astuple(self), astuple(other)))

    def agreement(self) -> VolumeAgreement:
        """Pearson r, ICC(2,1), bias and 95 % limits of agreement, ``bias +- 1.96 * SD(predicted - annotated)``.

        Guarantees: never NaN. The bias needs 1 case, the limits 2, r and the ICC 3 (two points always lie on a line). r
        is None if one of the two volumes is the same in all cases, the ICC if all volumes are the same.

        Source: Bland & Altman 1986, Lancet 327:307.
        """
        if self.n == 0:
            return VolumeAgreement(0, None, None, None, None, None)
        bias = (self.y - self.x) / self.n
        sd = deviation(self.n, self.y - self.x, self.xx + self.yy - 2 * self.xy)
        low, high = (None, None) if sd is None else (bias - 1.96 * sd, bias + 1.96 * sd)
        return VolumeAgreement(self.n, self._pearson_r(), self._icc(), bias, low, high)

    def _pearson_r(self) -> float | None:
        if self.n < 3:
            return None
        spread_x, spread_y = self.xx - self.x**2 / self.n, self.yy - self.y**2 / self.n
        # A spread below 1e-12 of the squares is rounding error; r would then be a ratio of noise.
        if spread_x <= 1e-12 * self.xx or spread_y <= 1e-12 * self.yy:
            return None
        r = (self.xy - self.x * self.y / self.n) / math.sqrt(spread_x * spread_y)
        return min(1.0, max(-1.0, r))

    def _icc(self) -> float | None:
        """ICC(2,1) of two "raters" from the mean squares of a two-way ANOVA.

        ``(MSR - MSE) / (MSR + MSE + 2 (MSC - MSE) / n)``: unlike Pearson's r it falls if all predictions are too large.

        Source: Shrout & Fleiss 1979, Psychol. Bull. 86:420, case 2 (McGraw & Wong 1996: ICC(A,1)).
        """
        if self.n < 3:
            return None
        both, level = self.x + self.y, (self.x + self.y) ** 2 / (2 * self.n)
        rows = (self.xx + 2 * self.xy + self.yy) / 2 - level
        columns = (self.x - self.y) ** 2 / (2 * self.n)
        total = self.xx + self.yy - level
        if both == 0 or total <= 1e-12 * (self.xx + self.yy):
            return None
        rest = max(0.0, total - rows - columns) / (self.n - 1)
        rows = max(0.0, rows) / (self.n - 1)
        return (rows - rest) / (rows + rest + 2 * (columns - rest) / self.n)


def deviation(n: float, total: float, squares: float) -> float | None:
    """Sample standard deviation (ddof 1) from sums; None below 2 values. A negative rounded variance is 0."""
    return math.sqrt(max(0.0, (squares - total * total / n) / (n - 1))) if n > 1 else None


def check(holds: bool, name: str, got: object, expected: str) -> None:
    """Raise PayloadError with the name of the sum if ``holds`` is false."""
    if not holds:
        raise PayloadError(f"evaluation sums, {name}: got {got}, expected {expected}")


def read_count(value: float, name: str) -> int:
    """Read a number of cases.

    Raises:
        PayloadError: it is not a whole number from 0 to MOST_CASES.
    """
    check(0 <= value <= MOST_CASES and value == int(value), name, value, f"a whole number in [0, {MOST_CASES}]")
    return int(value)
