"""How large a message becomes is known before it is put together, whatever its parts claim."""

import hashlib
import os

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from harness.fleet_server import replies
from harness.hostile_parts import with_content, with_pieces

from sahfl.errors import PayloadError
from sahfl.federation.flower import enter_run, new_message
from sahfl.federation.flower.parcels import prepare, put_together


@pytest.fixture(autouse=True)
def _run():
    enter_run(1)


def message(*, n_bytes=1000, records=("state",), names=("flat",), zeros=False):
    data = bytes(n_bytes) if zeros else os.urandom(n_bytes)
    array = Array("uint8", (n_bytes,), "raw", data)
    content = {record: ArrayRecord({name: array for name in names}) for record in records}
    return new_message(RecordDict({"task": ConfigRecord({"a": 1}), **content}), 7, "train", "", None)


def parts(message):
    upload = prepare(message, 7)
    return upload.tree, dict(upload.objects)


def test_parts_give_the_message_that_was_sent():
    sent = message()
    tree, contents = parts(sent)
    got = put_together(tree.object_id, contents, most=1100)
    assert isinstance(got, Message)
    assert got.content["state"]["flat"].data == sent.content["state"]["flat"].data


def test_an_array_of_many_equal_pieces_is_as_large_as_it_is():
    tree, contents = parts(message(n_bytes=20_000_000, zeros=True))
    assert sum(map(len, contents.values())) < 10_000_000
    assert len(put_together(tree.object_id, contents, most=20_001_000).content["state"]["flat"].data) == 20_000_000


@pytest.mark.parametrize(
    ("records", "names"), [(("a", "b", "c"), ("flat",)), (("state",), tuple("abc"))], ids=["records", "arrays"]
)
def test_what_is_named_often_counts_as_often(records, names):
    tree, contents = parts(message(records=records, names=names))
    assert put_together(tree.object_id, dict(contents), most=3100)
    with pytest.raises(PayloadError, match=r"its arrays have 30\d\d bytes, expected at most 2999"):
        put_together(tree.object_id, contents, most=2999)


def test_a_piece_that_is_named_without_end_is_not_repeated():
    tree, contents = parts(message())
    with_pieces(tree, contents, [0] * 10_000_000)
    with pytest.raises(PayloadError, match=r"its arrays have 10\d{9} bytes, expected at most 1000000"):
        put_together(tree.object_id, contents, most=1_000_000)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"Array",
        b"Array  3\x00{]}",
        b"Array  2\x00{}",
        b'Array  22\x00{"arraychunk_ids": [9]}',
        b"ArrayRecord  2\x00[]",
    ],
)
def test_what_is_no_part_of_a_message_is_refused(content):
    tree, contents = parts(message())
    with_content(tree, contents, content)
    with pytest.raises(PayloadError, match="cannot be read"):
        put_together(tree.object_id, contents, most=1_000_000)


def test_a_reply_that_would_become_huge_is_an_error_reply_and_leaves_nothing(side):
    client = side.connect("bern")
    id_ = side.ask("bern")
    offer = client.pull()
    request = client.fetch(offer)
    client.confirm(offer)
    content = RecordDict({"state": ArrayRecord({"flat": Array("uint8", (900_000,), "raw", os.urandom(900_000))})})
    upload = prepare(Message(content, reply_to=request), client.node_id)
    with_pieces(upload.tree, upload.objects, [0] * 100_000)
    upload.head.metadata.message_id = upload.tree.object_id
    assert set(upload.objects) == {hashlib.sha256(part).hexdigest() for part in upload.objects.values()}
    client.push(upload)
    (reply,) = replies(side, id_)
    assert "its arrays have 900" in reply.error.reason
    assert side.link.counts() == {"messages": 0, "replies": 0, "objects": 0, "sessions": 0}
