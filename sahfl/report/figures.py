"""All figures of the report, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import matplotlib

from sahfl.report.accuracy_figures import draw_methods, draw_places, draw_ranks, draw_strata
from sahfl.report.cost_figures import draw_bytes, draw_costs
from sahfl.report.text import Results
from sahfl.report.theme import STYLE, Drawing
from sahfl.report.training_figures import draw_losses
from sahfl.report.volume_figures import draw_bland_altman, draw_histograms

DRAWINGS: tuple[Callable[[Results], Drawing | None], ...] = (
    draw_methods,
    partial(draw_strata, kind="by_volume"),
    partial(draw_strata, kind="by_extent"),
    draw_ranks,
    draw_costs,
    draw_places,
    draw_histograms,
    draw_bland_altman,
    draw_bytes,
    draw_losses,
)


def draw_figures(results: Results) -> tuple[Drawing, ...]:
    """Draw all figures; those without data are left out.

    Guarantees: matplotlib's global state is unchanged, and no window system is needed.
    """
    with matplotlib.rc_context(STYLE):
        drawings = [draw(results) for draw in DRAWINGS]
    return tuple(drawing for drawing in drawings if drawing is not None)
