"""Fuzzed HTTP requests of a site, at the gate's ASGI app with Flower's behind it, in process and without a port."""

import asyncio
import logging
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import unquote

from flwr.app import Message
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.common.serde import message_from_proto
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, node_pb2, run_pb2
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from harness.asking import training
from harness.fuzz.mutations import damaged
from harness.fuzz.of_sites import HEADER, STATE
from harness.fuzz.outcome import Reader
from harness.trust_kits import make_consortium
from sahfl.errors import PayloadError
from sahfl.federation import protocol
from sahfl.federation.flower import handshake
from sahfl.federation.flower.batches import Batch
from sahfl.federation.flower.fleet import Fleet
from sahfl.federation.flower.gate import FLEET, ROUTES, Gate
from sahfl.federation.flower.link import Link
from sahfl.federation.flower.parcels import prepare
from sahfl.federation.flower.superlink import StateGrid
from sahfl.log_lines import JsonLines, TextLines
from sahfl.trust.kit import ServerKit, SiteKit

HOLD_S, ANSWER_S = 0.02, 10.0
"""Longest time in seconds that a poll is held, and that a request takes."""
HEAD_END = b"\r\n\r\n"
PATHS = ["/health", "/", *sorted(ROUTES)]
PATHS += [FLEET + name for name in ("register-node", "get-fab", "../control/start-run", "pull-messages/")]


class Visit:
    """A server's gate and one site that has fetched a message and announced its reply, so that every request is due."""

    def __init__(self, folder: Path) -> None:
        paths = make_consortium(folder, sites=("bern",), port=8443)
        self.kit = SiteKit.load(paths.sites["bern"])
        self.link, self.fleet, self.loop = Link(), Fleet(), asyncio.new_event_loop()
        self.gate = Gate(self.link, self.fleet, hold_s=HOLD_S)
        server = ServerKit.load(paths.server)
        self.fleet.register(server.sites(), self.link.enroll, revoked=server.revoked())
        self.node_id = self.fleet.of_key(public_key_to_bytes(self.kit.node_key.public_key())).node_id
        self.loop.run_until_complete(self._start())
        self.begin()

    def begin(self) -> None:
        """A new run with one message, which the site has fetched; ``requests`` are those of the site."""
        self.grid = StateGrid(self.link, self.fleet, wake=lambda node_ids: None, give_up_s=600.0)
        node = node_pb2.Node(node_id=self.node_id)
        key = public_key_to_bytes(self.kit.node_key.public_key())
        self.requests = {
            "activate-node": fleet_pb2.ActivateNodeRequest(public_key=key, heartbeat_interval=30),
            "pull-messages": fleet_pb2.PullMessagesRequest(node=node),
            "send-node-heartbeat": heartbeat_pb2.SendNodeHeartbeatRequest(node=node, heartbeat_interval=30),
            "get-run": run_pb2.GetRunRequest(node=node, run_id=self.link.run_id),
        }
        self.fleet.leave(self.fleet.of_key(key))  # a changed request may have connected another process of the site
        self.must("activate-node")
        content = protocol.request(training(), HEADER, STATE)
        (id_,) = self.grid.push_messages([self.grid.create_message(content, protocol.TRAIN, self.node_id, "")])
        pulled = fleet_pb2.PullMessagesResponse.FromString(self.must("pull-messages"))
        head, tree = message_from_proto(pulled.messages_list[0]), pulled.message_object_trees[0]
        head.metadata.__dict__["_message_id"] = tree.object_id
        run_id = self.link.run_id
        self.requests["pull-object"] = message_pb2.PullObjectRequest(node=node, run_id=run_id, object_id=tree.object_id)
        self.requests["confirm-message-received"] = message_pb2.ConfirmMessageReceivedRequest(
            node=node, run_id=run_id, message_object_id=tree.object_id
        )
        answer = protocol.train_reply(HEADER, STATE, n_volumes=3, loss=0.5, seconds=1.0)
        upload = prepare(Message(answer, reply_to=head), self.node_id)
        self.requests["push-messages"] = fleet_pb2.PushMessagesRequest(
            node=node, messages_list=[upload.head], message_object_trees=[upload.tree]
        )
        session = fleet_pb2.PushMessagesResponse.FromString(self.must("push-messages")).session_id
        pulls = [self.requests["pull-object"]] * 2
        self.requests["pull-objects"] = Batch(message_pb2.PullObjectRequest, pulls)
        pushes = [
            message_pb2.PushObjectRequest(
                node=node, run_id=run_id, object_id=object_id, object_content=part, session_id=session
            )
            for object_id, part in upload.objects.items()
        ]
        self.requests["push-object"] = pushes[-1]
        self.requests["push-objects"] = Batch(message_pb2.PushObjectRequest, pushes)
        self.requests["deactivate-node"] = fleet_pb2.DeactivateNodeRequest(node_id=self.node_id)
        self.ids = [id_]
        self.raw = {f"{name}.http": self.head(name) + body.SerializeToString() for name, body in self.requests.items()}

    def close(self) -> None:
        """End the app and its loop."""
        self._lifespan.cancel()
        self.loop.run_until_complete(asyncio.gather(self._lifespan, return_exceptions=True))
        self.loop.close()

    def must(self, name: str) -> bytes:
        """Send a valid request, and return the answer's body."""
        status, body = self.send(self.head(name) + self.requests[name].SerializeToString())
        assert status == 200, (name, status, body)
        return body

    def head(self, name: str) -> bytes:
        """Request line and headers, signed just now."""
        stamp, key = datetime.now(UTC).isoformat(), self.kit.node_key
        headers = {
            FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public_key_to_bytes(key.public_key())).decode(),
            FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(key, stamp.encode())).decode(),
            TIMESTAMP_HEADER: stamp,
            "content-type": PROTOBUF_MEDIA_TYPE,
            **handshake.request_headers("one"),
        }
        lines = [f"POST {FLEET}{name} HTTP/1.1", *(f"{key}: {value}" for key, value in headers.items())]
        return "\r\n".join(lines).encode() + HEAD_END

    def send(self, raw: bytes) -> tuple[int, bytes]:
        """Send a request to the app as a server of HTTP would; returns status and body of the answer."""
        return self.loop.run_until_complete(asyncio.wait_for(self._send(raw), ANSWER_S))

    async def _send(self, raw: bytes) -> tuple[int, bytes]:
        head, _, body = raw.partition(HEAD_END)
        first, *lines = head.split(b"\r\n")
        method, target, _ = [*first.split(b" "), b"", b"", b""][:3]
        pairs = [line.partition(b":")[::2] for line in lines]
        path, _, query = target.partition(b"?")
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "https", "root_path": ""}
        scope |= {"method": method.decode("latin-1"), "path": unquote(path.decode("latin-1")), "raw_path": path}
        scope |= {"query_string": query, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8443), "state": {}}
        scope["headers"] = [(key.strip().lower(), value.strip()) for key, value in pairs]
        events = iter(chunks(body))
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            event = next(events, None)
            if event is None:
                await asyncio.sleep(ANSWER_S)  # the other end waits for its answer
            return event or {"type": "http.disconnect"}

        async def send(event: dict[str, Any]) -> None:
            sent.append(event)

        await self.gate(scope, receive, send)
        status = next((event["status"] for event in sent if event["type"] == "http.response.start"), 0)
        return status, b"".join(event.get("body", b"") for event in sent)

    async def _start(self) -> None:
        started: asyncio.Event = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if started.is_set():
                await asyncio.Event().wait()  # the app runs as long as the process
            return {"type": "lifespan.startup"}

        async def send(event: dict[str, Any]) -> None:
            if event["type"] == "lifespan.startup.complete":
                started.set()

        self._lifespan = asyncio.ensure_future(self.gate({"type": "lifespan", "state": {}}, receive, send))
        await started.wait()


