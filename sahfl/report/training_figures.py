"""Learning curves: the loss of pretraining per site and of fine-tuning per family, and Dice by round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sahfl.report.names import (
    PRETRAINING,
    REPEAT,
    Look,
    dice_of,
    families,
    family_of,
    looks,
    names,
    row_of_training,
    with_dice,
)
from sahfl.report.text import Results, number
from sahfl.report.theme import FACE, WIDE_IN, WIDTH_IN, Drawing, new_figure

SITE_COLOURS = ("#0067A3", "#C9500C", "#007A5A", "#B3457E", "#7A7000", "#7B4FB0", "#24292F")
SITE_LINES = ("-", "--", ":", "-.")
COLUMNS, MOST_LABELS = 3, 14
Curve = dict[int, float]
"""Round -> loss."""


def draw_losses(results: Results) -> Drawing | None:
    """Training loss by round: pretraining per site, then a panel per family with a line per method."""
    committed = [entry for entry in results["rounds"] if entry["committed"] and entry["used"]]
    pretrain = _site_losses([entry for entry in committed if entry["stage"] == "pretrain"])
    finetune = _by_family(_fold_losses([entry for entry in committed if entry["stage"] == "finetune"]), results)
    n = bool(pretrain) + len(finetune)
    if not n:
        return None
    columns = min(n, COLUMNS)
    rows = -(-n // columns)
    figure, texts = new_figure(0.4 + 2.7 * rows, WIDE_IN if columns > 2 else WIDTH_IN), []
    every = list(figure.subplots(rows, columns, squeeze=False).ravel())
    if pretrain:
        texts.append(_draw_pretraining(every.pop(0), pretrain))
    panels = [every.pop(0) for _ in finetune]
    for axes, (family, methods) in zip(panels, finetune.items(), strict=True):
        texts.append(_draw_family(axes, family, methods, _looks(results)))
    _same_range(panels)
    for axes in every:
        axes.set_axis_off()
    figure.supxlabel("Round", fontsize=10.5)
    figure.supylabel("Training loss", fontsize=10.5)
    caption = (
        "Pretraining: one line per site. Fine-tuning: mean over sites, a thin line per fold, their mean in bold. "
        "Repeats have lines of their own. The panels of fine-tuning have the same axis of losses; no axis starts at 0."
    )
    return Drawing("losses", "Training loss by round", caption, f"Training loss. {' '.join(texts)}", figure)


def draw_dice_by_round(results: Results) -> Drawing | None:
    """Dice on the held-out patients after the rounds that the study names, and after the last; a line per method."""
    curves: dict[str, dict[int, Results]] = defaultdict(dict)
    for entry in results.get("by_round", ()):
        for row in entry["methods"]:
            curves[row["id"]][entry["round"]] = row
    rows = {method["id"]: method for method in with_dice(results) if method["id"] in curves}
    if not rows:
        return None
    titles, look = names(results), looks(results["methods"])
    figure, texts = new_figure(4.0, WIDTH_IN), []
    axes = figure.subplots()
    for place, (id_, method) in enumerate(rows.items()):
        last = method["rounds"] or results["study"]["finetune"]["rounds"]
        points = curves[id_] | {last: dice_of(method)}
        rounds, style = sorted(points), look[id_]
        means = [points[round_]["mean"] for round_ in rounds]
        ends = [[abs(points[r]["mean"] - points[r][end]) for r in rounds] for end in ("low", "high")]
        at = [round_ + 0.012 * last * (place - (len(rows) - 1) / 2) for round_ in rounds]  # intervals side by side
        bars = axes.errorbar(
            at, means, ends, fmt=style.line, color=style.family.colour, elinewidth=0.8, label=titles[id_]
        )
        bars.lines[0].set(marker=style.marker, markersize=4.5)
        bars.lines[0].set_markerfacecolor(style.family.colour if style.filled else FACE)
        steps = "; ".join(f"{number(mean)} after round {round_}" for round_, mean in zip(rounds, means, strict=True))
        texts.append(f"{titles[id_]}: {steps}.")
    axes.grid(axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="Round", ylabel="Dice")
    if len(rows) <= MOST_LABELS:
        figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=2)
    caption = (
        "Mean over the held-out patients with its 95 % interval. The learning rate still falls after the earlier "
        "rounds, so a training that ended there could have another Dice. The axis of Dice does not start at 0."
    )
    return Drawing("dice-by-round", "Dice by round", caption, " ".join(texts), figure)


def _site_losses(entries: list[Results]) -> dict[str, Curve]:
    curves: dict[str, Curve] = defaultdict(dict)
    for entry in entries:
        for used in entry["used"]:
            if used["loss"] is not None:
                curves[used["site"]][entry["round"]] = used["loss"]
        if entry.get("loss") is not None:
            curves["all sites, masked"][entry["round"]] = entry["loss"]
    return curves


def _fold_losses(entries: list[Results]) -> dict[str, dict[int, Curve]]:
    """Method -> fold -> round -> mean loss, weighted by volumes like the average of the sites' weights."""
    curves: dict[str, dict[int, Curve]] = defaultdict(lambda: defaultdict(dict))
    for entry in entries:
        known = [(used["loss"], used["n_volumes"]) for used in entry["used"] if used["loss"] is not None]
        if total := sum(n for _, n in known):
            curves[entry["method"]][entry["fold"]][entry["round"]] = sum(loss * n for loss, n in known) / total
        elif entry.get("loss") is not None:  # of a masked round
            curves[entry["method"]][entry["fold"]][entry["round"]] = entry["loss"]
    return curves


