"""What passes the gate, over real TLS, and what does not."""

import hashlib
import json
import logging
import os
import re
import select
import socket
import ssl
import threading
import time
from base64 import b64encode
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto import fleet_pb2, message_pb2
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from harness.fleet_server import answer, replies, serving
from harness.trust_kits import copy_of, make_consortium

from sahfl.errors import NotConnected, PayloadError
from sahfl.federation.flower import handshake
from sahfl.federation.flower import link as link_module
from sahfl.federation.flower.batches import MOST_BYTES, MOST_OBJECTS, SMALL_BYTES
from sahfl.federation.flower.callers import MEGABYTE_SENT, REFUSED, SIGNED_ON, Caller
from sahfl.federation.flower.gate import OVERHEAD
from sahfl.federation.flower.parcels import prepare
from sahfl.federation.flower.supernode import FleetLink, RunOver
from sahfl.federation.flower.transport import BoundedTransport
from sahfl.federation.flower.uploads import BESIDES
from sahfl.log_lines import JsonLines, TextLines
from sahfl.trust.kit import SiteKit
from sahfl.trust.provision import renew, revoke

LARGE = bytes(range(256)) * (SMALL_BYTES // 256 + 1)
LARGE_ARRAY = Array("uint8", (len(LARGE),), "raw", LARGE)


def https(side, site="bern"):
    kit = SiteKit.load(side.paths.sites[site])
    return httpx.Client(base_url=f"https://localhost:{side.port}", verify=kit.tls(), trust_env=False)


def test_a_site_fetches_a_message_and_its_reply_arrives_whole(side):
    client = side.connect("bern")
    id_ = side.ask("bern", "hello")
    message = answer(client, client.pull(), "world")
    assert message.content["task"]["text"] == "hello"
    (reply,) = replies(side, id_)
    assert reply.metadata.reply_to_message_id == id_
    assert reply.content["answer"]["text"] == "world"
    assert reply.metadata.src_node_id == side.node("bern")


def test_an_answered_message_leaves_nothing_in_memory(side):
    client = side.connect("bern")
    for number in range(5):
        id_ = side.ask("bern", str(number))
        answer(client, client.pull())
        assert len(replies(side, id_)) == 1
    assert side.link.counts() == {"messages": 0, "replies": 0, "objects": 0, "sessions": 0}


def test_a_poll_is_held_until_there_is_something_to_deliver(side):
    client, got = side.connect("bern"), []
    thread = threading.Thread(target=lambda: got.append(client.pull()))
    thread.start()
    while not side.fleet.of_node(side.node("bern")).polls:
        time.sleep(0.01)
    side.ask("bern")
    thread.join(10)
    assert got[0].kind == "train"


def test_a_poll_ends_with_nothing_when_its_time_is_over(paths):
    with serving(paths, hold_s=0.1) as side:
        assert side.connect("bern").pull() is None


def test_A06_a_message_that_was_sent_but_not_confirmed_is_offered_again(side):
    client = side.connect("bern")
    id_ = side.ask("bern")
    first = client.pull()  # the answer to this could have been lost on the way
    second = client.pull()
    assert first.id == second.id == id_
    answer(client, second)
    assert len(replies(side, id_)) == 1


def test_A06_a_reply_may_be_sent_as_often_as_it_takes_and_counts_once(side):
    client = side.connect("bern")
    id_ = side.ask("bern")
    message = client.fetch(client.pull())
    upload = prepare(Message(RecordDict({"a": ConfigRecord({"b": 1})}), reply_to=message), client.node_id)
    client.push(upload)
    client.push(upload)
    assert len(replies(side, id_)) == 1
    client.push(upload)
    assert side.grid.pull_messages([id_]) == []
    assert side.link.counts()["replies"] == 0


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/get-fab",
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/docs",
        "/openapi.json",
        "/v1/fleet/pull-messages/../../control/list-runs",
    ],
)
def test_only_the_routes_of_a_site_are_reachable(side, path):
    with https(side) as client:
        assert client.post(path, content=b"").status_code == 404
        assert client.get(path).status_code == 404
        assert client.get("/health").status_code == 200


