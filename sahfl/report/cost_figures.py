"""Figures of cost: Dice against trainable parameters and bytes, and what each site sends in a round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sahfl.report.names import (
    ZERO_SHOT,
    Look,
    by_family,
    dice_of,
    family_of,
    looks,
    measured,
    method_name,
    method_named,
    names,
)
from sahfl.report.text import Results, interval, number, percent, size, whole
from sahfl.report.theme import WIDE_IN, Drawing, Theme, listed, name_rows, new_figure, point

COSTS = (("trainable", "Trainable parameters (log axis)"), ("bytes_up_per_round", "Bytes sent per site and round (log axis)"))


def draw_costs(results: Results, theme: Theme) -> Drawing | None:
    """Dice against trainable parameters and against bytes, each on a log axis; lines join the ranks of a family."""
    methods = [m for m in measured(results) if m["trained_at"] is None and dice_of(m)["mean"] is not None]
    methods = [m for m in methods if m["trainable"] > 0 and m["bytes_up_per_round"] > 0]
    if not methods:
        return None
    look, figure = looks(results["methods"]), new_figure(4.0, WIDE_IN)
    every = figure.subplots(1, len(COSTS), sharey=True)
    for axes, (key, label) in zip(every, COSTS, strict=True):
        _draw_lines(axes, methods, key, look, theme)
        for method in methods:
            _draw_mark(axes, method, key, look[method["id"]], theme)
        _draw_zero_shot(axes, results, theme)
        axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.grid(axis="y")
    every[0].set_ylabel("Mean Dice")
    _legend(figure, methods, look, theme)
    said = (
        (f"{method_name(m)}, {whole(m['trainable'])} parameters, {size(m['bytes_up_per_round'])}", dice_of(m))
        for m in methods
    )
    values = listed((what, dice, number(dice["mean"]), interval(dice)) for what, dice in said)
    caption = (
        "Federated methods; lines join the ranks of one family under one aggregation rule. Dashed: zero-shot, which "
        "trains and sends nothing. Up and to the left is better."
    )
    return Drawing("costs", "Dice against parameters and bytes", caption, f"Mean Dice against cost. {values}", figure)


def _draw_lines(axes: Axes, methods: Sequence[Results], key: str, look: dict[str, Look], theme: Theme) -> None:
    lines: dict[tuple[str, str | None], list[Results]] = defaultdict(list)
    for method in methods:
        if method["rank"] is not None:
            lines[method["method"], method["aggregation"]].append(method)
    for line in lines.values():
        line.sort(key=lambda method: int(method["rank"]))
        style = look[line[0]["id"]]
        places, values = [m[key] for m in line], [dice_of(m)["mean"] for m in line]
        axes.plot(places, values, style.line, color=theme.colour(style.family), linewidth=1.3)


def _draw_mark(axes: Axes, method: Results, key: str, look: Look, theme: Theme) -> None:
    within = dice_of(method)
    if within["low"] is not None and within["high"] is not None:
        ends = [within["low"], within["high"]]
        axes.plot([method[key]] * 2, ends, color=theme.colour(look.family), linewidth=0.9, alpha=0.35)
    point(axes, method[key], within["mean"], look, theme, markersize=7)


def _draw_zero_shot(axes: Axes, results: Results, theme: Theme) -> None:
    method = method_named(results, ZERO_SHOT)
    if method is not None and method["failed"] is None and dice_of(method)["mean"] is not None:
        axes.axhline(dice_of(method)["mean"], color=theme.colour(family_of(method)), linewidth=1.2, dashes=(6, 3))


def _legend(figure: Figure, methods: Iterable[Results], look: dict[str, Look], theme: Theme) -> None:
    """Families by colour, ranks by mark, beside the figure."""
    families = dict.fromkeys(family_of(method) for method in methods)
    handles = [Line2D([], [], color=theme.colour(f), marker="o", linestyle="", label=f.name) for f in families]
    marks = {m["rank"]: look[m["id"]].marker for m in methods if m["rank"] is not None}
    handles += [
        Line2D([], [], color=theme.soft, marker=mark, linestyle="", label=f"rank {rank}")
        for rank, mark in sorted(marks.items())
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)


def draw_bytes(results: Results, theme: Theme) -> Drawing | None:
    """Bytes that one site sent per round, against the whole network, on a log axis."""
    rows = _mean_bytes(results)
    if not rows:
        return None
    look, titles, full = looks(results["methods"]), names(results), results["base"]["bytes"]
    figure = new_figure(max(2.0, 1.0 + 0.26 * len(rows)))
    axes = figure.add_subplot()
    name_rows(axes, [titles.get(name, name) or "" for name, _ in rows], (), theme)
    right = max([full, *(mean for _, mean in rows)])
    for place, (name, mean) in enumerate(rows):
        colour = theme.colour(look[name].family) if name in look else theme.soft
        axes.plot(mean, place, "o", color=colour, markersize=7)
        text = f"{size(mean)}, {percent(mean, full)}"
        axes.annotate(text, (mean, place), (7, 0), textcoords="offset points", va="center", fontsize=9)
    axes.axvline(full, color=theme.ink, linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.set_xlim(min(mean for _, mean in rows) / 2, right * 30)
    axes.grid(axis="x")
    axes.set_xlabel(f"Bytes sent by one site in one round, log axis (dashed: full model, {size(full)})")
    values = "; ".join(f"{titles.get(name, name)}: {size(mean)}, {percent(mean, full)}" for name, mean in rows)
    alt = f"Bytes sent by one site in one round, and share of the full model ({size(full)}). {values}."
    caption = "Mean over sites and rounds, with the share of the full model. Zero-shot sends nothing."
    return Drawing("bytes", "What one site sends per round", caption, alt, figure)


def _mean_bytes(results: Results) -> list[tuple[str | None, float]]:
    """Pretraining, then methods family by family; only what sent something."""
    sent: dict[str | None, list[int]] = defaultdict(list)
    for entry in results["rounds"]:
        sent[entry["method"]].extend(used["bytes_up"] for used in entry["used"])
    known: list[str | None] = [None, *(method["id"] for method in by_family(results["methods"]))]
    ordered = [*known, *(name for name in sent if name not in known)]
    return [(name, float(np.mean(sent[name]))) for name in ordered if sent.get(name) and sum(sent[name])]
