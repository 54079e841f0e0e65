"""The command ``sahfl-client``: a hospital's service.

Exit codes: 0 stopped by a signal, 1 a bug (with a traceback), 2 wrong settings or keys, 3 it cannot run here.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from sahfl.commands.program import Command, WithDefault, naming_paths, new_app
from sahfl.config import SiteConfig, load_site, load_study
from sahfl.errors import ConfigError

app = new_app(
    "sahfl-client", "A hospital's service, which runs if no command is named: sahfl-client site.yaml", cls=WithDefault
)


def load_as_owner(site: Path) -> SiteConfig:
    """Load a site's file for a command that writes into the site's folder.

    Raises:
        ConfigError: root calls it for a folder of another user, whose service could not read what root writes.
    """
    config = load_site(site)
    if config.folder.exists() and os.geteuid() == 0 != (owner := config.folder.stat().st_uid):
        found = f"{config.folder} belongs to user {owner}, and its service could not read root's files"
        raise ConfigError(f"{site}: {found}; call it as that user: sudo -u '#{owner}' sahfl-client ...")
    return config


SiteFile = Annotated[Path, typer.Argument(metavar="SITE", help="The site's file (YAML).")]


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

        asked = None if study is None else load_study(study)
        with naming_paths(site):
            print(describe(config, asked))
        return
    from sahfl.log_lines import write_log_lines
    from sahfl_client.daemon import Daemon, load_kit, only_one

    write_log_lines(config.log)
    with naming_paths(site):
        kit = load_kit(config)
    # Also while it starts: systemd takes 130 for a failure.
    with suppress(KeyboardInterrupt), naming_paths(site), only_one(config.folder):
        Daemon(config, kit).run()


@app.command("accept-base", cls=Command)
def accept_base(
    site: SiteFile,
    sha256: Annotated[
        str | None, typer.Argument(metavar="HASH", help="The network's hash, 64 hex digits; none: list what waits.")
    ] = None,
) -> None:
    """Accept a base network, so that this site trains and evaluates with it; without a hash, list the networks.

    Compare all digits with what the coordinating centre published by another channel than the server's connection: a
    network that an attacker designed can copy scans into what leaves. The daemon goes on by itself.

    Example: sahfl-client accept-base site.yaml

    Example: sahfl-client accept-base site.yaml 5f3c0a9e12b4d6785f3c0a9e12b4d6785f3c0a9e12b4d6785f3c0a9e12b4d678
    """
    from sahfl.federation.site.known_bases import accept_base as accept
    from sahfl.federation.site.known_bases import known_bases

    config = (load_site if sha256 is None else load_as_owner)(site)
    if sha256 is None:
        for name, base in known_bases(config.folder).items():
            state = f"accepted {base.accepted}" if base.accepted else f"waits since {base.since}"
            print(f"{name}  {state}  {f'study {base.study[:12]}' if base.study else 'no study yet'}")
        return
    with naming_paths(site):
        known = accept(config, sha256)
    named = bool(known.study or known.accepted)
    print(f"accepted: base network {sha256.lower()}" + ("" if named else "; no request has named it yet"))


@app.command("accept-roster", cls=Command)
def accept_roster(
    site: SiteFile,
    sha256: Annotated[
        str | None, typer.Argument(metavar="HASH", help="The roster's hash, 64 hex digits; none: show what changed.")
    ] = None,
) -> None:
    """Put the roster of the kit into force: the other sites, and the keys by which this one verifies them.

    Without a hash, show how it differs from the one in force. Compare the hash with what the coordinating centre
    published by another channel, and ask about each new site: with invented sites, a server can see through the masks.

    Example: sahfl-client accept-roster site.yaml

    Example: sahfl-client accept-roster site.yaml 5f3c0a9e12b4d6785f3c0a9e12b4d6785f3c0a9e12b4d6785f3c0a9e12b4d678
    """
    from sahfl.federation.site.known_roster import accept_roster as accept
    from sahfl.federation.site.known_roster import accepted_roster, waiting_roster

    config = (load_site if sha256 is None else load_as_owner)(site)
    if sha256 is None:
        waiting, known = waiting_roster(config), accepted_roster(config.folder)
        if known is not None and known.text == waiting.text:
            print(f"in force: roster {known.sha256}, {len(known.note.sites)} sites")
            return
        print(f"roster {waiting.sha256} waits")
        print(*waiting.changes(known), sep="\n")
        return
    with naming_paths(site):
        found = accept(config, sha256)
    print(f"accepted: roster {found.sha256}, {len(found.note.sites)} sites")


@app.command("forget-round", cls=Command)
def forget_round(
    site: SiteFile,
    training: Annotated[str, typer.Argument(help="Name of the training, 16 hex digits, as the refusal printed it.")],
    round_: Annotated[int, typer.Argument(metavar="ROUND", min=1, help="The round, as the refusal printed it.")],
) -> None:
    """Release a round that was answered before, and all rounds of its training after it: they may be answered anew.

    Each further answer is one more sum over the same patients. Ask the coordinating centre first why the round is asked
    for again, for example because its folder of the run was lost.

    Example: sahfl-client forget-round site.yaml 5f3c0a9e12b4d678 3
    """
    from sahfl.federation.site.answered import forget_round as forget

    if (n := forget(load_as_owner(site), training, round_)) == 0:
        raise ConfigError(f"{site}: has answered no round {round_} or later of {training[:40]!r}; nothing was changed")
    print(f"Released: {n} answered rounds of training {training}, from round {round_} on, may be answered anew.")


@app.command("forget-sums", cls=Command)
def forget_sums(site: SiteFile) -> None:
    """Release the held-out scans for masked evaluations over other sites than before.

    Needed at each hospital when one has joined or left: the difference of the sums before and after can be the results
    of that hospital alone. Call it only if that hospital agrees.

    Example: sahfl-client forget-sums site.yaml
    """
    from sahfl.federation.site.masked_once import forget_summed

    if (n := forget_summed(load_as_owner(site))) == 0:
        raise ConfigError(f"{site}: no scan of this site is in a masked sum of an evaluation; nothing was changed")
    print(f"Released: {n} held-out scans, for masked sums over other sites.")


@app.command(cls=Command)
def withdraw(
    site: SiteFile,
    name: Annotated[
        str,
        typer.Argument(metavar="CASE", help="The id of one of the patient's cases, or the patient's id in the data."),
    ],
) -> None:
    """Withdraw a patient: no study uses the scans any more, and what this site holds of them is deleted.

    Every training and evaluation in which the patient took part is printed, for the coordinating centre. What was sent
    cannot be taken back. The site's service must be stopped.

    Example: sahfl-client withdraw site.yaml hospital_a-0007
    """
    from sahfl.federation.site.withdrawal import withdraw as withdraw_
    from sahfl_client.daemon import only_one

    config = load_as_owner(site)
    with naming_paths(site), only_one(config.folder):
        done = withdraw_(config, name)
    print(f"withdrawn: one patient; scans: {done.n_scans}; files and results deleted: {done.n_deleted}")
    for study in done.studies:
        print(f"closed at this site: study {study}")
        print(*(f"  {line}" for line in done.used_in(study)), sep="\n")
    if done.files:
        print("take these files out of the site's data:")
        print(*(f"  {path}" for path in done.files), sep="\n")


@app.command("new-secret", cls=Command)
def new_secret(site: SiteFile) -> None:
    """Draw this site's batches from a new secret from now on, because the old one was lost or read by others.

    The audit log has a line for it. Rounds that were answered stay answered; results that the server kept of this site
    are computed anew in the next study.

    Example: sahfl-client new-secret site.yaml
    """
    from sahfl.federation.site.secret import renew_secret

    config = load_as_owner(site)
    renew_secret(config)
    print(
        f"batches are drawn from a new secret from now on{'' if config.secret is None else ', that of the site file'}"
    )