def test_C07_a_key_that_is_not_registered_is_refused(side, paths, tmp_path):
    other = make_consortium(tmp_path / "other", sites=("bern",))
    kit, foreign = SiteKit.load(paths.sites["bern"]), SiteKit.load(other.sites["bern"])
    with side_client(side, kit, foreign.node_key) as stranger, pytest.raises(NotConnected, match="lacks this site"):
        stranger.activate()


def side_client(side, kit, key):
    headers = handshake.request_headers("x")
    return closing(FleetLink("localhost", side.port, tls=kit.tls(), node_key=key, headers=headers))


def test_C07_a_revoked_site_is_out_at_once_and_its_work_fails_by_name(paths, tmp_path):
    own = copy_of(paths, tmp_path / "consortium")
    with serving(own) as side:
        client = side.connect("bern")
        id_ = side.ask("bern")
        revoke(own.folder, "bern")
        joined, out = side.fleet.register(side.kit.sites(), side.link.enroll, revoked=side.kit.revoked())
        assert (joined, out, side.fleet.revoked()) == ([], ["bern"], ["bern"])
        with pytest.raises(NotConnected, match="revoked"):
            client.pull()
        with pytest.raises(NotConnected, match="revoked"):
            client.activate()
        (reply,) = replies(side, id_)
        assert reply.error.reason == "its key was revoked"
        assert side.link.counts()["messages"] == 0


def test_C07_a_site_with_a_new_kit_after_its_revocation_gets_the_requests_to_its_earlier_node(paths, tmp_path):
    own = copy_of(paths, tmp_path / "consortium")
    with serving(own) as side:
        earlier = side.node("bern")
        for change in (revoke, renew):
            change(own.folder, "bern")
            side.fleet.register(side.kit.sites(), side.link.enroll, revoked=side.kit.revoked())
            side.kit.read_revoked(side.tls)
        client = side.connect("bern")
        content = RecordDict({"task": ConfigRecord({"text": "work"})})
        (id_,) = side.grid.push_messages([side.grid.create_message(content, "train", earlier, "")])
        assert earlier in side.grid.get_node_ids()
        answer(client, client.pull())
        (reply,) = replies(side, id_)
        assert reply.has_content()
        assert side.link.counts() == {"messages": 0, "replies": 0, "objects": 0, "sessions": 0}


def test_C07_a_second_process_of_a_site_is_refused_while_the_first_is_there(side):
    first = side.connect("bern", instance="first")
    second = side.client("bern", instance="second")
    with pytest.raises(NotConnected, match="another process is connected as this site"):
        second.activate()
    first.heartbeat()
    first.deactivate()
    second.activate()
    second.heartbeat()
    with pytest.raises(NotConnected, match="another process"):
        first.heartbeat()


def test_A04_a_new_process_takes_over_when_the_first_one_s_connection_broke(side):
    first = side.connect("bern", instance="first")
    id_ = side.ask("bern")
    first.fetch(offer := first.pull())
    first.confirm(offer)
    side.fleet.lose(side.fleet.of_node(side.node("bern")), "first")
    second = side.connect("bern", instance="second")
    (reply,) = replies(side, id_)
    assert reply.error.reason == "the site's process was started anew"
    again = side.ask("bern")
    answer(second, second.pull())
    assert replies(side, again)[0].has_content()


def test_A16_other_versions_are_refused_and_both_are_named_at_both_ends(side, caplog):
    client = side.client("bern", **{handshake.VERSION: "9.9.9", handshake.PAYLOAD: "77"})
    with pytest.raises(NotConnected, match=r"the server has .*sahfl 0\.1\.0.* this site has .*sahfl 9\.9\.9"):
        client.activate()
    assert not side.fleet.connected(side.fleet.of_node(side.node("bern")))
    (line,) = [line for line in caplog.messages if "event=refused" in line]
    assert re.search(r'reason=version server=".*sahfl 0\.1\.0.*" client=".*sahfl 9\.9\.9.*"', line)


