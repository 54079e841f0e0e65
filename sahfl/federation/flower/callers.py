"""What each caller of a server's port may cost: connections and work per certificate, new connections per address."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

CALLER = "sahfl.caller"
"""Key of the ASGI scope under which the gate finds the caller."""
MOST_CONNECTIONS = 12
"""Open connections per certificate: a site uses one to poll, one for signs of life, and four to transfer objects."""
REQUEST, MEGABYTE, MEGABYTE_SENT, RECORD, HANDSHAKE, REFUSED = 1.0, 1.0, 3.0, 0.004, 3.0, 20.0
"""Cost of a request, of a megabyte received, of one sent, of a TLS record received, of a connection and of a refused
request, in about 1.5 ms of a core."""
SIGNED_ON = 100.0
"""Cost of signing on, which is a line of the server's log: a site signs on once after a start or a break."""
RATE, BURST = 60.0, 1000.0
"""Cost that a certificate may cause each second, and at once after a pause."""
NEW_RATE, NEW_BURST = 10.0, 400.0
"""New connections that an address may open each second, and at once after a pause."""
REPEAT_S = 60.0
"""Seconds between two log lines on the same matter of the same caller."""
MOST_REMEMBERED = 10_000
"""Addresses, and log lines about them, that are remembered at a time."""
MOST_MATTERS = 100
"""Log lines about one certificate that are remembered at a time."""


@dataclass
class Allowance:
    """A budget that fills by ``rate`` a second up to ``burst``; spending may leave a debt, which time pays back."""

    rate: float
    burst: float
    clock: Callable[[], float] = time.monotonic
    level: float = field(init=False)
    since: float = field(init=False)

    def __post_init__(self) -> None:
        self.level, self.since = self.burst, self.clock()

    def spend(self, cost: float) -> float:
        """Spend a cost, and return the seconds until the debt is paid back; 0 without a debt."""
        self.level = self.left() - cost
        return max(0.0, -self.level / self.rate)

    def left(self) -> float:
        """What is left of the budget now."""
        now = self.clock()
        self.level, self.since = min(self.burst, self.level + (now - self.since) * self.rate), now
        return self.level


class Once:
    """Remembers what was logged a moment ago, so that the same matter of one caller is logged once in ``REPEAT_S``."""

    def __init__(self, *, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._most = clock, most
        self._logged: OrderedDict[tuple[str, ...], float] = OrderedDict()

    def __call__(self, *matter: str) -> bool:
        """Whether this matter is due to be logged; it counts as logged then."""
        now = self._clock()
        while self._logged and now - next(iter(self._logged.values())) > REPEAT_S:
            self._logged.popitem(last=False)
        if matter in self._logged or len(self._logged) >= self._most:
            return False
        self._logged[matter] = now
        return True


class Connection(Protocol):
    """An open connection of a caller."""

    received_at: float
    """When its last byte arrived, on the event loop's clock."""

    def end(self) -> None:
        """Close it at once."""


class Caller:
    """Everybody who connects with the certificate of one site.

    Guarantees: at most ``MOST_CONNECTIONS`` are open; for a further one, the connection that was silent for longest is
    closed, because a site that lost its network leaves silent ones behind. Every method runs on the event loop.
    """

    def __init__(self, site: str | None) -> None:
        self.site = site
        """Holder of the certificate; None without TLS, in tests."""
        self.due = Once(most=MOST_MATTERS)
        """Which of its matters are due to be logged; its own list, so that nobody fills that of others."""
        self._allowance = Allowance(RATE, BURST)
        self._connections: set[Connection] = set()

    def enter(self, connection: Connection) -> None:
        """Add a connection."""
        if len(self._connections) >= MOST_CONNECTIONS:
            silent = min(self._connections, key=lambda open_: open_.received_at)
            self._connections.discard(silent)
            silent.end()
        self._connections.add(connection)

    def leave(self, connection: Connection) -> None:
        """Remove a connection that was closed."""
        self._connections.discard(connection)

    def spend(self, cost: float) -> float:
        """Charge a cost, and return for how many seconds nothing more should be read from this caller."""
        return self._allowance.spend(cost)


class Callers:
    """The callers of one port by certificate; an authority issues few, so none is forgotten."""

    def __init__(self) -> None:
        self._by_site: dict[str | None, Caller] = {}

    def of(self, site: str | None) -> Caller:
        """The caller with the certificate of a site."""
        return self._by_site.setdefault(site, Caller(site))


class Addresses:
    """Limits how fast one address opens connections, before any of them costs a TLS handshake."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._by_address: OrderedDict[str, Allowance] = OrderedDict()

    def admit(self, address: str) -> bool:
        """Whether a new connection from an address is accepted."""
        known = self._by_address.pop(address, None) or Allowance(NEW_RATE, NEW_BURST, self._clock)
        self._by_address[address] = known  # the latest is the last
        if len(self._by_address) > MOST_REMEMBERED:
            self._by_address.popitem(last=False)
        if known.left() < 1.0:
            return False
        known.spend(1.0)
        return True
