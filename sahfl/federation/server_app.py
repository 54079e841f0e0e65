"""The server's app: what Flower starts, in a simulation as in a deployment."""

from __future__ import annotations

import json
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from sahfl.federation.coordinator import Coordinator
from sahfl.federation.run_folder import RunFolder

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study of a run folder, from wherever it stands.

    The run's settings are ``run-folder``, a path, and ``nodes``, JSON ``{node id: site name}``: who is who is known to
    the one who starts the run, and never taken from what a node says of itself.
    """
    nodes = {int(node): str(site) for node, site in json.loads(str(context.run_config["nodes"])).items()}
    Coordinator(grid, RunFolder(Path(str(context.run_config["run-folder"]))), nodes).run()
