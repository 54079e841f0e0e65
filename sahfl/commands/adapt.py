"""``sahfl adapt``: a new hospital trains its own part of what a federation shares, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sahfl.commands.program import read_fold


def adapt(
    site: Annotated[Path, typer.Argument(help="Site file (YAML) of the hospital.")],
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, as the coordinating centre gives it.")],
    method: Annotated[
        str | None, typer.Option(help="Id of the method, as in the report; by default the study's first adapter.")
    ] = None,
    fold: Annotated[str, typer.Option(help="One fold, or each.", metavar="K|all")] = "all",
    private_rank: Annotated[
        int | None, typer.Option(min=1, max=512, help="Number of private terms; by default the method's.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Optimiser steps; by default as many as in the study.")
    ] = None,
) -> None:
    """Train a hospital's own part of a finished method on its own scans, without a server. Nothing leaves.

    What all sites share stays as it is. For each fold, the part trains on the patients outside it; the table has the
    mean Dice over the fold's patients, with the shared network and with the hospital's own part. The networks stay in
    the site's folder, for sahfl predict.

    Example: sahfl adapt site.yaml runs/a --method cp_lora-r8-private4

    Example: sahfl adapt site.yaml runs/a --method cp_lora-r8 --private-rank 4 --steps 100
    """
    from sahfl.config import load_site
    from sahfl.console import counting
    from sahfl.events import SiteStep, listening
    from sahfl.federation.site.site import Site
    from sahfl.prediction.adapt import adapt as run_adapt

    config = load_site(site)
    table = Table("fold", "scans trained on", "scans with blood", "Dice, shared", "Dice, own part", box=None)
    with counting([config.name, "steps"], Console(stderr=True), unit="done") as show:

        def show_step(event: object) -> None:
            if isinstance(event, SiteStep):
                show("steps", event.done, event.total)

        with listening(show_step):
            for found in run_adapt(
                Site(config),
                run,
                method=method,
                fold=read_fold(fold),
                private_rank=private_rank,
                steps=steps,
                on_case=lambda done, total: show(config.name, done, total),
            ):
                means = ["" if value is None else f"{value:.3f}" for value in (found.before, found.after)]
                table.add_row(str(found.fold), str(found.n_trained), str(found.n), *means)
    Console().print(table)
