"""The main tables: what each method reaches, and what it costs."""

from __future__ import annotations

from collections.abc import Collection

from sahfl.report.choice import FULL
from sahfl.report.compared import gain_over_zero_shot, site_seconds, verdict_between
from sahfl.report.names import ZERO_SHOT, dice_of
from sahfl.report.tables import Row, Table, cases, group_by_family, named_rows
from sahfl.report.text import (
    DASH,
    Results,
    count,
    duration,
    estimate,
    marked_interval,
    number,
    p_value,
    percent,
    signed,
    size,
    whole,
)

MOST_ROWS = 12
"""Rows of the table of the conclusion; of more methods it has only those that the conclusion names."""


def outcome_table(results: Results, named: Collection[str]) -> Table:
    """Dice, difference from zero-shot and cost; of all methods, or of the ``named`` ones if there are many."""
    columns = (
        *("Method", "Dice (95 % interval)", "From zero-shot (95 % interval)", "Verdict"),
        *("Trained parameters", "Sent a round", "Time a round"),
    )
    kept = {*named, ZERO_SHOT, FULL} if len(results["methods"]) > MOST_ROWS else {m["id"] for m in results["methods"]}
    rows = []
    for method, row in named_rows(results):
        if method["id"] in kept:
            cells = () if row.span is not None else (*_dice(results, method)[:2], _verdict(results, method))
            cost = () if row.span is not None else _cost(results, method)
            rows.append(Row((*row.cells, *cells, *cost), row.family, row.span))
    left = len(results["methods"]) - len(rows)
    more = f"; {count(left, 'more method')} in the report" if left else ""
    return Table(f"Methods on held-out scans with blood{more}", columns, tuple(rows))


def _dice(results: Results, method: Results) -> tuple[str, str]:
    overall, gain = dice_of(method), gain_over_zero_shot(results, method["id"])
    return estimate(overall["mean"], overall), DASH if gain is None else gap_words(gain)


def gap_words(gap: Results) -> str:
    """``+0.091 (+0.050 to +0.132)``."""
    within = marked_interval(gap, plus=True)
    return signed(gap["difference"]) if within == DASH else f"{signed(gap['difference'])} ({within})"


def _verdict(results: Results, method: Results) -> str:
    return verdict_between(results, method["id"], ZERO_SHOT) or DASH


def _cost(results: Results, method: Results) -> tuple[str, str, str]:
    return whole(method["trainable"]), size(method["bytes_up_per_round"]), duration(site_seconds(results, method))


def method_table(results: Results) -> Table:
    """Every method: Dice with its spread, and the paired difference from zero-shot with its verdict."""
    columns = (
        *("Method", "n", "Dice, mean (95 % interval)", "SD", "Median", "Repeats"),
        *("Difference from zero-shot (95 % interval)", "p (Holm)", "Verdict"),
    )
    rows = []
    for method, row in named_rows(results):
        if row.span is None:
            overall, gain = dice_of(method), gain_over_zero_shot(results, method["id"])
            dice, change = _dice(results, method)
            cells = cases(overall), dice, number(overall["sd"]), number(overall["median"]), _repeats(method)
            p = DASH if gain is None else p_value(gain["p_holm"])
            row = Row((*row.cells, *cells, change, p, _verdict(results, method)), row.family)
        rows.append(row)
    return Table("Methods on held-out scans with blood, whose number is n", columns, group_by_family(rows))


def _repeats(method: Results) -> str:
    n = len(method["repeats"])
    return f"{n}, SD {number(method['sd_repeats'])}" if method["sd_repeats"] is not None else str(n)


def cost_table(results: Results) -> Table:
    """Every method: Dice beside trained parameters, bytes and time."""
    columns = (
        *("Method", "Dice, mean", "Trained parameters", "Of the network"),
        *("Sent per site and round", "Of the network's bytes", "Time per site and round"),
    )
    base, rows = results["base"], []
    for method, row in named_rows(results):
        if row.span is None:
            trained, sent, time = _cost(results, method)
            shares = (
                percent(method["trainable"], base["parameters"]),
                percent(method["bytes_up_per_round"], base["bytes"]),
            )
            row = Row(
                (*row.cells, number(dice_of(method)["mean"]), trained, shares[0], sent, shares[1], time), row.family
            )
        rows.append(row)
    return Table("Cost of every method", columns, group_by_family(rows))


def paper_method_table(results: Results) -> Table:
    """The columns of ``method_table`` and ``cost_table`` that fit on a printed page."""
    accuracy, cost = method_table(results), cost_table(results)
    first = [i for i, name in enumerate(accuracy.columns) if name not in ("Median", "Repeats", "Verdict")]
    second = [cost.columns.index(name) for name in ("Trained parameters", "Sent per site and round")]
    columns = (*(accuracy.columns[i] for i in first), *(cost.columns[i] for i in second))
    rows = []
    for row, other in zip(accuracy.rows, cost.rows, strict=True):
        whole_row = row.heading or row.span is not None
        cells = (*(row.cells[i] for i in first), *(other.cells[i] for i in second)) if not whole_row else row.cells
        rows.append(Row(cells, row.family, row.span, row.heading))
    return Table(accuracy.caption, columns, tuple(rows))