def _by_family(
    curves: dict[str, dict[int, Curve]], results: Results
) -> dict[str, dict[str, tuple[str, dict[int, Curve]]]]:
    """Family -> method -> its name and curves; methods without a row in ``methods`` belong to "Other"."""
    titles, found = names(results), defaultdict[str, dict[str, tuple[str, dict[int, Curve]]]](dict)
    for id_, folds in curves.items():
        method = row_of_training(results, id_)
        family = PRETRAINING if method is None else family_of(method)
        found[family.name][id_] = _short(titles.get(id_, id_), family.name), folds
    order = [family.name for family in families()]
    return {name: found[name] for name in sorted(found, key=order.index)}


def _looks(results: Results) -> dict[str, Look]:
    """Look by training; a repeat has the look of its row."""
    known = looks(results["methods"])
    for id_ in dict.fromkeys(entry["method"] for entry in results["rounds"] if entry["method"] is not None):
        if (method := row_of_training(results, id_)) is not None:
            known[id_] = known[method["id"]]
    return known


def _short(name: str, family: str) -> str:
    """A method's name without the words in the panel's title."""
    if name.startswith(f"{family} ("):
        return name.removeprefix(f"{family} (").replace(")", "")
    return name.removeprefix("Fine-tuning of the ").removeprefix("Fine-tuning of ")


def _draw_pretraining(axes: Axes, curves: dict[str, Curve]) -> str:
    for i, (site, curve) in enumerate(curves.items()):
        colour, line = SITE_COLOURS[i % len(SITE_COLOURS)], SITE_LINES[i // len(SITE_COLOURS) % len(SITE_LINES)]
        axes.plot(list(curve), list(curve.values()), line, color=colour, marker=".", label=site)
    _finish(axes, "Pretraining", len(curves))
    return "Pretraining: " + "; ".join(f"{site} {_from_to(curve)}" for site, curve in curves.items()) + "."


def _draw_family(
    axes: Axes, family: str, methods: dict[str, tuple[str, dict[int, Curve]]], look: dict[str, Look]
) -> str:
    texts = []
    for id_, (name, folds) in methods.items():
        style = look.get(id_, Look(PRETRAINING, "o", "-", filled=True))
        colour = style.family.colour
        for curve in folds.values():
            axes.plot(list(curve), list(curve.values()), color=colour, linewidth=0.6, alpha=0.3)
        rounds = sorted({number for curve in folds.values() for number in curve})
        mean = {r: float(np.mean([curve[r] for curve in folds.values() if r in curve])) for r in rounds}
        label = f"_{name}" if REPEAT in id_ else name  # matplotlib leaves names with an underscore out of the legend
        (line,) = axes.plot(list(mean), list(mean.values()), style.line, color=colour, linewidth=1.6, label=label)
        line.set(marker=style.marker, markersize=4.5, markevery=[-1])
        line.set_markerfacecolor(colour if style.filled else FACE)
        texts.append(f"{name} {_from_to(mean)}")
    _finish(axes, family, sum(REPEAT not in id_ for id_ in methods))
    return f"{family}, mean over folds: {'; '.join(texts)}."


def _finish(axes: Axes, title: str, n: int) -> None:
    axes.set_title(title, fontsize=10.5, loc="left")
    axes.grid(axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _frame(axes, axes.dataLim.ymin, axes.dataLim.ymax)
    if n <= MOST_LABELS:
        legend = axes.legend(frameon=False, fontsize=8 if n <= 6 else 6.5, ncols=1 if n <= 6 else 2, loc="best")
        legend.set_in_layout(False)


def _frame(axes: Axes, low: float, high: float) -> None:
    """Limit the axis of losses to what is drawn, so that the change of a curve fills it."""
    space = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - space, high + space)


def _same_range(panels: Sequence[Axes]) -> None:
    drawn = [axes.dataLim for axes in panels]
    for axes in panels:
        _frame(axes, min(part.ymin for part in drawn), max(part.ymax for part in drawn))


def _from_to(curve: Curve) -> str:
    first, last = min(curve), max(curve)
    return f"from {number(curve[first])} in round {first} to {number(curve[last])} in round {last}"
