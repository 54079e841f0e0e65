"""Pictures of the best, the median and the worst case for a simulated study's report.

Only a simulation has all data on one machine; a hospital's scans and results per case stay at the hospital. The cases
are chosen by Dice among the held-out cases with annotated blood. Their predictions are those of the study's first
adapter that was evaluated in this run, not reused from an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sahfl.adapters import digest
from sahfl.adapters.attach import merge
from sahfl.atomic import write_atomic
from sahfl.cell_names import cell_of
from sahfl.config import AdapterTuning, SiteConfig, Study
from sahfl.data.ct import Scan, read_scan
from sahfl.errors import DataError, SahflError
from sahfl.evaluation import predict
from sahfl.events import Warned, emit
from sahfl.federation.requests import Requests
from sahfl.federation.site.case_results import read_results
from sahfl.federation.site.site import Site
from sahfl.prediction.networks import adapted_network, read_base
from sahfl.prediction.site_networks import network_of
from sahfl.report.overlays import ANNOTATED, PREDICTED, Contour, draw_overlay, neighbouring_slices
from sahfl.run.folder import RunFolder
from sahfl.task import parts_of


@dataclass(frozen=True)
class Scored:
    """One held-out case as its site scored it."""

    site: str
    case: str
    fold: int
    dice: float
    volume_ml: float
    predicted_ml: float


def draw_overlays(folder: RunFolder, study: Study, sites: Sequence[SiteConfig]) -> list[dict[str, Any]]:
    """Draw ``overlays/best.png``, ``median.png`` and ``worst.png`` of a finished simulation.

    Guarantees: the pictures contain no name of a case, a patient or a file.

    Returns:
        Rows for ``results["overlays"]``: case, method, site, fold, dice, volume_ml, predicted_ml, png. No rows without
        an adapter or without a case with blood; only best and worst if there are two cases.
    """
    configs = {site.name: site for site in sites if site.name in study.finetune.sites}
    adapters = [method for method in study.finetune.methods if isinstance(method, AdapterTuning)]
    method = next((method for method in adapters if _evaluated_here(folder, study, method)), None)
    if method is None:
        return []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # workers may still run, and more threads than cores are many times slower
    try:
        return _draw_cases(folder, study, method, configs)
    finally:
        torch.set_num_threads(threads)


def _draw_cases(
    folder: RunFolder, study: Study, method: AdapterTuning, configs: Mapping[str, SiteConfig]
) -> list[dict[str, Any]]:
    rows = []
    for which, scored in choose_cases(read_scores(configs.values(), study, method.id)).items():
        site = configs[scored.site]
        try:
            scan, mask = _segment(folder, study, method, site, scored)
        except SahflError as error:  # the study is complete, so a scan that changed since must not fail it
            emit(Warned(f"{scored.site}: no overlay of the {which} case ({type(error).__name__})"))
            continue
        png = f"overlays/{which}.png"
        write_atomic(folder.path / png, _draw(scan, mask, f"{which} case: Dice {scored.dice:.2f}"))
        numbers = {"dice": scored.dice, "volume_ml": scored.volume_ml, "predicted_ml": scored.predicted_ml}
        rows.append(
            {"case": which, "method": method.id, "site": scored.site, "fold": scored.fold, **numbers, "png": png}
        )
    return rows


def add_overlays(folder: RunFolder, study: Study, sites: Sequence[SiteConfig]) -> dict[str, Any]:
    """Draw the overlays of a finished simulation, add them to its results, and return the results."""
    results = folder.read_json("results.json") or {}
    results["overlays"] = draw_overlays(folder, study, sites)
    folder.write_json("results.json", results)
    return results


def read_scores(sites: Iterable[SiteConfig], study: Study, method: str) -> list[Scored]:
    """Scores of a method on all its evaluated cases with annotated blood; of two scores of a case, the last one."""
    found: dict[tuple[str, str], Scored] = {}
    for site in sites:
        for kept in read_results(site.folder):
            result, mine = kept.result, kept.part in (None, "personal")
            if mine and (kept.study, kept.method) == (study.fingerprint(), method) and result.volume_ml > 0:
                numbers = result.dice or 0.0, result.volume_ml, result.predicted_ml
                found[site.name, kept.case] = Scored(site.name, kept.case, kept.fold, *numbers)
    return list(found.values())


def choose_cases(scored: Sequence[Scored]) -> dict[str, Scored]:
    """Choose different cases as best, median and worst by Dice; of two middle cases, the lower is the median."""
    ordered = sorted(scored, key=lambda item: (item.dice, item.site, item.case))
    chosen = {}
    if ordered:
        chosen["best"] = ordered[-1]
    if len(ordered) > 2:
        chosen["median"] = ordered[(len(ordered) - 1) // 2]
    if len(ordered) > 1:
        chosen["worst"] = ordered[0]
    return chosen


def _evaluated_here(folder: RunFolder, study: Study, method: AdapterTuning) -> bool:
    """Whether all folds were evaluated in this run; results per case of a reused fold are in another run's folder."""
    return not folder.reused() & {cell_of(method, fold) for fold in range(study.finetune.folds)}


def _segment(
    folder: RunFolder, study: Study, method: AdapterTuning, config: SiteConfig, scored: Scored
) -> tuple[Scan, NDArray[np.bool_]]:
    """Read a scan and segment it as the site did: with the fold's network, or with the one that stays at the site."""
    stage, fold = study.finetune, scored.fold
    if "personal" in parts_of(method):
        requests = Requests(study, study.fingerprint(), digest(read_base(folder.path)))
        net = network_of(config.folder, requests.header("finetune", method.id, fold))
    else:
        net, _ = adapted_network(folder.path, study, method, scored.fold)
    merge(net)
    site = Site(config)
    held_out = site.held_out_cases(fold=fold, n_folds=stage.folds, seed=study.seed)
    item = next((item for item in held_out if item.case.id == scored.case), None)
    if item is None:
        raise DataError(f"site {config.name}: case {scored.case} is not in fold {fold} any more")
    (views,) = site.load_views([item], study.views)
    mask = predict(net, views, study.views) >= study.evaluation.threshold
    return read_scan(item.case), mask


def _draw(scan: Scan, mask: NDArray[np.bool_], title: str) -> bytes:
    x, y, _ = scan.spacing_mm
    contours = [Contour("annotated", ANNOTATED, scan.label), Contour("predicted", PREDICTED, mask)]
    return draw_overlay(scan.image, neighbouring_slices(scan.label), contours, pixel_aspect=y / x, title=title)
