"""Flower's own SuperLink app and its in-memory state, with the operations that our server needs."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_MAX_INTERVAL, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse, PushObjectRequest, PushObjectResponse
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.corestate import in_memory_corestate
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.superlink.servicer.fleet import fleet_handlers

from sahfl.errors import PayloadError
from sahfl.federation.flower import Run, enter_run, silence
from sahfl.federation.flower.batches import SMALL_BYTES
from sahfl.federation.flower.calls import Refusal
from sahfl.federation.flower.parcels import put_together
from sahfl.federation.flower.superlink_app import fleet_app
from sahfl.federation.flower.uploads import Uploads
from sahfl.process import now

UNUSED_S = 60.0
"""Seconds after which an upload's session without a reply is forgotten."""
TTL_S = 7 * 86400.0
"""Seconds for which Flower keeps a message; rounds have their own, shorter deadlines."""


class Objects(InMemoryObjectStore):
    """Flower's object store with a lock: no object is deleted while the objects of a message are registered.

    Messages share objects, because every site's reply repeats the header of the request.
    """

    def preregister(self, run_id: int, object_tree: Any) -> list[str]:
        """Register the objects of a message, and return the ids of those that are missing."""
        with self.lock_store:
            missing: list[str] = super().preregister(run_id, object_tree)
            return missing


