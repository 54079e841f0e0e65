"""The gate in front of Flower's app: it authenticates requests, limits their size, and holds polls open."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import MutableMapping
from typing import Any

from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import PullObjectRequest, PushObjectRequest
from google.protobuf.message import DecodeError

from sahfl.federation.flower import handshake
from sahfl.federation.flower.batches import MOST_BYTES
from sahfl.federation.flower.callers import REFUSED, SIGNED_ON
from sahfl.federation.flower.calls import (
    OVER,
    App,
    Call,
    Gone,
    Receive,
    Refusal,
    Scope,
    Send,
    answer_each,
    disconnected,
    read_body,
    reply_json,
)
from sahfl.federation.flower.doorway import network_of
from sahfl.federation.flower.fleet import Fleet
from sahfl.federation.flower.identity import identify
from sahfl.federation.flower.link import Link
from sahfl.federation.flower.uploads import CHUNK
from sahfl.log_lines import LogLine

log = logging.getLogger(__name__)
HOLD_S = 10.0
"""Longest time in seconds that a poll is held open while no message waits."""
SMALL = 64 * 1024
"""Largest body in bytes of a request without an object."""
OVERHEAD = 64 * 1024
"""Most bytes in an object's request besides the object."""
AT_ONCE = 4
"""Objects of one site that are transferred at the same time; further ones wait, and their bodies are not read."""
RINGS = ("push-messages", "push-object", "push-objects", "confirm-message-received")
"""Routes after which a reply may be complete, or a message delivered."""
FLEET = "/v1/fleet/"
ROUTES = {
    FLEET + name
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "push-object",
        "pull-object",
        "push-objects",
        "pull-objects",
        "get-run",
        "confirm-message-received",
    )
}


