"""Dice after earlier rounds of the trainings (``finetune.evaluated_rounds``): ``by_round`` in results.json."""

from __future__ import annotations

from typing import Any

from sahfl.config import Study
from sahfl.results.method_results import measured
from sahfl.results.method_rows import MethodRow, find_rows
from sahfl.results.pairs import compare_rows
from sahfl.run.folder import RunFolder


def by_round(folder: RunFolder, study: Study) -> list[dict[str, Any]]:
    """For each such round, the Dice of each method and the differences of Dice, with intervals and without p values.

    A method that has not reached the round, or whose sites did not evaluate it, is left out. Of a method with a part at
    each site, every site is evaluated with its own. Zero-shot has no rounds.
    """
    return [_after(folder, study, round_) for round_ in study.finetune.evaluated_rounds]


def _after(folder: RunFolder, study: Study, round_: int) -> dict[str, Any]:
    rows = [row for row in find_rows(folder, study, round_) if row.sums]
    comparisons = []
    for found in compare_rows(study, rows):
        gap = found["metrics"]["dice"]["overall"]
        numbers = {key: gap[key] for key in ("n", "trainings", "difference", "low", "high")}
        comparisons.append({"method": found["method"], "reference": found["reference"], **numbers})
    return {"round": round_, "methods": [_dice(study, row) for row in rows], "comparisons": comparisons}


def _dice(study: Study, row: MethodRow) -> dict[str, Any]:
    dice = measured(study, row.evaluated)["metrics"]["dice"]["overall"]
    numbers = {key: dice[key] for key in ("n", "trainings", "mean", "low", "high")}
    return {"id": row.id, **numbers}
