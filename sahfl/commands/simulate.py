"""``sahfl simulate``: a study as a simulated federation on this machine, to a report."""

from __future__ import annotations

import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from sahfl.commands.program import INTERRUPTED, Datalist, Workers
from sahfl.errors import ConfigError, RunFailed, StorageError

if TYPE_CHECKING:
    from sahfl.run.folder import RunFolder


def simulate(
    study: Annotated[Path | None, typer.Argument(help="Study file (YAML); not with --resume.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; by default runs/<name>-<time>.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of an interrupted run to go on with.")] = None,
    workers: Workers = None,
    datalist: Datalist = None,
) -> None:
    """Run a study as a simulated federation on this machine, to a report.

    Example: sahfl simulate configs/demo.yaml

    Example: sahfl simulate --resume runs/demo-20261122-140000
    """
    from sahfl.config import load_study
    from sahfl.run.folder import RunFolder

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
    print(run_here(folder, f"sahfl simulate --resume {shlex.quote(str(folder.path))}", workers=workers))


def run_here(
    folder: RunFolder, again: str, *, workers: int | None, lanes: int | None = None, cells: Path | None = None
) -> Path:
    """Run a study on this machine and show its progress; if it stops early, print ``again``, the command to go on."""
    from sahfl.console import showing
    from sahfl.simulation.simulate import simulate as run_study

    try:
        with showing(folder.study(), Console(stderr=True)):
            return run_study(folder, workers=workers, lanes=lanes, cells=cells)
    except KeyboardInterrupt:
        print(f"interrupted; go on with: {again}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except (RunFailed, StorageError, OSError):
        print(f"the run can go on: {again}", file=sys.stderr)
        raise
