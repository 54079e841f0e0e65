"""The contract with Flower's wire protocol as a site speaks it, against the real SuperLink behind the real gate."""

import inspect
import logging
import socket
import ssl
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from flwr.app import Message
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from harness.live_site import Server, consortium_of, describe_request, train_request
from harness.tcp_proxy import Proxy
from harness.tiny_study import TINY
from harness.trust_kits import free_port

from sahfl.errors import NotConnected, PayloadError
from sahfl.federation import flower, protocol
from sahfl.federation.flower import handshake, reasons, supernode
from sahfl.federation.flower.parcels import prepare
from sahfl.federation.flower.supernode import FleetLink, RunOver, SessionLost
from sahfl.trust.kit import SiteKit
from sahfl.trust.provision import renew, revoke


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    return consortium_of(tmp_path_factory.mktemp("consortium"), ["bern", "graz"])


@pytest.fixture
def server(consortium):
    with Server(consortium) as server:
        yield server


def link_to(consortium, site="bern", *, host=None, port=None, instance="one", **headers):
    kit = SiteKit.load(consortium.sites[site])
    headers = handshake.request_headers(instance) | headers
    return FleetLink(host or kit.host, port or kit.port, tls=kit.tls(), node_key=kit.node_key, headers=headers)


@contextmanager
def active(*arguments, **options):
    link = link_to(*arguments, **options)
    try:
        link.activate()
        yield link
    finally:
        link.close()


def reason(consortium, **options):
    with pytest.raises(NotConnected) as refused, active(consortium, **options):
        pass
    assert len(str(refused.value).splitlines()) == 1
    return refused.value


def offered(server, link, content=None, kind=protocol.DESCRIBE):
    id_ = server.send("bern", content or describe_request(TINY), kind)
    offer = link.pull()
    assert offer is not None
    assert offer.id == id_
    return offer


# --- the private parts of flwr that this rests on ---


def test_flower_s_client_takes_interceptors_and_keeps_its_http_client_where_ours_takes_its_place():
    assert {"interceptors", "verify", "timeout"} <= inspect.signature(FleetHttpClient).parameters.keys()
    assert isinstance(FleetHttpClient("https://localhost:1")._client, httpx.Client)
    assert list(inspect.signature(NodeAuthHttpInterceptor).parameters) == ["private_key", "public_key"]