class Gate:
    """An ASGI app in front of Flower's.

    Guarantees: only the requests of a site process and GET /health pass, everything else is 404; a request counts as a
    site's only if the site's registered, active key signed it just now, over a connection with that site's certificate;
    a site can only reply in its own name, once to each request, within a budget of bytes; no body is read beyond its
    limit; one process at a time is connected as a site.

    Args:
        link: the SuperLink behind the gate.
        fleet: the registered sites.
        hold_s: longest time in seconds that a poll is held open.
    """

    def __init__(self, link: Link, fleet: Fleet, *, hold_s: float = HOLD_S) -> None:
        self._app: App = link.app
        self._link, self._fleet, self._hold_s = link, fleet, hold_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._events: dict[int, asyncio.Event] = {}
        self._transfers: dict[int, asyncio.Semaphore] = {}
        self._closing = False
        self.payload_bytes = CHUNK
        """Size of the largest state or sums of the running study."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection's request."""
        if scope["type"] == "lifespan":
            self._loop = asyncio.get_running_loop()
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
            call = Call(scope, receive, send, headers)
            try:
                await self._answer(call)
            except Refusal as refusal:
                self._note(call, refusal)
                await reply_json(send, refusal.status, refusal.body)
            except Gone:
                pass

    def wake(self, node_ids: list[int]) -> None:
        """Let the open polls of some nodes continue; may be called from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._set, node_ids)

    def close(self) -> None:
        """End every open poll, and hold no further one; may be called from any thread."""
        self._closing = True
        self.wake([seat.node_id for seat in self._fleet.seats()])

    # ------------------------------------------------------------------------------------------- who and what

    async def _answer(self, call: Call) -> None:
        if call.path == "/health" and call.scope["method"] in ("GET", "HEAD"):
            await self._app(call.scope, call.receive, call.send)
            return
        if call.path not in ROUTES or call.scope["method"] != "POST":
            raise Refusal(404, "no such route")
        identify(call, self._fleet)
        name = call.path.removeprefix(FLEET)
        if name != "activate-node":
            self._expect_instance(call)
        if name.endswith(("-object", "-objects")):
            async with self._transfers.setdefault(call.seat.node_id, asyncio.Semaphore(AT_ONCE)):
                await self._route(call, name)
        else:
            await self._route(call, name)

    async def _route(self, call: Call, name: str) -> None:
        call.body = await read_body(call, self._limit(call.path))
        route = {"activate-node": self._activate, "deactivate-node": self._deactivate, "pull-messages": self._poll}
        route |= {"push-messages": self._push, "push-object": self._push_object}
        route |= {"pull-objects": self._pull_objects, "push-objects": self._push_objects}
        await route.get(name, self._forward)(call)
        if name in RINGS:
            self._fleet.bell.ring()

    def _expect_instance(self, call: Call) -> None:
        seat = call.seat
        if seat.instance == call.instance != "":
            self._fleet.note_request(seat)
        elif self._fleet.connected(seat):
            raise Refusal(409, "connected twice")
        else:
            raise Refusal(401, "activate")

    def _limit(self, path: str) -> int:
        if path.endswith("push-objects"):
            return MOST_BYTES + OVERHEAD
        if path.endswith("push-object"):
            return min(CHUNK, self.payload_bytes) + OVERHEAD
        return SMALL

    def _note(self, call: Call, refusal: Refusal) -> None:
        """Charge a refusal to its caller, and log it in one line, the same one once in a while.

        "activate" is none: with it a site reconnects after a restart of the server.
        """
        if (error := str(refusal.body["error"])) == "activate":
            return
        call.charge(REFUSED)
        if error == OVER:
            return
        client = call.scope.get("client") or ("unknown", 0)
        site, peer = call.seat.site or (call.caller and call.caller.site) or "unknown", str(client[0])
        if call.due(site, network_of(peer), error):
            why: dict[str, str | float] = {"path": call.path[:60], "status": refusal.status, "reason": error}
            log.warning(LogLine("refused", site=site, peer=peer, **why, **refusal.both_ends()))

    # ------------------------------------------------------------------------------------------- routes

    async def _activate(self, call: Call) -> None:
        if odd := handshake.differences(call.headers):
            raise Refusal(426, "version", **odd)
        if not call.instance:
            raise Refusal(400, "no instance")
        seat, before = call.seat, call.seat.instance
        if not self._fleet.admit(seat, call.instance, call.headers[handshake.VERSION]):
            raise Refusal(409, "connected twice")
        if before != call.instance:
            self._link.abandon(seat.node_id)
        self._link.release(seat.node_id)
        call.charge(SIGNED_ON)
        await self._forward(call)
        log.info(LogLine("connected", site=seat.site, version=seat.version))

    async def _deactivate(self, call: Call) -> None:
        self._fleet.leave(call.seat)  # before the answer, after which the site's next process may connect at once
        await self._forward(call)

    async def _poll(self, call: Call) -> None:
        """Hold a poll until a message waits; a poll whose connection breaks receives none, so that none is lost."""
        seat, loop = call.seat, asyncio.get_running_loop()
        end = loop.time() + self._hold_s
        with self._fleet.polling(seat):
            gone = asyncio.ensure_future(disconnected(call.receive))
            try:
                while not self._link.offer(seat.node_id) and seat.active and not self._closing:
                    event = self._event(seat.node_id)
                    event.clear()
                    ring = asyncio.ensure_future(event.wait())
                    await asyncio.wait({gone, ring}, timeout=end - loop.time(), return_when=asyncio.FIRST_COMPLETED)
                    ring.cancel()
                    if gone.done():
                        self._fleet.lose(seat, call.instance)
                        raise Gone
                    if loop.time() >= end:
                        break
            finally:
                gone.cancel()
        if not seat.active:
            raise Refusal(401, "revoked")
        await self._forward(call)

    async def _push(self, call: Call) -> None:
        """Forward a reply in the site's own name; Flower lets any node send as another node or as the server."""
        try:
            request = PushMessagesRequest.FromString(call.body)
            (message,), (tree,) = request.messages_list, request.message_object_trees
        except (DecodeError, ValueError) as error:
            raise Refusal(400, "not one reply") from error
        own = call.seat.node_id
        head = message.metadata
        if head.src_node_id != own or not head.reply_to_message_id:
            raise Refusal(403, "not a reply of this site")
        self._link.expect_reply(head.reply_to_message_id, own, head.message_id, tree, payload_bytes=self.payload_bytes)
        await self._forward(call)

    async def _push_object(self, call: Call) -> None:
        """Forward an object of a reply that was announced; its bytes count in the reply's budget."""
        try:
            request = PushObjectRequest.FromString(call.body)
        except DecodeError as error:
            raise Refusal(400, "not one object") from error
        self._link.expect_object(request.session_id, request.object_id, len(request.object_content))
        await self._forward(call)

    async def _pull_objects(self, call: Call) -> None:
        await answer_each(call, PullObjectRequest, self._link.pull_small)

    async def _push_objects(self, call: Call) -> None:
        await answer_each(call, PushObjectRequest, self._link.push_small)

    async def _forward(self, call: Call) -> None:
        """Let Flower answer a request; what makes Flower fail is refused, and logged as any other refusal.

        What Flower itself refuses is charged and not logged: after the end of a run that is normal.
        """
        sent = failed = False

        async def receive() -> MutableMapping[str, Any]:
            nonlocal sent
            if sent:
                return await call.receive()
            sent = True
            return {"type": "http.request", "body": call.body, "more_body": False}

        async def send(event: MutableMapping[str, Any]) -> None:
            nonlocal failed
            if event["type"] == "http.response.start":
                failed = event["status"] >= 500
                if not failed and event["status"] >= 400:
                    call.charge(REFUSED)
            if not failed:
                await call.answer(event)

        await self._app(call.scope, receive, send)
        if failed:
            raise Refusal(400, "not understood")

    def _set(self, node_ids: list[int]) -> None:
        for node_id in node_ids:
            self._event(node_id).set()

    def _event(self, node_id: int) -> asyncio.Event:
        return self._events.setdefault(node_id, asyncio.Event())
