"""Figures of volume: predicted against annotated as a 2-D histogram, and Bland-Altman."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from sahfl.report.choice import choose, first_adapter
from sahfl.report.names import dice_of, family_of, measured, method_name
from sahfl.report.text import Results, interval, number, short, signed
from sahfl.report.theme import COUNTS, EDGE, FACE, INK, WIDE_IN, Drawing, log_scale, new_figure

MOST_SHOWN = 6
COLUMNS = 3


def draw_histograms(results: Results) -> Drawing | None:
    """Cases by annotated and predicted volume, for a few methods."""
    methods = _shown(results)
    if not methods:
        return None
    most = max(max(row) for method in methods for row in method["volume"]["histogram"]["counts"])
    labels = "Annotated volume (mL)", "Predicted volume (mL)"
    figure, axes = _panels(methods, partial(_draw_counts, most=most), 3.0, labels)
    figure.colorbar(
        axes[0].collections[0],
        ax=axes,
        label="Cases, in all panels",
        shrink=0.6,
        pad=0.01,
        ticks=MaxNLocator(5, integer=True),
    )
    caption = (
        "Number of cases in each pair of bins, with the same colours in all panels; cases on the outlined diagonal are "
        f"segmented at about their annotated volume. {_choice(results, methods)}"
    )
    alt = f"Predicted against annotated volume. {' '.join(_describe(method) for method in methods)}"
    return Drawing("volumes", "Predicted against annotated volume", caption, alt, figure)


def draw_bland_altman(results: Results) -> Drawing | None:
    """Difference of the two volumes against their mean, from the bins; bias and limits are exact."""
    methods = [method for method in _shown(results) if method["volume"]["bias_ml"] is not None]
    if not methods:
        return None
    labels = "Mean of annotated and predicted volume (mL, log axis)", "Predicted minus annotated (mL)"
    figure, axes = _panels(methods, _draw_agreement, 2.7, labels)
    log_scale(axes[0].xaxis, short)
    caption = (
        "All panels have the same axes. "
        "Hospitals send counts per bin, not cases: a circle is a pair of bins, its area the number of cases, its place "
        "their middles. Solid: bias; dashed: 95 % limits of agreement; both are from the exact sums."
    )
    alt = f"Predicted minus annotated volume. {' '.join(_describe(method) for method in methods)}"
    return Drawing("bland_altman", "Bland-Altman", caption, alt, figure)


def _panels(
    methods: Sequence[Results], draw: Callable[[Axes, Results], None], row_in: float, labels: tuple[str, str]
) -> tuple[Figure, list[Axes]]:
    """A panel for each method with the same axes, drawn by ``draw``; each row is ``row_in`` inches high."""
    columns = min(COLUMNS, len(methods))
    rows = -(-len(methods) // columns)
    figure = new_figure(0.5 + row_in * rows, WIDE_IN)
    every = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, method in zip(every, methods, strict=False):
        draw(axes, method)
        axes.tick_params(labelsize=8.5, labelbottom=True, labelleft=True)
    for axes in every[len(methods) :]:
        axes.set_axis_off()
    figure.supxlabel(labels[0], fontsize=10.5)
    figure.supylabel(labels[1], fontsize=10.5)
    return figure, list(every[: len(methods)])


def _shown(results: Results) -> list[Results]:
    """Zero-shot, full fine-tuning, the methods of the conclusion, then the highest rank of each other family."""
    known = [method for method in measured(results) if _histogram(method) is not None]
    choice = choose(results)
    named = (choice.method or first_adapter(results), choice.cheaper)
    wanted = {"zero_shot", "full", *(method["id"] for method in named if method is not None)}
    chosen = [method for method in known if method["id"] in wanted]
    for method in sorted(known, key=lambda m: -(m["rank"] or 0)):
        if method["trained_at"] is not None:
            continue
        seen = {family_of(other).key for other in chosen}
        if family_of(method).key not in seen and len(chosen) < MOST_SHOWN:
            chosen.append(method)
    return [method for method in known if method in chosen]


def _choice(results: Results, methods: list[Results]) -> str:
    left = sum(_histogram(method) is not None for method in measured(results)) - len(methods)
    shown = "Zero-shot, full fine-tuning, the methods of the first box, and the highest rank of other families"
    return f"{shown}; {left} more methods are in the table." if left else ""


def _histogram(method: Results) -> Results | None:
    found: Results | None = method["volume"]["histogram"]
    return found if found is not None and any(map(any, found["counts"])) and dice_of(method)["n"] else None


def bin_edges(histogram: Results) -> list[float]:
    """Lower edge of every bin; the last bin is open."""
    edges = [float(edge) for edge in histogram["edges_ml"]]
    return edges if len(edges) == len(histogram["counts"]) + 1 else [0.0, *edges, float("inf")]


def _labels(edges: list[float]) -> list[str]:
    return [f"{low:g} to {high:g}" if np.isfinite(high) else f"≥ {low:g}" for low, high in pairwise(edges)]


def _draw_counts(axes: Axes, method: Results, *, most: float) -> None:
    histogram = method["volume"]["histogram"]
    counts = np.array(histogram["counts"], float).T  # rows are predicted bins, columns annotated
    n = len(counts)
    axes.pcolormesh(np.arange(n + 1), np.arange(n + 1), np.ma.masked_equal(counts, 0), cmap=COUNTS, vmin=0, vmax=most)
    for place in range(n):
        axes.add_patch(Rectangle((place, place), 1, 1, fill=False, edgecolor=EDGE, linewidth=0.8))
    if n <= 20:
        _write_counts(axes, counts, most)
    edges = bin_edges(histogram)
    inner = list(range(1, n, max(1, n // 6)))
    axes.set_xticks(inner, [f"{edges[i]:g}" for i in inner])
    axes.set_yticks(inner, [f"{edges[i]:g}" for i in inner])
    axes.set_aspect("equal")
    axes.set_title(method_name(method), fontsize=9.5, loc="left")


def _write_counts(axes: Axes, counts: NDArray[np.float64], most: float) -> None:
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8 if len(counts) <= 10 else 6}
    for (row, column), value in np.ndenumerate(counts):
        if value:
            colour = FACE if value > 0.5 * most else INK
            axes.text(column + 0.5, row + 0.5, f"{value:g}", color=colour, **style)


def _draw_agreement(axes: Axes, method: Results) -> None:
    volume = method["volume"]
    edges = np.array(bin_edges(volume["histogram"]))
    if not np.isfinite(edges[-1]):
        edges[-1] = 2 * edges[-2]
    middles = (edges[1:] + edges[:-1]) / 2
    counts = np.array(volume["histogram"]["counts"], float)
    annotated, predicted = np.nonzero(counts)
    mean = (middles[annotated] + middles[predicted]) / 2
    gap, colour = middles[predicted] - middles[annotated], family_of(method).colour
    axes.scatter(mean, gap, 16 * counts[annotated, predicted], color=colour, alpha=0.55, linewidths=0)
    axes.axhline(0, color=EDGE, linewidth=0.8)
    axes.axhline(volume["bias_ml"], color=INK, linewidth=1.3)
    for limit in (volume["loa_low_ml"], volume["loa_high_ml"]):
        if limit is not None:
            axes.axhline(limit, color=INK, linewidth=1, linestyle="--")
    axes.grid(axis="y")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_title(method_name(method), fontsize=9.5, loc="left")


def _describe(method: Results) -> str:
    volume = method["volume"]
    histogram = volume["histogram"]
    labels = _labels(bin_edges(histogram))
    off = sum(count for i, row in enumerate(histogram["counts"]) for j, count in enumerate(row) if i != j)
    rows = ", ".join(
        f"{label} mL: {sum(row)}" for label, row in zip(labels, histogram["counts"], strict=True) if any(row)
    )
    limits = {"low": volume["loa_low_ml"], "high": volume["loa_high_ml"]}
    return (
        f"{method_name(method)}: annotated cases per bin {rows}; {off} predicted in another bin; Pearson r "
        f"{number(volume['pearson_r'], 2)}, bias {signed(volume['bias_ml'], 1)} mL, limits of agreement "
        f"{interval(limits, 1, plus=True)} mL."
    )
