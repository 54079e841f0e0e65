"""The page: what ``report.html.j2`` shows, and writing it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sahfl.atomic import write_atomic
from sahfl.errors import DataError
from sahfl.report import tables
from sahfl.report.figures import Picture, draw_figures
from sahfl.report.form import form_problems
from sahfl.report.summary import headline, hostile_sentence, tiles
from sahfl.report.text import DASH, Results, moment

SCHEMA = 1
"""The form of results.json that this version reads."""
MOST_PROBLEMS = 20
"""More of them are counted, not listed."""


def write_report(results: Results, folder: Path) -> Path:
    """Write ``report.html`` and ``figures/*.png`` into a folder.

    Guarantees: the page loads nothing from the network and runs no script; text from the results is escaped; each
    file is whole or absent; a value that is not known is a dash.

    Returns:
        Path of the page.

    Raises:
        DataError: the results have another schema number, or lack what this one holds; nothing is written.
    """
    if (schema := results.get("schema")) != SCHEMA:
        raise DataError(f"results: got schema {schema!r}, expected {SCHEMA}; use the sahfl that wrote them")
    if problems := tuple(form_problems(results)):
        listed = "\n".join(f"  {problem}" for problem in problems[:MOST_PROBLEMS])
        more = f"\n  and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
        advice = "delete results.json to have it made again (sahfl simulate --resume RUN_DIR)"
        raise DataError(f"results: {len(problems)} problem(s); {advice}\n{listed}{more}")
    pictures = draw_figures(results)
    for picture in pictures:
        write_atomic(folder / "figures" / f"{picture.name}.png", picture.png)
    path = folder / "report.html"
    write_atomic(path, render_page(results, pictures))
    return path


def render_page(results: Results, pictures: tuple[Picture, ...]) -> str:
    """Fill the template."""
    return make_environment().get_template("report.html.j2").render(_context(results, pictures))


def make_environment() -> Environment:
    """Return the templates of this package: text is escaped, a missing value is an error, None is a dash."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: DASH if value is None else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _context(results: Results, pictures: tuple[Picture, ...]) -> dict[str, Any]:
    return {
        "results": results,
        "headline": headline(results),
        "tiles": tiles(results),
        "pictures": {picture.name: picture for picture in pictures},
        "sources": {picture.name: base64.b64encode(picture.png).decode() for picture in pictures},
        "hostile": hostile_sentence(results),
        "phantom": any(site["source"].startswith("phantom") for site in results["sites"]),
        "finished": moment(results["finished"]),
        "started": moment(results["started"]),
        "methods": tables.method_table(results),
        "others": tables.other_comparisons_table(results),
        "strata": tables.stratum_table(results),
        "by_site": tables.site_dice_table(results),
        "volume": tables.volume_table(results),
        "traffic": tables.traffic_table(results),
        "aggregation": tables.aggregation_table(results),
        "sites": tables.site_table(results),
        "failures": tables.failure_table(results),
        "not_evaluated": tables.not_evaluated_table(results),
        "withheld": tables.withheld_table(results),
        "support": tables.support_sentences(results),
        "settings": tables.settings_table(results),
        "versions": tables.version_table(results),
    }
