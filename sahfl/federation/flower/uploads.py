"""The replies that sites are uploading: one tree of objects for each request, and a budget of bytes for each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

from sahfl.federation.flower.calls import Refusal

CHUNK = 5 * 1024 * 1024
"""Bytes of the largest object: Flower cuts arrays into pieces of this size."""
FEW = 40
"""Most objects of a reply besides the pieces of its array."""
BESIDES = 1024 * 1024
"""Most bytes of a reply besides its state or sums: header, layout, metrics."""


@dataclass
class Upload:
    """A reply of which the tree is known."""

    tree: bytes
    """Hash of the tree, which every attempt repeats; its root is the reply."""
    most: int
    """Most bytes of the reply, stored and unpacked."""
    left: int
    """Bytes that may still be stored."""


class Uploads:
    """Guarantees that a request of the server takes one reply, and no more memory than that reply may have."""

    def __init__(self) -> None:
        self._by_request: dict[str, Upload] = {}

    def begin(self, request_id: str, reply_id: str, tree: Any, *, payload_bytes: int) -> None:
        """Note the tree of a reply, or check that it is the one noted before.

        Args:
            request_id: the server's message that is answered.
            reply_id: id of the reply, as its metadata state it.
            tree: Flower's ``ObjectTree`` of the reply.
            payload_bytes: size of the largest state or sums of the study.

        Raises:
            Refusal: the tree's root is not the reply, it has too many objects, or another reply came before.
        """
        if not reply_id or tree.object_id != reply_id:
            raise Refusal(403, "not the tree of this reply")
        if sum(1 for _ in iterate_object_tree(tree)) > FEW + payload_bytes // CHUNK:
            raise Refusal(413, "too many objects")
        digest = hashlib.sha256(tree.SerializeToString(deterministic=True)).digest()
        most = payload_bytes + BESIDES
        if self._by_request.setdefault(request_id, Upload(digest, most, most)).tree != digest:
            raise Refusal(403, "answered already")

    def take(self, request_id: str, n_bytes: int) -> None:
        """Take an object's bytes out of the budget of the reply to a request.

        Raises:
            Refusal: the reply would be larger than it may be.
        """
        if (upload := self._by_request.get(request_id)) is not None:
            upload.left -= n_bytes
            if upload.left < 0:
                raise Refusal(413, "too large")

    def most(self, request_id: str) -> int:
        """Most bytes of the reply to a request; a few, if no tree of it is known."""
        upload = self._by_request.get(request_id)
        return BESIDES if upload is None else upload.most

    def forget(self, request_id: str) -> None:
        """Forget a request that was answered or withdrawn."""
        self._by_request.pop(request_id, None)
