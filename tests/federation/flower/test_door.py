"""What one caller may cost before its requests reach the gate, over real TLS."""

import gc
import socket
import ssl
import time
from asyncio.sslproto import SSLProtocol
from contextlib import ExitStack, suppress

import httpx
import pytest
from harness.fleet_server import answer, replies, serving

from sahfl.federation.flower import callers, door, doorway
from sahfl.federation.flower.callers import Addresses, Allowance, Caller, Once
from sahfl.federation.flower.doorway import network_of, open_port
from sahfl.federation.flower.handshake import request_headers
from sahfl.federation.flower.supernode import FleetLink
from sahfl.trust.kit import SiteKit

LINE = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\n"


@pytest.fixture
def opened(side):
    """Opens TLS connections with a site's certificate, on which anything can be sent."""
    with ExitStack() as stack:

        def open_(site="graz", *, source="127.0.0.1"):
            plain = socket.create_connection(("127.0.0.1", side.port), timeout=10, source_address=(source, 0))
            stack.callback(plain.close)
            tls = SiteKit.load(side.paths.sites[site]).tls()
            return stack.enter_context(tls.wrap_socket(plain, server_hostname="localhost"))

        yield open_


def answered(connection):
    """The bytes that the server sent before it closed the connection."""
    got = b""
    with suppress(OSError):
        while part := connection.recv(4096):
            got += part
    return got


def flooded(connection, piece, *, most):
    """Send a piece again and again, and return the number of bytes sent before the server ended the connection."""
    sent = 0
    with suppress(OSError):
        while sent < most:
            connection.sendall(piece)
            sent += len(piece)
    return sent


@pytest.mark.parametrize(
    ("begin", "piece", "status"),
    [
        (LINE, b"x-a: b\r\n" * 100, b"431"),
        (LINE + b"x-a: ", b"a" * 1000, b"431"),
        (LINE, b"a" * 1000, b"431"),
        (b"POST /", b"a" * 1000, b"414"),
        (b"", b"\r\n" * 500, b""),
    ],
    ids=["many-headers", "one-value", "one-name", "address", "nothing"],
)
def test_a_head_without_an_end_is_refused_after_16_KiB(side, opened, monkeypatch, begin, piece, status):
    fed = []
    whole = door.HttpToolsProtocol.data_received
    monkeypatch.setattr(
        door.HttpToolsProtocol, "data_received", lambda self, data: (fed.append(len(data)), whole(self, data))[1]
    )
    connection = opened()
    connection.sendall(begin)
    sent = flooded(connection, piece, most=100_000_000)
    assert sent < 100_000_000
    assert sum(fed) <= door.MOST_HEAD
    assert status in answered(connection)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /" + b"a" * 2000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", b" 414 "),
        (LINE + b"transfer-encoding: chunked\r\n\r\n", b" 411 "),
        (LINE + b"content-length: 999999999999\r\n\r\n", b" 413 "),
        (LINE + b"content-length: " + b"9" * 4000 + b"\r\n\r\n", b" 4"),
        (LINE + b"\r\n" + LINE + b"\r\n", b" 400 "),
        (b"GET / HTTP/1.1 \0\r\n\r\n", b" 400 "),
    ],
    ids=["address", "chunked", "large", "huge-number", "pipelined", "no-http"],
)
def test_a_request_that_no_site_sends_is_refused_with_its_status(side, opened, request_, status):
    connection = opened()
    connection.sendall(request_)
    assert status in answered(connection)


@pytest.mark.parametrize(
    "begin", [b"", LINE, LINE + b"content-length: 1000\r\n\r\nhalf"], ids=["nothing", "half-head", "half-body"]
)
def test_each_part_of_a_request_has_a_deadline(side, opened, monkeypatch, begin):
    monkeypatch.setattr(door, "HEAD_S", 0.3)
    monkeypatch.setattr(door, "BODY_S", 0.3)
    connection = opened()
    connection.sendall(begin)
    got = answered(connection)
    assert b" 408 " in got or b" 401 " in got  # the gate may have refused an unsigned request before


def test_bytes_that_trickle_do_not_move_the_deadline(side, opened, monkeypatch):
    monkeypatch.setattr(door, "HEAD_S", 0.5)
    connection = opened()
    connection.sendall(LINE)
    connection.settimeout(0.05)
    got, end = b"", time.monotonic() + 30
    while b"408" not in got and time.monotonic() < end:
        with suppress(ssl.SSLWantReadError, TimeoutError):
            connection.sendall(b"x")
            got += connection.recv(1000)
    assert b" 408 " in got


