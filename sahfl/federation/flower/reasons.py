"""Why there is no connection, in one line that says what to do."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from sahfl.errors import NotConnected

CLOCK_S = 4.0
"""Clocks may differ by five seconds ahead before signatures are refused; this much is worth a word."""
TLS_ALERTS = {
    "CERTIFICATE_REVOKED": "the server refuses this site's certificate: it was revoked",
    "CERTIFICATE_EXPIRED": "the server refuses this site's certificate: it has expired",
    "UNKNOWN_CA": "the server refuses this site's certificate: another authority issued it",
    "CERTIFICATE_REQUIRED": "the server refuses this site: it showed no certificate",
    "WRONG_VERSION_NUMBER": "the server speaks no TLS at this port; is it the right port?",
    "PROTOCOL_VERSION": "the server does not speak TLS 1.3",
    "UNEXPECTED_EOF": "the connection was cut during the TLS handshake",
}
"""Part of OpenSSL's name of a failure, and what it means here."""


def of_failure(error: Exception) -> NotConnected:
    """The cause of a request that got no answer."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            said = cause.verify_message.rstrip(".")
            return NotConnected(f"the server's certificate is not trusted: {said}", lasting=True)
        if isinstance(cause, ssl.SSLError):
            name = f"{cause.reason} {cause}".upper().replace(" ", "_")
            text = next((text for part, text in TLS_ALERTS.items() if part in name), None)
            return NotConnected(text or f"TLS failed: {cause.reason or cause}", lasting="UNEXPECTED_EOF" not in name)
        if isinstance(cause, socket.gaierror):
            return NotConnected(f"the server's name is not known to DNS ({cause.strerror})")
        if isinstance(cause, ConnectionRefusedError):
            return NotConnected("connection refused: no server listens there, or a firewall says no")
    if isinstance(error, httpx.ConnectTimeout):
        return NotConnected("no answer to the connection: the network or a firewall drops it")
    if isinstance(error, httpx.TimeoutException):
        return NotConnected("the server does not answer")
    if isinstance(error, httpx.TransportError):
        return NotConnected("the connection was cut")
    return NotConnected("what answers there is not a sahfl server", lasting=True)


def of_refusal(response: httpx.Response, versions: Mapping[str, str]) -> NotConnected:
    """The meaning of an answer that is an error."""
    said = _body(response)
    if response.status_code == httpx.codes.UPGRADE_REQUIRED:
        server, client = (_listed(said.get(end)) for end in ("server", "client"))
        return NotConnected(
            f"versions differ: the server has {server}, this site has {client}; install the same", lasting=True
        )
    if response.status_code == httpx.codes.CONFLICT and said.get("error") == "connected twice":
        return NotConnected("another process is connected as this site; stop one of them", lasting=True)
    if response.status_code == httpx.codes.UNAUTHORIZED:
        if ahead := clock_difference_s(response):
            where = "ahead of" if ahead > 0 else "behind"
            return NotConnected(f"this machine's clock is {abs(ahead):.0f} s {where} the server's; set it right")
        return NotConnected("the server does not know this site's key, or it was revoked", lasting=True)
    if response.is_server_error:
        return NotConnected(f"the server has a problem of its own (HTTP {response.status_code})")
    return NotConnected(f"the server refuses (HTTP {response.status_code})", lasting=True)


def clock_difference_s(response: httpx.Response) -> float:
    """Seconds that this machine's clock is ahead of the server's; 0 where that is not worth a word."""
    try:
        theirs = parsedate_to_datetime(response.headers.get("date", ""))
        ahead = (datetime.now(UTC) - theirs).total_seconds()
    except (TypeError, ValueError):
        return 0.0
    return ahead if abs(ahead) > CLOCK_S else 0.0


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _body(response: httpx.Response) -> dict[str, object]:
    try:
        said = json.loads(response.content[:10_000])
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _listed(versions: object) -> str:
    """Versions by name, from a peer: a line of plain text whatever they are."""
    if not isinstance(versions, dict):
        return "others"
    text = ", ".join(f"{name} {value}" for name, value in sorted(versions.items(), key=str))
    return "".join(letter for letter in text if letter.isprintable())[:120]