def test_a_link_follows_no_redirect_and_no_proxy_of_the_environment(consortium, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    link = link_to(consortium)
    assert (link._client._client.follow_redirects, link._client._client.trust_env) == (False, False)
    assert not link._client._client._mounts
    link.close()


# --- a conversation ---


def test_a_request_arrives_whole_and_its_reply_goes_back_whole(server, consortium):
    with active(consortium) as link:
        sent = train_request(TINY)
        offer = offered(server, link, sent, protocol.TRAIN)
        assert (offer.kind, offer.run_id, offer.node_id) == ("train", server.link.run_id, server.node_of("bern"))
        assert link.code_of(offer.run_id) == ""
        message = link.fetch(offer)
        assert message.metadata.message_id == offer.id
        for name in ("task", "header"):
            assert dict(message.content[name]) == dict(sent[name])
        (array,), (original,) = (content.array_records["state"].values() for content in (message.content, sent))
        assert array.data == original.data
        link.confirm(offer)
        upload = prepare(Message(message.content, reply_to=message), offer.node_id)
        link.push(upload)
        assert upload.n_bytes > protocol.n_bytes(sent)
        reply = server.reply_to(offer.id)
        assert reply.metadata.reply_to_message_id == offer.id
        assert protocol.n_bytes(reply.content) == protocol.n_bytes(sent)


def test_an_error_goes_back_as_its_reason_alone(server, consortium):
    with active(consortium) as link:
        offer = offered(server, link)
        upload = prepare(flower.error_reply(offer.head, "DataError"), offer.node_id)
        assert upload.n_bytes == 0
        link.push(upload)
        assert server.reply_to(offer.id).error.reason == "DataError"


def test_an_answer_that_is_pushed_again_and_again_counts_once(server, consortium):
    with active(consortium) as link:
        offer = offered(server, link)
        upload = prepare(Message(link.fetch(offer).content, reply_to=offer.head), offer.node_id)
        for _ in range(3):
            link.push(upload)
        assert server.reply_to(offer.id).has_content()
        link.push(upload)  # its first arrival was acknowledged to nobody
        assert server.grid.pull_messages([offer.id]) == []
        counts = server.link.counts()
        assert (counts["messages"], counts["replies"], counts["objects"]) == (0, 0, 0)


def test_a_request_that_was_not_confirmed_is_offered_again_and_a_confirmed_one_is_not(server, consortium):
    with active(consortium) as link:
        offer = offered(server, link)
        again = link.pull()
        assert again is not None
        assert again.id == offer.id
        assert link.fetch(again).has_content()
        link.confirm(again)
        assert not server.link.offer(offer.node_id)


def test_a_message_of_too_many_or_too_large_parts_is_not_taken(server, consortium, monkeypatch):
    with active(consortium) as link:
        offer = offered(server, link)
        monkeypatch.setattr(supernode, "MOST_OBJECTS", 2)
        with pytest.raises(PayloadError, match="parts, expected at most 2"):
            link.fetch(offer)
        monkeypatch.setattr(supernode, "MOST_OBJECTS", 100)
        monkeypatch.setattr(supernode, "MOST_BYTES", 10)
        with pytest.raises(PayloadError, match="bytes, expected at most 10"):
            link.fetch(offer)


def test_a_run_that_has_ended_wants_no_answer(server, consortium):
    with active(consortium) as link:
        offer = offered(server, link)
        upload = prepare(Message(link.fetch(offer).content, reply_to=offer.head), offer.node_id)
        server.link.end_run()
        with pytest.raises(RunOver):
            link.push(upload)
        with pytest.raises(RunOver):
            link.fetch(offer)


@pytest.mark.slow
def test_A03_a_server_that_lost_everything_knows_no_session_and_gives_a_new_one(consortium):
    with Server(consortium) as server:
        link = link_to(consortium)
        link.activate()
        offer = offered(server, link)
        upload = prepare(flower.error_reply(offer.head, "x"), offer.node_id)
        before = link.node_id
    with Server(consortium):
        for call in (link.pull, link.heartbeat, lambda: link.push(upload)):
            with pytest.raises(SessionLost):
                call()
        link.activate()
        assert link.node_id != before
        with pytest.raises(RunOver):  # nobody waits for what the server before had asked
            link.push(upload)
        link.heartbeat()
    link.close()


def test_a_second_process_of_a_site_is_refused_while_the_first_lives_and_takes_over_after_it(server, consortium):
    with active(consortium, instance="one") as first:
        refused = reason(consortium, instance="two")
        assert str(refused) == "another process is connected as this site; stop one of them"
        assert refused.lasting
        first.deactivate()
        with active(consortium, instance="two"), pytest.raises(NotConnected, match="another process is connected"):
            first.pull()


# --- what can be wrong, in one line each ---


@pytest.mark.parametrize(
    ("header", "name"), [(handshake.VERSION, "sahfl"), (handshake.FLWR, "flwr"), (handshake.PAYLOAD, "schema")]
)
def test_A16_other_versions_are_refused_at_the_handshake_and_both_are_named(server, consortium, header, name):
    own = handshake.own_versions()[header]
    refused = reason(consortium, **{header: "0.0.9"})
    assert str(refused) == f"versions differ: the server has {name} {own}, this site has {name} 0.0.9; install the same"
    assert refused.lasting


def test_A17_a_name_that_is_not_in_dns(consortium):
    refused = reason(consortium, host="server.invalid")
    assert str(refused).startswith("the server's name cannot be looked up: ")
    assert not refused.lasting


def test_A17_a_port_where_nobody_listens(consortium):
    refused = reason(consortium, port=free_port())
    assert str(refused) == "connection refused: no server listens there, or a firewall blocks it"
    assert not refused.lasting


def test_A06_a_port_that_swallows_everything(consortium, server, monkeypatch):
    monkeypatch.setattr(supernode, "CONNECT_S", 0.3)
    port = free_port()
    with Proxy(port, ("127.0.0.1", consortium.port)) as proxy:
        proxy.blackhole()
        refused = reason(consortium, port=port)
    assert str(refused) == "no answer to the connection: the network or a firewall drops it"


def test_A15_a_server_of_another_consortium(tmp_path, consortium):
    other = consortium_of(tmp_path, ["bern"], port=free_port())
    with Server(other):
        refused = reason(consortium, port=other.port)
    assert str(refused).startswith("the server's certificate is not trusted: ")
    assert refused.lasting


def test_A15_a_server_of_another_name(tmp_path):
    named = consortium_of(tmp_path, ["bern"], also=())
    with Server(named):
        refused = reason(named, host="127.0.0.1")
    assert "IP address mismatch" in str(refused)


@contextmanager
def bare_tls(certificate):
    """A TLS port that shows a certificate, whatever its dates, and says nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            try:
                while True:
                    connection, _ = listener.accept()
                    try:
                        context.wrap_socket(connection, server_side=True).close()
                    except OSError:
                        connection.close()
            except OSError:
                return

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(("shift", "text"), [(-500, "certificate has expired"), (+30, "certificate is not yet valid")])
def test_A15_a_server_whose_certificate_is_of_another_time(tmp_path, shift, text):
    now = datetime.now(UTC)
    made = min(now, now + timedelta(days=shift))
    consortium = consortium_of(tmp_path, ["bern"], now=made)
    renew(consortium.folder, "bern", now=now)
    renew(consortium.folder, "server", now=now + timedelta(days=shift))
    with bare_tls(consortium.server / "server.crt") as port:
        refused = reason(consortium, port=port)
    assert str(refused) == f"the server's certificate is not trusted: {text}"
    assert refused.lasting


def test_A15_tls_to_a_port_that_speaks_none(consortium):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        refused = reason(consortium, port=listener.getsockname()[1])
    assert str(refused) == "the server speaks no TLS at this port; is it the right port?"
    assert refused.lasting


def test_A15_C07_a_site_whose_certificate_was_revoked(tmp_path):
    consortium = consortium_of(tmp_path, ["bern", "graz"])
    revoke(consortium.folder, "bern")
    with Server(consortium):
        refused = reason(consortium)
        assert str(refused) == (
            "the server ended the connection without a word: perhaps it refuses this site's certificate, or the "
            "network is cut"
        )
        with active(consortium, "graz"):
            pass


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (401, {"error": "unknown key"}, "the server's list lacks this site's key"),
        (401, {"error": "revoked"}, "the server refuses this site: its key was revoked"),
        (401, {"error": "clock"}, "this machine's clock is not at the server's; set it right"),
        (
            401,
            {"error": "clock", "server": "2026-01-01T00:00:00+00:00", "client": "2026-01-01T00:01:30+00:00"},
            "this machine's clock is 90 s ahead of the server's; set it right",
        ),
        (
            401,
            {"error": "clock", "server": "2026-01-01T00:10:00+00:00", "client": "2026-01-01T00:00:00+00:00"},
            "this machine's clock is 600 s behind the server's; set it right",
        ),
        (503, {}, "the server has a problem of its own (HTTP 503)"),
        (302, {}, "the server refuses (HTTP 302)"),
        (
            426,
            {"error": "version", "server": "x"},
            "versions differ: the server has others, this site has others; install the same",
        ),
        (
            426,
            {"error": "version", "server": {"sahfl": "9\n\x1b[31m"}},
            "versions differ: the server has sahfl 9[31m, this site has others; install the same",
        ),
    ],
)
def test_a_server_s_word_is_a_line_of_plain_text(status, body, text):
    assert str(reasons.of_refusal(httpx.Response(status, json=body))) == text


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{" * 1000, b'"x"', b"[" * 10_000])
def test_a_refusal_without_words_is_one_too(content):
    assert str(reasons.of_refusal(httpx.Response(418, content=content))) == "the server refuses (HTTP 418)"


def test_what_is_no_sahfl_server_is_said():
    assert str(reasons.of_failure(ValueError("Invalid protobuf"))) == "what answers there is not a sahfl server"


def test_no_secret_shows_in_what_is_printed(consortium, server, caplog):
    caplog.set_level(logging.DEBUG)
    with active(consortium) as link:
        shown = repr(link) + repr(vars(link)) + caplog.text
    key = (consortium.sites["bern"] / "node.key").read_text().splitlines()[1]
    assert key not in shown
