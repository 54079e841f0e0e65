"""Requests to the sites and their replies: in time, late, twice, or after the site's process died."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from sahfl.events import Waiting, Warned, emit
from sahfl.federation import flower
from sahfl.federation.server.replies import error_text
from sahfl.federation.signatures import sign
from sahfl.trust.signing import Signer

POLL_S = (0.01, 0.5)
"""Shortest and longest pause between looks for replies, for grids that do not wait (no ``waits``)."""
POLL_SHARE = 0.02
"""The pause between looks, as a share of the time waited: a look at a stock SuperLink is a request over HTTP."""
NOT_ACCEPTED = (
    "the SuperLink did not accept its message: its node is unknown or not in the federation, or all is too large"
)
WAITING_EVERY_S = 15.0
"""Time between two events ``Waiting``; a quarter of the deadline if that is shorter."""
MOST_REMEMBERED = 1000
"""Past requests whose late or second replies are still recognised."""


@dataclass(frozen=True)
class Ask:
    """Requests to some sites, with the deadline of their replies."""

    contents: Mapping[str, RecordDict]
    """The request to each site."""
    message_type: str
    nodes: Mapping[str, int]
    """Node of each site."""
    deadline_s: float
    """Seconds from the sending of a request until its site is left out."""
    what: str = ""
    """Name of these requests, for the report of a late reply."""
    cell: str = ""
    """The cell that needs the replies, if one does."""
    enough: int | None = None
    """How many replies without an error end the exchange; None: every site's."""


@dataclass
class Answers:
    """The outcome of one set of requests."""

    replies: dict[str, Message] = field(default_factory=dict)
    """The first reply of each site that answered in time; an error is a reply too."""
    stale: list[dict[str, str]] = field(default_factory=list)
    """Late replies to earlier requests, by site and reason; never used."""
    duplicate: list[dict[str, str]] = field(default_factory=list)
    """Second replies to a request, by site and reason; never used."""
    retried: dict[str, str] = field(default_factory=dict)
    """Sites that were asked again because their process died, with the cause."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time from each site's request to its reply."""

    def oddities(self) -> dict[str, list[dict[str, str]]]:
        """Fields of a journal line on replies that were not used, and on sites that were asked again."""
        retried = [{"site": site, "reason": reason} for site, reason in sorted(self.retried.items())]
        return {"stale": self.stale, "duplicate": self.duplicate, "retried": retried}

    def write_oddities(self, note: Callable[[dict[str, Any]], None], what: str) -> None:
        """Write the oddities to a journal, if there are any."""
        if any((oddities := self.oddities()).values()):
            note({"event": "replies", "what": what} | oddities)


@dataclass
class Exchange:
    """Open requests: some are sent, some wait until their site has answered another exchange."""

    ask: Ask
    answers: Answers = field(default_factory=Answers)
    unsent: list[str] = field(default_factory=list)
    """Sites that are busy with another exchange."""
    waiting: dict[str, str] = field(default_factory=dict)
    """Site of each request that has no reply yet."""
    sent: dict[str, float] = field(default_factory=dict)
    """When each site was asked (monotonic clock)."""
    reported: float = 0.0
    """When an event ``Waiting`` was last emitted (monotonic clock)."""

    @property
    def done(self) -> bool:
        """Whether every site has answered or was left out, or enough of them answered."""
        good = sum(not reply.has_error() for reply in self.answers.replies.values())
        return not (self.unsent or self.waiting) or (self.ask.enough is not None and good >= self.ask.enough)

    @property
    def waited_s(self) -> float:
        """Seconds since the first request was sent."""
        return time.monotonic() - min(self.sent.values(), default=time.monotonic())


