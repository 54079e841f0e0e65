"""Requests to the sites and what comes back: in time, late, twice, or after the site's process died."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from sahfl.errors import PayloadError
from sahfl.events import Waiting, Warned, emit
from sahfl.federation import flower
from sahfl.federation.signatures import sign
from sahfl.trust.signing import Signer

POLL_S = (0.01, 0.5)
"""Shortest and longest pause between looks for replies, for grids that do not wait themselves (``waits``)."""
POLL_SHARE = 0.02
"""The pause between looks, as a share of the time waited: a look at a stock SuperLink is a request over HTTP."""
NOT_ACCEPTED = (
    "the SuperLink did not accept its message: its node is unknown or not in the federation, or all is too large"
)
WAITING_EVERY_S = 15.0
"""How often it is said whose replies are still awaited; every quarter of the deadline if that is shorter."""
MOST_REMEMBERED = 1000
"""Requests of the past whose late or second replies are still recognised by site."""


@dataclass(frozen=True)
class Ask:
    """What some sites are to be asked, and until when their answers are awaited."""

    contents: Mapping[str, RecordDict]
    """What is asked, by site."""
    message_type: str
    """Which of the site's answers is wanted."""
    nodes: Mapping[str, int]
    """Node of each site."""
    deadline_s: float
    """Seconds from the sending of a site's request until it is left out, if it has not come."""
    what: str = ""
    """Name of this exchange, for a reply that comes later."""
    cell: str = ""
    """The cell that it belongs to, if it does."""


@dataclass
class Answers:
    """What became of one set of requests."""

    replies: dict[str, Message] = field(default_factory=dict)
    """The first reply of each site that answered in time; an error is a reply too."""
    stale: list[dict[str, str]] = field(default_factory=list)
    """Replies to earlier requests, which came after their deadline: by site and reason, never used."""
    duplicate: list[dict[str, str]] = field(default_factory=list)
    """Second replies to a request: by site and reason, never used."""
    retried: dict[str, str] = field(default_factory=dict)
    """Sites that were asked once more, because their process died; with the cause."""
    seconds: dict[str, float] = field(default_factory=dict)
    """From a site's request to its reply."""

    def oddities(self) -> dict[str, list[dict[str, str]]]:
        """What a journal line says besides the replies."""
        retried = [{"site": site, "reason": reason} for site, reason in sorted(self.retried.items())]
        return {"stale": self.stale, "duplicate": self.duplicate, "retried": retried}

    def write_oddities(self, note: Callable[[dict[str, Any]], None], what: str) -> None:
        """Write the oddities to a journal, if there are any."""
        if any((oddities := self.oddities()).values()):
            note({"event": "replies", "what": what} | oddities)


@dataclass
class Exchange:
    """Requests that are on their way, or wait until another exchange is done with their site."""

    ask: Ask
    answers: Answers = field(default_factory=Answers)
    unsent: list[str] = field(default_factory=list)
    """Sites that are still busy with another exchange."""
    waiting: dict[str, str] = field(default_factory=dict)
    """Site of each request that has no reply yet."""
    sent: dict[str, float] = field(default_factory=dict)
    """When each site was asked (monotonic clock)."""
    said: float = 0.0

    @property
    def done(self) -> bool:
        """Whether every site has answered, or was left out."""
        return not self.unsent and not self.waiting

    @property
    def waited_s(self) -> float:
        """Seconds since the first request was sent."""
        return time.monotonic() - min(self.sent.values(), default=time.monotonic())


