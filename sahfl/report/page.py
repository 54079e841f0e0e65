"""The report page: its figures, the data for ``report.html.j2``, and writing it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sahfl.atomic import write_atomic
from sahfl.errors import DataError
from sahfl.report import run_tables, tables
from sahfl.report.accuracy_figures import draw_methods, draw_places, draw_ranks, draw_strata
from sahfl.report.case_pictures import read_overlays
from sahfl.report.claim import claim_table, n_filled
from sahfl.report.cost_figures import draw_bytes, draw_costs
from sahfl.report.form import form_problems
from sahfl.report.names import FROM_EACH, families, left_out, name_methods
from sahfl.report.paper import paper_table
from sahfl.report.paper_files import write_paper_files
from sahfl.report.summary import cells_sentence, headline, hostile_sentence, tiles
from sahfl.report.text import DASH, Results, moment
from sahfl.report.theme import STYLE, Drawing
from sahfl.report.training_figures import draw_losses
from sahfl.report.volume_figures import draw_bland_altman, draw_histograms

SCHEMA = 3
"""The schema of results.json that this version reads."""
REMAKE = "delete results.json and go on with the run, which makes it again"
CONTENTS = (
    ("findings", "Findings"),
    ("paper", "The paper"),
    ("accuracy", "Accuracy"),
    ("differences", "Differences"),
    ("cost", "Ranks and cost"),
    ("places", "Pooled, federated, single-site"),
    ("volume", "Volume"),
    ("cases", "Cases"),
    ("bytes", "Bytes"),
    ("training", "Training"),
    ("failures", "Failures"),
    ("hospitals", "Hospitals"),
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
)
"""All figures, in the order of the page."""
MOST_PROBLEMS = 20
"""Further problems are only counted."""


def write_report(results: Results, folder: Path) -> Path:
    """Write ``report.html``, ``figures/*.png`` and ``tables/*`` (CSV and LaTeX) into a run's folder.

    Guarantees: the page loads nothing from the network and runs no script; text from the results is escaped; each file
    is complete or absent; an unknown value is a dash.

    Returns:
        Path of the page.

    Raises:
        DataError: the results have another schema number, or lack required keys; nothing is written.
    """
    _check(results)
    pictures = draw_figures(results)
    for picture in pictures:
        write_atomic(folder / "figures" / f"{picture.name}.png", picture.png)
    write_paper_files(results, folder / "tables")
    path = folder / "report.html"
    write_atomic(path, render_page(results, pictures, folder))
    return path


def _check(results: Results) -> None:
    if (schema := results.get("schema")) != SCHEMA:
        known = isinstance(schema, int) and not isinstance(schema, bool) and schema < SCHEMA
        advice = REMAKE if known else "use the sahfl that wrote them"
        raise DataError(f"results: got schema {schema!r}, expected {SCHEMA}; {advice}")
    if problems := tuple(form_problems(results)):
        listed = "\n".join(f"  {problem}" for problem in problems[:MOST_PROBLEMS])
        more = f"\n  and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
        raise DataError(f"results: {len(problems)} problem(s); {REMAKE}\n{listed}{more}")


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
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: DASH if value is None else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _context(results: Results, pictures: tuple[Drawing, ...], folder: Path) -> dict[str, Any]:
    claim = claim_table(results)
    return {
        "results": results,
        "families": families(),
        "contents": _contents(results, {picture.name for picture in pictures}),
        "headline": headline(results),
        "tiles": tiles(results),
        "pictures": {picture.name: picture for picture in pictures},
        "sources": {picture.name: base64.b64encode(picture.png).decode() for picture in pictures},
        "hostile": hostile_sentence(results),
        "phantom": any(site["source"].startswith("phantom") for site in results["sites"]),
        "findings": [_finding(finding, results) for finding in results["findings"]],
        "untested": [finding["claim"] for finding in results["findings"] if not finding["pairs"]],
        "overlays": read_overlays(results, folder),
        "cells": cells_sentence(results),
        "paper": paper_table(results),
        "claim": claim,
        "claim_filled": n_filled(claim),
        "finished": moment(results["finished"]),
        "started": moment(results["started"]),
        "from_each": any(method["trained_at"] == FROM_EACH for method in results["methods"]),
        "left_out": left_out(results),
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
        "places": "places" in pictures or results["gains"],
    }
    there["cost"] = {"ranks", "costs"} & pictures
    return [(anchor, title) for anchor, title in CONTENTS if there.get(anchor, True)]


def _tables(results: Results) -> dict[str, tables.Table]:
    return {
        "methods": tables.method_table(results),
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
        "sites": run_tables.site_table(results),
        "failures": run_tables.failure_table(results),
        "settings": run_tables.settings_table(results),
        "versions": run_tables.version_table(results),
    }
