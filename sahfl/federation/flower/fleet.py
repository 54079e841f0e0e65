"""Which sites a server knows, by key, and which of them are there: the state behind gate, grid and status."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from sahfl.process import now

LIVE_S = 15.0
"""A site was heard within this many seconds, or holds a poll open: it is connected. Sites beat every 10 s."""


class Bell:
    """Wakes one waiting thread when something changed; a ring while nobody waits is not lost."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._rung = False

    def ring(self) -> None:
        """Something changed."""
        with self._condition:
            self._rung = True
            self._condition.notify_all()

    def wait(self, timeout_s: float) -> None:
        """Return at the next ring, at once if it rang since the last wait, or after the timeout."""
        with self._condition:
            if not self._rung:
                self._condition.wait(timeout_s)
            self._rung = False


@dataclass
class Seat:
    """One registered site."""

    site: str
    key: bytes
    """Its node key; only a request that is signed with it is this site's."""
    node_id: int
    active: bool = True
    """False once the key is revoked."""
    instance: str = ""
    """Random name of the process that speaks for the site; empty as long as none does."""
    version: str = ""
    """sahfl's version there."""
    heard: float | None = None
    """When a request of it came last, on the monotonic clock."""
    heard_at: datetime | None = None
    """The same as a date."""
    broken: bool = False
    """Its connection broke, or it said that it stops, and it was not heard since."""
    polls: int = 0
    """Polls that it holds open right now."""


class Fleet:
    """The registered sites. Every method may be called from any thread."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.bell = Bell()
        self._clock = clock
        self._began = clock()
        self._lock = threading.RLock()
        self._by_key: dict[bytes, Seat] = {}

    def register(self, keys: Mapping[str, bytes], enroll: Callable[[bytes], int]) -> tuple[list[str], list[str]]:
        """Take in who is registered now: new keys get a seat, keys that are gone are out at once.

        Args:
            keys: node key of each active site.
            enroll: makes a node for a key, and returns its id.

        Returns:
            Sites that are new or back, and sites that are out.
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
        if out or joined:
            self.bell.ring()
        return joined, sorted({seat.site for seat in out} - set(joined))

    def seats(self) -> list[Seat]:
        """All active seats, by name."""
        with self._lock:
            return sorted((seat for seat in self._by_key.values() if seat.active), key=lambda seat: seat.site)

    def everyone(self) -> list[Seat]:
        """All seats, the revoked too."""
        with self._lock:
            return list(self._by_key.values())

    def of_key(self, key: bytes) -> Seat | None:
        """The seat of a key, active or not."""
        with self._lock:
            return self._by_key.get(key)

    def of_node(self, node_id: int) -> Seat | None:
        """The seat of a node, active or not."""
        with self._lock:
            return next((seat for seat in self._by_key.values() if seat.node_id == node_id), None)

    def revoked(self) -> list[str]:
        """Sites whose key was registered once and is not any more."""
        with self._lock:
            active = {seat.site for seat in self._by_key.values() if seat.active}
            return sorted({seat.site for seat in self._by_key.values()} - active)

    # ------------------------------------------------------------------------------------------- presence

    def admit(self, seat: Seat, instance: str, version: str) -> bool:
        """Let a process speak for a site, unless another one does that is alive.

        Returns:
            Whether it may. ``seat.instance`` is then this process.
        """
        with self._lock:
            if not seat.active or (seat.instance not in ("", instance) and self.connected(seat)):
                return False
            seat.instance, seat.version = instance, version
            self.hear(seat)
        self.bell.ring()
        return True

    def leave(self, seat: Seat) -> None:
        """A site said that it stops."""
        with self._lock:
            seat.instance, seat.broken = "", True
        self.bell.ring()

    def hear(self, seat: Seat) -> None:
        """A request of a site came."""
        with self._lock:
            seat.heard, seat.heard_at, seat.broken = self._clock(), now(), False

    @contextmanager
    def polling(self, seat: Seat) -> Iterator[None]:
        """A site holds a poll open while the block runs."""
        with self._lock:
            seat.polls += 1
        try:
            yield
        finally:
            with self._lock:
                seat.polls -= 1
                seat.heard, seat.heard_at = self._clock(), now()

    def lose(self, seat: Seat, instance: str) -> None:
        """The connection of a poll broke: until its process is heard again, the site is away."""
        with self._lock:
            seat.broken |= seat.instance == instance
        self.bell.ring()

    def connected(self, seat: Seat) -> bool:
        """Whether a site is there."""
        with self._lock:
            if not seat.active or not seat.instance or seat.broken or seat.heard is None:
                return False
            return seat.polls > 0 or self._clock() - seat.heard < LIVE_S

    def away_s(self, seat: Seat) -> float:
        """Seconds since a site was there last, or since this server started if it was not yet; 0 while it is there."""
        with self._lock:
            since = self._began if seat.heard is None else seat.heard
            return 0.0 if self.connected(seat) else self._clock() - since

    def missing(self, sites: Iterable[str]) -> list[str]:
        """Those of some sites that are not connected."""
        there = {seat.site for seat in self.seats() if self.connected(seat)}
        return [site for site in sites if site not in there]
