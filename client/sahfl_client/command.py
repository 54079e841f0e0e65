"""The command ``sahfl-client``: a hospital's service.

Exit codes: 0 stopped by a signal, 1 a bug (with a traceback), 2 wrong settings or keys, 3 it cannot run here.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from sahfl.commands.program import Command, new_app
from sahfl.config import load_site, load_study
from sahfl.errors import ConfigError

app = new_app("sahfl-client", "A hospital's service.")


@app.command(cls=Command)
def serve(
    site: Annotated[Path, typer.Argument(help="The site's file (YAML), with its kit, data and policy.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would leave under the site's policy, connect to nobody.")
    ] = False,
    study: Annotated[
        Path | None, typer.Option(help="Study file (YAML); with --dry-run, what would leave in this study.")
    ] = None,
) -> None:
    """Take part in studies as a site, until SIGTERM or Ctrl-C.

    The program connects to the server that the kit names; it opens no port. Its log goes to standard error, the log of
    the work on scans to FOLDER/logs, and its present state to FOLDER/status.json.

    Example: sahfl-client site.yaml

    Example: sahfl-client site.yaml --dry-run

    Example: sahfl-client site.yaml --dry-run --study study.yaml
    """
    config = load_site(site)
    if study is not None and not dry_run:
        raise ConfigError("sahfl-client: --study is for --dry-run; a study that is run comes from the server")
    if dry_run:
        from sahfl.federation.site.dry_run import dry_run as describe

        print(describe(config, None if study is None else load_study(study)))
        return
    from sahfl.log_lines import write_log_lines
    from sahfl_client.daemon import Daemon, load_kit, only_one

    write_log_lines(config.log)
    kit = load_kit(config)
    with suppress(KeyboardInterrupt), only_one(config.folder):  # also while it starts: systemd takes 130 for a failure
        Daemon(config, kit).run()
