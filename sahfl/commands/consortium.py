"""The coordinating centre's commands: keys, certificates and kits of a consortium."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from sahfl.trust.overview import Line

Folder = Annotated[Path, typer.Option(help="Folder that `sahfl provision` wrote, with authority/ in it.")]


def provision(
    file: Annotated[Path, typer.Argument(help="Consortium file (YAML): name, server, sites.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for keys and kits; by default the consortium's name.")
    ] = None,
) -> None:
    """Make the keys of a consortium: its authority, the server's folder, and a startup kit for each site.

    Call it again after adding sites to the file: it changes no key that exists. Everything in the folder is secret:
    authority/ stays with the coordinating centre, server/ goes to the server, sites/NAME to NAME over a safe channel.

    Example: sahfl provision configs/consortium.example.yaml

    Example: sahfl provision consortium.yaml --out keys
    """
    from sahfl.config import load_consortium
    from sahfl.trust.provision import provision as make

    settings = load_consortium(file)
    folder = out or Path(settings.name)
    lines = make(settings, folder)
    _show(lines)
    for line in lines:
        if line.state == "new":
            _print_next(_handing_over(folder, line.who))
    if any(line.state == "new" and line.who != "server" for line in lines):
        _print_next(f"the server lets new sites in once it has {folder / 'server' / 'sites.json'}")


def renew(
    name: Annotated[str, typer.Argument(help="Name of a site, or: server.", metavar="SITE")],
    folder: Folder = Path("."),
) -> None:
    """Give one site, or the server, a new certificate with a new key; the others are not touched.

    A site gets a new kit; the old one is kept beside it as NAME.previous, and works until it expires. A revoked site,
    or one whose kit no longer lies in the folder, gets a new node key too: then only the new kit works.

    Example: sahfl renew hospital_a --folder keys

    Example: sahfl renew server --folder keys
    """
    from sahfl.trust.provision import renew as make

    _show(make(folder, name))
    _print_next(_handing_over(folder, name))
    if name != "server":
        _print_next(f"copy {folder / 'server' / 'sites.json'} to the server")


def revoke(
    site: Annotated[str, typer.Argument(help="Name of the site.", metavar="SITE")], folder: Folder = Path(".")
) -> None:
    """Take back a site's certificates and key; the others are not touched.

    `sahfl renew SITE` lets the site in again, with new keys.

    Example: sahfl revoke hospital_a --folder keys
    """
    from sahfl.trust.provision import revoke as take_back

    _show(take_back(folder, site))
    lists = " and ".join(str(folder / "server" / name) for name in ("sites.json", "revoked.crl"))
    _print_next(f"copy {lists} to the server; it refuses {site} from then on")


def _handing_over(folder: Path, name: str) -> str:
    if name == "server":
        return f"bring {folder / 'server'} to the server and start it again"
    return f"hand {folder / 'sites' / name} to {name} over a safe channel; whoever has it can take part as {name}"


def _show(lines: list[Line]) -> None:
    from sahfl.console import certificate_table

    out = Console()
    if out.is_terminal:
        out.print(certificate_table(lines))
        return
    for line in lines:
        print(f"{line.who:<20} {line.certificate:<40} {line.expires:%Y-%m-%d} {line.days_left:>5} days  {line.state}")


def _print_next(text: str) -> None:
    print(f"next: {text}", file=sys.stderr)
