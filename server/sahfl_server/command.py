"""The command ``sahfl-server``: the server of a consortium.

Exit codes: 0 stopped by a signal or done, 1 a bug (with a traceback), 2 wrong settings, keys or a port that is taken,
3 a study failed (with --until-done) or the disk is full.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from sahfl.commands.program import Command, naming_paths, new_app
from sahfl.config import load_server
from sahfl.errors import ConfigError
from sahfl.log_lines import write_log_lines

app = new_app("sahfl-server", "The server of a consortium.")


@app.command(cls=Command)
def serve(
    server: Annotated[Path, typer.Argument(help="Server file (YAML); see configs/server.example.yaml.")],
    submit: Annotated[Path | None, typer.Option(help="Check a study file, put it into the queue, and end.")] = None,
    until_done: Annotated[
        bool, typer.Option("--until-done", help="End when the queue is empty: exit code 0, or 3 if a study failed.")
    ] = False,
) -> None:
    """Serve the sites of a consortium, and run the studies in the queue.

    After a restart, an interrupted study goes on at its last committed round. SIGTERM or Ctrl-C ends the server
    cleanly, the second one at once. `sahfl status SERVER.yaml` shows what the server waits for.

    Example: sahfl-server server.yaml

    Example: sahfl-server server.yaml --submit study.yaml
    """
    config = load_server(server)
    if submit is not None:
        from sahfl.federation.server.studies import Studies

        if until_done:
            raise ConfigError("sahfl-server: --submit only adds to the queue; leave out --until-done")
        with naming_paths(server):
            print(Studies(config.folder).submit(submit, kit=config.kit))
        return
    write_log_lines(config.log)
    from sahfl_server.service import Service

    with suppress(KeyboardInterrupt):  # also while it starts: systemd takes exit code 130 for a failure
        with naming_paths(server):
            service = Service(config)
        raise typer.Exit(service.run(until_done=until_done))