class Mailbox:
    """Sends requests and knows which request every reply answers.

    Any number of exchanges may be open at once. A site is asked for one thing at a time: what another exchange wants of
    it waits, and its deadline begins when it is sent, so that nobody is late for having worked for somebody else.

    Guarantees: replies are matched by the id of the request, never by what a reply says of its sender; a reply counts
    once, before the deadline, or not at all; every other reply is named; a site whose process died is asked once more.

    Args:
        grid: how messages reach the sites.
        signer: signs every request; without one, only sites that ask for no signature obey.
    """

    def __init__(self, grid: Grid, signer: Signer | None = None) -> None:
        self._grid, self._signer = grid, signer
        self._exchanges: list[Exchange] = []
        self._overdue: dict[str, tuple[str, str]] = {}
        self._answered: dict[str, tuple[str, str]] = {}
        self._invited: dict[str, str] = {}
        self._arrived: dict[str, Message] = {}
        self._stale: list[dict[str, str]] = []
        self._duplicate: list[dict[str, str]] = []

    def exchange(self, ask: Ask) -> Answers:
        """Send each site its content and collect the replies that come before the deadline."""
        opened = self.open(ask)
        while not opened.done:
            self.step()
        return opened.answers

    def open(self, ask: Ask) -> Exchange:
        """Begin an exchange; ``step`` brings it on until it is done."""
        for content in {id(content): content for content in ask.contents.values()}.values():
            self._sign(ask.message_type, content)
        opened = Exchange(ask, unsent=list(ask.contents), said=time.monotonic())
        self._exchanges.append(opened)
        self._send_unsent()
        self._close_done()
        return opened

    def step(self) -> None:
        """Wait a moment for replies, end what is overdue, and ask the sites that have become free."""
        self._collect(
            [id_ for exchange in self._exchanges for id_ in exchange.waiting] + [*self._overdue, *self._invited],
            waited_s=max((exchange.waited_s for exchange in self._exchanges), default=0.0),
        )
        for exchange in self._exchanges:
            self._end_overdue(exchange)
            _emit_waiting(exchange)
        self._send_unsent()
        self._close_done()

    def pause(self, seconds: float) -> None:
        """Wait; what comes late meanwhile is named in the next exchange's answers."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._collect([*self._overdue, *self._invited])
            time.sleep(min(0.2, left))

    def invite(self, site: str, content: RecordDict, message_type: str, node: int) -> None:
        """Ask a site something that nobody waits for; ``arrivals`` has its reply one day."""
        self._sign(message_type, content)
        (id_,) = self._grid.push_messages([Message(content, node, message_type)])
        self._invited[id_] = site

    def arrivals(self) -> dict[str, Message]:
        """Replies to invitations that came since the last call."""
        self._collect([*self._invited])
        arrived, self._arrived = self._arrived, {}
        return arrived

    # ------------------------------------------------------------------------------------------- sending

    def _sign(self, message_type: str, content: RecordDict) -> None:
        if self._signer is not None:
            sign(message_type, content, self._signer)

    def _send_unsent(self) -> None:
        """Ask every site that no exchange waits for, the exchange first that was opened first."""
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
        # A stock SuperLink gives an empty id for a node that it does not know, and no ids at all if all is too large.
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
        for known in (self._overdue, self._answered):
            for old in list(known)[:-MOST_REMEMBERED]:
                del known[old]

    def _close_done(self) -> None:
        """What came late or twice is named in the answers of the exchange that is done next."""
        for exchange in [exchange for exchange in self._exchanges if exchange.done]:
            self._exchanges.remove(exchange)
            exchange.answers.stale, self._stale = self._stale, []
            exchange.answers.duplicate, self._duplicate = self._duplicate, []

    # ------------------------------------------------------------------------------------------- replies

    def _collect(self, asked: list[str], waited_s: float = 0.0) -> None:
        """Take in what has arrived for some requests."""
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
        elif exchange := next((exchange for exchange in self._exchanges if id_ in exchange.waiting), None):
            self._take_answer(exchange, exchange.waiting.pop(id_), reply)
        elif late := self._overdue.pop(id_, None):
            self._answered[id_] = late
            site, what = late
            said = f" ({error_text(reply)})" if reply.has_error() else ""
            self._drop("stale", site, f"answers {what}, after its deadline{said}")
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


def _emit_waiting(exchange: Exchange) -> None:
    """Report now and then whose replies are awaited; not at once where nobody has answered yet."""
    now, deadline_s = time.monotonic(), exchange.ask.deadline_s
    waited_s = now - max((exchange.sent[site] for site in exchange.waiting.values()), default=now)
    soon = now - exchange.said < min(WAITING_EVERY_S, deadline_s / 4)
    if exchange.waiting and not soon and (exchange.answers.replies or waited_s > deadline_s / 2):
        exchange.said = now
        emit(Waiting(tuple(sorted(exchange.waiting.values())), waited_s, deadline_s, exchange.ask.cell))


def error_text(reply: Message) -> str:
    """What an error reply says, cut to a line."""
    return flower.reason(reply)[:120]


def reason_of(reply: Message | None, deadline_s: float) -> str | None:
    """Why a site has no usable reply; None where it has one."""
    if reply is None:
        return f"no reply within {deadline_s:g} s"
    if not reply.has_error():
        return None
    if flower.is_unreachable(reply):
        return error_text(reply)
    return f"error at the site: {error_text(reply)} (details in the site's log)"


def content_of(reply: Message | None, deadline_s: float) -> RecordDict:
    """What a site answered.

    Raises:
        PayloadError: why it has no usable reply.
    """
    if reason := reason_of(reply, deadline_s):
        raise PayloadError(reason)
    assert reply is not None
    return reply.content
