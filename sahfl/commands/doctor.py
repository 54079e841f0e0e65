"""``sahfl doctor``: what keeps this site or server from working, and what to do about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sahfl.errors import ConfigError


def doctor(
    file: Annotated[Path, typer.Argument(help="Site file or server file (YAML); told apart by content.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a monitoring program.")] = False,
) -> None:
    """Look at everything that a site or a server needs, one line each, with one remedy for each problem.

    It looks at keys and certificates, the way to the server, both clocks, versions, disk, memory, GPU, data, policy and
    audit log; at a server also at its port, its names and its queue. It changes nothing, and contacts the kit's server
    only. Exit code 2 if something failed. Run it as the user of the service: root may read what the service may not.

    Example: sahfl doctor site.yaml

    Example: sahfl doctor server.yaml --json
    """
    from sahfl import doctor
    from sahfl.config import kind_of, load_server, load_site

    kind = kind_of(file)
    if kind == "site":
        findings = doctor.examine_site(load_site(file))
    elif kind == "server":
        findings = doctor.examine_server(load_server(file))
    else:
        raise ConfigError(f"doctor: got {file}, a {kind} file, expected a site file or a server file")
    if as_json:
        print(json.dumps(doctor.as_json(findings, file=str(file), kind=kind), indent=1))
    else:
        print("\n".join(doctor.as_lines(findings)))
    if not doctor.healthy(findings):
        raise typer.Exit(2)
