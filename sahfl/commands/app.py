"""The command ``sahfl`` with all its commands. Results go to stdout, progress and errors to stderr.

Exit codes: 0 done, 1 a bug (with a traceback), 2 wrong input, 3 the run failed, 130 interrupted.
"""

from __future__ import annotations

from sahfl.commands import adapt, audit, checks, consortium, gain, ledger, outputs, phantom, private, status, study
from sahfl.commands.program import Command, new_app

app = new_app(
    "sahfl", "Federated training of head-CT hemorrhage segmentation; only low-rank adapter factors leave a hospital."
)

for command in (
    study.simulate,
    phantom.phantom,
    checks.check,
    outputs.report,
    outputs.compare,
    study.study,
    outputs.predict,
    outputs.export,
    adapt.adapt,
    consortium.provision,
    consortium.renew,
    consortium.revoke,
    status.status,
    checks.doctor,
    gain.gain,
    ledger.ledger,
):
    app.command(cls=Command)(command)
app.add_typer(audit.app)
app.add_typer(private.app)
