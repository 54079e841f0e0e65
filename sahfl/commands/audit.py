"""A hospital's commands for its audit log: ``show`` prints it, ``verify`` checks that it is whole."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sahfl.commands.program import Command, new_app

app = new_app("audit", "A site's audit log: everything that was asked, refused and sent.")
Log = Annotated[Path, typer.Argument(help="Site file (YAML), or the log itself (audit.jsonl).")]
COLOURS = {"refused": "red", "failed": "red", "torn": "yellow", "study": "cyan"}


@app.command(cls=Command)
def show(
    file: Log,
    since: Annotated[datetime | None, typer.Option(help="First day or moment to show, UTC.")] = None,
    event: Annotated[str | None, typer.Option(help="Only lines of this event, such as refused or withdrawn.")] = None,
    details: Annotated[bool, typer.Option("--details", help="Print whole lines, as JSON.")] = False,
) -> None:
    """Print the audit log of a site, the newest line last.

    Example: sahfl audit show site.yaml --since 2026-11-01 --event refused
    """
    from sahfl.federation.site.audit import read_lines

    start = since.replace(tzinfo=since.tzinfo or UTC) if since else None
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("n", "at (UTC)", "event", "what"):
        table.add_column(name, no_wrap=name != "what", justify="right" if name == "n" else "left")
    for line in read_lines(_path(file)):
        if (event and line["event"] != event) or (start and datetime.fromisoformat(line["at"]) < start):
            continue
        if details:
            print(json.dumps(line))
            continue
        reason = f" {line['details']['reason']}" if "reason" in line["details"] else ""
        colour = COLOURS.get(line["event"], "")
        table.add_row(str(line["n"]), line["at"][:19], Text(line["event"], colour), Text(line["words"] + reason))
    if not details:
        Console().print(table)


@app.command(cls=Command)
def verify(
    file: Log,
    head: Annotated[
        str | None, typer.Option(help="Hash that was noted elsewhere: the log must still hold that line.")
    ] = None,
) -> None:
    """Check that no line of the log was changed, removed, added or moved; print its head. Exit code 3 if one was.

    Note the head in another place now and then: only then does a log show that its end was cut off.

    Example: sahfl audit verify site.yaml
    """
    from sahfl.federation.site.audit import verify as check

    verdict = check(_path(file), head=head)
    for place in verdict.torn:
        print(f"line {place} was cut off by a crash; the lines around it are whole")
    print(f"whole: {verdict.n} lines, head {verdict.head}")


def _path(file: Path) -> Path:
    from sahfl.config import load_site
    from sahfl.federation.site.audit import FILE

    return load_site(file).folder / FILE if file.suffix in {".yaml", ".yml"} else file