def test_a_slow_poll_has_no_deadline_of_the_door(paths, monkeypatch):
    monkeypatch.setattr(door, "HEAD_S", 0.3)
    monkeypatch.setattr(door, "BODY_S", 0.3)
    with serving(paths, hold_s=1.0) as side:
        client = side.connect("bern")
        assert client.pull() is None
        side.ask("bern")
        assert client.pull() is not None


def test_a_certificate_holds_few_connections_and_its_most_silent_one_makes_room(side, opened):
    honest = side.connect("bern")
    held = [opened() for _ in range(callers.MOST_CONNECTIONS + 3)]
    for connection in held[:3]:
        assert answered(connection) == b""
    held[-1].sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    assert b" 200 " in held[-1].recv(1000)
    side.ask("bern")
    assert honest.pull() is not None


def test_a_key_beside_another_site_s_certificate_is_refused(side, caplog):
    bern, graz = (SiteKit.load(side.paths.sites[site]) for site in ("bern", "graz"))
    link = FleetLink("localhost", side.port, tls=graz.tls(), node_key=bern.node_key, headers=request_headers("one"))
    side.clients.append(link)
    with pytest.raises(Exception, match="beside another site's certificate"):
        link.activate()
    assert "event=refused site=graz" in caplog.text


def test_refused_requests_are_logged_once_and_slow_their_caller_only(side, monkeypatch, caplog):
    honest = side.connect("bern")
    monkeypatch.setattr(callers, "BURST", 60.0)
    kit = SiteKit.load(side.paths.sites["graz"])
    with httpx.Client(base_url=f"https://localhost:{side.port}", verify=kit.tls(), trust_env=False, timeout=20) as http:
        codes = [http.post(f"/v1/fleet/{number}").status_code for number in range(8)]
    assert codes == [404] * 8
    assert caplog.text.count("event=refused site=graz") == 1
    id_ = side.ask("bern")
    answer(honest, honest.pull())
    assert len(replies(side, id_)) == 1


def test_what_one_certificate_is_refused_for_hides_no_line_about_another(side, monkeypatch, caplog):
    monkeypatch.setattr(callers, "MOST_MATTERS", 1)
    for site in ("graz", "bern"):
        kit = SiteKit.load(side.paths.sites[site])
        with httpx.Client(base_url=f"https://localhost:{side.port}", verify=kit.tls(), trust_env=False) as http:
            http.post("/v1/fleet/x")
            http.post("/v1/fleet/pull-messages")
    assert [line.split()[1] for line in caplog.messages if "event=refused" in line] == ["site=graz", "site=bern"]


def test_handshakes_that_are_not_finished_make_room_for_others(side, opened, monkeypatch):
    monkeypatch.setattr(doorway, "MOST_PENDING", 4)
    with ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", side.port), timeout=10)) for _ in range(4)]
        while len(side.doorway.pending) < 4:
            time.sleep(0.01)
        assert b" 200 " in health(opened("bern", source="127.0.0.2"))
        assert idle[0].recv(10) == b""
        idle[3].setblocking(False)
        with pytest.raises(BlockingIOError):
            idle[3].recv(10)


def test_a_handshake_that_is_late_is_ended_when_another_connection_comes(side, opened, monkeypatch):
    with socket.create_connection(("127.0.0.1", side.port), timeout=10) as idle:
        while not side.doorway.pending:
            time.sleep(0.01)
        monkeypatch.setattr(doorway, "HANDSHAKE_S", 0.0)
        assert b" 200 " in health(opened("bern"))
        assert idle.recv(10) == b""


def test_an_address_that_opens_connections_too_fast_is_cut_off_and_others_are_not(side, opened, monkeypatch, caplog):
    monkeypatch.setattr(callers, "NEW_BURST", 5.0)
    monkeypatch.setattr(callers, "NEW_RATE", 0.1)
    for _ in range(5):
        opened(source="127.0.0.3")
    for _ in range(3):
        with pytest.raises((ConnectionError, ssl.SSLEOFError)):
            opened(source="127.0.0.3")
    assert b" 200 " in health(opened("bern"))
    assert caplog.text.count("opens connections too fast") == 1


