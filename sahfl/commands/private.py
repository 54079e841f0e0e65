"""A hospital's commands for what stays at its site: ``list`` shows it, ``delete`` removes what one training left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sahfl.commands.program import Command, new_app
from sahfl.errors import RunError

app = new_app("private", "What stays at a site: parts of trained networks that were never sent.")
WIDE = 400
"""Columns of a table that no terminal shows."""
SiteFolder = Annotated[Path, typer.Argument(metavar="SITE", help="Site file (YAML), or the site's own folder.")]


@app.command("list", cls=Command)
def list_(site: SiteFolder) -> None:
    """List what stays at a site, one line for each training: study, method, held-out fold, rounds, size.

    Example: sahfl private list site.yaml
    """
    from sahfl.federation.site.private import stored

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("name", "study", "method", "fold", "last round", "network", "kB"):
        right = name in ("fold", "last round", "kB")
        table.add_column(
            name,
            no_wrap=name != "method",
            overflow="fold",
            min_width=16 if name == "name" else None,
            justify="right" if right else "left",
        )
    for one in stored(folder_of(site)):
        network = "yes" if one.network else "no"
        round_, size = str(one.round or ""), f"{one.n_bytes / 1000:,.1f}"
        method = one.method + (" (damaged)" if one.damaged else "")
        table.add_row(one.name, one.study[:12], method.strip(), str(one.fold), round_, network, size)
    if table.row_count:
        wide = Console()
        if wide.is_terminal is False:
            wide = Console(width=WIDE)  # nothing is shortened in a pipe
        wide.print(table)
    else:
        print("nothing of a training stays at this site")


@app.command(cls=Command)
def delete(
    site: SiteFolder,
    name: Annotated[str, typer.Argument(help="Name of the training, as sahfl private list prints it.")],
) -> None:
    """Delete all that stays at a site of one training. A training that is not finished begins anew at this site.

    Example: sahfl private delete site.yaml 5f3c0a9e12b4d678
    """
    from sahfl.federation.site.private import delete as delete_

    folder = folder_of(site)
    n_files = delete_(folder, name)
    print(f"deleted: {name}" if n_files else f"nothing was stored of {name}; this training may begin anew here")


def folder_of(site: Path) -> Path:
    """The folder of a site, from its site file or from itself.

    Raises:
        RunError: there is no such file or folder.
        ConfigError: the site file has problems.
    """
    from sahfl.config import load_site

    if site.suffix in {".yaml", ".yml"}:
        return load_site(site).folder
    if not site.is_dir():
        raise RunError(f"{site}: is neither a site file (YAML) nor a site's folder; name one of them")
    return site
