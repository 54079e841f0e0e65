"""One connection of a server's port: limits on what is read before a request reaches the gate.

uvicorn's parser keeps whatever arrives until a header or a URL ends, and waits for it without end. This protocol counts
and times the bytes on their way to that parser.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sahfl.federation.flower.callers import CALLER, HANDSHAKE, MEGABYTE, RECORD, REQUEST, Caller, Callers
from sahfl.federation.flower.doorway import Handshake, settled

MOST_HEAD = 16 * 1024
"""Most bytes of a request's line and headers; those of a site take about 1 KiB."""
MOST_URL = 1024
"""Most bytes of a request's address; those of a site take about 40."""
HEAD_S = 10.0
"""Longest time in seconds for a request's line and headers, and for the first byte of a connection."""
BODY_S, SLOWEST = 30.0, 8 * 1024
"""Longest time in seconds for a small body, and the bytes a second that a larger one has to bring besides."""
MOST_BODY = 6 * 1024 * 1024
"""Most bytes of any body: a piece of an array, with what Flower adds to it."""


class Refused(Exception):
    """Raised inside the parser to refuse a request; the protocol holds the status."""


class Door(HttpToolsProtocol):
    """A connection that is closed as soon as it costs more than a site's would.

    Guarantees: a request's line and headers are refused (414, 431) before more than ``MOST_HEAD`` bytes of them are
    stored; a body has a declared length (411) of at most ``MOST_BODY`` (413); requests are not stacked up (400); line,
    headers and body each have a deadline (408); a caller whose budget is used up is read from more slowly.

    Args:
        callers: everybody who connects at this port.
        settings: what uvicorn passes to its protocol.
    """

    def __init__(self, callers: Callers, **settings: Any) -> None:
        super().__init__(**settings)
        self._callers = callers
        self._caller: Caller = callers.of(None)
        self._head_left: int | None = MOST_HEAD
        self._status = HTTPStatus.BAD_REQUEST
        self._refused = False
        self._deadline: asyncio.TimerHandle | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._tls: Handshake | None = None
        self.received_at = self.loop.time()

    # ------------------------------------------------------------------------------------------- connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn does
        """Find the caller by its certificate, and start waiting for a request."""
        super().connection_made(transport)
        settled()
        self._tls = transport.get_extra_info("ssl_object")
        self._caller = self._callers.of(_site_of(self._tls))
        self._expect(HEAD_S)
        self._caller.enter(self)
        self._charge(HANDSHAKE)

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the caller's list."""
        self._caller.leave(self)
        for timer in (self._deadline, self._pause):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def end(self) -> None:
        """Close the connection at once."""
        self._refused = True
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Pass bytes to the parser: of a head at most what is left of ``MOST_HEAD``."""
        self.received_at = self.loop.time()
        if self._tls is not None:
            self._charge(self._tls.take_records() * RECORD)
        if self._deadline is None:
            self._expect(HEAD_S)
        while data and not self._refused and self.parser is not None:
            n = len(data) if self._head_left is None else min(len(data), self._head_left)
            if self._head_left is not None:
                self._head_left -= n
            super().data_received(data[:n])
            data = data[n:]
            if self._head_left == 0 and not self._refused:
                # without a header so far, it is the address that does not end
                self._refuse(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if self.headers else HTTPStatus.REQUEST_URI_TOO_LONG
                )
            self._charge(n / 1e6 * MEGABYTE)

    # ------------------------------------------------------------------------------------------- parser

    def on_message_begin(self) -> None:
        """Begin a request, unless the one before has no answer yet."""
        if self.cycle is not None and not self.cycle.response_complete:
            raise self._no(HTTPStatus.BAD_REQUEST)
        super().on_message_begin()
        self.scope[CALLER] = self._caller  # type: ignore[literal-required] # a scope may hold more

    def on_url(self, url: bytes) -> None:
        """Add a part of the address."""
        super().on_url(url)
        if len(self.url) > MOST_URL:
            raise self._no(HTTPStatus.REQUEST_URI_TOO_LONG)

    def on_headers_complete(self) -> None:
        """Check the declared length of the body, then hand the request on."""
        if any(name == b"transfer-encoding" for name, _ in self.headers):
            raise self._no(HTTPStatus.LENGTH_REQUIRED)
        n = int(next((value for name, value in self.headers if name == b"content-length"), b"0"))
        if n > MOST_BODY:
            raise self._no(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        self._head_left = None
        self._expect(BODY_S + n / SLOWEST)
        self._charge(REQUEST)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the request's body; the next request has a deadline of its own from its first byte on."""
        self._expect(None)
        self._head_left = MOST_HEAD
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that the parser refused, with the status that fits."""
        self._refuse(self._status)

    # ------------------------------------------------------------------------------------------- limits

    def _no(self, status: HTTPStatus) -> Refused:
        self._status = status
        return Refused()

    def _refuse(self, status: HTTPStatus) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._expect(None)
        self._caller.spend(HANDSHAKE)
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode())
        self.transport.close()
        self.loop.call_later(1.0, self.transport.abort)  # TLS waits for the other end's goodbye

    def _expect(self, within_s: float | None) -> None:
        """Set the deadline of what comes next; None for no deadline."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if within_s is None else self.loop.call_later(within_s, self._too_slow)

    def _too_slow(self) -> None:
        self._deadline = None
        self._refuse(HTTPStatus.REQUEST_TIMEOUT)

    def _charge(self, cost: float) -> None:
        """Charge the caller, and read nothing until a debt is paid back."""
        wait_s = self._caller.spend(cost)
        if wait_s and not self.transport.is_closing():
            self.transport.pause_reading()  # again during a pause: uvicorn goes on reading when the app wants more
            if self._pause is None:
                self._pause = self.loop.call_later(wait_s, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        if not self.transport.is_closing() and not self.flow.read_paused:
            self.transport.resume_reading()


def _site_of(tls: Handshake | None) -> str | None:
    """Holder of the certificate of a connection; None without TLS."""
    if tls is None:
        return None
    certificate: Any = tls.getpeercert()
    subject = dict(part[0] for part in certificate["subject"])
    return str(subject.get("commonName", ""))
