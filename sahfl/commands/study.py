"""``sahfl simulate`` and ``sahfl study``: run a study on this machine or on a consortium's server."""

from __future__ import annotations

import os
import shlex
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from sahfl.commands.program import INTERRUPTED, Datalist, Workers, naming_paths
from sahfl.commands.status import cell_text, is_running, read_status
from sahfl.errors import ConfigError, LosingSite, RunError, RunFailed, SahflError, StorageError
from sahfl.regular_files import LIST_BYTES, read_text

if TYPE_CHECKING:
    from sahfl.config import ServerConfig, Study
    from sahfl.federation.server.plan import Planned
    from sahfl.run.folder import RunFolder

CELLS = Path("runs/cells")
"""Folder of finished cells, by default."""
LOOK_S = 1.0
"""Pause between two looks at the server's status."""


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
    from sahfl.local_study import new_run
    from sahfl.run.folder import RunFolder

    if study is not None and resume is None:
        settings = load_study(study, datalist=datalist)
        with naming_paths(study, datalist):
            folder = new_run(settings, out or Path("runs") / f"{settings.name}-{datetime.now():%Y%m%d-%H%M%S}")
    elif resume is not None and study is None:
        if out is not None or datalist is not None:
            raise ConfigError(
                "simulate: --resume goes on with the run's own folder and data; leave out the other options"
            )
        folder = RunFolder.reopen(resume)
    else:
        raise ConfigError("simulate: expected either a study file or --resume RUN_DIR; see sahfl simulate -h")
    print(_run_shown(folder, f"sahfl simulate --resume {shlex.quote(str(folder.path))}", workers=workers))


def study(
    file: Annotated[Path, typer.Argument(help="Study file (YAML).")],
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be done, and end.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; by default runs/NAME-HASH, with the settings' hash.")
    ] = None,
    cells: Annotated[Path, typer.Option(help="Folder of finished cells, which all studies share.")] = CELLS,
    workers: Workers = None,
    lanes: Annotated[
        int | None, typer.Option(min=1, help="Cells worked on at a time; by default one more than workers.")
    ] = None,
    datalist: Datalist = None,
    server: Annotated[
        Path | None, typer.Option(help="Server file (YAML): run it there, for a study of real hospitals.")
    ] = None,
) -> None:
    """Run a study's grid of methods, ranks and folds to its report: here, or with --server at a consortium's sites.

    Call it again to go on after an interruption, or after a change of the file: a cell (one method on one fold) that
    any earlier study has finished with the same settings and data is not run again.

    Example: sahfl study configs/demo.yaml --plan

    Example: sahfl study configs/demo.yaml

    Example: sahfl study study.yaml --server server.yaml
    """
    from sahfl.config import load_server, load_study

    settings = load_study(file, datalist=datalist)
    deployed = settings.data.source == "sites"
    if plan:
        from sahfl.federation.server.plan import plan as make_plan
        from sahfl.federation.server.studies import Studies

        with naming_paths(file, datalist):
            rows = make_plan(settings, Studies(load_server(server).folder).cells if server else cells)
        _show_plan(settings, rows)
    elif deployed and server is None:
        raise ConfigError(f"{file}: its data lie at the sites; name the consortium's server with --server server.yaml")
    elif server is not None:
        if not deployed:
            raise ConfigError(f"{file}: data.source is {settings.data.source!r}, expected 'sites' with --server")
        if out or workers or lanes:
            raise ConfigError(
                "--out, --workers and --lanes are for a run on this machine; leave them out with --server"
            )
        print(_run_there(file, load_server(server)))
    else:
        with naming_paths(file, datalist):
            print(_run_here(settings, out, cells, workers, lanes))


def _run_here(settings: Study, out: Path | None, cells: Path, workers: int | None, lanes: int | None) -> Path:
    from sahfl.local_study import check_gain, is_finished, open_run

    folder = open_run(settings, out)
    if is_finished(folder):
        print("finished already; nothing is left to do", file=sys.stderr)
        _show_conclusion(folder.path)
        check_gain(folder)
        return folder.path / "report.html"
    return _run_shown(folder, _same_command(), workers=workers, lanes=lanes, cells=cells)


