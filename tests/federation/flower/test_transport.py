"""What a hostile server sends to a site is read to a limit: endless, packed and slow replies fill no memory."""

import gzip
import resource
from dataclasses import replace
from types import SimpleNamespace

import pytest
from flwr.proto import fleet_pb2, message_pb2
from flwr.proto.message_pb2 import ObjectTree
from harness.fake_servers import ENDLESS, endless_server, tls_of
from harness.trust_kits import make_consortium

from sahfl.errors import NotConnected, PayloadError
from sahfl.federation.flower import handshake, transport
from sahfl.federation.flower.probe import ask_admission
from sahfl.federation.flower.supernode import MOST_OBJECTS, FleetLink
from sahfl.federation.flower.transport import OBJECT_BYTES, REPLY_BYTES
from sahfl.federation.flower.uploads import CHUNK
from sahfl.trust.kit import SiteKit

ON_THE_WAY = 24 << 20
"""More bytes than the buffers of a loopback connection hold at both ends."""
UPLOAD = SimpleNamespace(run_id=1, objects={"1": b"one", "2": b"two"})
OFFER = SimpleNamespace(run_id=1, id="1", tree=ObjectTree(object_id="1"))
CALLS = {
    "activate-node": lambda link: link.activate(),
    "send-node-heartbeat": lambda link: link.heartbeat(),
    "pull-messages": lambda link: link.pull(),
    "get-run": lambda link: link.code_of(1),
    "pull-objects": lambda link: link.fetch(OFFER),
    "pull-object": lambda link: link._pull_object(OFFER, "1"),
    "push-objects": lambda link: link._push_group(UPLOAD, "session", ["1", "2"]),
    "confirm-message-received": lambda link: link.confirm(OFFER),
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return make_consortium(tmp_path_factory.mktemp("consortium"), sites=("bern",))


@pytest.fixture(scope="module")
def tls(paths):
    return tls_of(paths.server / "server.crt", paths.server / "server.key")


@pytest.fixture
def link_to(paths):
    links, kit = [], SiteKit.load(paths.sites["bern"])

    def link(port):
        headers = handshake.request_headers("one")
        links.append(FleetLink("localhost", port, tls=kit.tls(), node_key=kit.node_key, headers=headers))
        links[-1].node_id = 1
        return links[-1]

    yield link
    for link in links:
        link.close()


@pytest.mark.parametrize("name", CALLS)
def test_no_call_of_a_site_reads_an_endless_reply(link_to, tls, name):
    most = OBJECT_BYTES if name.startswith("pull-object") else REPLY_BYTES
    with endless_server(ENDLESS["chunks"], tls) as (port, taken), pytest.raises(NotConnected) as caught:
        CALLS[name](link_to(port))
    about = f"the server's reply to /v1/fleet/{name} has more than {most} bytes, the most that is read"
    assert str(caught.value) == f"{about}; ask the centre what answers at its port"
    assert caught.value.lasting
    assert sum(taken) < most + ON_THE_WAY


@pytest.mark.parametrize("form", ENDLESS)
def test_an_endless_reply_of_any_form_is_not_connected(link_to, tls, form):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with endless_server(ENDLESS[form], tls) as (port, taken), pytest.raises(NotConnected):
        link_to(port).pull()
    assert sum(taken) < REPLY_BYTES + ON_THE_WAY
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def test_signing_off_and_the_question_of_the_doctor_read_no_endless_reply_either(paths, link_to, tls):
    kit = SiteKit.load(paths.sites["bern"])
    with endless_server(ENDLESS["no length"], tls) as (port, taken):
        link_to(port).deactivate()
        with pytest.raises(NotConnected, match="activate-node has more than"):
            ask_admission(replace(kit, port=port))
    assert sum(taken) < 2 * (REPLY_BYTES + ON_THE_WAY)


def test_a_packed_reply_is_not_unpacked(link_to, tls):
    packed = gzip.compress(bytes(1 << 28))
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n".encode()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (
        endless_server((head + packed, b"x"), tls) as (port, _),
        pytest.raises(NotConnected, match="is not a sahfl server"),
    ):
        link_to(port).pull()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_an_offer_without_its_tree_is_refused(link_to, tls):
    head = message_pb2.Message(metadata=message_pb2.Metadata(message_id="1", message_type="train"))
    content = fleet_pb2.PullMessagesResponse(messages_list=[head]).SerializeToString()
    start = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    with endless_server((start + content, b"x"), tls) as (port, _), pytest.raises(PayloadError) as caught:
        link_to(port).pull()
    assert str(caught.value) == "the server's offer cannot be read (IndexError)"


def test_a_reply_that_drips_is_given_up(link_to, tls, monkeypatch):
    monkeypatch.setattr(transport, "GRACE_S", 0.2)
    monkeypatch.setattr(transport, "SLOWEST", REPLY_BYTES)
    reply = (b"HTTP/1.1 200 OK\r\n\r\n", b"x")
    with endless_server(reply, tls, pause_s=0.05) as (port, _), pytest.raises(NotConnected) as caught:
        link_to(port).pull()
    assert "the server's reply to /v1/fleet/pull-messages does not end: " in str(caught.value)


def test_the_limits_have_room_for_all_that_a_server_of_ours_sends():
    tree = ObjectTree(object_id="0" * 64, children=[ObjectTree(object_id="0" * 64)] * MOST_OBJECTS)
    assert tree.ByteSize() < REPLY_BYTES - 100_000
    assert OBJECT_BYTES - 60_000 > CHUNK