class Mailbox:
    """Sends requests, and matches each reply to its request.

    Any number of exchanges may be open at once. A site gets one request at a time: the next one waits, and its deadline
    begins when it is sent, so that no site is late because it worked for another exchange.

    Guarantees: replies are matched by the id of the request, never by the sender that a reply names; a reply counts
    once, before the deadline, or not at all; every other reply is reported; a site whose process died is asked once
    more. Without a ``signer``, sites that require signatures refuse.
    """

    def __init__(self, grid: Grid, signer: Signer | None = None) -> None:
        self._grid, self._signer = grid, signer
        self._exchanges: list[Exchange] = []
        self._overdue: dict[str, tuple[str, str]] = {}
        self._answered: dict[str, tuple[str, str]] = {}
        self._unneeded: dict[str, None] = {}
        """Requests of exchanges that ended before all sites answered; nothing is said of their replies."""
        self._invited: dict[str, str] = {}
        self._arrived: dict[str, Message] = {}
        self._stale: list[dict[str, str]] = []
        self._duplicate: list[dict[str, str]] = []

    def exchange(self, ask: Ask) -> Answers:
        """Send each site its request, and collect the replies that come before the deadline."""
        opened = self.open(ask)
        while not opened.done:
            self.step()
        return opened.answers

    def open(self, ask: Ask) -> Exchange:
        """Begin an exchange; call ``step`` until it is done."""
        for content in {id(content): content for content in ask.contents.values()}.values():
            self._sign(ask.message_type, content)
        opened = Exchange(ask, unsent=list(ask.contents), reported=time.monotonic())
        self._exchanges.append(opened)
        self._send_unsent()
        self._close_done()
        return opened

    def step(self) -> None:
        """Wait a moment for replies, end overdue requests, and ask the sites that have become free."""
        self._collect(
            [id_ for exchange in self._exchanges for id_ in exchange.waiting]
            + [*self._overdue, *self._unneeded, *self._invited],
            waited_s=max((exchange.waited_s for exchange in self._exchanges), default=0.0),
        )
        for exchange in self._exchanges:
            self._end_overdue(exchange)
            _emit_waiting(exchange, getattr(self._grid, "working", set)())
        self._send_unsent()
        self._close_done()

    def pause(self, seconds: float) -> None:
        """Wait; the next exchange's answers name the late replies that come meanwhile."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._collect([*self._overdue, *self._invited])
            time.sleep(min(0.2, left))

    def invite(self, site: str, content: RecordDict, message_type: str, node: int) -> None:
        """Send a site a request that nobody waits for; ``arrivals`` returns its reply."""
        self._sign(message_type, content)
        (id_,) = self._grid.push_messages([Message(content, node, message_type)])
        self._invited[id_] = site

    def arrivals(self) -> dict[str, Message]:
        """Replies to invitations that came since the last call."""
        self._collect([*self._invited])
        arrived, self._arrived = self._arrived, {}
        return arrived

    def _sign(self, message_type: str, content: RecordDict) -> None:
        if self._signer is not None:
            sign(message_type, content, self._signer)

    def _send_unsent(self) -> None:
        """Ask every site that no exchange waits for; the exchange that was opened first goes first."""
        for exchange in self._exchanges:
            busy = {site for other in self._exchanges for site in other.waiting.values()}
            if free := [site for site in exchange.unsent if site not in busy]:
                if any(site in free for site, _ in self._overdue.values()):
                    self._collect([*self._overdue])  # what is there already is late, not stopped
                exchange.unsent = [site for site in exchange.unsent if site not in free]
                self._send(exchange, free)

    def _send(self, exchange: Exchange, sites: Sequence[str]) -> None:
        ask = exchange.ask
        messages = {site: Message(ask.contents[site], ask.nodes[site], ask.message_type) for site in sites}
        ids = list(self._grid.push_messages(list(messages.values())))
        exchange.sent = dict.fromkeys(sites, time.monotonic()) | exchange.sent
        # A stock SuperLink returns an empty id for an unknown node, and no ids at all if the messages are too large.
        for site, id_ in zip(messages, ids or [""] * len(messages), strict=True):
            if id_:
                exchange.waiting[id_] = site
            else:
                exchange.answers.replies[site] = flower.error_reply(messages[site], NOT_ACCEPTED, unreachable=True)

    def _end_overdue(self, exchange: Exchange) -> None:
        now, ask = time.monotonic(), exchange.ask
        late = {id_: site for id_, site in exchange.waiting.items() if now >= exchange.sent[site] + ask.deadline_s}
        self._overdue |= {id_: (site, ask.what or ask.message_type) for id_, site in late.items()}
        for id_ in late:
            del exchange.waiting[id_]
        for known in (self._overdue, self._answered, self._unneeded):
            for old in list(known)[:-MOST_REMEMBERED]:
                del known[old]

    def _close_done(self) -> None:
        """Remove finished exchanges; the first one takes the late and second replies into its answers."""
        for exchange in [exchange for exchange in self._exchanges if exchange.done]:
            self._exchanges.remove(exchange)
            self._unneeded |= dict.fromkeys(exchange.waiting)
            exchange.answers.stale, self._stale = self._stale, []
            exchange.answers.duplicate, self._duplicate = self._duplicate, []

    def _collect(self, asked: list[str], waited_s: float = 0.0) -> None:
        """Handle the replies that have arrived for some requests."""
        if not asked:
            return
        arrived = list(self._grid.pull_messages(asked))
        if not arrived and not getattr(self._grid, "waits", False):
            shortest, longest = POLL_S
            time.sleep(min(longest, max(shortest, POLL_SHARE * waited_s)))
        for reply in arrived:
            self._take(reply)

    def _take(self, reply: Message) -> None:
        id_ = reply.metadata.reply_to_message_id
        if guest := self._invited.pop(id_, None):
            self._arrived[guest] = reply
        elif id_ in self._unneeded:
            del self._unneeded[id_]
        elif exchange := next((exchange for exchange in self._exchanges if id_ in exchange.waiting), None):
            self._take_answer(exchange, exchange.waiting.pop(id_), reply)
        elif late := self._overdue.pop(id_, None):
            self._answered[id_] = late
            error = f" ({error_text(reply)})" if reply.has_error() else ""
            self._drop("stale", late[0], f"answers {late[1]}, after its deadline{error}")
        elif id_ in self._answered:
            self._drop("duplicate", self._answered[id_][0], "a second reply to one request")
        else:
            self._drop("stale", "unknown", "answers no request that is remembered")

    def _take_answer(self, exchange: Exchange, site: str, reply: Message) -> None:
        self._answered[reply.metadata.reply_to_message_id] = (site, "")
        answers = exchange.answers
        if not flower.is_crash(reply) or site in answers.retried:
            answers.replies[site] = reply
            answers.seconds[site] = time.monotonic() - exchange.sent[site]
            return
        answers.retried[site] = reason = error_text(reply)
        emit(Warned(f"{site}: {reason}; it is asked once more"))
        self._send(exchange, [site])

    def _drop(self, kind: str, site: str, reason: str) -> None:
        notes = self._stale if kind == "stale" else self._duplicate
        notes.append({"site": site, "reason": reason})
        emit(Warned(f"{site}: {kind} reply, not used: {reason}"))


def _emit_waiting(exchange: Exchange, working: set[str]) -> None:
    """Report from time to time whose replies are to come; while no site has answered, only after half the deadline.

    ``working`` are the sites that work; a stock SuperLink does not know them.
    """
    now, deadline_s = time.monotonic(), exchange.ask.deadline_s
    waited_s = now - max((exchange.sent[site] for site in exchange.waiting.values()), default=now)
    soon = now - exchange.reported < min(WAITING_EVERY_S, deadline_s / 4)
    if exchange.waiting and not soon and (exchange.answers.replies or waited_s > deadline_s / 2):
        exchange.reported = now
        sites = sorted(exchange.waiting.values())
        idle, busy = (tuple(site for site in sites if (site in working) is works) for works in (False, True))
        emit(Waiting(idle, busy, waited_s, deadline_s, exchange.ask.cell))
