"""All figures of the report, in the order of the page."""

from __future__ import annotations

from sahfl.report.accuracy_figures import draw_extent_strata, draw_methods, draw_places, draw_ranks, draw_volume_strata
from sahfl.report.cost_figures import draw_bytes, draw_costs
from sahfl.report.text import Results
from sahfl.report.theme import Draw, Picture, draw_picture
from sahfl.report.training_figures import draw_losses
from sahfl.report.volume_figures import draw_bland_altman, draw_histograms

DRAWINGS: tuple[Draw, ...] = (
    draw_methods,
    draw_volume_strata,
    draw_extent_strata,
    draw_ranks,
    draw_costs,
    draw_places,
    draw_histograms,
    draw_bland_altman,
    draw_bytes,
    draw_losses,
)


def draw_figures(results: Results) -> tuple[Picture, ...]:
    """Draw all figures; those without data are left out."""
    pictures = [draw_picture(draw, results) for draw in DRAWINGS]
    return tuple(picture for picture in pictures if picture is not None)
