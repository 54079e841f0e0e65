"""The sites that are registered at a server, and which of them are connected; used by gate, grid and status."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from sahfl.process import now

LIVE_S = 15.0
"""A site is connected if it holds a poll open or sent a request in the last 15 s; sites send one every 10 s."""


class Bell:
    """Wakes one waiting thread after a change; a ring without a waiting thread ends the next wait."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._rung = False

    def ring(self) -> None:
        """Wake the waiting thread."""
        with self._condition:
            self._rung = True
            self._condition.notify_all()

    def wait(self, timeout_s: float) -> None:
        """Wait for the next ring or the timeout; returns at once if the bell rang since the last wait."""
        with self._condition:
            if not self._rung:
                self._condition.wait(timeout_s)
            self._rung = False


@dataclass
class Seat:
    """One registered site."""

    site: str
    key: bytes
    """The site's node key, which has to sign all its requests."""
    node_id: int
    active: bool = True
    """False once the key is revoked."""
    instance: str = ""
    """Random name of the process that is connected as the site; empty if there is none."""
    version: str = ""
    """Version of sahfl at the site."""
    seen: float | None = None
    """Time of the site's last request on the monotonic clock; None before the first."""
    seen_at: datetime | None = None
    """The same time as a date."""
    broken: bool = False
    """Whether the site's connection broke or the site signed off, without a request since."""
    polls: int = 0
    """Number of polls that the site holds open."""


class Fleet:
    """The registered sites. Every method may be called from any thread."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.bell = Bell()
        self._clock = clock
        self._began = clock()
        self._lock = threading.RLock()
        self._by_key: dict[bytes, Seat] = {}

    def register(
        self, keys: Mapping[str, bytes], enroll: Callable[[bytes], int], *, revoked: Mapping[str, bytes]
    ) -> tuple[list[str], list[str]]:
        """Update the registered sites: new keys get a seat, and keys that are gone lose theirs at once.

        A revoked site has a seat that is not active, so that a study that named it goes on without it after a restart.

        Args:
            keys: node key of each active site.
            enroll: makes a node for a key, and returns its id.
            revoked: node key of each revoked site.

        Returns:
            Sites that were added or added again, and sites that were removed.
        """
        with self._lock:
            out = [seat for seat in self._by_key.values() if seat.active and keys.get(seat.site) != seat.key]
            for seat in out:
                seat.active, seat.instance = False, ""
            joined = []
            for site, key in keys.items():
                seat = self._by_key.get(key) or Seat(site, key, enroll(key), active=False)
                if not seat.active:
                    joined.append(site)
                seat.site, seat.active = site, True
                self._by_key[key] = seat
            for site, key in revoked.items():
                if key not in self._by_key:
                    self._by_key[key] = Seat(site, key, enroll(key), active=False)
        if out or joined:
            self.bell.ring()
        return joined, sorted({seat.site for seat in out} - set(joined))

    def seats(self) -> list[Seat]:
        """All active seats, by name."""
        with self._lock:
            return sorted((seat for seat in self._by_key.values() if seat.active), key=lambda seat: seat.site)

    def everyone(self) -> list[Seat]:
        """All seats, including revoked ones."""
        with self._lock:
            return list(self._by_key.values())

    def of_key(self, key: bytes) -> Seat | None:
        """The seat of a key, active or not."""
        with self._lock:
            return self._by_key.get(key)

    def of_node(self, node_id: int) -> Seat | None:
        """The seat of a node; if its site was revoked and has a new kit since, the site's new seat."""
        with self._lock:
            own = next((seat for seat in self._by_key.values() if seat.node_id == node_id), None)
            return None if own is None else self._newest()[own.site]

    def nodes(self) -> dict[str, int]:
        """Node of each site, revoked ones included."""
        with self._lock:
            return {site: seat.node_id for site, seat in sorted(self._newest().items())}

    def _newest(self) -> dict[str, Seat]:
        """The active seat of each site, or its last one."""
        return {seat.site: seat for seat in sorted(self._by_key.values(), key=lambda seat: seat.active)}

    def revoked(self) -> list[str]:
        """Sites that were registered and have no active key any more."""
        with self._lock:
            active = {seat.site for seat in self._by_key.values() if seat.active}
            return sorted({seat.site for seat in self._by_key.values()} - active)

    # ------------------------------------------------------------------------------------------- presence

    def admit(self, seat: Seat, instance: str, version: str) -> bool:
        """Connect a process as a site, unless another process is connected as this site.

        Returns:
            Whether the process was connected; ``seat.instance`` is then its name.
        """
        with self._lock:
            if not seat.active or (seat.instance not in ("", instance) and self.connected(seat)):
                return False
            seat.instance, seat.version = instance, version
            self.note_request(seat)
        self.bell.ring()
        return True

    def leave(self, seat: Seat) -> None:
        """Record that a site signed off."""
        with self._lock:
            seat.instance, seat.broken = "", True
        self.bell.ring()

    def note_request(self, seat: Seat) -> None:
        """Record that a request of a site arrived now."""
        with self._lock:
            seat.seen, seat.seen_at, seat.broken = self._clock(), now(), False

    @contextmanager
    def polling(self, seat: Seat) -> Iterator[None]:
        """Record that a site holds a poll open while the block runs."""
        with self._lock:
            seat.polls += 1
        try:
            yield
        finally:
            with self._lock:
                seat.polls -= 1
                seat.seen, seat.seen_at = self._clock(), now()

    def lose(self, seat: Seat, instance: str) -> None:
        """Record that the connection of a poll broke; the site is disconnected until its process sends a request."""
        with self._lock:
            seat.broken |= seat.instance == instance
        self.bell.ring()

    def connected(self, seat: Seat) -> bool:
        """Whether a site is connected."""
        with self._lock:
            if not seat.active or not seat.instance or seat.broken or seat.seen is None:
                return False
            return seat.polls > 0 or self._clock() - seat.seen < LIVE_S

    def away_s(self, seat: Seat) -> float:
        """Seconds since a site's last request, or since the server's start before the first; 0 for a connected site."""
        with self._lock:
            since = self._began if seat.seen is None else seat.seen
            return 0.0 if self.connected(seat) else self._clock() - since

    def missing(self, sites: Iterable[str]) -> list[str]:
        """The sites among ``sites`` that are not connected and may connect; a revoked site may not."""
        there = {seat.site for seat in self.seats() if self.connected(seat)} | set(self.revoked())
        return [site for site in sites if site not in there]