class Link:
    """The SuperLink of one server process: nodes, one run at a time, messages and their objects, all in memory.

    Guarantees: no process is started and no other port is opened; only node keys passed to ``enroll`` are accepted.
    Every method may be called from any thread.
    """

    def __init__(self) -> None:
        silence()
        # An upload continues after an interruption of any length; Flower would end an idle one after three minutes.
        in_memory_corestate.OBJECT_PUSH_SESSION_TTL_SECONDS = int(TTL_S)
        self.app = fleet_app()
        self._state: Any = self.app.state.linkstate_factory.state()
        self._state._object_store = Objects()
        self._lost: set[str] = set()
        self._uploads = Uploads()
        self.run_id = 0

    def enroll(self, key: bytes) -> int:
        """Make a node for a public key, in the state offline: Flower takes no messages for a node just registered."""
        node_id = int(self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, HEARTBEAT_MAX_INTERVAL))
        self._state.activate_node(node_id, HEARTBEAT_MAX_INTERVAL)
        self._state.deactivate_node(node_id)
        return node_id

    def release(self, node_id: int) -> None:
        """Deactivate a node, so that it can be activated again from any state."""
        self._state.deactivate_node(node_id)

    def start_run(self) -> Run:
        """End the previous run with all its messages, and begin a new one.

        The task's token is removed: with it, Flower would expect heartbeats, and fail the run when this machine sleeps.
        """
        self.end_run()
        code = ("sahfl/sahfl", "", "")  # name, version and hash of an app: sites run what they have installed
        self.run_id = int(
            self._state.create_run(*code, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP)
        )
        task_id = self._state.get_run_info(run_ids=[self.run_id])[0].primary_task_id
        token = self._state.claim_task(task_id)
        self._state.activate_task(task_id)
        self._state.task_token_store.pop(task_id)
        self._state.task_token_to_task_id.pop(token)
        enter_run(self.run_id)
        return self.run()

    def run(self) -> Run:
        """The run that messages belong to."""
        run: Run = self._state.get_run_info(run_ids=[self.run_id])[0]
        return run

    def end_run(self) -> None:
        """End the run, and delete its messages and objects."""
        if self.run_id:
            for id_ in self._state.get_message_ids_from_run_id(self.run_id):
                self.forget(id_)
            self._state.stop_run(self.run_id)
            self._state.delete_sessions_in_run(self.run_id)
            self._state.object_store.delete_objects_in_run(self.run_id)
            self.run_id = 0

    # ------------------------------------------------------------------------------------------- messages

    def push(self, messages: Iterable[Message]) -> list[str]:
        """Store messages, and return their ids; the id of a message that Flower rejects is empty.

        The trees of all messages are stored before any object, because a push session ends once nothing is pending.
        """
        ids: list[str] = []
        pending: list[str] = []
        objects: dict[str, Any] = {}
        session = self._state.start_session(self.run_id)
        with no_object_id_recompute():
            for message in messages:
                message.metadata.__dict__["_message_id"] = message.object_id
                bare = without_content(message)
                stored, missing = self._state.store_message_and_object_tree(bare, get_object_tree(message), session)
                objects |= get_all_nested_objects(message)
                pending += missing
                ids.append(message.metadata.message_id if stored else "")
            for id_ in dict.fromkeys(pending):
                self._state.store_object(self.run_id, session, id_, objects[id_].deflate())
        return ids

    def take_reply(self, id_: str) -> Message | None:
        """Return the reply to a message, and delete both; None until the whole reply has arrived.

        Raises:
            ValueError: the reply cannot be read; message and reply are deleted.
        """
        with self._state.lock:
            reply_id = self._state.message_ins_id_to_message_res_id.get(id_)
            if reply_id is None:
                return None
            reply: Any = self._state.message_res_store[reply_id]
        if not reply.has_error():  # an error has no objects that could be missing
            contents = None if self._uploading(reply_id) else self._contents(reply_id)
            if contents is None:
                return None
            try:
                reply = put_together(reply_id, contents, most=self._uploads.most(id_))
            except PayloadError as error:
                self.forget(id_)
                raise ValueError(f"a reply that cannot be read: {error}") from error
            reply.metadata.__dict__["_message_id"] = reply_id
        self.forget(id_)
        found: Message = reply
        return found

    def expect_reply(self, request_id: str, node_id: int, reply_id: str, tree: Any, *, payload_bytes: int) -> None:
        """Prepare for a reply of a node; Flower itself ignores a reply to a request that has ended.

        Raises:
            Refusal: the request is another node's, or ``Uploads.begin`` refuses.
        """
        self._drop_sessions()
        if (request := self._state.message_ins_store.get(request_id)) is not None:
            if request.metadata.dst_node_id != node_id:
                raise Refusal(403, "not a reply of this site")
            self._uploads.begin(request_id, reply_id, tree, payload_bytes=payload_bytes)

    def expect_object(self, session_id: str, object_id: str, n_bytes: int) -> None:
        """Take an object that is not stored yet out of its reply's budget.

        Raises:
            Refusal: no upload is named, or the reply would be larger than it may be.
        """
        if not session_id:  # Flower would look for any upload that misses the object
            raise Refusal(403, "not of an upload")
        state = self._state
        session = state._object_push_sessions.get(session_id)
        if session is not None and object_id in session.pending_object_ids:
            for root, id_ in list(state._object_push_session_by_root.items()):
                if id_ == session_id and (reply := state.message_res_store.get(root)) is not None:
                    self._uploads.take(reply.metadata.reply_to_message_id, n_bytes)

    def pull_small(self, request: PullObjectRequest) -> PullObjectResponse:
        """Answer a site's request for an object; one that is absent, not sent yet, or not small is not available.

        Raises:
            FlowerError: the run has ended.
        """
        # A look before Flower's handler, which copies a large object, and searches all sessions for one not sent yet.
        content = self._state.object_store.get(request.object_id)
        if not content or len(content) > SMALL_BYTES:
            return PullObjectResponse(object_found=content is not None, object_available=False)
        found: PullObjectResponse = fleet_handlers.pull_object(request, self._state)
        return found

    def push_small(self, request: PushObjectRequest) -> PushObjectResponse:
        """Store an object of a reply.

        Raises:
            Refusal: as ``expect_object``.
            FlowerError: the run has ended.
        """
        self.expect_object(request.session_id, request.object_id, len(request.object_content))
        stored: PushObjectResponse = fleet_handlers.push_object(request, self._state)
        return stored

    def _drop_sessions(self) -> None:
        """Forget uploads' sessions without a reply: Flower ignored the reply, or a later attempt took its place.

        One that began a moment ago may get its reply yet.
        """
        state = self._state
        with state._lock_object_push_sessions:
            used = set(state._object_push_session_by_root.values())
            latest = now() + timedelta(seconds=TTL_S - UNUSED_S)
            for id_, session in list(state._object_push_sessions.items()):
                if id_ not in used and session.expires_at < latest:
                    del state._object_push_sessions[id_]

    def _uploading(self, root: str) -> bool:
        """Whether a site still uploads objects of a reply; another site may have sent the same objects before."""
        session = self._state._object_push_sessions.get(self._state._object_push_session_by_root.get(root, ""))
        return session is not None and bool(session.pending_object_ids)

    def _contents(self, root: str) -> dict[str, bytes] | None:
        """The objects of a message by id, each once: a tree that names some of them often has no bound of its size."""
        store = self._state.object_store
        contents: dict[str, bytes] = {}
        with store.lock_store:
            left = [root]
            while left:
                if (id_ := left.pop()) not in contents:
                    if (entry := store.store.get(id_)) is None or not entry.content:
                        return None
                    contents[id_] = entry.content
                    left += entry.child_object_ids
        return contents

    def forget(self, id_: str) -> None:
        """Delete a message, its reply, and all objects of both."""
        with self._state.lock:
            reply_id = self._state.message_ins_id_to_message_res_id.get(id_)
            self._state.delete_messages({id_})
        self._lost.discard(id_)
        self._uploads.forget(id_)
        for root in filter(None, (id_, reply_id)):
            self._state._cleanup_push_session(
                self._state._object_push_session_by_root.get(root, ""), cleanup_messages=False
            )
            self._state.object_store.delete(root)

    def delivered(self, id_: str) -> bool:
        """Whether a site has fetched a whole message and confirmed that."""
        message = self._state.message_ins_store.get(id_)
        return message is not None and message.metadata.delivered_at != "" and id_ not in self._state.object_store

    def offer(self, node_id: int) -> bool:
        """Whether a message waits for a node; a message that was sent but never confirmed is offered again."""
        waiting = False
        with self._state.lock:
            for id_, message in self._state.message_ins_store.items():
                if message.metadata.dst_node_id == node_id and id_ in self._state.object_store:
                    message.metadata.delivered_at = ""
                    waiting = True
        return waiting

    def abandon(self, node_id: int) -> None:
        """Mark the messages of a node as lost that its previous process fetched, because a new process replaced it."""
        with self._state.lock:
            for id_, message in self._state.message_ins_store.items():
                if message.metadata.dst_node_id == node_id and self.delivered(id_):
                    self._lost.add(id_)

    def lost(self, id_: str) -> bool:
        """Whether the process that worked on a message was replaced."""
        return id_ in self._lost

    def counts(self) -> dict[str, int]:
        """The numbers of messages, replies, objects and push sessions in memory."""
        state = self._state
        return {
            "messages": state.num_message_ins(),
            "replies": state.num_message_res(),
            "objects": len(state.object_store),
            "sessions": len(state._object_push_sessions),
        }


def without_content(message: Message) -> Message:
    """A message without its records; its metadata identify it, and suffice for an error reply."""
    bare: Message = remove_content_from_message(message)
    return bare
