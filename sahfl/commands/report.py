"""``sahfl report``: the report of a finished run, written again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sahfl.errors import RunError


def report(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    tensorboard: Annotated[
        Path | None, typer.Option(help="Also write event files into this folder; needs sahfl\\[tensorboard].")
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(help="Also log to this tracking URI, or into this folder; needs sahfl\\[mlflow].")
    ] = None,
) -> None:
    """Write the report of a finished run again, from its results.json: page, figures, CSV and LaTeX tables.

    Example: sahfl report runs/demo-20261122-140000

    Example: sahfl report runs/demo-20261122-140000 --tensorboard events --mlflow tracking
    """
    from sahfl.report import write_report
    from sahfl.run.folder import RunFolder
    from sahfl.tracking import export_mlflow, export_tensorboard

    results = RunFolder(run_dir).read_json("results.json")
    if results is None:
        how = f"sahfl simulate --resume {run_dir}, or the same sahfl study; a server goes on by itself"
        raise RunError(f"{run_dir}: has no results.json; the run is not finished ({how})")
    if not isinstance(results, dict):
        raise RunError(f"{run_dir}: results.json is not a mapping; delete it to have it made again")
    print(write_report(results, run_dir))
    if tensorboard is not None:
        print(export_tensorboard(results, tensorboard))
    if mlflow is not None:
        print(export_mlflow(results, mlflow))