def _run_shown(
    folder: RunFolder, again: str, *, workers: int | None, lanes: int | None = None, cells: Path | None = None
) -> Path:
    """Run a study on this machine, show its progress and then its conclusion.

    If it stops early, print ``again``, the command to go on.
    """
    from sahfl.local_study import run_study

    try:
        report = run_study(folder, workers=workers, lanes=lanes, cells=cells)
    except LosingSite:
        _show_conclusion(folder.path)
        raise
    except KeyboardInterrupt:
        print(f"interrupted; go on with: {again}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except (RunFailed, StorageError, OSError):
        print(f"the run can go on: {again}", file=sys.stderr)
        raise
    _show_conclusion(folder.path)
    return report


def _show_conclusion(run: Path) -> None:
    """Print what a finished run found; its page needs no table here, so that unreadable results are only named."""
    from sahfl.console import show_conclusion
    from sahfl.report.form import check_results
    from sahfl.report.summary import conclude
    from sahfl.run.folder import RunFolder

    try:
        results = RunFolder(run).results()
        check_results(results)
    except SahflError as error:
        print(f"no table of the results: {error}", file=sys.stderr)
        return
    show_conclusion(conclude(results), Console(stderr=True))
    base = f"base network of the run: {run / 'base' / 'base.safetensors'}, content_sha256: {results['base']['sha256']}"
    print(base, file=sys.stderr)


def _same_command() -> str:
    """The command as it was given, for a shell: options such as --out belong to it."""
    return shlex.join(["sahfl", *sys.argv[1:]])


def _run_there(file: Path, config: ServerConfig) -> Path:
    """Put a study into a server's queue if it is not there yet, and watch it to its end."""
    from sahfl.federation.server.studies import Studies, read_deployed

    server = config.folder
    studies, settings = Studies(server), read_deployed(file)
    name = settings.name
    waiting, done = server / "queue" / f"{name}.yaml", server / "done" / f"{name}.yaml"
    report = studies.run_of(name) / "report.html"
    if done.exists() and not waiting.exists() and read_deployed(done) == settings:
        print("finished already; nothing is left to do", file=sys.stderr)
        _show_conclusion(report.parent)
        return report
    if not waiting.exists():
        print(f"submitted: {studies.submit(file, kit=config.kit)}", file=sys.stderr)
    elif read_deployed(waiting) != settings:
        raise RunError(f"{waiting}: waits with other settings; take it out of the queue, or change name in {file}")
    try:
        _watch(waiting, server)
    except KeyboardInterrupt:
        print(f"no longer watching; the study goes on at the server. Watch again: {_same_command()}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    reason = server / "failed" / f"{name}.txt"
    if reason.exists():
        raise RunFailed(f"{name}: {read_text(reason, most=LIST_BYTES).strip()}")
    _show_conclusion(report.parent)
    return report


def _watch(waiting: Path, server: Path) -> None:
    last = ""
    while waiting.exists():
        if (line := _doing(waiting.stem, server)) != last:
            last = line
            print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr)
        time.sleep(LOOK_S)


def _doing(name: str, server: Path) -> str:
    from sahfl.console import printable

    if not is_running(server):
        return "the server does not run; the study waits in its queue"
    try:
        found: Any = read_status(server)["study"]
    except RunError:
        found = None
    if found is None or found["name"] != name:
        return "waits in the queue" + (f" behind {found['name']}" if found else "")
    parts = (found, *found["cells"].values())
    awaited = dict.fromkeys(site for part in parts for site in part["waiting_for"])
    waiting = f"waiting for {', '.join(awaited)}" if awaited else ""
    cells = [cell_text(cell, at) for cell, at in found["cells"].items()]
    return printable("; ".join(filter(None, (found["stage"], *cells, waiting))))


def _show_plan(settings: Study, rows: list[Planned]) -> None:
    right = {"justify": "right"}
    columns = [Column(name, **right) for name in ("cells", "parameters", "kB a round", "work")]  # type: ignore[arg-type]
    table = Table("training", "at", *columns, box=None, pad_edge=False, header_style="dim")
    for row in rows:
        size = (f"{row.parameters:,}", f"{row.bytes_per_round / 1000:,.1f}") if row.parameters else ("", "")
        table.add_row(row.id, row.trained_at, str(row.n_cells), *size, _clock(row.seconds))
    Console().print(table)
    print(work_text(settings, rows))


def work_text(settings: Study, rows: list[Planned]) -> str:
    """Number of cells and expected time of a planned study, in words."""
    known = [row.seconds for row in rows if row.seconds is not None]
    n_sites, deployed = len(settings.finetune.sites), settings.data.source == "sites"
    at_once, what = (n_sites, "site(s)") if deployed else (min(os.cpu_count() or 1, n_sites), "core(s)")
    source = "from cells of this kind that were run here"
    if any(row.guessed for row in rows):
        source = "a rough guess from this machine's speed in a few steps"
    time_text = f"{_clock(sum(known))} of work, so about {_clock(sum(known) / at_once)} on {at_once} {what}, {source}"
    if not known:
        time_text = "no cell of this kind was run here yet, so the time is unknown"
    elif len(known) < len(rows):
        time_text = f"of {len(rows) - len(known)} training(s) no cell was run here yet, so their time is unknown"
    return f"{sum(row.n_cells for row in rows)} cells; {time_text}"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
