"""How objects are grouped into requests, and how a batch is written and read."""

import pytest
from flwr.proto.message_pb2 import PullObjectRequest, PushObjectResponse
from google.protobuf.message import DecodeError

from sahfl.federation.flower.batches import MOST_BYTES, MOST_OBJECTS, SMALL_BYTES, Batch, groups


def read(kind, content):
    batch = Batch(kind)
    batch.ParseFromString(content)
    return batch.messages


def test_a_batch_is_read_as_it_was_written_in_its_order_and_with_empty_messages():
    written = [PushObjectResponse(stored=True), PushObjectResponse(), PushObjectResponse(stored=True)]
    found = read(PushObjectResponse, Batch(PushObjectResponse, written).SerializeToString())
    assert [one.stored for one in found] == [True, False, True]
    assert read(PushObjectResponse, b"") == []


@pytest.mark.parametrize("content", [b"\x05\x0a", b"\x80", b"\xff" * 11, b"\x02\xff\xff", b"\x02\x08"])
def test_other_bytes_are_no_batch(content):
    with pytest.raises(DecodeError):
        read(PullObjectRequest, content)


def test_no_batch_has_more_messages_than_it_may():
    content = Batch(PushObjectResponse, [PushObjectResponse()] * MOST_OBJECTS).SerializeToString()
    assert len(read(PushObjectResponse, content)) == MOST_OBJECTS
    with pytest.raises(DecodeError, match=f"more than {MOST_OBJECTS}"):
        read(PushObjectResponse, content + b"\0")


def test_small_objects_share_requests_up_to_their_number_and_bytes_and_a_large_one_goes_alone():
    sizes = {"head": 10, "large": SMALL_BYTES + 1} | {f"small-{n}": SMALL_BYTES for n in range(20)}
    found = list(groups(sizes))
    assert sorted(id_ for group in found for id_ in group) == sorted(sizes)
    assert ["large"] in found
    assert max(sum(sizes[id_] for id_ in group) for group in found) <= MOST_BYTES
    assert len(found) == 3  # the large one, sixteen with at most a megabyte, and the rest
    assert [len(group) for group in groups(dict.fromkeys(map(str, range(MOST_OBJECTS + 1)), 1))] == [MOST_OBJECTS, 1]
    assert list(groups({})) == []
