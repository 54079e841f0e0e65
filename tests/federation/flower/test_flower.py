"""The contract with the private parts of flwr; when the pin moves, this fails before anything subtler does."""

import subprocess
import sys
from importlib.metadata import version

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from sahfl.federation import flower


def test_flwr_is_the_pinned_version():
    assert version("flwr") == "1.42.0"


def test_a_message_outside_flower_s_runtimes_needs_the_identity_that_enter_run_gives():
    TaskIdentity.run_id = None
    with pytest.raises(RuntimeError, match="run_id is not set"):
        Message(RecordDict(), 5, "train")
    flower.enter_run(42)
    message = flower.new_message(RecordDict(), 5, "train", "", None)
    assert (message.metadata.run_id, message.metadata.src_node_id, message.metadata.dst_node_id) == (42, 1, 5)


def test_a_reply_names_the_id_that_give_id_gave_to_the_request():
    flower.enter_run(42)
    request = flower.new_message(RecordDict(), 5, "train", "", None)
    id_ = flower.give_id(request)
    assert id_
    assert flower.error_reply(request, "reason").metadata.reply_to_message_id == id_
    reply = Message(RecordDict({"a": ConfigRecord({"b": 1})}), reply_to=request)
    assert (reply.metadata.reply_to_message_id, reply.metadata.dst_node_id) == (id_, 1)


def test_an_error_reply_carries_the_reason_and_no_content():
    flower.enter_run(42)
    request = flower.new_message(RecordDict(), 5, "train", "", None)
    flower.give_id(request)
    reply = flower.error_reply(request, "worker process died")
    assert reply.has_error()
    assert not reply.has_content()
    assert reply.error.reason == "worker process died"


def test_run_ids_are_distinct_and_fit_63_bits():
    ids = {flower.new_run_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(0 <= id_ < 2**63 for id_ in ids)


def test_telemetry_is_off_before_flwr_is_imported():
    code = (
        "import sahfl.federation, sys\n"
        "assert 'flwr' not in sys.modules\n"
        "import sahfl.federation.site.app\n"
        "from flwr.supercore import telemetry\n"
        "print(telemetry.FLWR_TELEMETRY_ENABLED)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "0"
