"""One HTTP request at the gate, and helpers that read its body and answer it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from flwr.supercore.error import FlowerError
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from google.protobuf.message import DecodeError

from sahfl.federation.flower import handshake
from sahfl.federation.flower.batches import Batch, written
from sahfl.federation.flower.callers import CALLER, MEGABYTE_SENT, Caller
from sahfl.federation.flower.fleet import Seat

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


OVER = ""
"""Word of a refusal because the run has ended, which is normal; Flower's own has none either."""


class Refusal(Exception):
    """Raised to refuse a request; holds the status and the short JSON body of the answer."""

    def __init__(self, status: int, error: str, **more: Any) -> None:
        super().__init__(error)
        self.status, self.body = status, {"error": error, **more}

    def both_ends(self) -> dict[str, str]:
        """Versions or clocks of server and client as fields of the log line; none for most refusals."""
        ends = {end: self.body[end] for end in ("server", "client") if end in self.body}
        return {
            end: ", ".join(map(" ".join, found.items())) if isinstance(found, dict) else str(found)
            for end, found in ends.items()
        }


class Gone(Exception):
    """The other end closed the connection."""


@dataclass
class Call:
    """One request with its ASGI channels, its headers and body, and the site that sent it."""

    scope: Scope
    receive: Receive
    send: Send
    headers: Mapping[str, str]
    body: bytes = b""
    status: int = 0
    seat: Seat = field(default_factory=lambda: Seat("", b"", 0))

    @property
    def caller(self) -> Caller | None:
        """Everybody who connects with the certificate of this connection; None if the app runs without ``Door``."""
        found = self.scope.get(CALLER)
        return found if isinstance(found, Caller) else None

    async def answer(self, event: MutableMapping[str, Any]) -> None:
        """Send a part of the answer, and charge its bytes to the caller."""
        self.charge(len(event.get("body", b"")) / 1e6 * MEGABYTE_SENT)
        await self.send(event)

    def due(self, *matter: str) -> bool:
        """Whether a matter of the caller is due to be logged; it counts as logged then."""
        return self.caller is None or self.caller.due(*matter)

    def charge(self, cost: float) -> None:
        """Charge a cost to the caller, from whom nothing is read while it is in debt."""
        if self.caller is not None:
            self.caller.spend(cost)

    @property
    def path(self) -> str:
        """Path of the request."""
        return str(self.scope["path"])

    @property
    def instance(self) -> str:
        """Random name of the process that sent the request."""
        return self.headers.get(handshake.INSTANCE, "")[:64]


async def read_body(call: Call, limit: int) -> bytes:
    """Read the body of a request.

    Raises:
        Refusal: the declared length (checked before any reading) or the real one is above ``limit`` bytes.
        Gone: the connection was closed.
    """
    declared = call.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > limit:
        raise Refusal(413, "too large", limit=limit)
    body, more = bytearray(), True
    while more:
        message = await call.receive()
        if message["type"] == "http.disconnect":
            raise Gone
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > limit:
            raise Refusal(413, "too large", limit=limit)
    return bytes(body)


async def answer_each(call: Call, kind: type[Any], answer: Callable[[Any], Any]) -> None:
    """Answer a batch of a site's requests with the batch of their answers.

    Args:
        call: its body is read already.
        kind: protobuf class of the requests; each names its node.
        answer: returns the answer to one request.

    Raises:
        Refusal: the body is no such batch, names another node, or what ``answer`` raises.
    """
    batch = Batch(kind)
    try:
        batch.ParseFromString(call.body)
    except DecodeError as error:
        raise Refusal(400, "not objects") from error
    if any(request.node.node_id != call.seat.node_id for request in batch.messages):
        raise Refusal(403, "not of this site")
    try:
        answers = written(map(answer, batch.messages))
    except Refusal:
        raise
    except FlowerError as error:
        raise Refusal(403, OVER) from error
    except Exception as error:  # whatever a peer's request makes Flower raise
        raise Refusal(400, "not understood") from error
    headers = [(b"content-type", PROTOBUF_MEDIA_TYPE.encode()), (b"content-length", str(len(answers)).encode())]
    await call.answer({"type": "http.response.start", "status": 200, "headers": headers})
    await call.answer({"type": "http.response.body", "body": answers})


async def disconnected(receive: Receive) -> None:
    """Return when the other end has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def reply_json(send: Send, status: int, body: Mapping[str, Any]) -> None:
    """Answer with a short JSON body, and close the connection."""
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})
