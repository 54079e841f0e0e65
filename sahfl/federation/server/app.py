"""The server's app, which Flower starts in a simulation and in a deployment."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from sahfl.config import load_study
from sahfl.errors import ConfigError, RunError
from sahfl.events import listening
from sahfl.federation.server.coordinator import Coordinator
from sahfl.log_lines import log_on_stderr, log_run_event
from sahfl.run.folder import RunFolder
from sahfl.run.session import session
from sahfl.trust.signing import Signer

log = logging.getLogger(__name__)
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study of a run folder, from its last committed state.

    The run's settings are ``run-folder``, a path, and ``nodes``, JSON ``{node id: site name}``: the caller names the
    sites, no node names itself. ``signing-key`` is the path of the key that signs requests; it is left out or "" where
    no site asks for signatures. ``lanes`` cells are worked on at a time (default 1); ``cells`` is the folder of cells
    that runs share, or "" for none; ``report`` is false if the caller writes the report. Under stock Flower this app is
    alone in a process; the settings then hold ``study``, the study file's path or "", and the app opens the folder.

    Raises:
        SahflError: the settings or the run folder cannot be used, or the run failed; Flower's run then fails too.
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
    with session(folder), listening(partial(log_run_event, log)):
        Coordinator(grid, folder, nodes, signer=signer).run()


def _nodes(text: Any) -> dict[int, str]:
    try:
        nodes = {int(node): str(site) for node, site in json.loads(str(text)).items()}
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"nodes: got {str(text)[:80]!r}, expected JSON {{node id: site name}}") from error
    if not nodes or len(set(nodes.values())) < len(nodes):
        raise ConfigError(f"nodes: got {len(nodes)} node(s), expected one for each site, each site once")
    return nodes


def _open(path: str, study: str) -> RunFolder:
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
