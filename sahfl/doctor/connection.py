"""From a site to its server, step by step: name, port, TLS, health, clock. Each failure has its own cause."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from ipaddress import ip_address

from sahfl.doctor.findings import Finding, skip_all
from sahfl.process import now

PATIENCE_S = 5.0
"""Timeout for a connection, and for each answer."""
ANSWER_S = 10.0
"""Longest time for a whole answer, however it comes."""
MOST_BYTES = 10_000
"""Most bytes that are read of an answer's body; http.client reads a head of at most 100 lines of 64 KiB."""
AHEAD_S, BEHIND_S = 5, 305
"""flwr refuses a request whose time stamp differs more from the server's clock (``node_auth``: 300 s and 5 s)."""
NOTICEABLE_S = 2
"""A smaller offset can come from the resolution of an HTTP date, one second."""
STEPS = ("dns", "port", "tls", "health", "clock")
# OpenSSL's codes for errors of the server's certificate (X509_V_ERR_...), and of ours in an alert from the server.
NOT_YET_VALID, EXPIRED, HOST_MISMATCH, ADDRESS_MISMATCH = 9, 10, 62, 64
NEW_KIT = "have the centre issue a new kit: sahfl renew"
REFUSALS = {
    "CERTIFICATE_EXPIRED": ("this site's certificate has expired", NEW_KIT),
    "CERTIFICATE_REVOKED": ("this site's certificate was revoked", "ask the centre why; access needs a new kit"),
    "UNKNOWN_CA": ("the server does not accept this site's authority", "unpack the kit of this consortium again"),
    "CERTIFICATE_REQUIRED": ("the server saw no certificate of this site", "unpack the kit again, with client.crt"),
}
CUT = ("the connection ended before TLS was agreed", "have the firewall let TLS through to the server unchanged")
DISMISSED = (
    "the server ended the connection once it saw this site's certificate",
    "ask the centre whether this site's certificate was revoked or replaced: sahfl status server.yaml",
)


@dataclass(frozen=True)
class Answer:
    """The server's answer to /health."""

    status: int
    date: datetime | None
    """The server's clock, to the second."""
    local: datetime
    """This machine's clock at that moment."""


def examine_connection(
    host: str, port: int, tls: ssl.SSLContext, *, clock: Callable[[], datetime] = now
) -> list[Finding]:
    """Check the connection to the server step by step; after a failure the remaining steps are reported as skipped.

    ``tls`` is the site's context, with its certificate and its only authority.
    """
    found = [examine_name(host)]
    if found[-1].verdict == "ok":
        found.append(examine_port(host, port))
    answer = None
    if found[-1].check == "port" and found[-1].verdict == "ok":
        step, answer = examine_tls(host, port, tls, clock)
        found.append(step)
    if answer is not None:
        found += [examine_health(answer), examine_clock(answer)]
    return found + skip_all(STEPS[len(found) :], needs=found[-1].check)


def examine_name(host: str) -> Finding:
    """Check that the server's name resolves to an address."""
    try:
        return Finding.ok("dns", f"{ip_address(host)} is an address, no name is looked up")
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
            remedy = "check that this machine reaches its DNS server (/etc/resolv.conf)"
            return Finding.fail("dns", f"no DNS server answered for {host}", remedy=remedy)
        return Finding.fail("dns", f"{host} is not known", remedy=f"have {host} added to the DNS or to /etc/hosts")
    return Finding.ok("dns", f"{host} is {', '.join(sorted({str(entry[4][0]) for entry in found}))}")


def examine_port(host: str, port: int) -> Finding:
    """Check that the port accepts connections."""
    where = f"{host} port {port}"
    firewall = f"have the firewall allow outbound TCP from this machine to {where}"
    try:
        with socket.create_connection((host, port), timeout=PATIENCE_S):
            return Finding.ok("port", f"{where} accepts connections")
    except TimeoutError:
        return Finding.fail("port", f"{where}: no answer within {PATIENCE_S:.0f} s", remedy=firewall)
    except ConnectionRefusedError:
        remedy = f"ask the centre whether sahfl-server runs and listens at {where}"
        return Finding.fail("port", f"{where}: nothing listens there", remedy=remedy)
    except OSError as error:
        if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
            remedy = "check this machine's network cable, address and route"
            return Finding.fail("port", f"{where}: {error.strerror}", remedy=remedy)
        return Finding.fail("port", f"{where}: {error.strerror or error}", remedy=firewall)


def examine_tls(
    host: str, port: int, tls: ssl.SSLContext, clock: Callable[[], datetime]
) -> tuple[Finding, Answer | None]:
    """Check that both certificates are accepted; in TLS 1.3 the server refuses ours only in its first answer."""
    connection = http.client.HTTPSConnection(host, port, timeout=PATIENCE_S, context=tls)
    version = None
    try:
        connection.connect()
        version = connection.sock.version()
        with _cut_after(ANSWER_S, connection.sock):
            answer = _ask(connection, clock)
    except ssl.SSLCertVerificationError as error:
        found, remedy = _distrusted(host, error, clock())
        return Finding.fail("tls", found, remedy=remedy), None
    except _Endless:
        found = f"{host} port {port} sends an answer that does not end within {ANSWER_S:.0f} s"
        return Finding.fail("tls", found, remedy=f"ask the centre what listens on port {port}"), None
    except (OSError, http.client.HTTPException) as error:
        found, remedy = _refused(host, port, _alert(host, port, tls) or error, agreed=version is not None)
        return Finding.fail("tls", found, remedy=remedy), None
    finally:
        connection.close()
    return Finding.ok("tls", f"{version}, both certificates accepted"), answer


