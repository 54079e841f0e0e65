"""Figures of cost: Dice against trainable parameters and bytes, and what each site sends in a round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sahfl.report import theme
from sahfl.report.names import (
    STANDARD,
    ZERO_SHOT,
    Look,
    by_family,
    dice_of,
    family_of,
    looks,
    method_name,
    names,
    row_of_training,
    with_dice,
)
from sahfl.report.text import Results, percent, short, short_size, size, whole
from sahfl.report.theme import Drawing

FEWEST = 3
"""Methods from which the figure has more to show than the table."""
COSTS = (
    ("trainable", "Trainable parameters (log axis)", short),
    ("bytes_up_per_round", "Sent per site and round (log axis)", short_size),
)


def draw_costs(results: Results) -> Drawing | None:
    """Dice against trainable parameters and against bytes, each on a log axis; lines join the ranks of a family.

    None for fewer than ``FEWEST`` methods.
    """
    methods = [m for m in with_dice(results) if m["trained_at"] is None]
    methods = [m for m in methods if m["trainable"] > 0 and m["bytes_up_per_round"] > 0]
    if len(methods) < FEWEST:
        return None
    look, figure = looks(results["methods"]), theme.new_figure(4.0, theme.WIDE_IN)
    every = figure.subplots(1, len(COSTS), sharey=True)
    for axes, (key, label, show) in zip(every, COSTS, strict=True):
        _draw_lines(axes, methods, key, look)
        for method in methods:
            _draw_mark(axes, method, key, look[method["id"]])
        theme.draw_level(axes, results, ZERO_SHOT)
        theme.log_scale(axes.xaxis, show)
        axes.set_xlabel(label)
        axes.grid()
    every[0].set_ylabel("Mean Dice")
    theme.keep_to_dice(every[0].yaxis)
    _legend(figure, methods, look)
    estimates = (
        (f"{method_name(m)}, {whole(m['trainable'])} parameters, {size(m['bytes_up_per_round'])}", dice_of(m))
        for m in methods
    )
    caption = (
        "Federated methods; lines join the ranks of one family under one aggregation rule. Dashed: zero-shot, which "
        "trains and sends nothing. Bars are 95 % intervals. Up and to the left is better."
    )
    alt = f"Mean Dice against cost. {theme.listed(estimates)}"
    return Drawing("costs", "Dice against parameters and bytes", caption, alt, figure)


def _draw_lines(axes: Axes, methods: Sequence[Results], key: str, look: dict[str, Look]) -> None:
    lines: dict[tuple[str, str | None], list[Results]] = defaultdict(list)
    for method in methods:
        if method["rank"] is not None:
            lines[method["method"], method["aggregation"]].append(method)
    for line in lines.values():
        line.sort(key=lambda method: int(method["rank"]))
        style = look[line[0]["id"]]
        places, values = [m[key] for m in line], [dice_of(m)["mean"] for m in line]
        axes.plot(places, values, style.line, color=style.family.colour, linewidth=1.3)


def _draw_mark(axes: Axes, method: Results, key: str, look: Look) -> None:
    within, place = dice_of(method), (method[key], dice_of(method)["mean"])
    if within["low"] is not None and within["high"] is not None:
        axes.plot([method[key]] * 2, [within["low"], within["high"]], color=look.family.colour, linewidth=1, alpha=0.6)
    theme.point(axes, *place, look, markersize=7)
    if method["method"] in STANDARD:
        text = method["method"].replace("_", " ")
        offset = (0, -13) if list(STANDARD).index(method["method"]) % 2 == 0 else (0, 7)
        axes.annotate(text, place, offset, textcoords="offset points", ha="center", fontsize=8, color=theme.SOFT)


def _legend(figure: Figure, methods: Iterable[Results], look: dict[str, Look]) -> None:
    """Families by colour, ranks by mark, beside the figure."""
    families = dict.fromkeys(family_of(method) for method in methods)
    handles = [Line2D([], [], color=f.colour, marker="o", linestyle="", label=f.name) for f in families]
    marks = {m["rank"]: look[m["id"]].marker for m in methods if m["rank"] is not None}
    handles += [
        Line2D([], [], color=theme.SOFT, marker=mark, linestyle="", label=f"rank {rank}")
        for rank, mark in sorted(marks.items())
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)


def draw_bytes(results: Results) -> Drawing | None:
    """Bytes that one site sent per round, compared with the whole network, on a log axis."""
    rows = _mean_bytes(results)
    if not rows:
        return None
    look, titles, full = looks(results["methods"]), names(results), results["base"]["bytes"]
    figure = theme.new_figure(max(2.0, 1.0 + 0.25 * len(rows)), theme.WIDE_IN)
    axes = figure.add_subplot()
    theme.name_rows(axes, [titles.get(name, name) or "" for name, _ in rows], ())
    right = max([full, *(mean for _, mean in rows)])
    for place, (name, mean) in enumerate(rows):
        colour = look[name].family.colour if name in look else theme.SOFT
        axes.plot(mean, place, "o", color=colour, markersize=7)
        text = f"{size(mean)}, {percent(mean, full)}"
        axes.annotate(text, (1.01, place), xycoords=axes.get_yaxis_transform(), va="center", fontsize=9.5)
    axes.axvline(full, color=theme.INK, linewidth=1, linestyle="--")
    theme.log_scale(axes.xaxis, short_size)
    axes.set_xlim(min([full, *(mean for _, mean in rows)]) / 2, right * 2)
    axes.grid(axis="x")
    axes.set_xlabel(f"Sent by one site in one round, log axis (dashed: full model, {size(full)})")
    values = "; ".join(f"{titles.get(name, name)}: {size(mean)}, {percent(mean, full)}" for name, mean in rows)
    alt = f"Bytes sent by one site in one round, and share of the full model ({size(full)}). {values}."
    caption = "Mean over sites and rounds, with the share of the full model. Zero-shot sends nothing."
    return Drawing("bytes", "What one site sends per round", caption, alt, figure)


def _mean_bytes(results: Results) -> list[tuple[str | None, float]]:
    """Mean bytes of pretraining, then of methods by family, with repeats averaged; without those that sent nothing."""
    sent: dict[str | None, list[int]] = defaultdict(list)
    for entry in results["rounds"]:
        row = None if entry["method"] is None else row_of_training(results, entry["method"])
        name = entry["method"] if row is None else row["id"]
        sent[name].extend(used["bytes_up"] for used in entry["used"])
    known: list[str | None] = [None, *(method["id"] for method in by_family(results["methods"]))]
    ordered = dict.fromkeys([*known, *sent])
    return [(name, float(np.mean(sent[name]))) for name in ordered if sent.get(name) and sum(sent[name])]