FORGING = ["/x%20event=revoked%20site=bern", "/x%20'%5Cx", "/x%22%20status=200", "/%0A%1B%5B31m", "/x='"]


@pytest.mark.parametrize("path", FORGING)
def test_a_path_is_one_value_of_the_log_whatever_it_holds(side, caplog, path):
    with https(side) as raw:
        assert raw.get(path).status_code == 404
    (found,) = [record for record in caplog.records if "event=refused" in record.getMessage()]
    line = json.loads(JsonLines().format(found))
    assert (line["event"], line["site"], line["status"]) == ("refused", "bern", 404)
    assert line["path"] == unquote(path)
    assert " path=" + json.dumps(unquote(path)) + " status=404 " in TextLines().format(found)


def test_B06_a_body_above_the_study_s_payload_is_refused_before_it_is_read(side):
    side.gate.payload_bytes = 1000
    side.connect("bern")
    headers = signed_headers(side)
    with https(side) as raw:
        url = "/v1/fleet/push-object"
        refused = raw.post(url, content=b"x" * 70_000, headers=headers)
        assert (refused.status_code, refused.json()["error"]) == (413, "too large")
        claimed = raw.build_request("POST", url, content=b"x", headers=headers | {"content-length": str(10**12)})
        with socket.create_connection(("localhost", side.port)) as plain:
            kit = SiteKit.load(side.paths.sites["bern"])
            with kit.tls().wrap_socket(plain, server_hostname="localhost") as stream:
                lines = [f"POST {url} HTTP/1.1", "host: localhost", *(f"{k}: {v}" for k, v in claimed.headers.items())]
                stream.sendall("\r\n".join([*lines, "", ""]).encode())
                assert b"413" in stream.recv(200)  # not a byte of the body was sent


def signed_headers(side, site="bern", *, instance="one", ahead_s=0.0):
    key = SiteKit.load(side.paths.sites[site]).node_key
    stamp = (datetime.now(UTC) + timedelta(seconds=ahead_s)).isoformat()
    signature = b64encode(sign_message(key, stamp.encode())).decode()
    public = b64encode(public_key_to_bytes(key.public_key())).decode()
    signed = {FLEET_HTTP_PUBLIC_KEY_HEADER: public, TIMESTAMP_HEADER: stamp, FLEET_HTTP_SIGNATURE_HEADER: signature}
    return signed | handshake.request_headers(instance)


def rsa_key():
    return rsa.generate_private_key(65537, 2048)


@pytest.mark.parametrize("ahead_s", [60.0, -600.0])
def test_a_clock_that_is_wrong_is_called_wrong(side, ahead_s):
    with https(side) as client:
        refused = client.post("/v1/fleet/activate-node", headers=signed_headers(side, ahead_s=ahead_s))
    assert (refused.status_code, refused.json()["error"]) == (401, "clock")
    assert refused.json()["server"]


def test_a_request_that_nobody_signed_is_refused(side):
    with https(side) as client:
        assert client.post("/v1/fleet/pull-messages").json() == {"error": "signature"}
        mixed = signed_headers(side) | {TIMESTAMP_HEADER: datetime.now(UTC).isoformat()}
        assert client.post("/v1/fleet/pull-messages", headers=mixed).json() == {"error": "signature"}


@pytest.mark.parametrize("kind", [X25519PrivateKey, Ed25519PrivateKey, rsa_key], ids=["x25519", "ed25519", "rsa"])
def test_a_key_of_another_kind_is_refused_in_one_line_and_is_charged(side, caplog, monkeypatch, kind):
    charged = []
    monkeypatch.setattr(Caller, "spend", lambda self, cost: charged.append(cost) or 0.0)
    public = public_key_to_bytes((kind() if kind is rsa_key else kind.generate()).public_key())
    headers = signed_headers(side) | {FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public).decode()}
    with https(side) as client:
        assert client.post("/v1/fleet/pull-messages", headers=headers).json() == {"error": "signature"}
    assert REFUSED in charged
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_nobody_names_another_address_than_the_one_of_the_connection(side, caplog):
    with https(side) as raw:
        raw.get("/x", headers={"x-forwarded-for": "192.0.2.1", "x-forwarded-proto": "wss"})
    (line,) = [line for line in caplog.messages if "event=refused" in line]
    assert " peer=127.0.0.1 " in line


