"""The contract with the private parts of flwr behind the embedded SuperLink; when the pin moves, this fails first."""

import inspect
import logging
import subprocess
import sys

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes

from sahfl.events import SiteFailed, SiteFinished, SiteStarted, listening
from sahfl.federation import flower
from sahfl.federation.flower.fleet import Fleet
from sahfl.federation.flower.gate import FLEET, ROUTES
from sahfl.federation.flower.link import TTL_S, Link
from sahfl.federation.flower.superlink import MOST_OPEN, StateGrid


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Net:
    """A grid with one enrolled site that is connected, and what that site would do to Flower's state."""

    def __init__(self, give_up_s=60.0):
        self.clock, self.link, self.woken = Clock(), Link(), []
        self.fleet = Fleet(clock=self.clock)
        key = public_key_to_bytes(generate_key_pairs()[1])
        self.fleet.register({"bern": key}, self.link.enroll, revoked={})
        (self.seat,) = self.fleet.seats()
        self.fleet.admit(self.seat, "one", "0.1.0")
        self.grid = StateGrid(self.link, self.fleet, wake=self.woken.extend, give_up_s=give_up_s)

    def ask(self, text="x"):
        content = RecordDict({"task": ConfigRecord({"text": text})})
        return self.grid.push_messages([self.grid.create_message(content, "train", self.seat.node_id, "")])[0]

    def fetch(self, *, confirm=True):
        (head,) = self.link._state.get_message_ins(self.seat.node_id, 1)
        if confirm:
            self.link._state.object_store.delete(head.metadata.message_id)
        return head

    def answer(self, head, content=None):
        content = content or RecordDict({"answer": ConfigRecord({"text": "done"}), "more": ConfigRecord({"n": 1})})
        message = Message(content, reply_to=head)
        message.metadata.__dict__["_src_node_id"] = self.seat.node_id
        return message

    def upload(self, message, *, objects=None):
        state = self.link._state
        with no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            session = state.start_session(self.link.run_id)
            stored, missing = state.store_message_and_object_tree(message, get_object_tree(message), session)
            assert stored
            contents = get_all_nested_objects(message)
            for id_ in missing[:objects]:
                state.store_object(self.link.run_id, session, id_, contents[id_].deflate())


def test_the_app_has_the_routes_that_the_gate_lets_through_and_the_state_is_in_memory():
    link = Link()
    paths = set(link.app.openapi()["paths"])
    own = {FLEET + "pull-objects", FLEET + "push-objects"}  # the gate answers these itself
    assert own < ROUTES
    assert ROUTES - own | {"/health", FLEET + "register-node", FLEET + "get-fab"} <= paths
    assert isinstance(link._state, InMemoryLinkState)
    assert link.app.state.enable_supernode_auth is True
    assert link.app.state.superexec_auth_secret is None


