"""The server's app: what Flower starts, in a simulation as in a deployment."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from sahfl.config import load_study
from sahfl.errors import ConfigError, RunError
from sahfl.event_lines import event_line
from sahfl.events import Event, listening
from sahfl.federation.server.coordinator import Coordinator
from sahfl.log_lines import log_on_stderr
from sahfl.run.folder import RunFolder
from sahfl.run.session import session
from sahfl.trust.signing import Signer

log = logging.getLogger(__name__)
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study of a run folder, from wherever it stands.

    The run's settings are ``run-folder``, a path, and ``nodes``, JSON ``{node id: site name}``: who is who is known to
    the one who starts the run, and never taken from what a node says of itself. ``signing-key``, the path of the key
    that signs requests, is left out or "" where no site asks for signatures. ``lanes`` cells are worked on at a time,
    one if it is not said; ``cells`` is the folder of finished cells that runs share, or "" for none; ``report`` is
    false where whoever starts the run has more to put into its report. Under stock Flower this app is alone in a
    process, and the run's settings hold ``study`` too, the study file's path or "": it then opens the folder itself.

    Raises:
        SahflError: the settings or the run folder cannot be used, or the run failed; Flower's run has then failed too.
    """
    settings = context.run_config
    nodes, key = _nodes(settings["nodes"]), str(settings.get("signing-key", ""))
    signer = Signer.load(Path(key)) if key else None
    if "study" not in settings:
        cells = str(settings.get("cells", ""))
        Coordinator(
            grid,
            RunFolder(Path(str(settings["run-folder"]))),
            nodes,
            signer=signer,
            lanes=int(str(settings.get("lanes", 1))),
            cells=Path(cells) if cells else None,
            report=bool(settings.get("report", True)),
        ).run()
        return
    log_on_stderr()
    folder = _open(str(settings["run-folder"]), str(settings["study"]))
    with session(folder), listening(_log):
        Coordinator(grid, folder, nodes, signer=signer).run()


def _nodes(text: Any) -> dict[int, str]:
    """Site name of each node."""
    try:
        nodes = {int(node): str(site) for node, site in json.loads(str(text)).items()}
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"nodes: got {str(text)[:80]!r}, expected JSON {{node id: site name}}") from error
    if not nodes or len(set(nodes.values())) < len(nodes):
        raise ConfigError(f"nodes: got {len(nodes)} node(s), expected one for each site, each site once")
    return nodes


def _open(path: str, study: str) -> RunFolder:
    """The run of a folder, started from a study file if the folder holds none."""
    if not path:
        raise ConfigError("run-folder: is empty; name the run's folder, a path at the server")
    if not (Path(path) / "study.json").is_file():
        if not study:
            raise ConfigError(f"study: is empty and {path} holds no run; name a study file, a path at the server")
        return RunFolder.create(Path(path), load_study(Path(study)))
    folder = RunFolder.reopen(Path(path))
    if study and load_study(Path(study)).fingerprint() != folder.study().fingerprint():
        raise RunError(f"{path}: holds the run of another study than {study}; name another run-folder")
    return folder


def _log(event: Event) -> None:
    line = event_line(event)
    log.info("event=%s site=%s %s", line.name, line.site or "-", line.what)
