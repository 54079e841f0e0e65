"""Checks of a server, from its kit to its queue."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from sahfl.config import ServerConfig, load_study
from sahfl.data.sources.scans import StudyScansAtSites
from sahfl.doctor import machine
from sahfl.doctor.connection import PATIENCE_S
from sahfl.doctor.findings import Finding, skip_all
from sahfl.errors import SahflError
from sahfl.last_errors import checked_errors, errors_text, read_status
from sahfl.process import now
from sahfl.trust.certificates import pem
from sahfl.trust.kit import ServerKit

RUN_BYTES, EASY_RUN_BYTES = 1e9, 20e9
"""Disk use of a run of small adapters with its checkpoints, and of a grid of methods that send whole networks."""
EVERYWHERE = {"0.0.0.0", "::", ""}


def examine_server(config: ServerConfig, *, clock: Callable[[], datetime] = now) -> list[Finding]:
    """Run all checks of a server, in the order in which it would fail."""
    found = [machine.examine_user(), machine.examine_versions(), machine.examine_environment()]
    try:
        kit = ServerKit.load(config.kit, now=clock())
        names, sites = names_of(kit), set(kit.sites())
    except SahflError as error:
        found.append(Finding.of_error("kit", error, remedy="copy the folder server/ of sahfl provision again"))
        found += skip_all(["certificates", "names", "port", "queue"], needs="kit")
    else:
        found.append(Finding.ok("kit", f"{kit.consortium}, {len(sites)} active sites: {', '.join(sorted(sites))}"))
        found += [examine_certificates(kit, clock()), examine_names(names), examine_listener(config, kit)]
        found.append(examine_queue(config.folder, sites))
    found += [machine.examine_synchronisation(), machine.examine_folder(config.folder)]
    found.append(
        machine.examine_disk(config.folder, least_bytes=RUN_BYTES, easy_bytes=EASY_RUN_BYTES, what="a run takes")
    )
    return [*found, machine.examine_memory(), examine_sites(config.folder / "status.json")]


def examine_sites(status: Path) -> Finding:
    """Check which sites last answered a kind of request with an error, as the running server wrote it down."""
    sites = read_status(status).get("sites")
    shown = {site: of for site, of in sites.items() if isinstance(of, dict)} if isinstance(sites, dict) else {}
    errors = {site: checked_errors(of.get("errors")) for site, of in shown.items()}
    named = [f"{site}: {errors_text(found)}" for site, found in errors.items() if found]
    if not named:
        return Finding.ok("sites", "no site's last answer to a kind of request was an error")
    remedy = "telephone the hospital: its log has the reason, and its runbook the table of errors"
    return Finding.warn("sites", f"the last answer was an error: {'; '.join(named)}", remedy=remedy)


def examine_certificates(kit: ServerKit, now: datetime) -> Finding:
    """Check when the certificates of server, sites and authority expire; one line, the first to expire first."""
    soon = kit.warnings(now)
    if not soon:
        return Finding.ok(
            "certificates", f"the server's is valid until {kit.certificate_expires:%Y-%m-%d}, no site's ends soon"
        )
    others = "".join(f"; {text.rpartition('; ')[0]}" for text in soon[1:])
    first = Finding.of_warning("certificates", soon[0])
    ended = any(" expired on " in text for text in soon)
    make = Finding.fail if ended else Finding.warn
    return make("certificates", first.found + others, remedy=first.remedy or "")


def names_of(kit: ServerKit) -> tuple[str, ...]:
    """The names and addresses in the server's certificate, from an in-memory handshake of the kit with itself.

    Raises:
        TrustError: the kit's files cannot be used.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = kit.tls().wrap_bio(to_server, to_client, server_side=True)
    client = _trusting(kit).wrap_bio(to_client, to_server)
    for end in (client, server, client):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    names = (client.getpeercert() or {}).get("subjectAltName", ())
    return tuple(str(entry[1]) for entry in names)


