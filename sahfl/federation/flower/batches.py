"""Small objects of messages, many in one request. Flower's own routes transfer each in a request of its own.

A message has four to ten objects, most of them of a few hundred bytes; each request costs both ends milliseconds, and
a signature.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from typing import Any

from google.protobuf import proto
from google.protobuf.message import DecodeError

SMALL_BYTES = 64 * 1024
"""Size of the largest object that travels with others."""
MOST_OBJECTS = 64
"""Most objects in one request."""
MOST_BYTES = 1024 * 1024
"""Most bytes of the objects that one request brings to the server."""


class Batch:
    """Protobuf messages of one kind, each behind its length. Flower's client sends and reads it as it does a message.

    Args:
        kind: class of the messages.
        messages: the messages to send; ``ParseFromString`` adds those that were read.
    """

    def __init__(self, kind: type[Any], messages: Iterable[Any] = ()) -> None:
        self.kind, self.messages = kind, list(messages)

    def SerializeToString(self, *, deterministic: bool = True) -> bytes:
        """All messages as bytes."""
        return written(self.messages)

    def ParseFromString(self, content: bytes) -> None:
        """Read messages.

        Raises:
            DecodeError: these are not messages of this kind, or more than ``MOST_OBJECTS``.
        """
        source = BytesIO(content)
        try:
            while (message := proto.parse_length_prefixed(self.kind, source)) is not None:
                if len(self.messages) == MOST_OBJECTS:
                    raise DecodeError(f"more than {MOST_OBJECTS} messages")
                self.messages.append(message)
        except DecodeError:
            raise
        except Exception as error:  # whatever a peer's bytes make protobuf raise
            raise DecodeError(f"not messages ({type(error).__name__})") from error


def written(messages: Iterable[Any]) -> bytes:
    """Protobuf messages, each behind its length."""
    out = BytesIO()
    for message in messages:
        proto.serialize_length_prefixed(message, out)
    return out.getvalue()


def groups(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """The objects that go into one request each, by id; one that is not small goes alone.

    Args:
        sizes: bytes of each object, by id.
    """
    group: list[str] = []
    left = MOST_BYTES
    for id_, size in sizes.items():
        if size > SMALL_BYTES:
            yield [id_]
            continue
        if size > left or len(group) == MOST_OBJECTS:
            yield group
            group, left = [], MOST_BYTES
        group.append(id_)
        left -= size
    if group:
        yield group
