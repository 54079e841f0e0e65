"""The open port of a server: uvicorn in a thread, and a log line for each failed TLS handshake."""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self

import uvicorn

from sahfl.errors import RunError

log = logging.getLogger(__name__)
START_S, STOP_S = 30.0, 5.0
"""Longest time for the server to start listening, and for open requests to end when it stops."""
KEEP_ALIVE_S = 75
"""Seconds after which an idle connection is closed; longer than the pause between two requests of a site."""
REPEAT_S = 60.0
"""Seconds between two log lines with the same reason from the same address."""
MOST_REMEMBERED = 1000
"""Refusals that are remembered at a time; further ones are not logged."""
REASONS = {
    "HTTP_REQUEST": "it speaks plain HTTP; this port takes TLS 1.3 only",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it shows no certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not trust this server's certificate (another consortium's ca.crt?)",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it refuses this server's certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it finds this server's certificate expired; check both clocks",
    "UNSUPPORTED_PROTOCOL": "it speaks a TLS version before 1.3",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
}
"""Reason of a failed handshake for each of OpenSSL's names."""


class Refusals:
    """Refused handshakes of one port: a line for each, the same reason from one address once in ``REPEAT_S``."""

    def __init__(self) -> None:
        self._logged: dict[tuple[str, str], float] = {}

    def log(self, peer: str, reason: str) -> None:
        """Log a refusal, unless the same one was logged a moment ago."""
        now = time.monotonic()
        self._logged = {key: when for key, when in self._logged.items() if now - when < REPEAT_S}
        if (peer, reason) not in self._logged and len(self._logged) < MOST_REMEMBERED:
            self._logged[peer, reason] = now
            log.warning("event=tls_refused peer=%s reason=%r", peer, reason)


_connection: ContextVar[tuple[str, Refusals]] = ContextVar("connection")
"""Address of the connection that the current context belongs to, and the refusals of its port."""


class Doorway(socket.socket):
    """A listening socket that stores the address of each accepted connection in a context variable.

    asyncio copies the context then, and ``Handshake`` reads the address; asyncio itself reports no failed handshake.
    """

    def __init__(self, family: int, kind: int, protocol: int) -> None:
        super().__init__(family, kind, protocol)
        self.refusals = Refusals()

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection, and store its address."""
        connection, address = super().accept()
        _connection.set((str(address[0]), self.refusals))
        return connection, address


class Handshake(ssl.SSLObject):
    """A TLS connection that logs why its handshake failed, in one line."""

    def do_handshake(self) -> None:
        """Do the handshake, or a part of it.

        Raises:
            SSLError: the handshake failed, or needs more bytes.
        """
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            peer, refusals = _connection.get()
            refusals.log(peer, reason_of(error))
            raise


def reason_of(error: ssl.SSLError) -> str:
    """The reason of a failed handshake in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    name = str(error.reason or error)
    return REASONS.get(name, name.lower().replace("_", " "))


def open_port(host: str, port: int) -> Doorway:
    """Bind a port; 0 takes a free one.

    Raises:
        RunError: the port is taken, or this machine does not have the address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        doorway = Doorway(family, kind, protocol)
    except OSError as error:
        raise RunError(f"host {host}: is not an address of this machine ({error.strerror}); see host") from error
    doorway.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        doorway.bind(address)
        doorway.listen(128)
    except OSError as error:
        doorway.close()
        what = "is taken by another process" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error})"
        raise RunError(f"{host}:{port}: the port {what}; end that process, or set another port") from error
    return doorway


class Listener:
    """Serves an ASGI app on a port while the block runs.

    Args:
        app: what is served.
        doorway: the port, from ``open_port``.
        tls: context of the server's certificate; None serves plain HTTP, for tests.
        closing: called when the block ends, before open requests are waited for.
    """

    def __init__(self, app: Any, doorway: Doorway, *, tls: ssl.SSLContext | None, closing: Callable[[], None]) -> None:
        self._doorway, self._closing = doorway, closing
        if tls is not None:
            tls.sslobject_class = Handshake
        config = uvicorn.Config(
            app,
            ssl_context_factory=None if tls is None else lambda _config, _default: tls,
            loop="asyncio",
            lifespan="on",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(STOP_S),
        )
        logging.getLogger("uvicorn").setLevel(logging.ERROR)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([doorway],), name="listener", daemon=True)

    @property
    def address(self) -> str:
        """Host and port that it listens on."""
        host, port = self._doorway.getsockname()[:2]
        return f"{host}:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        end = time.monotonic() + START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                raise RunError(f"{self.address}: the server did not start to listen within {START_S:.0f} s")
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing()
        self._server.should_exit = True
        self._thread.join(STOP_S + 1)
        self._doorway.close()
