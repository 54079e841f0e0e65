"""The command ``sahfl``: where its process begins."""

from sahfl.process import stoppable


def main() -> None:
    """Entry point; from here on, also while the command is loaded, Ctrl-C and SIGTERM end the process."""
    with stoppable():
        from sahfl.commands.app import app
        from sahfl.commands.program import run

        run(app)
