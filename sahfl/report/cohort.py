"""Pictures of a phantom cohort: its scans, and the volumes of blood in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from sahfl.atomic import write_atomic
from sahfl.data.phantom import LABELS, CohortSpec, PhantomCase, read_cases
from sahfl.report.scan_pictures import WINDOW_HU
from sahfl.report.theme import PALE, STYLE, encode

KIND_COLOURS: Mapping[str, str] = {
    "EDH": "#E69F00",
    "IPH": "#D55E00",
    "IVH": "#56B4E9",
    "SAH": "#F0E442",
    "SDH": "#CC79A7",
}
"""Distinguishable for colour-blind readers, and visible on grey."""
PUBLISHED_MEDIAN_ML = {"IPH": (6.3, "525 real masks"), "SAH, aneurysm": (30.6, "Boers 2014")}
"""Median volumes; that of SAH is the median of a log-normal with the published 39.7 +- 32.8 mL."""
VOLUMES_NOTE = """Solid line: median of this cohort's masks. Dashed line: published median, where there is one.
A lower median of SAH, aneurysm is expected: phantoms are drawn with the published volume of blood, but a mask has only
voxels that a rater would mark (42 % blood or more), about half of the volume drawn. The rest lies in thin layers."""
"""In 30 phantoms (seeds 1000 to 1029) the median was 38 mL as drawn, and 20 mL in the masks of subarachnoid blood."""
SHOWN_CASES, AXIAL_SLICES = 4, 6
AXIAL_MM = (-38.0, 58.0)
"""Range of heights of the axial slices shown (mm above the origin of the affine)."""
DPI = 130
VOLUME_BINS_ML = np.geomspace(0.1, 200, 25)
TICKS_ML = (0.1, 1, 10, 100)


def draw_cohort(folder: Path, specs: Sequence[CohortSpec]) -> tuple[Path, ...]:
    """Draw ``montage-<site>.png`` for each site of a cohort's folder, then ``volumes.png``; return their paths.

    Guarantees: matplotlib's global state is unchanged, and no window system is needed.
    """
    pictures: list[Path] = []
    volumes: dict[str, list[dict[str, float]]] = {}
    with matplotlib.rc_context(STYLE):
        for spec in specs:
            shown: list[PhantomCase] = []
            volumes_ml = []
            for case in read_cases(folder, spec):
                volumes_ml.append(measure_volumes(case))
                if len(shown) < SHOWN_CASES:
                    shown.append(case)
            pictures.append(_write(folder / f"montage-{spec.site}.png", draw_montage(spec, shown)))
            volumes[spec.site] = volumes_ml
        pictures.append(_write(folder / "volumes.png", draw_volumes(specs, volumes)))
    return tuple(pictures)


def measure_volumes(case: PhantomCase) -> dict[str, float]:
    """Volume (mL) of each kind of blood in the mask; the kinds are those of ``LABELS``."""
    voxel_ml = abs(float(np.linalg.det(case.affine[:3, :3]))) / 1000
    return {kind: float((case.label == value).sum()) * voxel_ml for kind, value in LABELS.items()}


def draw_montage(spec: CohortSpec, cases: Sequence[PhantomCase]) -> Figure:
    """One row per case: axial slices from the base up, then one coronal slice; masks as contours in a colour per kind.

    The patient's right side is on the left, as in radiology. The axial slices include the one with the most blood.
    """
    figure = Figure(figsize=(1.75 * (AXIAL_SLICES + 1), 2.05 * len(cases) + 0.75), facecolor="black")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(cases), AXIAL_SLICES + 1, squeeze=False)
    margin = 0.36 / figure.get_figheight()
    figure.subplots_adjust(0.004, margin, 0.996, 1 - margin, wspace=0.02, hspace=0.02)
    for row, case in zip(grid, cases, strict=True):
        for axes, index in zip(row, _axial_indices(case), strict=False):
            _draw_slice(axes, case, axis=2, index=index)
        _draw_slice(row[-1], case, axis=1, index=_fullest(case, axis=1))
    title = f"{spec.site}: {spec.kind}, scanner profile {spec.profile}, {len(cases)} of {spec.n_cases} cases"
    figure.text(0.006, 0.995, f"{title}   (0 to 80 HU; right side on the left)", color="white", va="top", fontsize=10)
    handles = [Line2D([], [], color=colour, label=kind) for kind, colour in KIND_COLOURS.items()]
    figure.legend(handles=handles, loc="lower left", ncols=len(handles), frameon=False, labelcolor="white")
    return figure


def _axial_indices(case: PhantomCase) -> list[int]:
    """Evenly spaced slice indices; the slice with the most blood takes the place of the one nearest to it."""
    spacing, lowest = case.affine[2, 2], case.affine[2, 3]
    wanted = np.rint((np.linspace(*AXIAL_MM, AXIAL_SLICES) - lowest) / spacing).astype(int)
    indices = np.clip(wanted, 0, case.image.shape[2] - 1)
    if case.label.any():
        fullest = _fullest(case, axis=2)
        indices[np.argmin(np.abs(indices - fullest))] = fullest
    return [int(index) for index in indices]


def _fullest(case: PhantomCase, *, axis: int) -> int:
    """The slice across ``axis`` with the most blood; without blood, the middle one."""
    if not case.label.any():
        return case.image.shape[axis] // 2
    others = tuple(other for other in range(3) if other != axis)
    return int(np.argmax((case.label > 0).sum(axis=others)))


def _draw_slice(axes: Axes, case: PhantomCase, *, axis: int, index: int) -> None:
    """Draw one slice in mm: x from right to left, y or z upwards."""
    image, label = (np.take(volume, index, axis=axis).T for volume in (case.image, case.label))
    up = 1 if axis == 2 else 2
    sizes = [case.image.shape[i] * abs(case.affine[i, i]) for i in (0, up)]
    box = (0.0, sizes[0], 0.0, sizes[1])
    low, high = WINDOW_HU
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", extent=box, interpolation="bilinear")
    for kind, value in LABELS.items():
        if (label == value).any():
            across, upwards = ((np.arange(n) + 0.5) * size / n for n, size in zip(label.T.shape, sizes, strict=True))
            mask = (label == value).astype(float)
            axes.contour(across, upwards, mask, [0.5], colors=KIND_COLOURS[kind], linewidths=0.8)
    axes.set_xlim(sizes[0], 0)
    axes.set_axis_off()
    place = case.affine[axis, 3] + index * case.affine[axis, axis]
    text = f"{'yz'[axis - 1]} {place:+.0f}"
    axes.text(0.03, 0.97, text, color="#B8BDC5", fontsize=7, va="top", transform=axes.transAxes)


def draw_volumes(specs: Sequence[CohortSpec], volumes: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Histograms of annotated volume on a log axis: one row per kind over all sites, one row per site over all kinds.

    ``volumes`` is site -> volume (mL) by kind, for each case.
    """
    kinds = _by_kind(specs, volumes)
    sites = {spec.site: np.array([sum(case.values()) for case in volumes[spec.site]]) for spec in specs}
    rows = max(len(kinds), len(sites))
    figure = Figure(figsize=(11, 1.6 + 0.66 * rows), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(1, 2)
    for part, title, shown in zip(parts, ("By kind, all sites", "By site, all kinds"), (kinds, sites), strict=True):
        part.suptitle(title, fontsize=11)
        every = part.subplots(rows, 1, squeeze=False)[:, 0]
        for axes, (name, volumes_ml) in zip(every, shown.items(), strict=False):
            colour = KIND_COLOURS.get(name[:3], "#0072B2")
            _draw_histogram(axes, volumes_ml, name, colour, PUBLISHED_MEDIAN_ML.get(name))
        for axes in every[len(shown) :]:
            axes.set_axis_off()
        every[len(shown) - 1].tick_params(labelbottom=True)
        every[len(shown) - 1].set_xlabel("annotated volume (mL)")
    figure.supxlabel(VOLUMES_NOTE, fontsize=9)
    return figure


def _by_kind(
    specs: Sequence[CohortSpec], volumes: Mapping[str, Sequence[Mapping[str, float]]]
) -> dict[str, NDArray[np.float64]]:
    """Kind -> volume in each case of all sites; subarachnoid blood of aneurysms and of trauma count as two kinds."""
    rows: dict[str, list[float]] = {kind: [] for kind in ("EDH", "SDH", "IPH", "IVH", "SAH, aneurysm", "SAH, trauma")}
    for spec in specs:
        for case in volumes[spec.site]:
            for kind, volume_ml in case.items():
                name = kind if kind != "SAH" else f"SAH, {'aneurysm' if spec.kind == 'sah' else 'trauma'}"
                rows[name].append(volume_ml)
    return {name: np.array(values) for name, values in rows.items() if values}


def _draw_histogram(
    axes: Axes, volumes_ml: NDArray[np.float64], name: str, colour: str, published: tuple[float, str] | None
) -> None:
    present = volumes_ml[volumes_ml > 0]
    low, high = VOLUME_BINS_ML[0], VOLUME_BINS_ML[-1]
    axes.hist(np.clip(present, low, high), list(VOLUME_BINS_ML), color=colour, edgecolor="white", linewidth=0.5)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xticks(TICKS_ML, [f"{tick:g}" for tick in TICKS_ML])
    axes.tick_params(labelbottom=False)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylabel(name, rotation=0, ha="right", va="center")
    axes.grid(axis="x", color=PALE)
    axes.set_axisbelow(True)
    text = f"in {len(present)} of {len(volumes_ml)} cases"
    if len(present):
        axes.axvline(float(np.median(present)), color="#24292F", linewidth=1.2)
        text += f"\nmedian {np.median(present):.1f} mL"
    if published is not None:
        axes.axvline(published[0], color="#24292F", linewidth=1.2, linestyle="--")
        text += f"\npublished {published[0]:.1f} mL\n({published[1]})"
    axes.text(1.01, 1.0, text, transform=axes.transAxes, va="top", fontsize=7.5)


def _write(path: Path, figure: Figure) -> Path:
    write_atomic(path, encode(figure, dpi=DPI, facecolor=figure.get_facecolor()))
    return path
