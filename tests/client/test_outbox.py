"""The way of an answer: again and again the same, until it is there or nobody wants it."""

import threading

import pytest
from harness.live_site import wait_until
from sahfl_client import backoff
from sahfl_client.connection import Answer, Outbox
from sahfl_client.status import Status

from sahfl.errors import NotConnected, PayloadError
from sahfl.federation.flower.parcels import Upload
from sahfl.federation.flower.supernode import RunOver


def answer(id_):
    return Answer(id_, "train", Upload(head=None, tree=None, objects={"a": b"123"}, run_id=1, node_id=2))


class Way:
    """A server that takes, refuses or is away, as told; it remembers what was pushed."""

    def __init__(self, folder):
        self.outcomes = []
        self.pushed = []
        self.stop = threading.Event()
        self.status = Status(folder, site="bern", server="x:1")
        self.box = Outbox(self._push, status=self.status, stop=self.stop)
        self.thread = threading.Thread(target=self.box.run, daemon=True)
        self.thread.start()

    def _push(self, upload):
        self.pushed.append(upload)
        if self.outcomes and (outcome := self.outcomes.pop(0)):
            raise outcome


@pytest.fixture
def way(tmp_path, monkeypatch):
    monkeypatch.setattr(backoff, "FIRST_S", 0.01)
    way = Way(tmp_path)
    yield way
    way.stop.set()
    way.thread.join(5)
    assert not way.thread.is_alive()


def test_an_interrupted_answer_is_sent_again_the_very_same(way, caplog):
    way.outcomes = [NotConnected("cut"), NotConnected("cut"), None]
    one = answer("a")
    way.box.put(one)
    wait_until(lambda: not way.box.holds("a"))
    assert way.pushed == [one.upload] * 3
    assert len({id(upload) for upload in way.pushed}) == 1
    assert len([record for record in caplog.records if "event=answer_interrupted" in record.message]) == 1


@pytest.mark.parametrize(("outcome", "word"), [(RunOver(), "abandoned"), (PayloadError("too large"), "answer_refused")])
def test_what_nobody_takes_is_not_sent_again(way, caplog, outcome, word):
    caplog.set_level("INFO", logger="sahfl_client")
    way.outcomes = [outcome]
    way.box.put(answer("a"))
    wait_until(lambda: not way.box.holds("a"))
    assert len(way.pushed) == 1
    assert any(f"event={word} what=train" in record.message for record in caplog.records)


def test_a_newer_answer_takes_the_place_of_one_that_does_not_get_through(way):
    way.outcomes = [NotConnected("cut")] * 50
    way.box.put(answer("a"))
    wait_until(lambda: way.pushed)
    newer = answer("b")
    way.outcomes = []
    way.box.put(newer)
    wait_until(lambda: way.pushed[-1] is newer.upload and not way.box.holds("b"))
    assert not way.box.holds("a")


def test_a_dropped_answer_is_not_sent_again(way):
    way.outcomes = [NotConnected("cut")] * 1000
    way.box.put(answer("a"))
    wait_until(lambda: way.pushed)
    way.box.put(None)
    assert not way.box.holds("a")
    wait_until(lambda: way.box._answer is None)
