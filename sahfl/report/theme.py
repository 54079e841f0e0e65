"""How figures are drawn and kept: twice, for a light and for a dark page, as PNG with alternative text."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sahfl.report.names import Family, Look
from sahfl.report.text import DASH, Results

WIDTH_IN, WIDE_IN, DPI = 7.2, 9.6, 150


@dataclass(frozen=True)
class Theme:
    """Colours of a page."""

    name: str
    face: str
    ink: str
    soft: str
    edge: str
    pale: str
    band: str
    ramp: str
    """Colour map of counts; it starts at the colour of the page."""

    def colour(self, family: Family) -> str:
        """The colour of a family of methods."""
        return family.dark if self.name == "dark" else family.light

    @property
    def style(self) -> dict[str, Any]:
        """Settings of matplotlib."""
        return {
            "font.family": "sans-serif",
            "font.size": 10.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.facecolor": self.face,
            "figure.facecolor": self.face,
            "savefig.facecolor": self.face,
            "axes.edgecolor": self.edge,
            "axes.labelcolor": self.ink,
            "text.color": self.ink,
            "xtick.color": self.soft,
            "ytick.color": self.ink,
            "axes.grid": False,
            "grid.color": self.pale,
            "axes.axisbelow": True,
            "text.parse_math": False,  # a "$" in a site's name is a dollar sign
        }


LIGHT = Theme("light", "#FFFFFF", "#24292F", "#4A5058", "#8A8F98", "#E4E7EB", "#F4F6F8", "Blues")
DARK = Theme("dark", "#1D2126", "#E8EAED", "#B4BAC2", "#6B737D", "#343A42", "#252A31", "Blues_r")


@dataclass(frozen=True)
class Drawing:
    """A figure with its words."""

    name: str
    """File name without ending."""
    title: str
    caption: str
    alt: str
    """The numbers of the figure in words."""
    figure: Figure


@dataclass(frozen=True)
class Picture:
    """One finished figure."""

    name: str
    title: str
    caption: str
    alt: str
    png: bytes
    dark_png: bytes
    wide: bool
    """Whether it needs a wide place to be read."""


Draw = Callable[[Results, Theme], Drawing | None]


def draw_picture(draw: Draw, results: Results) -> Picture | None:
    """Draw one figure for both pages; None where the results have nothing for it.

    Guarantees: no global state of matplotlib stays changed, and no window system is needed.
    """
    found = []
    for theme in (LIGHT, DARK):
        with matplotlib.rc_context(theme.style):
            drawing = draw(results, theme)
            if drawing is None:
                return None
            found.append((drawing, _png(drawing.figure)))
    (drawing, light), (_, dark) = found
    wide = drawing.figure.get_figwidth() > WIDTH_IN
    return Picture(drawing.name, drawing.title, drawing.caption, drawing.alt, light, dark, wide)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()


def new_figure(height_in: float, width_in: float = WIDTH_IN) -> Figure:
    """An empty figure that is laid out by itself."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def point(axes: Axes, x: float, y: float, look: Look, theme: Theme, *, markersize: float = 6) -> None:
    """One mark of a method; hollow where the federation did not train it."""
    colour = theme.colour(look.family)
    face = colour if look.filled else theme.face
    axes.plot(x, y, look.marker, color=colour, markerfacecolor=face, markersize=markersize, zorder=3)


def row_of_interval(axes: Axes, place: float, of: Results, key: str, look: Look, theme: Theme) -> None:
    """An estimate as a mark with its interval along x; nothing where it is not known."""
    if of[key] is None:
        return
    if of["low"] is not None and of["high"] is not None:
        axes.plot([of["low"], of["high"]], [place] * 2, color=theme.colour(look.family), linewidth=1.8)
    point(axes, of[key], place, look, theme)


def name_rows(axes: Axes, labels: Sequence[str], breaks: Iterable[int], theme: Theme) -> None:
    """Label rows from the top down, with a line before each place in ``breaks``."""
    axes.set_yticks(range(len(labels)), labels, fontsize=9.5)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for place in breaks:
        axes.axhline(place - 0.5, color=theme.pale, linewidth=1)


def listed(estimates: Iterable[tuple[str, Results, str, str]]) -> str:
    """``CP-LoRA (rank 8), < 10 mL: 0.31 (0.22 to 0.40), n = 7; ...``."""
    return (
        "; ".join(
            f"{what}: {value} ({'no interval' if within == DASH else within}), n = {DASH if of['n'] is None else of['n']}"
            for what, of, value, within in estimates
        )
        + "."
    )