def test_what_a_site_fetches_is_charged_to_it(side, monkeypatch):
    charged = []
    monkeypatch.setattr(Caller, "spend", lambda self, cost: charged.append(cost) or 0.0)
    client = side.connect("bern")
    side.ask("bern", "x" * 2_000_000)
    client.fetch(client.pull())
    assert any(cost == pytest.approx(2.0 * MEGABYTE_SENT, rel=0.01) for cost in charged)


def test_signing_on_again_and_again_is_charged(side, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    charged = []
    monkeypatch.setattr(Caller, "spend", lambda self, cost: charged.append(cost) or 0.0)
    client = side.connect("bern")
    client.activate()
    end = time.monotonic() + 10  # a line comes after the answer
    while sum("event=connected site=bern" in line for line in caplog.messages) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert sum("event=connected site=bern" in line for line in caplog.messages) == 2
    assert charged.count(SIGNED_ON) == 2


def test_what_flower_itself_refuses_is_charged_and_not_logged(side, monkeypatch, caplog):
    async def refusing(scope, receive, send):
        await send({"type": "http.response.start", "status": 403, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    charged = []
    client = side.connect("bern")
    monkeypatch.setattr(side.gate, "_app", refusing)
    monkeypatch.setattr(Caller, "spend", lambda self, cost: charged.append(cost) or 0.0)
    with suppress(Exception):
        client.heartbeat()
    assert charged.count(REFUSED) == 1
    assert "event=refused" not in caplog.text


def test_B06_a_reply_of_too_many_objects_is_refused(side):
    side.gate.payload_bytes = 1000
    client = side.connect("bern")
    side.ask("bern")
    message = client.fetch(client.pull())
    content = RecordDict({f"r{number}": ConfigRecord({"n": number}) for number in range(100)})
    with pytest.raises(PayloadError, match="too many objects"):
        client.push(prepare(Message(content, reply_to=message), client.node_id))


def test_B07_a_request_that_makes_flower_fail_is_a_refusal_in_one_line(side, monkeypatch, caplog):
    async def failing(scope, receive, send):
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b'{"detail": "Internal server error."}'})

    client = side.connect("bern")
    monkeypatch.setattr(side.gate, "_app", failing)
    caplog.set_level(logging.WARNING)
    with pytest.raises(PayloadError, match="the server does not take it: not understood"):
        client.heartbeat()
    (line,) = [record.getMessage() for record in caplog.records if "event=refused" in record.getMessage()]
    assert 'status=400 reason="not understood"' in line


@pytest.mark.parametrize("source", ["graz", "server"])
def test_a_site_cannot_send_in_the_name_of_another_one_or_of_the_server(side, source):
    bern, graz = side.connect("bern"), side.connect("graz", instance="two")
    id_ = side.ask("graz")
    message = graz.fetch(graz.pull())
    forged = prepare(Message(RecordDict({"a": ConfigRecord({"b": 1})}), reply_to=message), bern.node_id)
    forged.head.metadata.src_node_id = side.node("graz") if source == "graz" else 1
    if source == "server":
        forged.head.metadata.reply_to_message_id = ""
    with pytest.raises(PayloadError, match="not a reply of this site"):
        bern.push(forged)
    assert side.grid.pull_messages([id_]) == []


def test_A15_each_failed_handshake_is_one_line_with_its_cause(side, tmp_path, caplog):
    other = make_consortium(tmp_path / "other", sites=("bern",))
    caplog.set_level(logging.WARNING)
    with socket.create_connection(("127.0.0.1", side.port)) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        plain.recv(100)
    for context in (SiteKit.load(other.sites["bern"]).tls(), without_certificate(side), old_tls(side)):
        knock(context, side.port)
    end = time.monotonic() + 10
    while caplog.text.count("event=tls_refused") < 4 and time.monotonic() < end:
        time.sleep(0.05)
    lines = [record.getMessage() for record in caplog.records if "tls_refused" in record.getMessage()]
    assert all("peer=127.0.0.1" in line for line in lines)
    for cause in ("plain HTTP", "does not trust this server's certificate", "shows no certificate", "before 1.3"):
        assert len([line for line in lines if cause in line]) == 1, lines
    assert not [record for record in caplog.records if record.exc_info]


def knock(context, port):
    """Try a handshake, and close the connection once the server has ended it: its reason is not lost in a reset."""
    with context.wrap_socket(socket.socket(), server_hostname="localhost") as stream:
        with suppress(OSError):
            stream.connect(("127.0.0.1", port))
            stream.recv(1)
        with suppress(OSError):
            while select.select([stream.fileno()], [], [], 5)[0] and os.read(stream.fileno(), 65536):
                pass


def without_certificate(side):
    context = ssl.create_default_context(cafile=str(side.paths.sites["bern"] / "ca.crt"))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def old_tls(side):
    context = ssl.create_default_context(cafile=str(side.paths.sites["bern"] / "ca.crt"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def announced(client, offer, *, text="done"):
    """A reply that is ready to be sent, and its request to announce it."""
    reply = Message(RecordDict({"answer": ConfigRecord({"text": text})}), reply_to=client.fetch(offer))
    upload = prepare(reply, client.node_id)
    return upload, fleet_pb2.PushMessagesRequest(
        node=client._node(), messages_list=[upload.head], message_object_trees=[upload.tree]
    )


def test_a_reply_has_one_tree_whose_root_is_the_reply(side):
    client = side.connect("bern")
    id_ = side.ask("bern")
    upload, request = announced(client, client.pull())
    other = ObjectTree(object_id="ab" * 32)
    for tree in (other, ObjectTree(), ObjectTree(object_id=upload.tree.object_id, children=[other])):
        bad = fleet_pb2.PushMessagesRequest(
            node=client._node(), messages_list=[upload.head], message_object_trees=[tree]
        )
        first = tree is not other and tree.object_id
        if first:
            client._client.PushMessages(request)
        with pytest.raises(httpx.HTTPStatusError) as error:
            client._client.PushMessages(bad)
        assert error.value.response.json()["error"] == ("answered already" if first else "not the tree of this reply")
    client.push(upload)
    assert len(replies(side, id_)) == 1
    assert side.link.counts() == {"messages": 0, "replies": 0, "objects": 0, "sessions": 0}


def test_a_request_takes_one_reply(side):
    client = side.connect("bern")
    id_ = side.ask("bern")
    offer = client.pull()
    (upload, _), (other, _) = announced(client, offer), announced(client, offer, text="other")
    client.push(upload)
    with pytest.raises(PayloadError, match="answered already"):
        client.push(other)
    (reply,) = replies(side, id_)
    assert reply.content["answer"]["text"] == "done"


def test_a_reply_is_refused_beyond_its_budget_of_bytes(side):
    client = side.connect("bern")
    side.ask("bern")
    message = client.fetch(client.pull())
    side.gate.payload_bytes = 100_000
    records = {str(n): ArrayRecord({"a": Array("uint8", (160_000,), "raw", os.urandom(160_000))}) for n in range(9)}
    with pytest.raises(PayloadError, match="does not take it: too large"):
        client.push(prepare(Message(RecordDict(records), reply_to=message), client.node_id))
    stored = sum(len(entry.content) for entry in side.link._state.object_store.store.values())
    assert stored <= side.gate.payload_bytes + BESIDES


def test_a_site_cannot_answer_for_another_one(side):
    bern, graz = side.connect("bern"), side.connect("graz")
    side.ask("bern")
    upload, _ = announced(bern, bern.pull())
    upload.head.metadata.src_node_id = graz.node_id
    request = fleet_pb2.PushMessagesRequest(
        node=graz._node(), messages_list=[upload.head], message_object_trees=[upload.tree]
    )
    with pytest.raises(httpx.HTTPStatusError) as error:
        graz._client.PushMessages(request)
    assert error.value.response.json()["error"] == "not a reply of this site"


ALONE_OR_NOT = {
    "alone": lambda client, push: client._client.PushObject(push).stored,
    "in a batch": lambda client, push: client._client.push_objects([push])[0].stored,
}


@pytest.mark.parametrize("way", ALONE_OR_NOT)
def test_an_object_belongs_to_an_upload(side, way):
    client = side.connect("bern")
    side.ask("bern")
    upload, request = announced(client, client.pull())
    session = client._client.PushMessages(request).session_id
    id_, content = next(iter(upload.objects.items()))
    push = message_pb2.PushObjectRequest(
        node=client._node(), run_id=upload.run_id, object_id=id_, object_content=content, session_id=""
    )
    with pytest.raises(httpx.HTTPStatusError) as error:
        ALONE_OR_NOT[way](client, push)
    assert error.value.response.json()["error"] == "not of an upload"
    push.session_id = session
    assert ALONE_OR_NOT[way](client, push)


# ------------------------------------------------------------------------------------------------- many objects at once


def sent(monkeypatch):
    """The routes of all requests of all clients, as they are sent."""
    routes, send = [], BoundedTransport.handle_request

    def noting(transport, request):
        routes.append(request.url.path.removeprefix("/v1/fleet/"))
        return send(transport, request)

    monkeypatch.setattr(BoundedTransport, "handle_request", noting)
    return routes


def test_a_message_and_its_reply_take_one_request_each_for_all_their_small_objects(side, monkeypatch):
    client = side.connect("bern")
    id_ = side.ask("bern", "hello")
    routes = sent(monkeypatch)
    assert answer(client, client.pull(), "world").content["task"]["text"] == "hello"
    wanted = ["pull-messages", "pull-objects", "confirm-message-received", "push-messages", "push-objects"]
    assert routes == wanted
    assert replies(side, id_)[0].content["answer"]["text"] == "world"


def test_an_object_that_is_not_small_travels_alone_beside_the_small_ones(side, monkeypatch):
    side.gate.payload_bytes = len(LARGE)
    client = side.connect("bern")
    content = RecordDict({"task": ConfigRecord({"text": "x"}), "state": ArrayRecord({"flat": LARGE_ARRAY})})
    (id_,) = side.grid.push_messages([side.grid.create_message(content, "train", side.node("bern"), "")])
    routes = sent(monkeypatch)
    offer = client.pull()
    message = client.fetch(offer)
    assert message.content["state"]["flat"].data == LARGE
    other = ArrayRecord({"flat": Array("uint8", LARGE_ARRAY.shape, "raw", LARGE[::-1])})
    client.push(prepare(Message(RecordDict({"state": other}), reply_to=message), client.node_id))
    assert sorted(routes) == sorted(
        ["pull-messages", "pull-objects", "pull-object", "push-messages", "push-objects", "push-object"]
    )
    assert replies(side, id_)[0].content["state"]["flat"].data == LARGE[::-1]


def pull_request(client, offer, **other):
    values = {"node": client._node(), "run_id": offer.run_id, "object_id": offer.tree.object_id}
    return message_pb2.PullObjectRequest(**values | other)


def refusal(client, requests):
    with pytest.raises(httpx.HTTPStatusError) as error:
        client._client.pull_objects(requests)
    return error.value.response.status_code, error.value.response.json()["error"]


def test_what_is_not_a_batch_of_this_site_s_requests_is_refused(side, caplog):
    client, graz = side.connect("bern"), side.connect("graz")
    side.ask("bern")
    offer = client.pull()
    one = pull_request(client, offer)
    assert refusal(client, [one, pull_request(graz, offer)]) == (403, "not of this site")
    assert refusal(client, [one] * (MOST_OBJECTS + 1)) == (400, "not objects")
    assert refusal(client, [pull_request(client, offer, run_id=7)]) == (400, "not understood")
    assert not client._client.pull_objects([pull_request(client, offer, object_id="ab" * 32)])[0].object_found
    with https(side) as raw:
        for body in (b"\xff" * 30, b"\x05\x0a", b"\x80" * 12):
            refused = raw.post("/v1/fleet/pull-objects", content=body, headers=signed_headers(side))
            assert (refused.status_code, refused.json()["error"]) == (400, "not objects")
        assert raw.post("/v1/fleet/pull-objects", content=b"", headers=signed_headers(side)).content == b""
    assert client._client.pull_objects([one])[0].object_available
    assert len([line for line in caplog.messages if "event=refused" in line]) == 3  # one line for each reason


def test_objects_of_a_run_that_has_ended_are_over_without_a_line_in_the_log(side, caplog):
    client = side.connect("bern")
    side.ask("bern")
    offer = client.pull()
    upload, request = announced(client, offer)
    session = client._client.PushMessages(request).session_id
    side.link.end_run()
    with pytest.raises(RunOver):
        client.fetch(offer)
    with pytest.raises(RunOver):
        client._push_group(upload, session, list(upload.objects))
    assert not [line for line in caplog.messages if "event=refused" in line]


def test_a_large_object_in_a_batch_is_not_even_copied(side, monkeypatch):
    client = side.connect("bern")
    content = RecordDict({"state": ArrayRecord({"flat": LARGE_ARRAY})})
    side.grid.push_messages([side.grid.create_message(content, "train", side.node("bern"), "")])
    offer = client.pull()
    copied, pull = [], link_module.fleet_handlers.pull_object

    def noting(request, state):
        copied.append(len(state.object_store.get(request.object_id)))
        return pull(request, state)

    monkeypatch.setattr(link_module.fleet_handlers, "pull_object", noting)
    ids = {node.object_id for node in iterate_object_tree(offer.tree)}
    found = client._client.pull_objects([pull_request(client, offer, object_id=id_) for id_ in ids])
    assert sorted(one.object_available for one in found) == [False, *[True] * (len(ids) - 1)]
    assert all(one.object_found for one in found)
    assert max(copied) <= SMALL_BYTES


def test_replies_that_nobody_waits_for_leave_no_session(side, monkeypatch):
    monkeypatch.setattr(link_module, "UNUSED_S", -1.0)
    client = side.connect("bern")
    id_ = side.ask("bern")
    upload, request = announced(client, client.pull())
    upload.head.metadata.reply_to_message_id = "ab" * 32
    for _ in range(5):
        client._client.PushMessages(request)
    assert side.link.counts()["sessions"] <= 1
    upload.head.metadata.reply_to_message_id = id_
    for _ in range(5):  # attempts for one reply, of which the last one counts
        client._client.PushMessages(request)
    client.push(upload)
    assert replies(side, id_)[0].content["answer"]["text"] == "done"
    assert side.link.counts()["sessions"] <= 1


def test_a_tree_that_names_an_object_again_and_again_is_read_once_for_each_object(side):
    store, run = side.link._state.object_store, side.link.run_id
    contents, below = {}, None
    for level in range(40):
        body = str(level).encode()
        id_ = hashlib.sha256(body).hexdigest()
        bare = [ObjectTree(object_id=below.object_id)] * 2 if below else []
        tree = ObjectTree(object_id=id_, children=[below, *bare] if below else [])
        contents[id_], below = body, tree
    store.verify = False
    store.preregister(run, below)
    for id_, body in contents.items():
        store.put(id_, body)
    assert side.link._contents(below.object_id) == contents


def test_the_objects_of_a_batch_count_in_the_budget_of_their_reply(side):
    client = side.connect("bern")
    side.ask("bern")
    upload, request = announced(client, client.pull())
    session = client._client.PushMessages(request).session_id
    side.link._uploads._by_request[upload.head.metadata.reply_to_message_id].left = 10
    with pytest.raises(PayloadError, match="too large"):
        client._push_group(upload, session, list(upload.objects))


def test_a_batch_brings_at_most_a_megabyte_and_no_more_is_read(side):
    side.connect("bern")
    with https(side) as raw:
        body = b"x" * (MOST_BYTES + OVERHEAD + 1)
        refused = raw.post("/v1/fleet/push-objects", content=body, headers=signed_headers(side))
    assert (refused.status_code, refused.json()["error"]) == (413, "too large")
