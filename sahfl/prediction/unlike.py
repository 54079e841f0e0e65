"""In what a new scan differs from what a network was made for and trained on, as far as a run's folder shows it.

Hospitals do not send measurements of their scans, so a run has no distribution to compare with. It has two things: the
settings of the views, which say what the network can see, and of each site the number of scans in which each rule of
the data check found something. Everything here compares with one of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sahfl.config import ViewsConfig
from sahfl.data.ct import HEAD_HU
from sahfl.data.new_scan import NewScan
from sahfl.data.views import MIN_SLICES
from sahfl.prediction.interval import reading_results
from sahfl.run.folder import RunFolder

COARSE = 1.5
"""A pixel this many times the network's shows less than the network was made for."""
LEAST_HEAD_MM, LEAST_HEIGHT_MM = 100.0, 80.0
"""A head is wider than the first; a scan of a whole brain is higher than the second."""
STEP_MM = 2.0
"""The head is measured on every voxel at about this distance."""


@dataclass(frozen=True)
class Difference:
    """One difference; ``id`` for tables, ``text`` for people."""

    id: str
    text: str


@dataclass(frozen=True)
class Known:
    """What a run's folder has of the scans that a network was trained on."""

    n_scans: int = 0
    """Usable scans of all sites."""
    found: frozenset[str] | None = None
    """Rules that found something in a scan of any site; None if that is not known."""


def read_known(run: Path) -> Known:
    """What the results of a run have of its sites; nothing without results.

    Raises:
        RunError: ``results.json`` is damaged.
    """
    if not (run / "study.json").is_file() or not (run / "results.json").is_file():
        return Known()
    with reading_results(run):
        sites = [site for site in RunFolder(run).results().get("sites", []) if isinstance(site, Mapping)]
        n_scans = sum(int(site.get("n_volumes") or 0) for site in sites)
        each = [_rules(site) for site in sites if site.get("n_volumes")]
    if not each or None in each:
        return Known(n_scans)
    return Known(n_scans, frozenset().union(*filter(None, each)))


def _rules(site: Mapping[str, Any]) -> frozenset[str] | None:
    """The rules that found something at a site; None if the site has too few patients to send that."""
    found = site.get("findings")
    if not isinstance(found, Mapping) or (not found and site.get("volume_ml") is None):
        return None
    return frozenset(map(str, found))


def differences(new: NewScan, views: ViewsConfig, known: Known) -> tuple[Difference, ...]:
    """All differences of a scan; an empty result says only that none of these was found."""
    return (*_from_views(new, views), *_from_sites(new, known))


def _from_views(new: NewScan, views: ViewsConfig) -> Iterator[Difference]:
    x, y, z = new.scan.spacing_mm
    if max(x, y) > COARSE * views.spacing_mm:
        text = f"pixels of {x:.2f} x {y:.2f} mm, the network's are of {views.spacing_mm:g} mm"
        yield Difference("coarse_pixels", text)
    n_slices = new.scan.image.shape[2]
    sides = [view for view in views.weights if view != "axial"]
    if n_slices < MIN_SLICES and sides:
        yield Difference("few_slices", f"{n_slices} slices, too few for the {' and '.join(sides)} view")
    steps = tuple(max(1, int(STEP_MM / mm)) for mm in (x, y, z))
    coarse = new.scan.image[:: steps[0], :: steps[1], :: steps[2]]
    head = coarse > HEAD_HU
    if not head.any():
        yield Difference("no_head", "nothing denser than air")
        return
    sizes = [_extent(head, axis) * steps[axis] * mm for axis, mm in enumerate((x, y, z))]
    field = [pixels * views.spacing_mm for pixels in views.size]
    for size, most, name in zip(sizes[:2], field[:2], ("left to right", "front to back"), strict=True):
        if size > most + 2 * STEP_MM:
            yield Difference("larger_than_field", f"{size:.0f} mm from {name}, of which the network sees {most:.0f} mm")
        if size < LEAST_HEAD_MM:
            yield Difference("small_head", f"{size:.0f} mm from {name}, less than a head")
    if sizes[2] < LEAST_HEIGHT_MM:
        yield Difference("part_of_head", f"{sizes[2]:.0f} mm from top to bottom, less than a brain")


def _extent(head: Any, axis: int) -> int:
    others = tuple(other for other in range(3) if other != axis)
    # A headrest or a tube is thin: a plane counts with a hundredth of the fullest plane's voxels.
    filled = head.sum(axis=others)
    places = np.flatnonzero(filled >= 0.01 * filled.max())
    return int(places[-1] - places[0]) + 1


def _from_sites(new: NewScan, known: Known) -> Iterator[Difference]:
    if known.found is None:
        return
    for item in new.findings:
        if item.severity == "warning" and item.rule not in known.found:
            text = f"the data check warns of {item.rule}, and of none of {known.n_scans} scans of the study"
            yield Difference(f"new_{item.rule}", text)