def _alert(host: str, port: int, tls: ssl.SSLContext) -> ssl.SSLError | None:
    """The server's alert to a connection that sends no request; a request under way can discard the alert."""
    try:
        with (
            socket.create_connection((host, port), timeout=PATIENCE_S) as raw,
            tls.wrap_socket(raw, server_hostname=host) as connection,
        ):
            connection.recv(1)
    except ssl.SSLError as error:
        return error
    except OSError:
        pass
    return None


class _Endless(Exception):
    """An answer that was cut, because it had not ended in time."""


@contextmanager
def _cut_after(seconds: float, connection: socket.socket) -> Iterator[None]:
    """Cut a connection if the block takes longer; a timeout of the connection limits one silence, not an answer."""
    cut = threading.Event()

    def end() -> None:
        cut.set()
        with suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)  # that of TLS would take its state away meanwhile

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        if cut.is_set():
            raise _Endless from error
        raise
    finally:
        timer.cancel()
    if cut.is_set():
        raise _Endless


def _ask(connection: http.client.HTTPSConnection, clock: Callable[[], datetime]) -> Answer:
    connection.request("GET", "/health")
    reply = connection.getresponse()
    local = clock()
    reply.read(MOST_BYTES)
    try:
        date = parsedate_to_datetime(reply.headers["Date"])
    except (TypeError, ValueError):
        date = None
    return Answer(reply.status, date, local)


def _distrusted(host: str, error: ssl.SSLCertVerificationError, now: datetime) -> tuple[str, str]:
    """Why this site did not accept the server's certificate, and the remedy."""
    if error.verify_code in (HOST_MISMATCH, ADDRESS_MISMATCH):
        remedy = "have the centre issue the server's certificate for this name (host in consortium.yaml)"
        return f"the server's certificate is not for {host}", remedy
    if error.verify_code in (EXPIRED, NOT_YET_VALID):
        state = "has expired" if error.verify_code == EXPIRED else "is not valid yet"
        found = f"the server's certificate {state}, by this machine's clock ({now:%Y-%m-%d %H:%M} UTC)"
        return found, "if that clock is right, have the centre renew it: sahfl renew"
    found = f"the server's certificate is not from this consortium's authority ({error.verify_message})"
    remedy = f"have {host} exempted from the firewall's TLS inspection, and compare the CA fingerprint by telephone"
    return found, remedy


def _refused(host: str, port: int, error: Exception, *, agreed: bool) -> tuple[str, str]:
    """How the server, or another program in its place, refused this site, and the remedy."""
    reason = (error.reason or "") if isinstance(error, ssl.SSLError) else ""
    for alert, refusal in REFUSALS.items():
        if alert in reason:
            return refusal
    where = f"{host} port {port}"
    if isinstance(error, http.client.HTTPException) and not isinstance(error, ConnectionError):
        return f"{where} speaks TLS but not HTTP", f"ask the centre what listens on port {port}"
    if "ALERT" in reason:
        remedy = "ask the centre which Python and OpenSSL its server runs on; TLS 1.3 is needed"
        return f"no common TLS settings ({reason})", remedy
    if not reason or "EOF" in reason:
        return DISMISSED if agreed else CUT
    if _answers_plain_http(host, port):
        remedy = "have the centre start sahfl-server there, or end what stands in front of it and takes TLS away"
        return f"{where} answers plain HTTP, not TLS", remedy
    return f"{where} does not speak TLS", "check host and port in kit.json"


def _answers_plain_http(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE_S)
    try:
        connection.connect()
        with _cut_after(ANSWER_S, connection.sock):
            connection.request("GET", "/health")
            connection.getresponse().read(MOST_BYTES)
    except (OSError, http.client.HTTPException, _Endless):
        return False
    finally:
        connection.close()
    return True


def examine_health(answer: Answer) -> Finding:
    """Check that the server reports itself as working."""
    if answer.status == HTTPStatus.OK:
        return Finding.ok("health", "the server answers")
    found = f"the server answers {answer.status} at /health"
    return Finding.fail("health", found, remedy="ask the centre for: sahfl status server.yaml")


def examine_clock(answer: Answer) -> Finding:
    """Check that the clock difference does not make the server refuse requests."""
    if answer.date is None:
        return Finding.warn("clock", "the server sent no date", remedy="compare both machines' clocks by hand")
    # The date is rounded down to a second; use the middle of that second.
    ahead = (answer.local - answer.date - timedelta(seconds=0.5)).total_seconds()
    offset = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    remedy = "set the clock of the machine that is wrong by NTP: timedatectl set-ntp true"
    if not -BEHIND_S < ahead < AHEAD_S:
        found = f"{offset}; requests are refused from {AHEAD_S} s ahead and {BEHIND_S} s behind"
        return Finding.fail("clock", found, remedy=remedy)
    if abs(ahead) > NOTICEABLE_S:
        return Finding.warn("clock", offset, remedy=remedy)
    return Finding.ok("clock", "agrees with the server's")
