"""Small pictures of one scan for the page of a site's data checks; numpy arrays in, bytes and text out."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

WINDOW_HU = 0.0, 80.0
"""The usual brain window of radiology."""
MOST_SLICES = 8
TILE_PX, DPI = 132, 100
CONTOUR = "#FFB000"
HISTOGRAM_HU = -1100.0, 1700.0
BINS = 70


@dataclass(frozen=True)
class ScanPicture:
    """The pictures of one scan on the page."""

    strip: bytes
    """JPEG: axial slices from foot to head, the patient's right on the left."""
    slices: tuple[int, ...]
    """Their indices."""
    histogram: tuple[int, ...]
    """Voxels per bin of ``HISTOGRAM_HU``."""


def draw_scan(image: NDArray[np.float32], label: NDArray[np.bool_], pixel_aspect: float) -> ScanPicture:
    """Draw a scan (X, Y, Z; HU, RAS+) with the outline of its label (X, Y, Z), and its histogram.

    ``pixel_aspect`` is the size of a pixel along y over its size along x.
    """
    chosen = choose_slices(label)
    counts, _ = np.histogram(image, BINS, HISTOGRAM_HU)
    return ScanPicture(_strip(image, label, chosen, pixel_aspect), chosen, tuple(int(count) for count in counts))


def choose_slices(label: NDArray[np.bool_]) -> tuple[int, ...]:
    """Evenly spaced slices of a label (X, Y, Z); the slice with the most blood takes the place of the one nearest to
    it.
    """
    depth = label.shape[2]
    chosen = np.unique(np.linspace(0, depth - 1, min(depth, MOST_SLICES) + 2)[1:-1].round().astype(int))
    areas = label.sum(axis=(0, 1))
    if areas.any():
        chosen[np.abs(chosen - areas.argmax()).argmin()] = areas.argmax()
    return tuple(int(index) for index in chosen)


def histogram_points(histogram: tuple[int, ...], width: float, height: float) -> str:
    """Points of an SVG polygon on a logarithmic scale, so that both brain and air are visible."""
    values = np.log1p(np.asarray(histogram, np.float64))
    values = height - height * values / max(values.max(), 1.0)
    edges = pairwise(np.linspace(0, width, len(histogram) + 1))
    steps = [f"{x:.1f},{y:.1f}" for y, ends in zip(values, edges, strict=True) for x in ends]
    return " ".join([f"0,{height:.1f}", *steps, f"{width:.1f},{height:.1f}"])


def histogram_place(hu: float, width: float) -> float:
    """Horizontal position of a value in the histogram."""
    low, high = HISTOGRAM_HU
    return width * (hu - low) / (high - low)


def draw_slice(figure: Figure, box: tuple[float, float, float, float], image: NDArray[np.float32], index: int) -> Axes:
    """Draw an axial slice of an image (X, Y, Z) in a box of the figure; the patient's right is on the left."""
    axes = figure.add_axes(box)
    axes.set_axis_off()
    low, high = WINDOW_HU
    # In RAS+ x grows to the patient's right, which is on the left in radiology.
    axes.imshow(image[::-1, :, index].T, cmap="gray", vmin=low, vmax=high, origin="lower", aspect="auto")
    return axes


def draw_contour(axes: Axes, mask: NDArray[np.bool_], index: int, colour: str, width: float) -> None:
    """Draw the outline of a mask (X, Y, Z) on its slice."""
    plane = mask[::-1, :, index].T
    if plane.any():
        axes.contour(plane.astype(np.float32), levels=[0.5], colors=colour, linewidths=width)


def _strip(image: NDArray[np.float32], label: NDArray[np.bool_], chosen: tuple[int, ...], aspect: float) -> bytes:
    tall = TILE_PX * aspect * image.shape[1] / image.shape[0]
    figure = Figure(figsize=(TILE_PX * len(chosen) / DPI, tall / DPI), dpi=DPI, facecolor="black")
    for place, index in enumerate(chosen):
        axes = draw_slice(figure, (place / len(chosen), 0, 1 / len(chosen), 1), image, index)
        draw_contour(axes, label, index, CONTOUR, 0.9)
        axes.text(0.03, 0.04, str(index + 1), color="#D0D4DA", fontsize=6.5, transform=axes.transAxes)
        if not place:
            axes.text(0.03, 0.9, "R", color="#D0D4DA", fontsize=7.5, transform=axes.transAxes)
    stream = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(stream, format="jpg", pil_kwargs={"quality": 82, "optimize": True})
    return stream.getvalue()
