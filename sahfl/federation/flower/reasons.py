"""Causes of a failed connection to the server, each as one line with its remedy."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from datetime import datetime

import httpx

from sahfl.errors import NotConnected

TLS_ALERTS = {
    "CERTIFICATE_REVOKED": "the server refuses this site's certificate: it was revoked",
    "CERTIFICATE_EXPIRED": "the server refuses this site's certificate: it has expired",
    "UNKNOWN_CA": "the server refuses this site's certificate: another authority issued it",
    "CERTIFICATE_REQUIRED": "the server refuses this site: it showed no certificate",
    "WRONG_VERSION_NUMBER": "the server speaks no TLS at this port; is it the right port?",
    "PROTOCOL_VERSION": "the server does not speak TLS 1.3",
    "UNEXPECTED_EOF": "the connection was cut during the TLS handshake",
}
"""Cause of a TLS failure for each part of a name that OpenSSL uses."""


def of_failure(error: Exception) -> NotConnected:
    """The cause of a request without an answer."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            problem = cause.verify_message.rstrip(".")
            return NotConnected(f"the server's certificate is not trusted: {problem}", lasting=True)
        if isinstance(cause, ssl.SSLError):
            name = f"{cause.reason} {cause}".upper().replace(" ", "_")
            text = next((text for part, text in TLS_ALERTS.items() if part in name), None)
            return NotConnected(text or f"TLS failed: {cause.reason or cause}", lasting="UNEXPECTED_EOF" not in name)
        if isinstance(cause, socket.gaierror):
            return NotConnected(f"the server's name cannot be looked up: {cause.strerror}")
        if isinstance(cause, ConnectionRefusedError):
            return NotConnected("connection refused: no server listens there, or a firewall blocks it")
    if isinstance(error, httpx.ConnectTimeout):
        return NotConnected("no answer to the connection: the network or a firewall drops it")
    if isinstance(error, httpx.TimeoutException):
        return NotConnected("the server does not answer")
    if isinstance(error, httpx.TransportError):
        return NotConnected(CUT)
    return NotConnected("what answers there is not a sahfl server", lasting=True)


CUT = "the connection was cut"
KEYS = {
    "unknown key": "the server's list lacks this site's key",
    "revoked": "the server refuses this site: its key was revoked",
    "certificate": "the server refuses this site's key beside another site's certificate; put the kit's files back",
    "signature": "the server refuses this site's signature",
    "connected twice": "another process is connected as this site; stop one of them",
}
"""Cause of a refusal for each word that the server sends as its reason."""


def of_first_failure(error: Exception) -> NotConnected:
    """The cause of a first request without an answer; in TLS 1.3 a server can refuse a certificate without a reply."""
    cause = of_failure(error)
    if str(cause) != CUT:
        return cause
    return NotConnected(
        "the server ended the connection without a word: perhaps it refuses this site's certificate, or the network "
        "is cut"
    )


def of_refusal(response: httpx.Response) -> NotConnected:
    """The cause of an answer with an error status."""
    body = _body(response)
    word = word_of(response)
    if word == "version":
        server, client = _listed(body.get("server")), _listed(body.get("client"))
        text = f"versions differ: the server has {server}, this site has {client}; install the same"
        return NotConnected(text, lasting=True)
    if word == "clock":
        ahead = _ahead_s(body)
        where = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'}" if ahead else "not at"
        return NotConnected(f"this machine's clock is {where} the server's; set it right", lasting=True)
    if word in KEYS:
        return NotConnected(KEYS[word], lasting=True)
    if response.is_server_error:
        return NotConnected(f"the server has a problem of its own (HTTP {response.status_code})")
    return NotConnected(f"the server refuses (HTTP {response.status_code})", lasting=True)


def word_of(response: httpx.Response) -> str:
    """The server's word for its reason to refuse; empty if Flower itself refused."""
    return _plain(_body(response).get("error", ""))


def _ahead_s(body: Mapping[str, object]) -> float:
    """Seconds that this machine's clock is ahead of the server's; 0 if the body has no valid times."""
    try:
        theirs, ours = (datetime.fromisoformat(str(body.get(end))) for end in ("server", "client"))
        return (ours - theirs).total_seconds()
    except (TypeError, ValueError):
        return 0.0


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _body(response: httpx.Response) -> dict[str, object]:
    try:
        body = json.loads(response.content[:10_000])
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _listed(versions: object) -> str:
    """Write the versions that a peer sent as a line of plain text."""
    if not isinstance(versions, dict):
        return "others"
    return _plain(", ".join(f"{name} {value}" for name, value in sorted(versions.items(), key=str)))


def _plain(text: object) -> str:
    return "".join(letter for letter in str(text) if letter.isprintable())[:120]
