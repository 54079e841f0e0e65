"""The listening socket of a server: connections before their TLS handshake, counted and given a deadline."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import resource
import socket
import ssl
import time
from collections import Counter
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

from sahfl.errors import RunError
from sahfl.federation.flower.callers import MOST_REMEMBERED, Addresses, Once
from sahfl.log_lines import LogLine

log = logging.getLogger(__name__)
HANDSHAKE_S = 10.0
"""Longest time for a TLS handshake."""
MOST_PENDING = 256
"""Connections without a finished handshake; for a further one, the oldest of the address with the most is closed."""
READ_BUFFER = 64 * 1024
"""Bytes that asyncio sets aside for each TLS connection, from its first byte on; 256 KiB by default."""
MOST_AT_ONCE = 32
"""Connections that are refused before requests are served again."""
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


class Accepted(socket.socket):
    """An accepted connection, which is pending until its handshake is done or it is closed."""

    def __init__(self, plain: socket.socket, doorway: Doorway, address: str) -> None:
        super().__init__(plain.family, plain.type, plain.proto, fileno=plain.detach())
        self.doorway, self.address, self.since = doorway, address, time.monotonic()

    def settled(self) -> None:
        """Record that the handshake is done, or that there will be none."""
        self.doorway.pending.pop(self, None)

    def close(self) -> None:
        """Close the connection."""
        self.settled()
        super().close()


_connection: ContextVar[Accepted] = ContextVar("connection")
"""The accepted connection that the current context belongs to."""


class Doorway(socket.socket):
    """A listening socket that accepts no more connections than it can serve.

    Guarantees: one address opens connections at a limited rate; connections without a finished handshake are few, and
    none is older than ``HANDSHAKE_S`` once another one comes. It stores each connection in a context variable, which
    asyncio copies then, so that ``Handshake`` can name the address; asyncio itself reports no failed handshake.
    """

    def __init__(self, family: int, kind: int, protocol: int) -> None:
        super().__init__(family, kind, protocol)
        self.pending: dict[Accepted, None] = {}
        self._addresses, self._due = Addresses(), Once(most=MOST_REMEMBERED)

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept the next connection that is within the limits.

        Raises:
            BlockingIOError: there is none; or ``MOST_AT_ONCE`` were refused, and those who are connected come first.
        """
        for _ in range(MOST_AT_ONCE):
            plain, address = super().accept()
            peer = str(address[0])
            if self._addresses.admit(network_of(peer)):
                connection = Accepted(plain, self, peer)
                self._make_room()
                self.pending[connection] = None
                _connection.set(connection)
                return connection, address
            plain.close()
            self.refuse(peer, "this address opens connections too fast")
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def refuse(self, peer: str, reason: str) -> None:
        """Log that a connection is refused, unless the same was logged a moment ago."""
        if self._due(network_of(peer), reason):
            log.warning(LogLine("tls_refused", peer=peer, reason=reason))

    def _make_room(self) -> None:
        old = time.monotonic() - HANDSHAKE_S
        late = [connection for connection in self.pending if connection.since < old]
        if not late and len(self.pending) >= MOST_PENDING:
            (most, _), *_ = Counter(network_of(connection.address) for connection in self.pending).most_common(1)
            late = [next(connection for connection in self.pending if network_of(connection.address) == most)]
        for connection in late:
            self.refuse(connection.address, "it does not finish the TLS handshake")
            connection.settled()
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # asyncio reads the end, and closes it


class Handshake(ssl.SSLObject):
    """A TLS connection that logs why its handshake failed, in one line, and counts the records that it receives."""

    _records = 0

    def read(self, len: int = 1024, buffer: Any = None) -> bytes:
        """Read the next record, or what is left of it.

        Raises:
            SSLError: it needs more bytes, or the connection is at its end.
        """
        found = super().read(len, buffer)
        self._records += 1
        return found

    def take_records(self) -> int:
        """The number of records that were read since the last call."""
        found, self._records = self._records, 0
        return found

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
            connection = _connection.get()
            connection.doorway.refuse(connection.address, reason_of(error))
            raise


def network_of(address: str) -> str:
    """Who shares the limits of an address: itself, or in IPv6 its network of 64 bits, which one machine has alone."""
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))


def settled() -> None:
    """Record that the current connection's handshake is done."""
    _connection.get().settled()


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


def allow_many_files() -> None:
    """Raise this process's soft limit of open files to the hard one; each connection is a file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
