"""Messages on their way: a request that the site has not fetched yet, and a reply that is ready to be sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto, recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_body,
    get_object_head_values_from_object_content,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from sahfl.errors import PayloadError


@dataclass(frozen=True)
class Offer:
    """A request of the server of which only the head has been read."""

    head: Message
    tree: Any = field(repr=False)
    node_id: int

    @property
    def id(self) -> str:
        """The message's id."""
        return self.head.metadata.message_id

    @property
    def kind(self) -> str:
        """The message type, such as ``train``."""
        return self.head.metadata.message_type

    @property
    def run_id(self) -> int:
        """The run that the message belongs to."""
        return self.head.metadata.run_id


@dataclass(frozen=True)
class Upload:
    """A reply that is ready to be sent; every attempt sends the same id and the same bytes."""

    head: Any = field(repr=False)
    tree: Any = field(repr=False)
    objects: dict[str, bytes] = field(repr=False)
    run_id: int
    node_id: int

    @property
    def n_bytes(self) -> int:
        """Bytes of all objects."""
        return sum(len(content) for content in self.objects.values())


def put_together(root: str, contents: dict[str, bytes], *, most: int) -> Any:
    """Make a message from its parts, after a look at how large it will be; ``contents`` is empty then.

    An array names its pieces by their places in a list, and may name one piece any number of times. A record may do
    so with its arrays, and a message with its records.

    Args:
        root: id of the message.
        contents: the bytes of the message and of all its parts, by id.
        most: most bytes that the arrays of all records may have together.

    Raises:
        PayloadError: the arrays have more bytes, or these are not the parts of a message.
    """
    try:
        if (size := _size(root, contents, {})) > most:
            raise PayloadError(f"message: its arrays have {size} bytes, expected at most {most}")
        return inflate_object_from_contents(root, contents)
    except PayloadError:
        raise
    except Exception as error:  # whatever a peer's bytes make Flower raise
        raise PayloadError(f"message: cannot be read ({type(error).__name__})") from error


def _size(id_: str, contents: Mapping[str, bytes], known: dict[str, int]) -> int:
    """Bytes of the arrays of a message, record or array, each counted as often as it is named."""
    if id_ not in known:
        content = contents[id_]
        kind, parts, _ = get_object_head_values_from_object_content(content)
        if kind == Array.__qualname__:
            pieces = [len(contents[part]) for part in parts]
            places = json.loads(get_object_body(content, Array))["arraychunk_ids"]
            known[id_] = sum(pieces[place] for place in places)
        else:
            for record in (ArrayRecord, RecordDict):
                if kind == record.__qualname__:
                    parts = json.loads(get_object_body(content, record)).values()
            known[id_] = sum(_size(part, contents, known) for part in parts)
    return known[id_]


def to_bytes(content: RecordDict) -> bytes:
    """The content of a message as bytes, for a file."""
    return bytes(recorddict_to_proto(content).SerializeToString())


def from_bytes(content: bytes) -> RecordDict:
    """The inverse of ``to_bytes``.

    Raises:
        PayloadError: these are not the bytes of the content of a message.
    """
    try:
        return recorddict_from_proto(RecordDictProto.FromString(content))
    except Exception as error:  # whatever such bytes make Flower raise
        raise PayloadError(f"message: cannot be read ({type(error).__name__})") from error


def prepare(reply: Message, node_id: int) -> Upload:
    """Prepare a reply for sending; ``node_id`` is that of the connection that received the request."""
    with no_object_id_recompute():
        reply.metadata.__dict__["_message_id"] = reply.object_id
        objects = {} if reply.has_error() else get_all_nested_objects(reply)
        contents = {id_: item.deflate() for id_, item in objects.items()}
        bare = remove_content_from_message(reply) if reply.has_content() else reply
        return Upload(message_to_proto(bare), get_object_tree(reply), contents, reply.metadata.run_id, node_id)