def _trusting(kit: ServerKit) -> ssl.SSLContext:
    """TLS that accepts any certificate of the kit's authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=pem(kit.authority).decode())
    context.check_hostname = False
    return context


def examine_names(names: tuple[str, ...]) -> Finding:
    """Check that a name in the certificate leads to this machine; behind a router with NAT it need not."""
    leading = {name: machine.addresses_of(name) for name in names}
    if here := [name for name, found in leading.items() if any(map(_is_here, found))]:
        return Finding.ok("names", f"{here[0]} leads to this machine")
    listed = ", ".join(f"{name} is {' '.join(sorted(found)) or 'not known'}" for name, found in leading.items())
    remedy = "have the DNS lead the certificate's name here, unless a router forwards its port to this machine"
    return Finding.warn("names", f"{listed}; none of this is an address of this machine", remedy=remedy)


def _is_here(address: str) -> bool:
    """Test for an address of this machine; no other address can be bound."""
    with socket.socket(_family(address), socket.SOCK_STREAM) as trial:
        try:
            trial.bind((address, 0))
        except OSError:
            return False
    return True


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def examine_listener(config: ServerConfig, kit: ServerKit) -> Finding:
    """Check that the port is free, or used by this server."""
    where = f"{config.host} port {config.port}"
    try:
        socket.create_server((config.host, config.port), family=_family(config.host)).close()
        return Finding.ok("port", f"{where} is free")
    except OSError as error:
        if error.errno == errno.EACCES:
            remedy = "use a port from 1024 on, or give the unit CAP_NET_BIND_SERVICE"
            return Finding.fail("port", f"{where} may not be taken by this user", remedy=remedy)
        if error.errno != errno.EADDRINUSE:
            remedy = "set host in server.yaml to an address of this machine, or to 0.0.0.0 for all"
            return Finding.fail("port", f"{where}: {error.strerror or error}", remedy=remedy)
    if _is_ours(config, kit):
        return Finding.ok("port", f"{where} is taken by this server")
    remedy = "end the other program (ss -ltnp names it), or set another port here and in consortium.yaml"
    return Finding.fail("port", f"{where} is taken by another program", remedy=remedy)


def _is_ours(config: ServerConfig, kit: ServerKit) -> bool:
    """Test whether the listening program shows a certificate of our authority."""
    host = "localhost" if config.host in EVERYWHERE else config.host
    try:
        with (
            socket.create_connection((host, config.port), timeout=PATIENCE_S) as raw,
            _trusting(kit).wrap_socket(raw) as connection,
        ):
            return connection.getpeercert() is not None
    except OSError:
        return False


def examine_queue(folder: Path, sites: set[str]) -> Finding:
    """Check that every waiting study of a server's folder can be read, and that the consortium contains its sites."""
    queue, runs = folder / "queue", folder / "runs"
    waiting = sorted(queue.glob("*.yaml"))
    for path in waiting:
        try:
            study = load_study(path)
        except SahflError as error:
            return Finding.of_error("queue", error, remedy=f"correct {path}, or take it out of the queue")
        if not isinstance(study.data, StudyScansAtSites):
            found = f"{path.name}: data.source is {study.data.source}, expected sites"
            remedy = "set data: {source: sites}, since each site's own file names its scans"
            return Finding.fail("queue", found, remedy=remedy)
        if (runs / path.stem / "journal.jsonl").exists():
            continue  # it has begun, and goes on without sites that were revoked since
        wanted = {site for stage in (study.pretrain, study.finetune) if stage for site in stage.sites}
        if unknown := sorted(wanted - sites):
            found = f"{path.name} asks for {', '.join(unknown)}, no active site of this consortium"
            return Finding.fail("queue", found, remedy="correct the study's sites, or provision and renew those sites")
    names = f": {', '.join(path.stem for path in waiting)}" if waiting else ""
    return Finding.ok("queue", f"{len(waiting)} studies wait{names}")
