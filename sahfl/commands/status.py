"""``sahfl status``: what a server is doing, from its status file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sahfl.cell_names import method_and_fold
from sahfl.errors import RunError
from sahfl.last_errors import errors_text
from sahfl.process import is_locked
from sahfl.regular_files import LIST_BYTES, read_json

COLOURS = {"connected": "green", "not connected": "yellow", "revoked": "red"}


def status(
    server: Annotated[Path, typer.Argument(help="Server file (YAML), as given to sahfl-server.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the status as JSON.")] = False,
) -> None:
    """Show what the server is doing: study, round, quorum, each site's work and last errors, and what is missing.

    Exit code 0; 3 if the server does not run, or if its study waits for sites, which are named. A study does not wait
    for revoked sites.

    Example: sahfl status server.yaml

    Example: sahfl status server.yaml --json
    """
    from sahfl.config import load_server

    folder = load_server(server).folder
    found = read_status(folder)
    found["running"] = is_running(folder)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        _show(found)
    study = found["study"] or {"sites": []}
    there = ("connected", "revoked")
    missing = [site for site in study["sites"] if found["sites"].get(site, {}).get("state") not in there]
    if not found["running"]:
        print(f"the server does not run; start it: sahfl-server {server}", file=sys.stderr)
    elif missing:
        print(f"missing: {', '.join(missing)}", file=sys.stderr)
    if missing or not found["running"]:
        raise typer.Exit(3)


def read_status(folder: Path) -> dict[str, Any]:
    """Read the status that a server wrote last.

    Raises:
        RunError: there is none, or it is damaged.
    """
    path = folder / "status.json"
    try:
        found = read_json(path, most=LIST_BYTES)
        if not isinstance(found, dict) or found["schema"] != 3:
            raise ValueError
    except FileNotFoundError:
        raise RunError(f"{path}: does not exist; no server has run in this folder yet") from None
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{path}: is not a status of this version; restart the server") from error
    return found


def is_running(folder: Path) -> bool:
    """Whether a server works in a folder: it holds a lock, which ends with the process."""
    return is_locked(folder / "server.lock")


def _show(found: dict[str, Any]) -> None:
    from sahfl.console import printable

    server, study = found["server"], found["study"]
    running = f"listening on {server['listening']}" if found["running"] else "not running"
    print(printable(f"sahfl {server['version']}, {running}; status of {found['at']}"))
    if study is None:
        print(printable(f"no study runs; {len(found['queue'])} in the queue"))
    else:
        print(printable(f"study {study['name']}: {study['stage']}"))
        for cell, at in study["cells"].items():
            print(printable(f"  {'; '.join(filter(None, (cell_text(cell, at), _waiting(at, found['at']))))}"))
        if study["cells"]:
            print(printable(f"quorum {study['quorum']:.0%}; last commit: {study['committed'] or 'none'}"))
        if waiting := _waiting(study, found["at"]):
            print(printable(waiting))
    if found["last"]:
        last = found["last"]
        print(printable(f"last study: {last['study']}, {last['ended']}{last['reason'] and ': ' + last['reason']}"))
    Console().print(_table(found["sites"], found["at"]))
    for warning in found["warnings"]:
        print(printable(f"warning: {warning}"))


def cell_text(cell: str, at: dict[str, Any]) -> str:
    """What a cell of the study is doing; folds count from 0."""
    method, fold = method_and_fold(cell)
    named = method if fold is None else f"{method}, fold {fold}"
    if at["doing"] != "training" or not at["round"]:
        return f"{named}: {at['doing']}"
    again = f", attempt {at['attempt']}" if at["attempt"] > 1 else ""
    return f"{named}: round {at['round']} of {at['rounds']}{again}"


def _moment(stamp: str, now: str) -> str:
    """The time of a moment in UTC; with its date if that is not the one of ``now``."""
    day, _, time = stamp.partition("T")
    return time.removesuffix("+00:00") if day == now.partition("T")[0] else f"{day} {time[:5]}"


def _waiting(at: dict[str, Any], now: str) -> str:
    working = f"working: {', '.join(at['working'])}" if at["working"] else ""
    until = _moment(at["deadline"], now) if at["deadline"] else "they connect"
    waiting = f"waiting for {', '.join(at['waiting_for'])}, until {until}" if at["waiting_for"] else ""
    return "; ".join(filter(None, (working, waiting)))


def _doing(of: dict[str, Any], now: str) -> str:
    """What a site does: works on what since when, is waited for, or has nothing to do."""
    doing = of["doing"]
    if doing is None:
        return "idle" if of["state"] == "connected" else ""
    what, since = doing["what"].removeprefix("query.").replace("_", " "), _moment(doing["since"], now)
    return f"{what} since {since}" if doing["state"] == "working" else f"waited for: {what}, asked {since}"


def _table(sites: dict[str, dict[str, Any]], now: str) -> Table:
    from sahfl.console import printable

    table = Table(box=None, pad_edge=False, header_style="dim")
    missing = {site: errors_text(of["errors"]) or of["missing_reason"] for site, of in sites.items()}
    names = ("site", "state", "seen (UTC)", "version", "doing", "what is missing")
    for name in names if any(missing.values()) else names[:-1]:
        table.add_column(name, overflow="fold")
    for site, of in sites.items():
        seen = _moment(of["last_seen"], now) if of["last_seen"] else ""
        cells = [text or "" for text in (seen, of["version"], _doing(of, now), missing[site])][: len(table.columns) - 2]
        state = Text(of["state"], COLOURS.get(of["state"], ""))
        table.add_row(Text(printable(site)), state, *(Text(printable(cell)) for cell in cells))
    return table
