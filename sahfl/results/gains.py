"""The gain of each site by taking part: the federation's networks against the site's own, on the site's patients.

A study measures it for every method that it trains both at all sites and at the site alone. Of a method with a part at
each site, the federation's network is the one with the site's own part, and training alone may be that of the same
method without parts. The verdicts are those of comparisons (``verdicts``) for one question to one site: their p values
are not corrected, neither for many methods nor for many sites.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sahfl.config import Study, ZeroShot
from sahfl.errors import LosingSite
from sahfl.results.method_results import Evaluated, Key, Sums, compare
from sahfl.results.method_rows import MethodRow
from sahfl.results.verdicts import MARGIN, verdict_of


def site_gains(study: Study, rows: Sequence[MethodRow]) -> list[dict[str, Any]]:
    """The list ``gains`` in results.json: a row for each method and site with both trainings; none of masked sums."""
    if study.rounds.masking is not None:
        return []
    by_id = {row.id: row for row in rows}
    found = []
    for row in rows:
        if row.trained_at is not None or isinstance(row.method, ZeroShot) or row.part not in (None, "personal"):
            continue
        plain = row.method.shared_alone().model_copy(update={"repeat": 1}).id
        for site in study.finetune.sites:
            alone = by_id.get(f"{row.id}-at-{site}") or by_id.get(f"{plain}-at-{site}")
            if alone is not None:
                found.append({"site": site, "method": row.id, "reference": alone.id, **_gain(study, site, row, alone)})
    return found


def _gain(study: Study, site: str, row: MethodRow, alone: MethodRow) -> dict[str, Any]:
    ours, theirs = (_at(site, evaluated) for evaluated in (row.evaluated, alone.evaluated))
    compared = compare(study, ours, theirs)
    gap = compared["metrics"]["dice"]["overall"]
    numbers = {key: gap[key] for key in ("n", "difference", "low", "high", "p", "trainings")}
    means = dict(zip(("dice", "dice_alone"), compared["dice"], strict=True))
    blank = max(mean or 0.0 for mean in compared["dice"]) <= MARGIN
    margin = None if blank else compared["p_margin"]
    return means | numbers | {"verdict": verdict_of(gap | {"p_holm": gap["p"]}, margin)}


def _at(site: str, evaluated: Evaluated) -> Evaluated:
    def own(sums: Sums) -> dict[Key, Any]:
        return {key: part for key, part in sums.items() if key[1] == site}

    trainings = {number: own(sums) for number, sums in evaluated.trainings.items()}
    return Evaluated(own(evaluated.sums), trainings, evaluated.trained)


def check_gains(study: Study, gains: Iterable[Mapping[str, Any]]) -> None:
    """Check a finished study against its ``require_gain``.

    Raises:
        LosingSite: the whole 95 % interval of a gain lies below the required one; lists all such sites and methods. A
            method that was trained once decides nothing.
    """
    if (least := study.require_gain) is None:
        return
    lost = [
        f"  {gain['site']}, {gain['method']}: {gain['difference']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"
        for gain in gains
        if gain["trainings"] != 1 and gain["high"] is not None and gain["high"] < least
    ]
    if lost:
        head = f"study {study.name}: require_gain: expected a gain of {least:g} or more over each site alone, got"
        raise LosingSite("\n".join([head, *lost, "The report is complete and shows every site's gain."]))