def chunks(body: bytes) -> Iterator[dict[str, Any]]:
    """A body as a server of HTTP hands it over."""
    for start in range(0, max(1, len(body)), 65536):
        more = start + 65536 < len(body)
        yield {"type": "http.request", "body": body[start : start + 65536], "more_body": more}


def gate(folder: Path) -> Reader:
    """Requests of a site; the server answers each with a status below 500, and reads what arrives of a reply."""
    visit = Visit(folder)
    corpus = dict(visit.raw)

    def read(name: str, content: bytes) -> None:
        with formatted_log():
            status, _ = visit.send(content)
        assert 200 <= status < 500, f"status {status}"
        for id_ in visit.ids:
            read_reply(visit.link, id_)
        if status < 400:  # the request did something; the next one meets a server as this one did
            visit.begin()
            corpus.update(visit.raw)
        else:
            raise PayloadError(f"refused: {status}")

    return Reader(corpus, read, changed_request, visit.close)


class Formatted(logging.Handler):
    """Formats each line of the log in both forms, and writes none; an error goes to whoever logged."""

    def emit(self, record: logging.LogRecord) -> None:
        for form in (JsonLines(), TextLines()):
            assert "\n" not in form.format(record)


@contextmanager
def formatted_log() -> Iterator[None]:
    """What is logged by sahfl in the block is formatted, and written nowhere."""
    logger, handler = logging.getLogger("sahfl"), Formatted()
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
        logger.removeHandler(handler)


def read_reply(link: Link, id_: str) -> None:
    """Read the reply to a message, if the whole of it has arrived."""
    try:
        reply = link.take_reply(id_)
    except ValueError as error:  # as in the grid
        raise PayloadError(f"message: {error}") from error
    if reply is not None and reply.has_content():
        protocol.read_train_reply(reply.content, header=HEADER, like=STATE, most_volumes=3)


def changed_request(name: str, content: bytes, rng: Random, others: tuple[bytes, ...] = ()) -> bytes:
    """A request with another body, path, method or header, or with any bytes changed."""
    head, end, body = content.partition(HEAD_END)
    lines = head.split(b"\r\n")
    match rng.randrange(6):
        case 0:
            return damaged(content, rng, others)
        case 1:
            lines[0] = b"POST %s HTTP/1.1" % rng.choice(PATHS).encode()
        case 2:
            lines[0] = damaged(lines[0], rng)
        case 3:
            at = rng.randrange(1, len(lines))
            key, _, value = lines[at].partition(b": ")
            lines[at] = key + b": " + damaged(value, rng)
        case _:
            body = damaged(body, rng, others)
    return b"\r\n".join(lines) + end + body
