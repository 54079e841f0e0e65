"""The server's app: what Flower starts, in a simulation as in a deployment."""

from __future__ import annotations

import json
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from sahfl.federation.coordinator import Coordinator
from sahfl.federation.run_folder import RunFolder
from sahfl.trust.signing import Signer

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study of a run folder, from wherever it stands.

    The run's settings are ``run-folder``, a path, and ``nodes``, JSON ``{node id: site name}``: who is who is known to
    the one who starts the run, and never taken from what a node says of itself. ``signing-key``, the path of the key
    that signs requests, is left out where no site asks for signatures.
    """
    nodes = {int(node): str(site) for node, site in json.loads(str(context.run_config["nodes"])).items()}
    key = context.run_config.get("signing-key")
    signer = Signer.load(Path(str(key))) if key else None
    Coordinator(grid, RunFolder(Path(str(context.run_config["run-folder"]))), nodes, signer=signer).run()
