"""Drawing figures as PNG with alternative text.

Figures have a white background, as in papers. A dark page inverts lightness and keeps hues (``report.css``), for
figures and for colours in tables, so that a family has one colour on a page.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sahfl.report.names import Look, dice_of, family_of, measured_method, method_name
from sahfl.report.text import DASH, Results, interval, number, signed

WIDTH_IN, WIDE_IN, DPI = 7.2, 9.6, 150
FACE, INK, SOFT, EDGE, PALE = "#FFFFFF", "#24292F", "#4A5058", "#8A8F98", "#E4E7EB"
COUNTS = LinearSegmentedColormap.from_list("counts", ("#D6E6F2", "#00578A"))
"""Colours from few to many cases."""
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": FACE,
    "figure.facecolor": FACE,
    "axes.edgecolor": EDGE,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": INK,
    "axes.grid": False,
    "grid.color": PALE,
    "axes.axisbelow": True,
    "text.parse_math": False,  # a "$" in a site's name is a dollar sign
}


@dataclass(frozen=True)
class Drawing:
    """A figure with its texts."""

    name: str
    """File name without ending."""
    title: str
    caption: str
    alt: str
    """The numbers of the figure as text."""
    figure: Figure

    @property
    def wide(self) -> bool:
        """Whether it is only readable at full width."""
        return self.figure.get_figwidth() > WIDTH_IN

    @cached_property
    def png(self) -> bytes:
        """The figure as PNG."""
        with matplotlib.rc_context(STYLE):
            return encode(self.figure, dpi=DPI)


def encode(figure: Figure, **options: Any) -> bytes:
    """A figure as PNG without metadata."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None}, **options)
    return stream.getvalue()


def new_figure(height_in: float, width_in: float = WIDTH_IN) -> Figure:
    """An empty figure with automatic layout."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def log_scale(axis: XAxis, show: Callable[[float], str]) -> None:
    """Make an axis logarithmic, with plain numbers at its decades: superscripts would need a mathematics parser."""
    axis.axes.set_xscale("log")
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if high < 300 * low else (1.0,), numticks=7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
    axis.set_minor_formatter(NullFormatter())


def keep_to_dice(axis: XAxis | YAxis) -> None:
    """Limit an axis to the range of Dice, 0 to 1, with space for whole marks at the ends."""
    low, high = axis.get_view_interval()
    axis.axes.set(**{f"{axis.axis_name}lim": (max(low, -0.02), min(high, 1.02))})


def point(axes: Axes, x: float, y: float, look: Look, *, markersize: float = 6) -> None:
    """One mark of a method; hollow if the federation did not train it."""
    colour = look.family.colour
    face = colour if look.filled else FACE
    axes.plot(x, y, look.marker, color=colour, markerfacecolor=face, markersize=markersize, zorder=3)


def row_of_interval(axes: Axes, place: float, of: Results, key: str, look: Look) -> None:
    """Draw an estimate as a mark with its interval along x; nothing if it is unknown."""
    if of[key] is None:
        return
    if of["low"] is not None and of["high"] is not None:
        axes.plot([of["low"], of["high"]], [place] * 2, color=look.family.colour, linewidth=1.8)
    point(axes, of[key], place, look)


def name_rows(axes: Axes, labels: Sequence[str], breaks: Iterable[int]) -> None:
    """Label rows from the top down, with a line before each place in ``breaks``."""
    axes.set_yticks(range(len(labels)), labels, fontsize=9.5)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    rule_off(axes, breaks)


def rule_off(axes: Axes, breaks: Iterable[int]) -> None:
    """Draw a line before each row in ``breaks``."""
    for place in breaks:
        axes.axhline(place - 0.5, color=PALE, linewidth=1)


def draw_level(axes: Axes, results: Results, name: str) -> None:
    """A dashed line at the mean Dice of a method without a rank; nothing if the method has no result."""
    method = measured_method(results, name)
    if method is not None and dice_of(method)["mean"] is not None:
        colour = family_of(method).colour
        axes.axhline(dice_of(method)["mean"], color=colour, linewidth=1.2, dashes=(6, 3), label=method_name(method))


def listed(estimates: Iterable[tuple[str, Results]], key: str = "mean") -> str:
    """Join estimates into one text: ``CP-LoRA (rank 8), < 10 mL: 0.31 (0.22 to 0.40), n = 7; ...``."""
    parts = []
    for what, of in estimates:
        value, within = number(of[key]), interval(of)
        if key == "difference":
            value, within = signed(of[key]), interval(of, plus=True)
        n = DASH if of["n"] is None else of["n"]
        parts.append(f"{what}: {value} ({'no interval' if within == DASH else within}), n = {n}")
    return f"{'; '.join(parts)}."
