"""The report page: its figures, the data for ``report.html.j2``, and writing it."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sahfl.atomic import write_atomic
from sahfl.report import outcome_tables, run_tables, tables
from sahfl.report.accuracy_figures import draw_methods, draw_places, draw_ranks, draw_strata
from sahfl.report.case_pictures import read_overlays
from sahfl.report.claim import claim_table, n_filled
from sahfl.report.cost_figures import draw_bytes, draw_costs
from sahfl.report.form import check_results
from sahfl.report.names import FROM_EACH, families, left_out, name_methods
from sahfl.report.overlays import ANNOTATED, PREDICTED
from sahfl.report.paper import paper_table
from sahfl.report.paper_files import write_paper_files
from sahfl.report.summary import conclude, is_masked
from sahfl.report.text import DASH, Results, moment
from sahfl.report.theme import STYLE, Drawing
from sahfl.report.training_figures import draw_dice_by_round, draw_losses
from sahfl.report.volume_figures import draw_bland_altman, draw_histograms

CONTENTS = (
    ("accuracy", "Accuracy"),
    ("gain", "Each hospital"),
    ("findings", "Findings"),
    ("differences", "Differences"),
    ("cost", "Cost"),
    ("places", "Pooled, federated, single-site"),
    ("volume", "Volume"),
    ("cases", "Cases"),
    ("bytes", "Bytes"),
    ("training", "Training"),
    ("failures", "Failures"),
    ("hospitals", "Data of the hospitals"),
    ("paper", "The paper"),
    ("claim", "CLAIM"),
    ("limits", "Limits"),
    ("reproduce", "Reproduce"),
)
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
    draw_dice_by_round,
)
"""All figures, in the order of the page."""


def write_report(results: Results, folder: Path) -> Path:
    """Write ``report.html``, ``figures/*.png`` and ``tables/*`` (CSV and LaTeX) into a run's folder.

    Guarantees: the page loads nothing from the network and runs no script; text from the results is escaped; each file
    is complete or absent; an unknown value is a dash.

    Returns:
        Path of the page.

    Raises:
        DataError: the results have another schema number, or lack required keys; nothing is written.
    """
    check_results(results)
    pictures = draw_figures(results)
    for picture in pictures:
        write_atomic(folder / "figures" / f"{picture.name}.png", picture.png)
    write_paper_files(results, folder / "tables")
    path = folder / "report.html"
    write_atomic(path, render_page(results, pictures, folder))
    return path


def draw_figures(results: Results) -> tuple[Drawing, ...]:
    """Draw all figures; those without data are left out.

    Guarantees: matplotlib's global state is unchanged, and no window system is needed.
    """
    with matplotlib.rc_context(STYLE):
        drawings = [draw(results) for draw in DRAWINGS]
    return tuple(drawing for drawing in drawings if drawing is not None)


def render_page(results: Results, pictures: tuple[Drawing, ...], folder: Path) -> str:
    """Fill the template; ``folder`` is the run's, for overlays."""
    return make_environment().get_template("report.html.j2").render(_context(results, pictures, folder))


def make_environment() -> Environment:
    """The templates of this package: text is escaped, a missing value is an error, None is a dash."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: DASH if value is None else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["pieces"] = _pieces
    environment.filters["name_pieces"] = _name_pieces
    return environment


def _pieces(cell: str) -> list[str]:
    """A value and its interval, which a narrow column shows in two lines: ``0.412``, ``(0.350 to 0.469)``."""
    return re.split(r" (?=\()", cell)


def _name_pieces(name: str) -> list[str]:
    """A method's name, which is broken only after a comma: ``CP-LoRA (rank 8,``, ``pooled)``."""
    return re.split(r"(?<=,) ", name)


def _context(results: Results, pictures: tuple[Drawing, ...], folder: Path) -> dict[str, Any]:
    claim = claim_table(results)
    return {
        "results": results,
        "families": families(),
        "contents": _contents(results, {picture.name for picture in pictures}),
        "conclusion": conclude(results),
        "run": run_tables.run_sentence(results),
        "pictures": {picture.name: picture for picture in pictures},
        "sources": {picture.name: base64.b64encode(picture.png).decode() for picture in pictures},
        "findings": [_finding(finding, results) for finding in results["findings"]],
        "untested": [finding["claim"] for finding in results["findings"] if not finding["pairs"]],
        "overlays": read_overlays(results, folder),
        "annotated": ANNOTATED,
        "predicted": PREDICTED,
        "cells": run_tables.cells_sentence(results),
        "paper": paper_table(results),
        "claim": claim,
        "claim_filled": n_filled(claim),
        "finished": moment(results["finished"]),
        "started": moment(results["started"]),
        "from_each": any(method["trained_at"] == FROM_EACH for method in results["methods"]),
        "left_out": left_out(results),
        "masked": is_masked(results),
        "support": run_tables.support_sentences(results),
        "rates": tables.rate_sentences(results),
        "magnitudes": tables.magnitude_sentences(results),
        **_tables(results),
    }


def _finding(finding: Results, results: Results) -> dict[str, Any]:
    outcome = {True: "supported", False: "contradicted"}.get(finding["supported"], "open")
    shown = {"text": name_methods(finding["text"], results), "outcome": outcome}
    return {**finding, **shown, "table": run_tables.finding_table(finding, results)}


def _contents(results: Results, pictures: set[str]) -> list[tuple[str, str]]:
    """Anchor and title of each section on the page."""
    there = {
        "findings": results["findings"],
        "cases": results.get("overlays"),
        "places": "places" in pictures,
    }
    return [(anchor, title) for anchor, title in CONTENTS if there.get(anchor, True)]


def _tables(results: Results) -> dict[str, tables.Table]:
    return {
        "methods": outcome_tables.method_table(results),
        "cost": outcome_tables.cost_table(results),
        "metrics": tables.metric_table(results),
        "by_volume": tables.stratum_table(results, "by_volume"),
        "by_extent": tables.stratum_table(results, "by_extent"),
        "by_site": tables.site_dice_table(results),
        "gains": tables.comparison_table(results, with_zero_shot=True),
        "others": tables.comparison_table(results, with_zero_shot=False),
        "volume": tables.volume_table(results),
        "gain": run_tables.gain_table(results),
        "withheld": tables.withheld_table(results),
        "not_evaluated": tables.not_evaluated_table(results),
        "ledger": run_tables.ledger_table(results),
        "traffic": run_tables.traffic_table(results),
        "aggregation": run_tables.aggregation_table(results),
        "refused": run_tables.refused_table(results),
        "sites": run_tables.site_table(results),
        "failures": run_tables.failure_table(results),
        "settings": run_tables.settings_table(results),
        "versions": run_tables.version_table(results),
    }
