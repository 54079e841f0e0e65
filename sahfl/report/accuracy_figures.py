"""Figures of accuracy: methods and their gains, strata of volume and extent, ranks, and places of training."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from matplotlib.axes import Axes

from sahfl.report import theme
from sahfl.report.compared import gain_over_zero_shot
from sahfl.report.names import (
    EACH,
    OTHERS,
    POOLED,
    POOLED_STEPS,
    ZERO_SHOT,
    Look,
    dice_of,
    family_of,
    looks,
    measured,
    method_name,
    with_dice,
)
from sahfl.report.tables import KINDS
from sahfl.report.text import DASH, Results, stratum_name
from sahfl.report.theme import Drawing

ROW_IN = 0.25


def draw_methods(results: Results) -> Drawing | None:
    """Mean Dice of every method with its interval, beside the paired difference from zero-shot."""
    methods = with_dice(results)
    if not methods:
        return None
    gains = [gain_over_zero_shot(results, method["id"]) for method in methods]
    known = [gain for gain in gains if gain is not None and gain["difference"] is not None]
    look, figure = looks(results["methods"]), theme.new_figure(_height(len(methods), 1.0), theme.WIDE_IN)
    every = figure.subplots(1, 2 if known else 1, sharey=True, squeeze=False)[0]
    theme.name_rows(every[0], [method_name(method) for method in methods], _breaks(methods))
    for place, method in enumerate(methods):
        theme.row_of_interval(every[0], place, dice_of(method), "mean", look[method["id"]])
    every[0].set_xlabel("Mean Dice")
    theme.keep_to_dice(every[0].xaxis)
    every[0].grid(axis="x")
    if known:
        _draw_gains(every[1], gains, [look[method["id"]] for method in methods])
        theme.rule_off(every[1], _breaks(methods))
    alt = f"Mean Dice. {theme.listed((method_name(m), dice_of(m)) for m in methods)}"
    gained = [(method_name(m), gain) for m, gain in zip(methods, gains, strict=True) if gain is not None]
    alt += f" Difference from zero-shot. {theme.listed(gained, 'difference')}" if gained else ""
    caption = (
        "Left: mean Dice over all cases with blood. Bars are 95 % intervals (over patients only with one training); a "
        "mark without a bar has too few patients. Right: differences, paired by patient, of which more is better; an "
        "interval that crosses the line means no clear change, and one that does not cross may still be undecided "
        "after the correction. Colour is the family, the mark its rank; hollow marks were not trained by the "
        "federation."
    )
    return Drawing("methods", "Dice of every method, and its difference from zero-shot", caption, alt, figure)


def _draw_gains(axes: Axes, gains: Iterable[Results | None], look: Sequence[Look]) -> None:
    axes.axvline(0, color=theme.INK, linewidth=1)
    for place, gain in enumerate(gains):
        if gain is not None:
            theme.row_of_interval(axes, place, gain, "difference", look[place])
    axes.set_xlabel("Difference from zero-shot")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def draw_strata(results: Results, kind: str) -> Drawing | None:
    """Dice of every method in every stratum of volume or extent (``by_volume``, ``by_extent``)."""
    methods = [method for method in measured(results) if method["metrics"]["dice"][kind]]
    groups = [method["metrics"]["dice"][kind] for method in methods]
    if not any(part["mean"] is not None for group in groups for part in group):
        return None
    look, figure = looks(results["methods"]), theme.new_figure(_height(len(methods), 1.25), theme.WIDE_IN)
    every = figure.subplots(1, len(groups[0]), sharex=True, sharey=True, squeeze=False)[0]
    theme.name_rows(every[0], [method_name(method) for method in methods], _breaks(methods))
    for column, axes in enumerate(every):
        parts = [group[column] for group in groups]
        axes.set_title(f"{stratum_name(parts[0]['stratum'])}\n{_n_of(parts)}", fontsize=10.5, loc="left")
        axes.grid(axis="x")
        axes.set_xlim(-0.03, 1.03)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        if column:
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            theme.rule_off(axes, _breaks(methods))
        for place, (method, part) in enumerate(zip(methods, parts, strict=True)):
            if part["withheld"] and part["mean"] is None:
                axes.text(0.02, place, "withheld", va="center", fontsize=8.5, color=theme.SOFT, style="italic")
            theme.row_of_interval(axes, place, part, "mean", look[method["id"]])
    figure.supxlabel("Mean Dice", fontsize=10.5)
    estimates = (
        (f"{method_name(m)}, {part['stratum']}", part)
        for m, group in zip(methods, groups, strict=True)
        for part in group
    )
    caption = "Bars are 95 % intervals. Withheld: a hospital sent no result of a group that is too small."
    alt = f"Mean Dice by {KINDS[kind]}. {theme.listed(estimates)}"
    return Drawing(f"dice_{kind}", f"Dice by {KINDS[kind]}", caption, alt, figure)


def _n_of(parts: Sequence[Results]) -> str:
    found = sorted({part["n"] for part in parts if part["n"] is not None})
    if not found:
        return f"n = {DASH}"
    return f"n = {found[0]}" if len(found) == 1 else f"n = {found[0]} to {found[-1]}"


def _breaks(methods: Sequence[Results]) -> list[int]:
    """Rows at which a new family begins."""
    families = [family_of(method).key for method in methods]
    return [place for place, (above, below) in enumerate(pairwise(families), 1) if above != below]


def _height(rows: int, more: float) -> float:
    return max(2.2, more + ROW_IN * rows)


def draw_ranks(results: Results) -> Drawing | None:
    """Dice against rank: one line per family and aggregation rule of the federation."""
    lines: dict[tuple[str, str], list[Results]] = defaultdict(list)
    for method in with_dice(results):
        if method["rank"] is not None and method["trained_at"] is None and method["part"] is None:
            lines[family_of(method).name, method["aggregation"] or DASH].append(method)
    ranks = sorted({method["rank"] for line in lines.values() for method in line})
    if len(ranks) < 2:
        return None
    rules = list(dict.fromkeys(rule for _, rule in lines))
    look, figure = looks(results["methods"]), theme.new_figure(3.9)
    axes = figure.add_subplot()
    for i, ((family, rule), line) in enumerate(lines.items()):
        _draw_rank_line(
            axes, line, look, label=family if rule == rules[0] else f"{family}, {rule}", shift=i - (len(lines) - 1) / 2
        )
    for name in (ZERO_SHOT, "full"):
        theme.draw_level(axes, results, name)
    axes.set_xticks([math.log2(rank) for rank in ranks], [str(rank) for rank in ranks])
    axes.set_xlabel("Rank (log axis)")
    theme.keep_to_dice(axes.yaxis)
    axes.set_ylabel("Mean Dice")
    axes.grid(axis="y")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    estimates = ((method_name(m), dice_of(m)) for line in lines.values() for m in line)
    caption = f"Federated methods only; aggregation is {rules[0]} unless stated. "
    caption += "Marks are moved sideways a little so that their 95 % intervals do not overlap."
    return Drawing("ranks", "Dice against rank", caption, f"Mean Dice by rank. {theme.listed(estimates)}", figure)


def _draw_rank_line(axes: Axes, line: Sequence[Results], look: dict[str, Look], *, label: str, shift: float) -> None:
    line = sorted(line, key=lambda method: int(method["rank"]))
    places = [math.log2(method["rank"]) + 0.07 * shift for method in line]
    style = look[line[0]["id"]]
    colour = style.family.colour
    values = [dice_of(method)["mean"] for method in line]
    axes.plot(places, values, style.line, color=colour, linewidth=1.8, marker="o", markersize=5, label=label)
    for place, method in zip(places, line, strict=True):
        within = dice_of(method)
        if within["low"] is not None and within["high"] is not None:
            axes.plot([place] * 2, [within["low"], within["high"]], color=colour, linewidth=1, alpha=0.6)


def draw_places(results: Results) -> Drawing | None:
    """Pooled, federated and single-site training of the same method, one row each."""
    places = (None, POOLED, POOLED_STEPS, EACH, OTHERS)  # these have all patients
    methods = [m for m in with_dice(results) if m["trained_at"] in places]
    kinds = {_kind(m) for m in methods if m["trained_at"] is not None}
    shown = sorted((m for m in methods if _kind(m) in kinds), key=lambda m: (str(_kind(m)), _place(m)))
    if not shown:
        return None
    look, figure = looks(results["methods"]), theme.new_figure(_height(len(shown), 1.0), theme.WIDTH_IN)
    axes = figure.add_subplot()
    breaks = [i for i, (above, below) in enumerate(pairwise(shown), 1) if _kind(above) != _kind(below)]
    theme.name_rows(axes, [_name_with_place(method) for method in shown], breaks)
    for place, method in enumerate(shown):
        theme.row_of_interval(axes, place, dice_of(method), "mean", look[method["id"]])
    axes.set_xlabel("Mean Dice over the patients of all sites")
    theme.keep_to_dice(axes.xaxis)
    axes.grid(axis="x")
    estimates = ((_name_with_place(m), dice_of(m)) for m in shown)
    caption = (
        "Means are over held-out patients of all sites. Pooled: all sites' data in one place, in as many steps as all "
        "sites take together, or as one site takes. Each site alone: every patient is segmented by the network that "
        "was fine-tuned at the patient's own hospital. All other sites: by the network that all hospitals but the "
        "patient's own fine-tuned."
    )
    alt = f"Mean Dice by place of training. {theme.listed(estimates)}"
    return Drawing("places", "Pooled, federated, single-site", caption, alt, figure)


def _kind(method: Results) -> tuple[str, int, str]:
    return method["method"], method["rank"] or 0, method["aggregation"] or ""


def _place(method: Results) -> tuple[int, str]:
    return {POOLED: 0, POOLED_STEPS: 1, None: 2, EACH: 3, OTHERS: 4}[method["trained_at"]], method["id"]


def _name_with_place(method: Results) -> str:
    name = method_name(method)
    return name if method["trained_at"] is not None else f"{name}: federated"
