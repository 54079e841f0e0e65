"""Verdicts of comparisons in mean Dice, and Holm's correction of their p values over a whole study.

A comparison is a difference of mean Dice over all cases with blood: of two methods on the same patients, or of the
largest and the smallest hemorrhages under one method (``growth`` in a method's row). Its verdict is

* *better*: the difference is above 0, and its p value is below 0.05 after the correction;
* *worse*: the difference is below 0, likewise;
* *not worse*: the one-sided p value of "worse by ``MARGIN`` or more" is below 0.025 after the correction, and the 95 %
  interval does not lie below 0;
* *undecided*: none of these, or there is no interval;
* *one training: no verdict*: a method was trained once, so that the interval is over patients only.

Two methods that segment almost nothing (mean Dice of ``MARGIN`` or less) are never called *not worse*.

The correction is Holm's, in one family for each metric: all differences of a study that have a p value, over all cases
with blood. The chance of one or more false *better* or *worse* in a study is at most 5 %, and that of a false
*not worse* at most 2.5 %. Differences in groups of volume or extent are not corrected and get no verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sahfl.statistics.estimates import holm
from sahfl.statistics.metrics import METRICS

MARGIN = 0.02
"""Dice difference up to which a method counts as not worse."""
LEVEL = 0.05
"""Largest corrected p value of a difference from 0; half of it, one-sided, for the margin."""
BETTER, NOT_WORSE, WORSE = "better", "not worse", "worse"
UNDECIDED, ONE_TRAINING, NOT_TESTED = "undecided", "one training: no verdict", "not tested"
FAMILY = "all differences between methods, and between the largest and the smallest hemorrhages, in one metric"
Row = Mapping[str, Any]


def correct(comparisons: Sequence[dict[str, Any]], methods: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Write ``p_holm`` and ``verdict`` into comparisons and growths; into comparisons ``p_margin_holm`` and ``blank``.

    A comparison is blank if both methods segment almost nothing.

    Returns:
        How the study's p values were corrected, as in ``results.json``.
    """
    methods = list(methods)
    growths = [method["growth"] for method in methods if method["growth"] is not None]
    counts = {}
    for metric in METRICS:
        family = [comparison["metrics"][metric.name]["overall"] for comparison in comparisons]
        family += growths if metric.name == "dice" else []
        counts[metric.name] = _write(family, "p", "p_holm")
    _write(comparisons, "p_margin", "p_margin_holm")
    mean = {method["id"]: method["metrics"]["dice"]["overall"]["mean"] or 0.0 for method in methods}
    for comparison in comparisons:
        blank = max(mean.get(comparison[side], 0.0) for side in ("method", "reference")) <= MARGIN
        comparison["blank"] = blank
        comparison["verdict"] = verdict_of(
            comparison["metrics"]["dice"]["overall"], None if blank else comparison["p_margin_holm"]
        )
    for growth in growths:
        growth["verdict"] = verdict_of(growth, None)
    return {"method": "Holm 1979", "family": FAMILY, "n": counts, "level": LEVEL, "margin": MARGIN}


def verdict_of(difference: Row, p_margin_holm: float | None) -> str:
    """The verdict of a difference of Dice with ``p_holm``; ``p_margin_holm`` is None if *not worse* has no meaning."""
    value, p = difference["difference"], difference["p_holm"]
    if value is not None and difference["trainings"] == 1:
        return ONE_TRAINING
    if value is None or p is None:
        return UNDECIDED
    if p < LEVEL:
        return BETTER if value > 0 else WORSE
    near = p_margin_holm is not None and p_margin_holm < LEVEL / 2
    return NOT_WORSE if near and difference["high"] >= 0 else UNDECIDED


def _write(parts: Sequence[dict[str, Any]], key: str, corrected: str) -> int:
    """Write corrected p values beside those of ``key``; returns how many there are."""
    for part, p in zip(parts, holm([part[key] for part in parts]), strict=True):
        part[corrected] = p
    return sum(part[key] is not None for part in parts)
