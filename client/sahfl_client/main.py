"""The command ``sahfl-client``: where its process begins."""

from sahfl.environment import ignore_redirections
from sahfl.process import stoppable


@stoppable()
def main() -> None:
    """Entry point; if a path cannot be used, the exit code lets systemd try again."""
    ignore_redirections()
    from sahfl.commands.program import run
    from sahfl.errors import RunFailed
    from sahfl_client.command import app

    run(app, no_place=RunFailed.exit_code)
