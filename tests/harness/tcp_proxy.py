"""A TCP proxy that cuts, blackholes or slows down what passes: the network between a hospital and its server."""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

CHUNK = 4096


@dataclass(eq=False)
class Pipe:
    """Two ends of one proxied connection."""

    near: socket.socket
    far: socket.socket
    begun: float = field(default_factory=time.monotonic)

    def close(self):
        for end in (self.near, self.far):
            with suppress(OSError):  # so that the other side sees the end at once, whoever still reads
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Proxy:
    """Listens on one port and passes everything on to another, while it is told to.

    ``cut()`` resets all connections and refuses new ones; ``blackhole()`` takes everything and passes on nothing;
    ``throttle(bytes_per_s)`` slows down; ``cut_after(n_bytes)`` cuts once as many bytes went up from now on;
    ``mend()`` passes everything on again.
    """

    def __init__(self, port, target):
        self._target = target
        self._address = ("127.0.0.1", port)
        self._lock = threading.Lock()
        self._pipes: list[Pipe] = []
        self._listener: socket.socket | None = None
        self._dark = False
        self._rate: float | None = None
        self._cut_at: int | None = None
        self.bytes_up = 0
        """What the near side has sent."""
        self.connections = 0
        """How often the near side connected."""
        self._open = True

    def __enter__(self):
        self.mend()
        return self

    def __exit__(self, *error):
        self._open = False
        self.cut()

    def mend(self):
        """Pass everything on."""
        self._dark, self._rate, self._cut_at = False, None, None
        if self._listener is None:
            self._listener = socket.create_server(self._address, backlog=50)
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self):
        """End all connections, refuse new ones."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):  # wakes the thread that accepts
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            pipes, self._pipes = self._pipes, []
        for pipe in pipes:
            pipe.close()

    def blackhole(self):
        """Take everything, pass on nothing."""
        self._dark = True

    def throttle(self, bytes_per_s):
        """Pass on so much per second, per connection and direction."""
        self._rate = bytes_per_s

    def cut_after(self, n_bytes):
        """Cut once as many more bytes were sent from the near side."""
        self._cut_at = self.bytes_up + n_bytes

    def _accept(self, listener):
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(self._target, timeout=5)
            except OSError:
                if self._listener is not listener:
                    return
                near.close()
                continue
            self.connections += 1
            pipe = Pipe(near, far)
            with self._lock:
                self._pipes.append(pipe)
            threading.Thread(target=self._carry, args=(pipe, near, far, True), daemon=True).start()
            threading.Thread(target=self._carry, args=(pipe, far, near, False), daemon=True).start()

    def _carry(self, pipe, source, target, up):
        with suppress(OSError, ValueError):
            while self._open:
                if self._dark:
                    time.sleep(0.02)
                    continue
                if not select.select([source], [], [], 0.1)[0]:
                    continue
                if self._dark or not (content := source.recv(CHUNK)):
                    if self._dark:
                        continue
                    break
                if self._rate:
                    time.sleep(len(content) / self._rate)
                if up:
                    self.bytes_up += len(content)
                    if self._cut_at is not None and self.bytes_up >= self._cut_at:
                        self._cut_at = None
                        threading.Thread(target=self.cut, daemon=True).start()
                        return
                target.sendall(content)
        pipe.close()