def test_connections_that_are_refused_do_not_hold_up_the_others(monkeypatch):
    monkeypatch.setattr(callers, "NEW_BURST", 0.0)
    monkeypatch.setattr(doorway, "MOST_AT_ONCE", 3)
    with ExitStack() as stack:
        port = stack.enter_context(open_port("127.0.0.1", 0))
        port.setblocking(False)
        peers = [stack.enter_context(socket.create_connection(port.getsockname(), timeout=0.2)) for _ in range(5)]
        for refused in (3, 5):
            with pytest.raises(BlockingIOError):
                port.accept()
            assert [closed(peer) for peer in peers] == [True] * refused + [False] * (5 - refused)


def closed(connection):
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_a_network_of_ipv6_shares_the_limits_of_an_address():
    networks = {
        "192.0.2.1": "192.0.2.1",
        "2001:db8::1": "2001:db8::/64",
        "2001:db8::ffff:2": "2001:db8::/64",
        "::ffff:192.0.2.1": "192.0.2.1",
        "fe80::1%eth0": "fe80::/64",
    }
    assert {address: network_of(address) for address in networks} == networks


def test_a_caller_in_debt_is_not_read_from_again_because_its_request_wants_more(monkeypatch):
    class Transport:
        paused = 0

        def is_closing(self):
            return False

        def pause_reading(self):
            self.paused += 1

    class Loop:
        def call_later(self, *_):
            return object()

    connection = object.__new__(door.Door)
    connection._caller, connection._pause = Caller("graz"), None
    connection.transport, connection.loop = Transport(), Loop()
    for _ in range(3):
        connection._charge(2 * callers.BURST)
    assert connection.transport.paused == 3


def test_the_pending_list_is_empty_once_connections_are_served_or_closed(side, opened):
    with opened(), opened("bern"):
        pass
    end = time.monotonic() + 10
    while side.doorway.pending and time.monotonic() < end:
        time.sleep(0.01)
    assert not side.doorway.pending


def test_records_of_one_byte_are_charged_one_by_one(side, opened, monkeypatch):
    charged = []
    monkeypatch.setattr(Caller, "spend", lambda self, cost: charged.append(cost) or 0.0)
    monkeypatch.setattr(door, "RECORD", 1000.0)  # more than all else together
    connection = opened()
    connection.sendall(LINE)
    for _ in range(500):
        connection.sendall(b"x")
    connection.sendall(b": y\r\n\r\n")
    assert answered(connection)
    assert sum(charged) // 1000 == 502


def test_a_connection_without_a_handshake_takes_little_memory(side):
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", side.port), timeout=10))
        end, buffers = time.monotonic() + 30, []
        while len(buffers) < 20 and time.monotonic() < end:
            buffers = [len(found._ssl_buffer) for found in gc.get_objects() if type(found) is SSLProtocol]
    assert len(buffers) >= 20
    assert set(buffers) == {doorway.READ_BUFFER}


def test_an_allowance_fills_with_time_and_never_above_its_burst():
    now = [0.0]
    allowance = Allowance(10.0, 20.0, lambda: now[0])
    assert allowance.spend(20.0) == 0.0
    assert allowance.spend(5.0) == 0.5
    now[0] = 100.0
    assert allowance.spend(20.0) == 0.0
    assert allowance.spend(1.0) == 0.1


def test_addresses_are_forgotten_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(callers, "MOST_REMEMBERED", 3)
    monkeypatch.setattr(callers, "NEW_BURST", 1.0)
    addresses = Addresses(clock=lambda: 0.0)
    assert [addresses.admit(peer) for peer in ("a", "a", "b", "c", "d", "a")] == [True, False, True, True, True, True]


def test_the_same_matter_is_logged_again_after_a_while():
    now = [0.0]
    due = Once(most=2, clock=lambda: now[0])
    assert [due("graz", "404"), due("graz", "404"), due("bern", "404")] == [True, False, True]
    now[0] += callers.REPEAT_S + 1
    assert [due("graz", "404"), due("bern", "404"), due("bern", "x")] == [True, True, False]


def test_the_connection_that_was_silent_for_longest_is_closed():
    class Open:
        def __init__(self, received_at):
            self.received_at, self.ended = received_at, False

        def end(self):
            self.ended = True

    caller = Caller("graz")
    open_ = [Open(at) for at in range(callers.MOST_CONNECTIONS)]
    open_[0].received_at = 100.0
    for connection in [*open_, Open(50.0)]:
        caller.enter(connection)
    assert [connection.ended for connection in open_] == [False, True] + [False] * (callers.MOST_CONNECTIONS - 2)


def health(connection):
    connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    return answered(connection)
