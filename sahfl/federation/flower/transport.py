"""The HTTP transport of a site's connection: dead connections end, and no reply is read beyond its limit."""

from __future__ import annotations

import socket
import ssl
import time

import httpx

from sahfl.errors import NotConnected

DEAD_AFTER_S = 15.0
"""Seconds without an answer or an acknowledged packet after which a connection counts as dead."""
IDLE_S = 30.0
"""Seconds after which this end closes an idle connection; shorter than the server's, so that no request meets one."""
REPLY_BYTES = 1 << 20
"""Most bytes of a reply without an object: the tree of a message of 10 000 objects has 700 000."""
OBJECT_BYTES = (5 << 20) + (1 << 16)
"""Most bytes of a reply with an object: Flower cuts arrays into pieces of 5 MiB; the rest is what is around one."""
GRACE_S, SLOWEST = 30.0, 8192
"""A reply's body may take this many seconds, and one more for each ``SLOWEST`` bytes of its limit."""
LIMIT = "sahfl.most"
"""Key of a request's extension: most bytes of its reply's body, instead of ``REPLY_BYTES``."""


class BoundedTransport(httpx.HTTPTransport):
    """A transport that reads a reply before the client does, at most as many bytes as the request allows.

    Guarantees: the body is counted as it was sent and never unpacked, so that neither an endless nor a packed one
    fills the memory; h11 bounds the head of a reply to 100 KiB; a body that never ends is given up.
    """

    def __init__(self, tls: ssl.SSLContext) -> None:
        super().__init__(verify=tls, limits=httpx.Limits(keepalive_expiry=IDLE_S), socket_options=_socket_options())

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and read its reply.

        Raises:
            NotConnected: the reply is too large or too slow.
        """
        request.headers["accept-encoding"] = "identity"
        most = request.extensions.get(LIMIT, REPLY_BYTES)
        reply = super().handle_request(request)
        try:
            content = _read(reply, most, request.url.path)
        finally:
            reply.close()
        left_out = ("content-encoding", "transfer-encoding", "content-length")
        headers = [(name, value) for name, value in reply.headers.multi_items() if name not in left_out]
        return httpx.Response(reply.status_code, headers=headers, content=content, extensions=reply.extensions)


def _read(reply: httpx.Response, most: int, path: str) -> bytes:
    about = f"the server's reply to {path}"
    remedy = "ask the centre what answers at its port"
    end = time.monotonic() + GRACE_S + most / SLOWEST
    content = bytearray()
    for part in reply.iter_raw():
        content += part
        if len(content) > most:
            raise NotConnected(f"{about} has more than {most} bytes, the most that is read; {remedy}", lasting=True)
        if time.monotonic() > end:
            raise NotConnected(
                f"{about} does not end: {len(content)} bytes in {GRACE_S + most / SLOWEST:.0f} s; {remedy}"
            )
    return bytes(content)


def _socket_options() -> list[tuple[int, int, int]]:
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        options.append((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(DEAD_AFTER_S * 1000)))
    return options
