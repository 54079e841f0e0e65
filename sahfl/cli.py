"""The command ``sahfl``: where its process begins."""

from sahfl.environment import ignore_redirections
from sahfl.process import stoppable


@stoppable()
def main() -> None:
    """Entry point; Ctrl-C and SIGTERM end the process, even while the command is loaded."""
    ignore_redirections()
    from sahfl.commands.app import app
    from sahfl.commands.program import run

    run(app)
