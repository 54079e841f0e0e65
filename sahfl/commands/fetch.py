"""``sahfl fetch`` and ``sahfl push``: scans from a hospital's archive under pseudonyms, segmentations back to it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sahfl.errors import PacsError

Address = Annotated[str, typer.Option(help="Address of the archive's DICOMweb server, https://HOST/PATH.")]
LoginFile = Annotated[
    Path | None,
    typer.Option(help="File of mode 600 with one line, Bearer TOKEN or USER:PASSWORD; by default SAHFL_PACS_LOGIN."),
]
Authority = Annotated[
    Path | None, typer.Option(help="Certificates (PEM) of the archive's authority, if it is the hospital's own.")
]
NoTls = Annotated[bool, typer.Option("--no-tls", help="Allow http, without a login, in a protected network.")]


def fetch(
    studies: Annotated[Path, typer.Argument(help="CSV with the columns study or accession, and pseudonym.")],
    to: Annotated[Path, typer.Option(help="Folder of the scans; the mapping lies beside it, in FOLDER-mapping.")],
    archive: Address,
    login: LoginFile = None,
    authority: Authority = None,
    no_tls: NoTls = False,
    description: Annotated[str, typer.Option(help="Only series whose description contains this text.")] = "",
    least_slices: Annotated[int, typer.Option(min=1, help="Only series with as many images or more.")] = 8,
    annotations: Annotated[
        bool, typer.Option("--annotations", help="Fetch the newest segmentation of a person too, as annotation.")
    ] = False,
) -> None:
    """Fetch the CT series of listed studies from an archive (PACS), under pseudonyms.

    Only listed elements of the headers are kept, and UIDs get new values. FOLDER-mapping has who is who, for its
    owner only: it never leaves the hospital. The same call goes on after an interruption, and fetches what is new in
    the list. Exit code 3 if a study was refused; mapping.csv has the reason.

    Example: sahfl fetch studies.csv --to scans --archive https://pacs.example/dicom-web --login pacs-login
    """
    from sahfl.console import counting
    from sahfl.pacs.archive import Archive
    from sahfl.pacs.fetch import Choice
    from sahfl.pacs.fetch import fetch as run
    from sahfl.pacs.login import check_address, read_login
    from sahfl.pacs.mapping import Mapping
    from sahfl.pacs.orders import read_orders
    from sahfl.process import locked

    orders, known = read_orders(studies), read_login(login)
    server = Archive(check_address(archive, known, plain=no_tls), known, authority=authority)
    choice = Choice(description, least_slices, annotations)
    busy = PacsError(f"{to}: another call fetches into it; wait for its end")
    with (
        locked(Mapping(to).folder / "lock", busy=busy),
        counting(["fetched"], Console(stderr=True), unit="studies") as show,
    ):
        found = run(server, orders, to, choice, lambda done, total: show("fetched", done, total))
    annotated = f", {found.n_annotated} with an annotation" if annotations else ""
    print(f"{len(orders)} studies: {found.n_fetched} fetched ({found.n_earlier} by an earlier call){annotated}")
    _end(found.reasons)


def push(
    results: Annotated[Path, typer.Argument(help="Results of sahfl predict for the fetched scans, with --dicom-seg.")],
    scans: Annotated[Path, typer.Option(help="Folder of the fetched scans.")],
    archive: Address,
    login: LoginFile = None,
    authority: Authority = None,
    no_tls: NoTls = False,
) -> None:
    """Store segmentations of fetched scans in the archive, each in its patient's study. For research use only.

    A segmentation of pseudonymised scans gets the patient's own name and UIDs again, from the mapping and from the
    archive. None is stored twice. Exit code 3 if one was refused.

    Example: sahfl push results --scans scans --archive https://pacs.example/dicom-web --login pacs-login
    """
    from sahfl.pacs.archive import Archive
    from sahfl.pacs.login import check_address, read_login
    from sahfl.pacs.push import push as run

    known = read_login(login)
    server = Archive(check_address(archive, known, plain=no_tls), known, authority=authority)
    found = run(server, results, scans)
    print(f"{found.n_pushed} segmentations stored, {found.n_earlier} stored by an earlier call")
    _end(found.reasons)


def _end(reasons: dict[str, str]) -> None:
    """Print why studies were refused, by their pseudonyms, and end with an exit code."""
    for pseudonym, reason in reasons.items():
        print(f"refused: {pseudonym}: {reason}", file=sys.stderr)
    if reasons:
        raise typer.Exit(PacsError.exit_code)
