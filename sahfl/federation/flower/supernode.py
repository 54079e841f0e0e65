"""The SuperNode's side of Flower's wire protocol: one site's connection, which never runs code from the server.

Every call is tried once, and the caller decides about another attempt. A call has four ways to fail: there is no
connection (``NotConnected``, with its cause in one line), the server does not recognise this connection
(``SessionLost``), the run or message has ended (``RunOver``), or the content is refused (``PayloadError``).
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import httpx
from flwr.app import Message
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL
from flwr.common.serde import message_from_proto
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, node_pb2, run_pb2
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClientInterceptor, ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from sahfl.errors import NotConnected, PayloadError
from sahfl.federation.flower import batches, reasons
from sahfl.federation.flower.parcels import Offer, Upload, put_together
from sahfl.federation.flower.transport import LIMIT, OBJECT_BYTES, BoundedTransport

HOLD_S = 10.0
"""Seconds for which the server holds a request for work open while no message waits."""
CONNECT_S = 5.0
TRANSFER_S = 120.0
"""Longest silence in seconds while an object is transferred; the whole transfer may take longer."""
GOODBYE_S = 2.0
"""Longest wait in seconds for each step of signing off; the server may be unreachable."""
MOST_OBJECTS, MOST_BYTES = 10_000, 2**31
"""Limits of a message that is accepted."""
NOT_TAKEN = {httpx.codes.BAD_REQUEST, httpx.codes.FORBIDDEN, httpx.codes.REQUEST_ENTITY_TOO_LARGE}
AT_ONCE = 4
"""Objects of a message that are transferred at the same time."""
ResultT = TypeVar("ResultT")


class SessionLost(Exception):
    """The server does not recognise this connection; the site has to connect again."""


class RunOver(Exception):
    """The run, message or connection has ended; the server no longer waits for this call."""


class FleetLink:
    """A site's connection to its server.

    Guarantees: only this host and port are ever contacted, because redirects and the environment's proxies are ignored;
    nothing is sent before ``tls`` has checked the server; no reply is read beyond its limit; ``push`` may be repeated.
    Methods may be called from several threads.

    Args:
        host: host of the server, as in its certificate.
        port: port of the server.
        tls: TLS context with the trusted authority and the site's certificate.
        node_key: the site's key, an elliptic-curve private key.
        headers: headers of every request.
    """

    def __init__(self, host: str, port: int, *, tls: ssl.SSLContext, node_key: Any, headers: dict[str, str]) -> None:
        key = (node_key, node_key.public_key())
        # Flower's own client would follow redirects and the environment's proxies and authorities, and keep dead
        # connections.
        client = httpx.Client(
            transport=BoundedTransport(tls),
            timeout=httpx.Timeout(HOLD_S + 5, connect=CONNECT_S),
            follow_redirects=False,
            trust_env=False,
        )
        interceptors = (_Extras(headers), NodeAuthHttpInterceptor(*key))
        self._client = _OwnClient(f"https://{host}:{port}", client, interceptors)
        self._public_key = NodeAuthHttpInterceptor(*key)._public_key_bytes
        self._fabs: dict[int, str] = {}
        self._lock = threading.Lock()
        self.node_id: int | None = None

    def activate(self) -> None:
        """Connect to the server, which recognises this site by its key from then on."""
        request = fleet_pb2.ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=HEARTBEAT_MIN_INTERVAL)
        try:
            self.node_id = int(self._client.ActivateNode(request).node_id)
        except httpx.HTTPStatusError as error:
            raise reasons.of_refusal(error.response) from error
        except (httpx.RequestError, ssl.SSLError, ValueError) as error:
            raise reasons.of_first_failure(error) from error

    def heartbeat(self) -> None:
        """Send the server a sign of life."""
        request = heartbeat_pb2.SendNodeHeartbeatRequest(node=self._node(), heartbeat_interval=HEARTBEAT_MIN_INTERVAL)
        if not self._call(self._client.SendNodeHeartbeat, request).success:
            raise SessionLost

    def pull(self) -> Offer | None:
        """Request a message; the server answers when one waits, or after ``HOLD_S``.

        Raises:
            PayloadError: what the server offers cannot be read.
        """
        node = self._node()
        found = self._call(self._client.PullMessages, fleet_pb2.PullMessagesRequest(node=node))
        if not found.messages_list:
            return None
        try:
            tree = found.message_object_trees[0]
            head = message_from_proto(found.messages_list[0])
            head.metadata.__dict__["_message_id"] = tree.object_id
            return Offer(head, tree, node.node_id)
        except Exception as error:  # whatever a peer's bytes make Flower raise
            raise PayloadError(f"the server's offer cannot be read ({type(error).__name__})") from error

    def code_of(self, run_id: int) -> str:
        """Hash of the code that a run asks sites to execute; empty if it uses the installed code."""
        with self._lock:
            if run_id not in self._fabs:
                request = run_pb2.GetRunRequest(node=self._node(), run_id=run_id)
                self._fabs[run_id] = str(self._call(self._client.GetRun, request).run.fab_hash)
            return self._fabs[run_id]

    def fetch(self, offer: Offer) -> Message:
        """Fetch a whole message.

        Raises:
            PayloadError: the message is larger than ``MOST_OBJECTS`` or ``MOST_BYTES``, or cannot be read.
        """
        ids = list(dict.fromkeys(node.object_id for node in iterate_object_tree(offer.tree)))
        if len(ids) > MOST_OBJECTS:
            raise PayloadError(f"message: got {len(ids)} parts, expected at most {MOST_OBJECTS}")
        contents: dict[str, bytes] = {}
        size = 0
        for id_, content in self._parts(offer, ids):
            contents[id_], size = content, size + len(content)
            if size > MOST_BYTES:
                raise PayloadError(f"message: got at least {size} bytes, expected at most {MOST_BYTES}")
        message = put_together(offer.tree.object_id, contents, most=MOST_BYTES)
        if not isinstance(message, Message):
            raise PayloadError(f"message: got {type(message).__name__}, expected a message")
        message.metadata.__dict__["_message_id"] = offer.tree.object_id
        return message

    def confirm(self, offer: Offer) -> None:
        """Confirm that the whole message has arrived, so that the server does not offer it again."""
        request = message_pb2.ConfirmMessageReceivedRequest(
            node=self._node(), run_id=offer.run_id, message_object_id=offer.id
        )
        self._call(self._client.ConfirmMessageReceived, request)

    def push(self, upload: Upload) -> None:
        """Send a reply; after a failure, the next call sends only the missing objects.

        Raises:
            RunOver: the reply belongs to an earlier connection, which the server has removed.
        """
        node = self._node()
        if node.node_id != upload.node_id:
            raise RunOver
        request = fleet_pb2.PushMessagesRequest(
            node=node, messages_list=[upload.head], message_object_trees=[upload.tree]
        )
        answer = self._call(self._client.PushMessages, request)
        missing = [id_ for id_ in answer.objects_to_push if id_ in upload.objects]
        sizes = {id_: len(upload.objects[id_]) for id_ in missing}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda group: self._push_group(upload, answer.session_id, group), batches.groups(sizes)))

    def deactivate(self) -> None:
        """Sign off at the server; failures are ignored."""
        if self.node_id is not None:
            with suppress(NotConnected, SessionLost, RunOver, PayloadError):
                self._call(self._client.DeactivateNode, fleet_pb2.DeactivateNodeRequest(node_id=self.node_id))

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    # ------------------------------------------------------------------------------------------- calls

    def _parts(self, offer: Offer, ids: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Objects with their ids: small ones many at a time, then the others."""
        large: list[str] = []
        for start in range(0, len(ids), batches.MOST_OBJECTS):
            group = ids[start : start + batches.MOST_OBJECTS]
            found = self._pull_small(offer, group)
            yield from found.items()
            large += [id_ for id_ in group if id_ not in found]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                yield from zip(large, pool.map(lambda id_: self._pull_object(offer, id_), large), strict=True)
            finally:
                pool.shutdown(cancel_futures=True)

    def _pull_small(self, offer: Offer, ids: Sequence[str]) -> dict[str, bytes]:
        """The small ones of some objects, by id."""
        requests = [message_pb2.PullObjectRequest(node=self._node(), run_id=offer.run_id, object_id=id_) for id_ in ids]
        found = self._call(self._client.pull_objects, requests)
        if len(found) != len(ids):
            raise PayloadError(f"message: got {len(found)} parts, expected {len(ids)}")
        return {id_: bytes(one.object_content) for id_, one in zip(ids, found, strict=True) if one.object_available}

    def _pull_object(self, offer: Offer, id_: str) -> bytes:
        request = message_pb2.PullObjectRequest(node=self._node(), run_id=offer.run_id, object_id=id_)
        found = self._call(self._client.PullObject, request)
        if not found.object_found or not found.object_available:
            raise RunOver  # the server offers whole messages and deletes whole messages
        return bytes(found.object_content)

    def _push_group(self, upload: Upload, session_id: str, ids: Sequence[str]) -> None:
        """Send one object of any size, or several small ones."""
        node, run_id = self._node(), upload.run_id
        requests = [
            message_pb2.PushObjectRequest(
                node=node, run_id=run_id, object_id=id_, object_content=upload.objects[id_], session_id=session_id
            )
            for id_ in ids
        ]
        if len(requests) == 1:
            stored = [self._call(self._client.PushObject, requests[0])]
        else:
            stored = self._call(self._client.push_objects, requests)
        if len(stored) != len(ids) or not all(one.stored for one in stored):
            raise NotConnected("the upload was interrupted")

    def _node(self) -> Any:
        if self.node_id is None:
            raise SessionLost
        return node_pb2.Node(node_id=self.node_id)

    def _call(self, method: Callable[[Any], ResultT], request: Any) -> ResultT:
        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            raise self._meaning(error.response) from error
        except (httpx.RequestError, ssl.SSLError, ValueError) as error:
            raise reasons.of_failure(error) from error

    def _meaning(self, response: httpx.Response) -> Exception:
        word = reasons.word_of(response)
        if response.status_code == httpx.codes.UNAUTHORIZED and word in ("", "activate"):
            return SessionLost()
        if response.status_code == httpx.codes.FORBIDDEN and not word:  # Flower's answer if the run has ended
            return RunOver()
        if response.status_code in NOT_TAKEN:
            return PayloadError(f"the server does not take it: {word or response.status_code}")
        return reasons.of_refusal(response)


