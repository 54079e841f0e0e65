"""StateGrid: Flower's Grid inside the server's process, on the in-memory state of the embedded SuperLink."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from sahfl.events import SiteFailed, SiteFinished, SiteStarted, emit
from sahfl.federation import flower
from sahfl.federation.flower import Run, send_and_wait
from sahfl.federation.flower.fleet import Fleet, Seat
from sahfl.federation.flower.link import TTL_S, Link, without_content
from sahfl.process import now_text

WAIT_S = 0.5
"""Longest wait of one call for replies; a reply or a change of the fleet ends the wait at once."""
MOST_OPEN = 8
"""Most open requests per site, the latest included; a late reply to an older one of these is still recognised."""


@dataclass
class Request:
    """A message that its site has not answered yet; ``Link`` stores the content."""

    message: Message
    seat: Seat
    delivered: bool = False
    since: str = field(default_factory=now_text)
    """When the site was asked, then when it fetched the message."""


class StateGrid(Grid):
    """Sends messages to the sites of a fleet, and returns an error reply with the cause if a site cannot answer.

    Guarantees: a reply is returned only when it is complete; a disconnected site may come back and answer within
    ``give_up_s``; a newer message replaces one that a site has not fetched; if a site's process was restarted, its
    request ends with an error reply at once, so that the request can be sent again. A message that was answered,
    withdrawn or given up leaves nothing in memory.

    Args:
        link: the SuperLink, in which a new run begins.
        fleet: the registered sites.
        wake: called with the ids of the nodes that have a new message.
        give_up_s: seconds without a sign of life after which the request to a site fails.
        on_look: called before each look for replies; an exception of it ends the run.
    """

    waits = True
    """``pull_messages`` waits by itself."""

    def __init__(
        self,
        link: Link,
        fleet: Fleet,
        *,
        wake: Callable[[list[int]], None],
        give_up_s: float,
        on_look: Callable[[], None] = lambda: None,
    ) -> None:
        self._link, self._fleet, self._wake, self._give_up_s = link, fleet, wake, give_up_s
        self._on_look = on_look
        self._run = link.start_run()
        self._open: dict[str, Request] = {}
        self._made: dict[str, Message] = {}

    # ------------------------------------------------------------------------------------------- Grid

    def set_run(self, run: Run) -> None:
        """Set the run (Flower's runtimes call this)."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message to a node."""
        return flower.new_message(content, dst_node_id, message_type, group_id, ttl or TTL_S)

    def get_node_ids(self) -> list[int]:
        """Nodes of the sites that are connected; a site with a new kit is reached by its earlier node too."""
        there = {seat.site for seat in self._fleet.seats() if self._fleet.connected(seat)}
        return [seat.node_id for seat in self._fleet.everyone() if seat.site in there]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Store messages for their sites; an older message that its site has not fetched ends with an error reply."""
        messages = list(messages)
        seats = [self._seat(message.metadata.dst_node_id) for message in messages]
        for message, seat in zip(messages, seats, strict=True):
            message.metadata.dst_node_id = seat.node_id
            self._supersede(seat.node_id)
        ids = self._link.push(messages)
        for id_, message, seat in zip(ids, messages, seats, strict=True):
            if not id_:
                raise LookupError(f"node {seat.node_id} is not registered")
            self._open[id_] = Request(without_content(message), seat)
        self._wake([message.metadata.dst_node_id for message in messages])
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have arrived; waits for half a second at most if there are none."""
        self._on_look()
        wanted, end = list(message_ids), time.monotonic() + WAIT_S
        while not (found := [reply for id_ in wanted if (reply := self._look(id_)) is not None]):
            if (left := end - time.monotonic()) <= 0:
                break
            self._fleet.bell.wait(left)
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push messages, and wait for all replies or ``timeout`` seconds."""
        return send_and_wait(self, messages, timeout)

    # ------------------------------------------------------------------------------------------- requests

    def doing(self) -> dict[str, dict[str, str]]:
        """The latest open message of each site: its type, whether the site has fetched it, and since when."""
        return {
            request.seat.site: {
                "what": request.message.metadata.message_type,
                "state": "working" if request.delivered else "asked",
                "since": request.since,
            }
            for request in list(self._open.values())
        }

    def working(self) -> set[str]:
        """Sites that have fetched their latest message and not answered it."""
        return {site for site, work in self.doing().items() if work["state"] == "working"}

    def _seat(self, node_id: int) -> Seat:
        if (seat := self._fleet.of_node(node_id)) is None:
            raise LookupError(f"node {node_id} is not registered")
        return seat

    def _supersede(self, node_id: int) -> None:
        open_ids = [id_ for id_, request in self._open.items() if request.seat.node_id == node_id]
        for id_ in open_ids:
            if not self._link.delivered(id_):
                self._made[id_] = self._end(id_, "stopped: the site is asked for something newer")
        for id_ in open_ids[: -MOST_OPEN + 1]:
            if id_ in self._open:
                self._end(id_, "forgotten")

    def _look(self, id_: str) -> Message | None:
        if (made := self._made.pop(id_, None)) is not None:
            return made
        request = self._open.get(id_)
        if request is None:
            return None
        try:
            reply = self._link.take_reply(id_)
        except ValueError as error:
            return self._end(id_, str(error))
        if reply is not None:
            self._started(id_, request)
            del self._open[id_]
            site, work = request.seat.site, request.message.metadata.message_type
            if reply.has_error():
                emit(SiteFailed(site, work, flower.reason(reply)[:120], flower.error_class(reply)))
            else:
                emit(SiteFinished(site, work))
            return reply
        return self._fail(id_, request)

    def _fail(self, id_: str, request: Request) -> Message | None:
        """The error reply to a request that can no longer be answered; None as long as it can."""
        seat = request.seat
        if not seat.active:
            return self._end(id_, "its key was revoked", unreachable=True)
        if self._link.lost(id_):
            return self._end(id_, "the site's process was started anew", crash=True)
        if (away := self._fleet.away_s(seat)) > self._give_up_s:
            return self._end(id_, f"not connected for {away:.0f} s", unreachable=True)
        if self._link.delivered(id_):
            self._started(id_, request)
        return None

    def _started(self, id_: str, request: Request) -> None:
        if not request.delivered:
            request.delivered, request.since = True, now_text()
            emit(SiteStarted(request.seat.site, request.message.metadata.message_type))

    def _end(self, id_: str, reason: str, *, crash: bool = False, unreachable: bool = False) -> Message:
        request = self._open.pop(id_)
        self._link.forget(id_)
        emit(SiteFailed(request.seat.site, request.message.metadata.message_type, reason))
        return flower.error_reply(request.message, reason, crash=crash, unreachable=unreachable)
