"""The four figures of the report, as PNG with alternative text that holds their numbers."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sahfl.report.summary import ZERO_SHOT, gain_over_zero_shot, method_colours, method_name
from sahfl.report.text import DASH, Results, interval, number, percent, signed, size, stratum_name

STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8A8F98",
    "axes.labelcolor": "#24292F",
    "text.color": "#24292F",
    "xtick.color": "#4A5058",
    "ytick.color": "#24292F",
    "axes.grid": False,
    "text.parse_math": False,  # a "$" in a site's name is a dollar sign
}
WIDTH_IN, DPI = 7.2, 180
SITE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
PALE = "#E4E7EB"


@dataclass(frozen=True)
class Picture:
    """One finished figure."""

    name: str
    """File name without ending."""
    title: str
    caption: str
    alt: str
    """The numbers of the figure in words."""
    png: bytes


def draw_figures(results: Results) -> tuple[Picture, ...]:
    """Draw what the results hold; a figure without data is left out.

    Guarantees: no global state of matplotlib stays changed, and no window system is needed.
    """
    drawings: tuple[Callable[[Results], Picture | None], ...] = (
        draw_dice_by_stratum,
        draw_differences,
        draw_bytes,
        draw_losses,
    )
    with matplotlib.rc_context(STYLE):
        pictures = [draw(results) for draw in drawings]
    return tuple(picture for picture in pictures if picture is not None)


def working_methods(results: Results) -> list[Results]:
    """Methods that have a result."""
    return [method for method in results["methods"] if method["failed"] is None]


def draw_dice_by_stratum(results: Results) -> Picture | None:
    """Mean Dice with intervals: all cases with blood, then each volume stratum, one colour per method."""
    methods = [method for method in working_methods(results) if method["overall"]["dice"] is not None]
    if not methods:
        return None
    groups = [[m["overall"], *m["strata"]] for m in methods]
    colours, figure = method_colours(results["methods"]), _figure(3.7)
    axes = figure.add_subplot()
    axes.axvspan(-0.5, 0.5, color="#F4F6F8", zorder=0)
    for i, (method, group) in enumerate(zip(methods, groups, strict=True)):
        places = np.arange(len(group)) + 0.18 * (i - (len(methods) - 1) / 2)
        _points(axes, group, places, "dice", colour=colours[method["id"]], label=method_name(method))
    axes.set_xticks(range(len(groups[0])), [f"{stratum_name(s['stratum'])}\nn = {s['n']}" for s in groups[0]])
    axes.set_xlim(-0.5, len(groups[0]) - 0.5)
    axes.set_ylim(0, 1)
    axes.set_ylabel("Mean Dice")
    axes.grid(axis="y", color=PALE, zorder=0)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    alt = _listed(
        (f"{method_name(m)}, {s['stratum']}", s, number(s["dice"]), interval(s))
        for m, group in zip(methods, groups, strict=True)
        for s in group
    )
    caption = "Bars are 95 % intervals over patients. A hollow point has fewer than 5 cases and no interval."
    return _picture("dice_by_stratum", "Dice by annotated volume", caption, f"Mean Dice. {alt}", figure)


def draw_differences(results: Results) -> Picture | None:
    """Forest plot of paired differences from zero-shot, overall and per stratum."""
    pairs = [(m, gain_over_zero_shot(results, m["id"])) for m in working_methods(results) if m["id"] != ZERO_SHOT]
    found = [(m, c) for m, c in pairs if c is not None and c["difference"] is not None]
    if not found:
        return None
    rows = [
        (method, group)
        for level in range(1 + len(found[0][1]["strata"]))
        for method, comparison in found
        for group in [{"stratum": "all with blood", **comparison} if level == 0 else comparison["strata"][level - 1]]
    ]
    colours, figure = method_colours(results["methods"]), _figure(1.0 + 0.36 * len(rows))
    axes = figure.add_subplot()
    axes.axvline(0, color="#24292F", linewidth=1)
    for place, (method, group) in enumerate(rows):
        _forest_row(axes, place, group, colours[method["id"]], first=place % len(found) == 0)
    for method, _ in found:
        axes.plot([], [], "s", color=colours[method["id"]], label=method_name(method))
    axes.set_yticks(
        [i + (len(found) - 1) / 2 for i in range(0, len(rows), len(found))],
        [f"{stratum_name(group['stratum'])}\nn = {group['n']}" for _, group in rows[:: len(found)]],
    )
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(*_around_zero([group for _, group in rows]))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("Difference in Dice from zero-shot  (right of the line: better)")
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    alt = _listed(
        (f"{method_name(m)}, {g['stratum']}", g, signed(g["difference"]), interval(g, plus=True)) for m, g in rows
    )
    caption = "Paired by patient. An interval that crosses the line means: no clear change."
    alt = f"Difference in Dice from zero-shot. {alt}"
    return _picture("differences", "Difference from zero-shot", caption, alt, figure)


def draw_bytes(results: Results) -> Picture | None:
    """Bytes that one site sent per round, against the whole network."""
    sent: dict[str | None, list[int]] = defaultdict(list)
    for entry in results["rounds"]:
        sent[entry["method"]].extend(used["bytes_up"] for used in entry["used"])
    names = {None: "Pretraining"} | {method["id"]: method_name(method) for method in results["methods"]}
    rows = [(name, names.get(name, name) or "", float(np.mean(values))) for name, values in sent.items() if values]
    if not rows:
        return None
    full, colours = results["base"]["bytes"], {None: "#9AA1AB"} | method_colours(results["methods"])
    figure = _figure(1.1 + 0.42 * len(rows))
    axes = figure.add_subplot()
    bars = axes.barh(range(len(rows)), [mean / 1e6 for *_, mean in rows], height=0.6)
    for bar, (name, _, _) in zip(bars, rows, strict=True):
        bar.set_color(colours.get(name, "#000000"))
    labels = [f" {size(mean)}, {percent(mean, full)}" for *_, mean in rows]
    axes.bar_label(bars, labels, padding=2, fontsize=10)
    axes.axvline(full / 1e6, color="#24292F", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), [label for _, label, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, max([full, *(mean for *_, mean in rows)]) / 1e6 * 1.3)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"MB sent by one site in one round  (dashed line: full model, {size(full)})")
    values = "; ".join(f"{label}{text}" for (_, label, _), text in zip(rows, (f":{t}" for t in labels), strict=True))
    caption = "Mean over sites and rounds, with the share of the full model. Zero-shot sends nothing."
    alt = f"Bytes sent by one site in one round, and share of the full model ({size(full)}). {values}."
    return _picture("bytes", "What one site sends per round", caption, alt, figure)


def draw_losses(results: Results) -> Picture | None:
    """Training loss by round: pretraining per site, fine-tuning per method and fold."""
    committed = [entry for entry in results["rounds"] if entry["committed"] and entry["used"]]
    pretrain = _site_losses([entry for entry in committed if entry["stage"] == "pretrain"])
    finetune = _fold_losses([entry for entry in committed if entry["stage"] == "finetune"])
    panels = [panel for panel in ((pretrain, "Pretraining"), (finetune, "Fine-tuning")) if panel[0]]
    if not panels:
        return None
    figure, said = _figure(3.4), []
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (_, title) in zip(every, panels, strict=True):
        axes.set_title(title, fontsize=11, loc="left")
        axes.set_xlabel("Round")
        axes.grid(axis="y", color=PALE)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        said.append(
            _draw_pretraining(axes, pretrain) if title == "Pretraining" else _draw_folds(axes, finetune, results)
        )
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=9)
    every[0].set_ylabel("Training loss")
    caption = "Pretraining: one line per site. Fine-tuning: mean over sites, a thin line per fold, their mean in bold."
    return _picture("losses", "Training loss by round", caption, f"Training loss. {' '.join(said)}", figure)


Curve = dict[int, float]  # round -> loss


def _site_losses(entries: list[Results]) -> dict[str, Curve]:
    curves: dict[str, Curve] = defaultdict(dict)
    for entry in entries:
        for used in entry["used"]:
            if used["loss"] is not None:
                curves[used["site"]][entry["round"]] = used["loss"]
    return curves


def _fold_losses(entries: list[Results]) -> dict[str, dict[int, Curve]]:
    """Method -> fold -> round -> mean loss, weighted by volumes like the average of the sites' weights."""
    curves: dict[str, dict[int, Curve]] = defaultdict(lambda: defaultdict(dict))
    for entry in entries:
        known = [(used["loss"], used["n_volumes"]) for used in entry["used"] if used["loss"] is not None]
        if total := sum(n for _, n in known):
            curves[entry["method"]][entry["fold"]][entry["round"]] = sum(loss * n for loss, n in known) / total
    return curves


