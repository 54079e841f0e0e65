"""``sahfl simulate``: a study as a simulated federation on this machine, to a report."""

from __future__ import annotations

import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sahfl.commands.options import Datalist
from sahfl.errors import ConfigError, RunFailed, StorageError


def simulate(
    study: Annotated[Path | None, typer.Argument(help="Study file (YAML); not with --resume.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; by default runs/<name>-<time>.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of an interrupted run to go on with.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; by default one per site, two per core at most.")
    ] = None,
    datalist: Datalist = None,
) -> None:
    """Run a study as a simulated federation on this machine, to a report.

    Example: sahfl simulate configs/demo.yaml

    Example: sahfl simulate --resume runs/demo-20261122-140000
    """
    from sahfl.config import load_study
    from sahfl.console import showing
    from sahfl.run.folder import RunFolder
    from sahfl.simulation.simulate import simulate as run_study

    if (study is None) == (resume is None):
        raise ConfigError("simulate: expected either a study file or --resume RUN_DIR; see sahfl simulate -h")
    if resume is not None:
        if out is not None or datalist is not None:
            raise ConfigError(
                "simulate: --resume goes on with the run's own folder and data; leave out the other options"
            )
        folder = RunFolder.reopen(resume)
    else:
        assert study is not None
        settings = load_study(study, datalist=datalist)
        folder = RunFolder.create(out or Path("runs") / f"{settings.name}-{datetime.now():%Y%m%d-%H%M%S}", settings)
    again = f"sahfl simulate --resume {shlex.quote(str(folder.path))}"
    try:
        with showing(folder.study(), Console(stderr=True)):
            report = run_study(folder, workers=workers)
    except KeyboardInterrupt:
        print(f"interrupted; go on with: {again}", file=sys.stderr)
        raise typer.Exit(130) from None
    except (RunFailed, StorageError, OSError):
        print(f"the run can go on: {again}", file=sys.stderr)
        raise
    print(report)