class _OwnClient(FleetHttpClient):
    """Flower's calls over a given client; its constructor would read the environment to make one."""

    def __init__(
        self, base_url: str, client: httpx.Client, interceptors: tuple[ProtobufClientInterceptor, ...]
    ) -> None:
        self._base_url, self._client, self._interceptors = base_url, client, interceptors
        self._retry_invoker = None

    def pull_objects(self, requests: Sequence[message_pb2.PullObjectRequest]) -> list[message_pb2.PullObjectResponse]:
        """Pull several objects; one that is not small is found and not available."""
        return self._several("PullObjects", requests, message_pb2.PullObjectResponse)

    def push_objects(self, requests: Sequence[message_pb2.PushObjectRequest]) -> list[message_pb2.PushObjectResponse]:
        """Push several small objects."""
        return self._several("PushObjects", requests, message_pb2.PushObjectResponse)

    def _several(self, name: str, requests: Sequence[Any], kind: type[Any]) -> list[Any]:
        answers: batches.Batch = self._unary_unary(
            path=f"/v1/fleet/{name.lower().replace('objects', '-objects')}",
            rpc_method=f"/sahfl/{name}",
            request=batches.Batch(type(requests[0]), requests),
            response_type=partial(batches.Batch, kind),  # type: ignore[arg-type] # it is called like a type
        )
        return answers.messages


class _Extras:
    """Adds our headers to every request, and sets other limits for transfers of objects and for signing off."""

    def __init__(self, headers: dict[str, str]) -> None:
        self._headers = headers

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers.update(self._headers)
        if context.rpc_method.endswith(("Object", "Objects")):
            context.request.extensions["timeout"]["read"] = TRANSFER_S
        if context.rpc_method.endswith(("/PullObject", "/PullObjects")):
            context.request.extensions[LIMIT] = OBJECT_BYTES
        if context.rpc_method.endswith("/DeactivateNode"):
            context.request.extensions["timeout"] |= dict.fromkeys(("connect", "read", "write", "pool"), GOODBYE_S)
        return call_next(context)