def _draw_pretraining(axes: Axes, curves: dict[str, Curve]) -> str:
    for i, (site, curve) in enumerate(curves.items()):
        colour, line = SITE_COLOURS[i % len(SITE_COLOURS)], LINES[i // len(SITE_COLOURS) % len(LINES)]
        axes.plot(list(curve), list(curve.values()), line, color=colour, marker=".", label=site)
    return "Pretraining: " + "; ".join(f"{site} {_from_to(curve)}" for site, curve in curves.items()) + "."


def _draw_folds(axes: Axes, curves: dict[str, dict[int, Curve]], results: Results) -> str:
    colours, said = method_colours(results["methods"]), []
    names = {method["id"]: method_name(method) for method in results["methods"]}
    for name, folds in curves.items():
        colour = colours.get(name, "#000000")
        for curve in folds.values():
            axes.plot(list(curve), list(curve.values()), color=colour, linewidth=0.8, alpha=0.45)
        rounds = sorted({number for curve in folds.values() for number in curve})
        mean = {r: float(np.mean([curve[r] for curve in folds.values() if r in curve])) for r in rounds}
        axes.plot(list(mean), list(mean.values()), color=colour, linewidth=2.2, marker=".", label=names.get(name, name))
        said.append(f"{names.get(name, name)} {_from_to(mean)}")
    return "Fine-tuning, mean over folds: " + "; ".join(said) + "."


def _from_to(curve: Curve) -> str:
    first, last = min(curve), max(curve)
    return f"from {number(curve[first])} in round {first} to {number(curve[last])} in round {last}"


def _figure(height_in: float) -> Figure:
    figure = Figure(figsize=(WIDTH_IN, height_in), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _points(
    axes: Axes, group: list[Results], places: np.ndarray[Any, Any], key: str, *, colour: str, label: str
) -> None:
    for place, estimate in zip(places, group, strict=True):
        if estimate[key] is not None:
            known = estimate["low"] is not None
            if known:
                axes.plot([place] * 2, [estimate["low"], estimate["high"]], color=colour, linewidth=2)
            face = colour if known else "white"
            axes.plot(place, estimate[key], "o", color=colour, markerfacecolor=face, markersize=7)
    axes.plot([], [], "o-", color=colour, linewidth=2, markersize=7, label=label)


def _forest_row(axes: Axes, place: int, group: Results, colour: str, *, first: bool) -> None:
    if first and place:
        axes.axhline(place - 0.5, color=PALE, linewidth=1)
    if group["difference"] is None:
        return
    known = group["low"] is not None
    if known:
        axes.plot([group["low"], group["high"]], [place] * 2, color=colour, linewidth=2)
    face = colour if known else "white"
    axes.plot(group["difference"], place, "s", color=colour, markerfacecolor=face, markersize=7)
    text = signed(group["difference"]) + (f"  ({interval(group, plus=True)})" if known else "  (no interval)")
    axes.annotate(text, (1.01, place), xycoords=axes.get_yaxis_transform(), va="center", fontsize=9.5)


def _around_zero(groups: list[Results]) -> tuple[float, float]:
    """Limits that hold every interval and the line of no difference."""
    values = [g[key] for g in groups for key in ("difference", "low", "high") if g[key] is not None]
    low, high = min([0.0, *values]), max([0.0, *values])
    margin = 0.08 * (high - low) or 0.05
    return low - margin, high + margin


def _listed(estimates: Iterable[tuple[str, Results, str, str]]) -> str:
    """``CP-LoRA (rank 8), < 10 mL: 0.31 (0.22 to 0.40), n = 7; ...``."""
    return (
        "; ".join(
            f"{what}: {value} ({'no interval' if within == DASH else within}), n = {of['n']}"
            for what, of, value, within in estimates
        )
        + "."
    )


def _picture(name: str, title: str, caption: str, alt: str, figure: Figure) -> Picture:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return Picture(name, title, caption, alt, stream.getvalue())
