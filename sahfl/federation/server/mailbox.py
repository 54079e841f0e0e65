"""Requests to the sites and what comes back: in time, late, twice, or after the site's process died."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from sahfl.federation import flower
from sahfl.federation.events import Event, emit
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

    def oddities(self) -> dict[str, list[dict[str, str]]]:
        """What a journal line says besides the replies."""
        retried = [{"site": site, "reason": reason} for site, reason in sorted(self.retried.items())]
        return {"stale": self.stale, "duplicate": self.duplicate, "retried": retried}


class Mailbox:
    """Sends requests and knows which request every reply answers.

    Guarantees: replies are matched by the id of the request, never by what a reply says of its sender; a reply counts
    once, before the deadline, or not at all; every other reply is named; a site whose process died is asked once more.

    Args:
        grid: how messages reach the sites.
        signer: signs every request; without one, only sites that ask for no signature obey.
    """

    def __init__(self, grid: Grid, signer: Signer | None = None) -> None:
        self._grid, self._signer = grid, signer
        self._answers = Answers()
        self._waiting: dict[str, str] = {}
        self._overdue: dict[str, tuple[str, str]] = {}
        self._answered: dict[str, tuple[str, str]] = {}
        self._invited: dict[str, str] = {}
        self._arrived: dict[str, Message] = {}

    def exchange(
        self,
        contents: Mapping[str, RecordDict],
        message_type: str,
        *,
        nodes: Mapping[str, int],
        deadline_s: float,
        what: str = "",
    ) -> Answers:
        """Send each site its content and collect the replies that come before the deadline.

        Args:
            contents: what is asked, by site.
            message_type: which of the site's answers is wanted.
            nodes: node of each site.
            deadline_s: seconds until what has not come is left out.
            what: name of this exchange, for a reply that comes later.
        """
        self._hear([*self._overdue, *self._invited])
        for content in {id(content): content for content in contents.values()}.values():
            self._sign(message_type, content)
        self._send(contents, message_type, nodes)
        began = said = time.monotonic()
        pause_s = min(WAITING_EVERY_S, deadline_s / 4)
        while self._waiting and (now := time.monotonic()) < began + deadline_s:
            asked = [*self._waiting, *self._overdue, *self._invited]
            crashed = self._hear(asked, waited_s=now - began)
            self._send({site: contents[site] for site in crashed}, message_type, nodes)
            if now - said >= pause_s and (self._answers.replies or now - began > deadline_s / 2):
                said = now
                names = ", ".join(sorted(self._waiting.values()))
                emit(Event("waiting", names, done=now - began, total=deadline_s))
        self._overdue |= {id_: (site, what or message_type) for id_, site in self._waiting.items()}
        self._waiting = {}
        for known in (self._overdue, self._answered):
            for old in list(known)[:-MOST_REMEMBERED]:
                del known[old]
        answers, self._answers = self._answers, Answers()
        return answers

    def pause(self, seconds: float) -> None:
        """Wait; what comes late meanwhile is named in the next exchange's answers."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._hear([*self._overdue, *self._invited])
            time.sleep(min(0.2, left))

    def invite(self, site: str, content: RecordDict, message_type: str, node: int) -> None:
        """Ask a site something that nobody waits for; ``arrivals`` has its reply one day."""
        self._sign(message_type, content)
        (id_,) = self._grid.push_messages([Message(content, node, message_type)])
        self._invited[id_] = site

    def arrivals(self) -> dict[str, Message]:
        """Replies to invitations that came since the last call."""
        self._hear([*self._invited])
        arrived, self._arrived = self._arrived, {}
        return arrived

    def _sign(self, message_type: str, content: RecordDict) -> None:
        if self._signer is not None:
            sign(message_type, content, self._signer)

    def _send(self, contents: Mapping[str, RecordDict], message_type: str, nodes: Mapping[str, int]) -> None:
        messages = {site: Message(item, nodes[site], message_type) for site, item in contents.items()}
        ids = list(self._grid.push_messages(list(messages.values()))) if messages else []
        # A stock SuperLink gives an empty id for a node that it does not know, and no ids at all if all is too large.
        for site, id_ in zip(messages, ids or [""] * len(messages), strict=True):
            if id_:
                self._waiting[id_] = site
            else:
                self._answers.replies[site] = flower.error_reply(messages[site], NOT_ACCEPTED, unreachable=True)

    def _hear(self, asked: list[str], waited_s: float = 0.0) -> list[str]:
        """Take in what has arrived for some requests; the sites to ask once more come back."""
        if not asked:
            return []
        arrived = list(self._grid.pull_messages(asked))
        if not arrived and not getattr(self._grid, "waits", False):
            shortest, longest = POLL_S
            time.sleep(min(longest, max(shortest, POLL_SHARE * waited_s)))
        return [site for reply in arrived if (site := self._take(reply)) is not None]

    def _take(self, reply: Message) -> str | None:
        id_ = reply.metadata.reply_to_message_id
        if guest := self._invited.pop(id_, None):
            self._arrived[guest] = reply
            return None
        if site := self._waiting.pop(id_, None):
            self._answered[id_] = (site, "")
            if not flower.is_crash(reply) or site in self._answers.retried:
                self._answers.replies[site] = reply
                return None
            self._answers.retried[site] = reason = error_text(reply)
            emit(Event("warning", f"{site}: {reason}; it is asked once more"))
            return site
        if late := self._overdue.pop(id_, None):
            self._answered[id_] = late
            site, what = late
            said = f" ({error_text(reply)})" if reply.has_error() else ""
            self._drop(self._answers.stale, site, f"answers {what}, after its deadline{said}")
        elif id_ in self._answered:
            self._drop(self._answers.duplicate, self._answered[id_][0], "a second reply to one request")
        else:
            self._drop(self._answers.stale, "unknown", "answers no request that is remembered")
        return None

    def _drop(self, notes: list[dict[str, str]], site: str, reason: str) -> None:
        notes.append({"site": site, "reason": reason})
        kind = "stale" if notes is self._answers.stale else "duplicate"
        emit(Event("warning", f"{site}: {kind} reply, not used: {reason}"))


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
