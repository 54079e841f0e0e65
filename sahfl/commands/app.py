"""The command ``sahfl`` with all its commands. Results go to stdout, progress and errors to stderr.

Exit codes: 0 done, 1 a bug (with a traceback), 2 wrong input, 3 the run failed, 130 interrupted.
"""

from __future__ import annotations

from typing import Annotated

import typer

from sahfl import __version__
from sahfl.commands import (
    adapt,
    audit,
    checks,
    consortium,
    fetch,
    gain,
    init,
    ledger,
    outputs,
    phantom,
    predict,
    private,
    status,
    studies,
    study,
)
from sahfl.commands.program import Command, new_app

app = new_app(
    "sahfl", "Federated training of head-CT hemorrhage segmentation; only low-rank adapter factors leave a hospital."
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"sahfl {__version__}")
        raise typer.Exit


@app.callback()
def sahfl(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version, and end.")
    ] = False,
) -> None:
    """Read the options of the program itself."""


for command in (
    init.init,
    study.simulate,
    phantom.phantom,
    checks.check,
    outputs.report,
    outputs.compare,
    predict.predict,
    outputs.export,
    adapt.adapt,
    fetch.fetch,
    fetch.push,
    consortium.provision,
    consortium.renew,
    consortium.revoke,
    status.status,
    checks.doctor,
    gain.gain,
    ledger.ledger,
):
    app.command(cls=Command)(command)
app.add_typer(studies.app)
app.add_typer(audit.app)
app.add_typer(private.app)
