"""``sahfl ledger``: how often each scan of a hospital was used, over all studies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def ledger(
    site: Annotated[Path, typer.Argument(metavar="SITE", help="Site file (YAML).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Verify a site's ledger, and print how often each scan was used for training and evaluation, over all studies.

    A scan is named by the hash of its content; no name of a file or patient is in the ledger.

    Example: sahfl ledger site.yaml
    """
    from sahfl.config import load_site
    from sahfl.federation.site.ledger import Ledger

    config = load_site(site)
    book = Ledger(config)
    book.check()
    used, budget, left = book.usage(), config.policy.budget, book.left()
    ordered = sorted(used.items(), key=lambda item: (-item[1].rounds, -item[1].evaluations, item[0]))
    if as_json:
        rows = [
            {"scan": scan, "rounds": one.rounds, "evaluations": one.evaluations, "studies": sorted(one.studies)}
            for scan, one in ordered
        ]
        print(json.dumps({"budget": budget.model_dump(), "left": left, "scans": rows}, indent=1))
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("scan", "rounds", "evaluations", "studies"):
        table.add_column(name, no_wrap=True, justify="left" if name == "scan" else "right")
    for scan, one in ordered:
        table.add_row(scan[:12], f"{one.rounds:,}", f"{one.evaluations:,}", str(len(one.studies)))
    if ordered:
        Console().print(table)
    print(
        f"{len(ordered)} scans used; left to the one used most: {left['rounds']:,} of {budget.rounds:,} rounds, "
        f"{left['evaluations']:,} of {budget.evaluations:,} evaluations"
    )
