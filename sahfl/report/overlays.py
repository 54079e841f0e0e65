"""Slices of a scan with contours of annotation and prediction; numpy arrays in, a PNG out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from sahfl.report.scan_pictures import draw_contour, draw_slice
from sahfl.report.theme import encode

ANNOTATED, PREDICTED = "#FFB000", "#4CC3FF"
"""Distinguishable with any of the usual colour blindnesses, and in grey."""
COLUMNS, TILE_INCHES, DPI = 3, 2.4, 160
MOST_SLICES = 6
INK, QUIET = "#F2F4F7", "#A8AFBA"


@dataclass(frozen=True)
class Contour:
    """The outline of a mask."""

    label: str
    colour: str
    mask: NDArray[np.bool_]
    """(X, Y, Z)."""


def fullest_slices(mask: NDArray[np.bool_], most: int = MOST_SLICES) -> tuple[int, ...]:
    """The slice with most of a mask (X, Y, Z) in each of ``most`` equal parts; evenly spaced for an empty mask."""
    areas = mask.sum(axis=(0, 1))
    if not areas.any():
        places = np.linspace(0, len(areas) - 1, min(len(areas), most) + 2)[1:-1].round()
        return tuple(int(index) for index in np.unique(places))
    share = (areas.cumsum() - areas / 2) / areas.sum()
    wanted = (np.arange(most) + 0.5) / most
    chosen = {int(np.abs(np.where(areas > 0, share, np.inf) - part).argmin()) for part in wanted}
    fullest = int(areas.argmax())
    if fullest not in chosen:
        chosen = (chosen - {min(chosen, key=lambda index: abs(index - fullest))}) | {fullest}
    return tuple(sorted(chosen))


def neighbouring_slices(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    """The slice with most of a mask (X, Y, Z), and its neighbours."""
    fullest = int(mask.sum(axis=(0, 1)).argmax())
    return tuple(range(max(0, fullest - 1), min(mask.shape[2], fullest + 2)))


def draw_overlay(
    image: NDArray[np.float32],
    slices: Sequence[int],
    contours: Sequence[Contour],
    *,
    pixel_aspect: float,
    title: str,
    notice: str = "",
) -> bytes:
    """Axial slices from foot to head with contours, as PNG; the patient's right is on the left.

    Args:
        image: (X, Y, Z), HU, RAS+.
        slices: indices of the slices.
        contours: drawn one over the other.
        pixel_aspect: size of a pixel along y over its size along x.
        title: above the slices; must not identify the patient.
        notice: below them.
    """
    columns = min(COLUMNS, len(slices))
    rows = -(-len(slices) // columns)
    tall = TILE_INCHES * pixel_aspect * image.shape[1] / image.shape[0]
    width, height, bar = max(columns, 2) * TILE_INCHES, rows * tall, 0.34
    whole = height + bar * (3 if notice else 2)
    figure = Figure(figsize=(width, whole), dpi=DPI, facecolor="black")
    for place, index in enumerate(slices):
        row, column = divmod(place, columns)
        left = (width - columns * TILE_INCHES) / 2 + column * TILE_INCHES
        bottom = whole - bar - (row + 1) * tall
        box = (left / width, bottom / whole, TILE_INCHES / width, tall / whole)
        axes = draw_slice(figure, box, image, index)
        for contour in contours:
            draw_contour(axes, contour.mask, index, contour.colour, 1.1)
        axes.text(0.03, 0.03, f"slice {index + 1}", color=INK, fontsize=9, transform=axes.transAxes)
        axes.text(0.03, 0.92, "R", color=INK, fontsize=9, transform=axes.transAxes)
    figure.text(0.5, 1 - bar / 2 / whole, title, color=INK, fontsize=11, ha="center", va="center")
    handles = [Line2D([], [], color=contour.colour, linewidth=1.6, label=contour.label) for contour in contours]
    below = 0.5, (whole - bar * 1.5 - height) / whole
    style = {"ncols": len(handles), "frameon": False, "labelcolor": INK, "fontsize": 10}
    figure.legend(handles=handles, loc="center", bbox_to_anchor=below, **style)
    if notice:
        figure.text(0.5, bar / 2 / whole, notice, color=QUIET, fontsize=5.5, ha="center", va="center", wrap=True)
    FigureCanvasAgg(figure)
    return encode(figure)
