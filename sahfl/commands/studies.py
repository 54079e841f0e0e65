"""``sahfl study``: run a study, and look after the studies that there are."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sahfl.atomic import make_folder
from sahfl.commands.program import Command, WithDefault, new_app
from sahfl.commands.study import study
from sahfl.errors import RunError, UnfitFile
from sahfl.regular_files import LIST_BYTES, read_json, read_text

app = new_app(
    "study",
    "Run a study (sahfl study FILE; its options: sahfl study run -h), list, cancel and archive studies, or find what a "
    "site had a part in.",
    cls=WithDefault,
)
app.command("run", cls=Command)(study)
Server = Annotated[Path | None, typer.Option(help="Server file (YAML): the studies of that server.")]
Runs = Annotated[Path, typer.Option(help="Folder of the runs on this machine.")]
RUNS = Path("runs")


@app.command("list", cls=Command)
def list_studies(
    server: Server = None,
    runs: Runs = RUNS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the studies of this machine's folder of runs, or of a server, with their state.

    Example: sahfl study list

    Example: sahfl study list --server server.yaml
    """
    rows = _at_server(server) if server else _here(runs)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from sahfl.console import printable

    table = Table("run", "study", "state", "last change", "report", box=None, pad_edge=False, header_style="dim")
    for row in rows:
        cells = (str(row[key] or "") for key in ("run", "study", "state", "changed", "report"))
        table.add_row(*(Text(printable(cell)) for cell in cells))  # a text with [brackets] is no markup
    Console().print(table if rows else Text(f"no study in {server or runs}"))


@app.command(cls=Command)
def cancel(
    name: Annotated[str, typer.Argument(help="Name of the study.")],
    server: Annotated[Path, typer.Option(help="Server file (YAML).")],
) -> None:
    """Take a study out of a server's queue; if it runs, it stops after the messages that are under way.

    What is committed stays: submit the study again, and it goes on. A study on this machine stops with Ctrl-C.

    Example: sahfl study cancel two-hospitals --server server.yaml
    """
    from sahfl.config import load_server
    from sahfl.federation.server.studies import Studies

    print(Studies(load_server(server).folder).cancel(name))


@app.command(cls=Command)
def archive(
    name: Annotated[str, typer.Argument(help="Name of the study, or of its folder in the folder of runs.")],
    server: Server = None,
    runs: Runs = RUNS,
) -> None:
    """Move a study that ended into a folder of its own below archive, so that lists are short and its name is free.

    Example: sahfl study archive demo-1a2b3c4d

    Example: sahfl study archive two-hospitals --server server.yaml
    """
    from sahfl.config import load_server
    from sahfl.federation.server.studies import Studies
    from sahfl.process import is_locked

    if server is not None:
        print(Studies(load_server(server).folder).archive(name))
        return
    run = runs / name
    if run.parent != runs or name == "archive" or not (run / "study.json").is_file():
        listed = ", ".join(row["run"] for row in _here(runs)) or "none"
        raise RunError(f"{run}: is no run (in {runs}: {listed})")
    if is_locked(run / "run.lock"):
        raise RunError(f"{run}: a process works on it; stop it with Ctrl-C first")
    target = runs / "archive" / name
    if target.exists():
        raise RunError(f"{target}: is there already; rename one of them")
    make_folder(target.parent)
    print(run.rename(target))


@app.command(cls=Command)
def withdraw(
    site: Annotated[str, typer.Argument(help="Name of the site that withdraws, or one of whose patients does.")],
    server: Server = None,
    runs: Runs = RUNS,
) -> None:
    """Name all that was trained or evaluated with a site's patients, and delete the kept cells that hold some of it.

    Networks, reports and run folders stay: delete them as the consortium decides. A study under another name trains
    anew with the data that the sites have then; it takes kept cells only from where the site had no part.

    Example: sahfl study withdraw hospital_a --server server.yaml
    """
    from sahfl.config import load_server
    from sahfl.run.site_share import delete_cells, runs_with

    if server is not None:
        folder = load_server(server).folder
        places, cells = [*folder.glob("runs/*"), *folder.glob("archive/*/run")], folder / "cells"
    else:
        places, cells = [*runs.glob("*"), *runs.glob("archive/*")], runs / "cells"
    shares = runs_with(site, sorted(places))
    n_deleted = delete_cells(cells, site, shares)
    if not shares and not n_deleted:
        raise RunError(f"{site}: no run in {server or runs} has anything of a site of this name")
    for share in shares:
        print(f"{share.run}: study {share.study}, fingerprint {share.fingerprint or 'of another version of sahfl'}")
        if share.bases:
            print("  every network: its base was trained with this site")
        print(f"  trained: {', '.join(share.trained) or 'nothing'}")
        print(f"  evaluated: {', '.join(share.evaluated) or 'nothing'}")
    print(f"deleted: {n_deleted} kept cells with data of {site}")


def _here(runs: Path) -> list[dict[str, Any]]:
    """The runs in a folder, the latest first."""
    from sahfl.local_study import is_finished
    from sahfl.process import is_locked
    from sahfl.run.folder import RunFolder

    rows = []
    for run in runs.iterdir() if runs.is_dir() else ():
        if not (run / "study.json").is_file():
            continue
        try:
            finished = is_finished(RunFolder(run))
        except UnfitFile as error:
            rows.append(_row(run.name, f"refused: {error}", run, run))
            continue
        state = "running" if is_locked(run / "run.lock") else "finished" if finished else "interrupted"
        rows.append(_row(_study_name(run), state, run, run / "journal.jsonl"))
    return sorted(rows, key=lambda row: row["changed"], reverse=True)


def _study_name(run: Path) -> str:
    try:
        return str(read_json(run / "study.json", most=LIST_BYTES)["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return run.name


def _at_server(server: Path) -> list[dict[str, Any]]:
    """The studies of a server: those that wait or run, then those that ended."""
    from sahfl.commands.status import is_running, read_status
    from sahfl.config import load_server
    from sahfl.federation.server.studies import Studies

    folder = load_server(server).folder
    studies = Studies(folder)
    now = read_status(folder)["study"] if is_running(folder) else None
    rows = []
    for file in studies.waiting():
        state = "running" if now and now["name"] == file.stem else "waits in the queue"
        rows.append(_row(file.stem, state, studies.run_of(file.stem), file))
    for state in ("done", "failed"):
        for file in sorted((folder / state).glob("*.yaml")):
            reason = file.with_suffix(".txt")
            text = f"{state}: {read_text(reason, most=LIST_BYTES).strip()}" if reason.exists() else state
            rows.append(_row(file.stem, text, studies.run_of(file.stem), file))
    return rows


def _row(study: str, state: str, run: Path, dated: Path) -> dict[str, Any]:
    report = run / "report.html"
    changed = datetime.fromtimestamp((dated if dated.exists() else run).stat().st_mtime, UTC)
    shown = str(report) if report.exists() else None
    return {
        "run": run.name,
        "study": study,
        "state": state,
        "changed": f"{changed:%Y-%m-%d %H:%M} UTC",
        "report": shown,
    }