def test_making_the_app_starts_no_process_and_no_thread():
    code = (
        "import sahfl.federation, threading, subprocess\n"
        "def refuse(*a, **k): raise AssertionError('a process')\n"
        "subprocess.Popen.__init__ = refuse\n"
        "from sahfl.federation.flower.link import Link\n"
        "Link().start_run()\n"
        "print(threading.active_count())\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "1"


def test_the_server_s_network_side_loads_without_torch():
    code = (
        "import sys\n"
        "import sahfl.federation.flower.gate, sahfl.federation.flower.listener, sahfl_server.service\n"
        "print([name for name in ('torch', 'monai') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_run_needs_no_heartbeat_and_another_one_ends_it_with_all_its_messages():
    net = Net()
    first = net.link.run_id
    assert net.link.run().status.status == "running"
    assert net.link._state.task_token_store == {}
    net.ask()
    net.link.start_run()
    assert net.link.run_id != first
    assert net.link.counts() == {"messages": 0, "replies": 0, "objects": 0, "sessions": 0}


def test_a_message_waits_for_a_site_that_was_never_there():
    net = Net()
    net.fleet.leave(net.seat)
    id_ = net.ask()
    assert net.link.offer(net.seat.node_id)
    assert net.woken == [net.seat.node_id]
    assert not net.link.delivered(id_)


def test_a_reply_whose_upload_is_not_complete_is_no_reply_yet():
    net = Net()
    id_ = net.ask()
    message = net.answer(net.fetch())
    net.upload(message, objects=1)
    assert net.link.take_reply(id_) is None
    net.upload(message)  # the site tries again: Flower asks for what is missing
    reply = net.link.take_reply(id_)
    assert reply.content["answer"]["text"] == "done"
    assert net.link.counts() == {"messages": 0, "replies": 0, "objects": 0, "sessions": 0}


def test_an_error_reply_of_a_site_arrives_without_objects():
    net = Net()
    id_ = net.ask()
    net.upload(net.answer(net.fetch(), Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "DataError")))
    (reply,) = net.grid.pull_messages([id_])
    assert (reply.error.reason, reply.metadata.reply_to_message_id) == ("DataError", id_)


def test_B07_bytes_that_cannot_be_read_are_an_error_reply_and_leave_nothing():
    net = Net()
    id_ = net.ask()
    net.upload(net.answer(net.fetch()))
    store = net.link._state.object_store.store
    for entry in store.values():
        entry.content = b"ConfigRecord 3\x00{]}"
    (reply,) = net.grid.pull_messages([id_])
    assert reply.error.reason.startswith("a reply that cannot be read: message: cannot be read (")
    assert net.link.counts()["objects"] == 0


def test_a_message_that_was_sent_but_not_confirmed_waits_again():
    net = Net()
    id_ = net.ask()
    net.fetch(confirm=False)
    assert net.link.offer(net.seat.node_id)
    assert net.fetch().metadata.message_id == id_
    assert not net.link.offer(net.seat.node_id)
    assert net.link.delivered(id_)


def test_a_newer_message_takes_the_place_of_one_that_was_not_fetched():
    net = Net()
    first = net.ask("first")
    net.ask("second")
    (reply,) = net.grid.pull_messages([first])
    assert "asked for something newer" in reply.error.reason
    assert not flower.is_crash(reply)
    assert net.link.counts()["messages"] == 1


def test_A08_a_late_reply_is_still_heard_and_old_ones_are_forgotten_in_the_end():
    net = Net()
    late = net.ask("late")
    head = net.fetch()
    net.ask("newer")
    net.upload(net.answer(head))
    assert net.grid.pull_messages([late])[0].has_content()
    for number in range(3 * MOST_OPEN):
        net.ask(str(number))
        net.fetch()
    assert net.link.counts()["messages"] == MOST_OPEN


def test_a_site_that_stays_away_is_given_up_and_one_that_comes_back_in_time_is_not():
    net = Net(give_up_s=60.0)
    id_ = net.ask()
    net.clock.now += 59
    assert net.grid.pull_messages([id_]) == []
    net.fleet.note_request(net.seat)
    net.clock.now += 59
    assert net.grid.pull_messages([id_]) == []
    net.clock.now += 10
    (reply,) = net.grid.pull_messages([id_])
    assert flower.is_unreachable(reply)
    assert reply.error.reason == "not connected for 69 s"
    assert net.grid.get_node_ids() == []


def test_A04_what_a_dead_process_worked_on_is_a_crash_so_that_it_is_asked_again():
    net = Net()
    fetched = net.ask()
    net.fetch()
    net.link.abandon(net.seat.node_id)
    (reply,) = net.grid.pull_messages([fetched])
    assert flower.is_crash(reply)
    waiting = net.ask()
    net.link.abandon(net.seat.node_id)
    assert net.grid.pull_messages([waiting]) == []  # nobody had fetched it: the new process will


def test_the_grid_says_who_works_on_what():
    net, heard = Net(), []
    with listening(heard.append):
        id_ = net.ask()
        assert net.grid.pull_messages([id_]) == []
        (asked,) = net.grid.doing().values()
        assert (asked["what"], asked["state"], net.grid.working()) == ("train", "asked", set())
        head = net.fetch()
        assert net.grid.pull_messages([id_]) == []
        (working,) = net.grid.doing().values()
        assert (working["what"], working["state"]) == ("train", "working")
        assert working["since"] >= asked["since"]
        assert net.grid.working() == {"bern"}
        net.upload(net.answer(head))
        net.grid.pull_messages([id_])
    assert heard == [SiteStarted("bern", "train"), SiteFinished("bern", "train")]
    assert net.grid.doing() == {}


ANSWERS = {
    "DataChanged": "DataChanged",
    "<class 'sahfl.federation.site.app.SiteFailure'>:<'DataChanged'>": "DataChanged",
    "patient Muster, CT_1234.nii.gz": "OtherError",
    'x"} 1\nsahfl_up 0': "OtherError",
    "A" * 61: "OtherError",
    "": "OtherError",
}


@pytest.mark.parametrize(("text", "error"), ANSWERS.items())
def test_an_answer_that_is_an_error_is_a_failure_with_the_error_s_class_and_no_finish(text, error):
    net, heard = Net(), []
    with listening(heard.append):
        id_ = net.ask()
        head = net.fetch()
        net.upload(flower.error_reply(head, text))
        (reply,) = net.grid.pull_messages([id_])
    assert reply.has_error()
    started, failed = heard
    assert isinstance(started, SiteStarted)
    assert (failed.site, failed.work, failed.error) == ("bern", "train", error)


def test_a_request_without_an_answer_has_no_class_of_an_error():
    net, heard = Net(), []
    with listening(heard.append):
        id_ = net.ask()
        net.seat.active = False
        net.grid.pull_messages([id_])
    assert heard == [SiteFailed("bern", "train", "its key was revoked")]


def test_a_process_that_died_is_a_class_of_error_of_its_own():
    message = Net().grid.create_message(RecordDict(), "train", 1, "")
    flower.give_id(message)
    crash = flower.error_reply(message, "worker process died (SIGKILL: out of memory, or killed by hand)", crash=True)
    assert flower.error_class(crash) == "ProcessLost"


def test_a_node_that_is_not_registered_is_refused_at_once():
    net = Net()
    message = net.grid.create_message(RecordDict(), "train", 12345, "")
    with pytest.raises(LookupError, match="node 12345 is not registered"):
        net.grid.push_messages([message])


def test_send_and_receive_waits_for_every_reply():
    net = Net()
    message = net.grid.create_message(RecordDict(), "train", net.seat.node_id, "")
    assert net.grid.send_and_receive([message], timeout=0.1) == []


def test_flower_s_names_that_are_used_here_have_not_changed():
    signature = inspect.signature(InMemoryLinkState.create_run)
    expected = ["fab_id", "fab_version", "fab_hash", "override_config", "federation_id", "federation_config"]
    assert list(signature.parameters)[1:9] == [*expected, "flwr_aid", "primary_task_type"]
    for name in (
        "message_ins_store", "message_res_store", "message_ins_id_to_message_res_id", "lock", "task_token_store",
        "task_token_to_task_id", "object_store", "_object_push_sessions", "_object_push_session_by_root",
        "_cleanup_push_session", "delete_sessions_in_run", "num_message_ins", "get_message_ids_from_run_id",
    ):  # fmt: skip
        assert hasattr(Link()._state, name), name


def test_messages_live_longer_than_any_round_and_flower_s_own_log_is_quiet():
    net = Net()
    message = net.grid.create_message(RecordDict(), "train", net.seat.node_id, "")
    assert message.metadata.ttl == TTL_S
    assert logging.getLogger("flwr").level == logging.CRITICAL
    assert not logging.getLogger("flwr").handlers
