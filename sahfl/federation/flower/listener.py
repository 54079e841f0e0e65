"""The open port of a server: uvicorn in a thread, behind connections with limits."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self

import uvicorn

from sahfl.errors import RunError
from sahfl.federation.flower.callers import Callers
from sahfl.federation.flower.door import Door
from sahfl.federation.flower.doorway import READ_BUFFER, Doorway, Handshake

START_S, STOP_S = 30.0, 5.0
"""Longest time for the server to start listening, and for open requests to end when it stops."""
KEEP_ALIVE_S = 75
"""Seconds after which an idle connection is closed; longer than the pause between two requests of a site."""


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
            SSLProtocol.max_size = READ_BUFFER
        config = uvicorn.Config(
            app,
            ssl_context_factory=None if tls is None else lambda _config, _default: tls,
            loop="asyncio",
            lifespan="on",
            http=partial(Door, Callers()),  # type: ignore[arg-type] # it only calls it
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # whoever connects from this machine could name any address
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
