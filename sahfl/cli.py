"""The command ``sahfl``: where its process begins."""

from sahfl.process import stoppable


def main() -> None:
    """Entry point; Ctrl-C and SIGTERM end the process, even while the command is loaded."""
    with stoppable():
        from sahfl.commands.app import app
        from sahfl.commands.program import run

        run(app)
