"""The way to the server, each step both ways, over real sockets."""

import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from harness.fake_servers import ENDLESS, byte_server, endless_server, http_server, tls_of
from harness.trust_kits import free_port, make_consortium

from sahfl.doctor import connection
from sahfl.doctor.connection import STEPS, examine_connection
from sahfl.trust.kit import ServerKit, SiteKit
from sahfl.trust.provision import revoke

LONG_AGO = datetime.now(UTC) - timedelta(days=500)
LATER = datetime.now(UTC) + timedelta(days=5)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return make_consortium(tmp_path_factory.mktemp("consortium"), sites=["bern", "graz"])


@pytest.fixture(scope="module")
def server_tls(paths):
    return ServerKit.load(paths.server).tls()


@pytest.fixture(scope="module")
def site_tls(paths):
    return SiteKit.load(paths.sites["bern"]).tls()


def go(port, tls, *, host="localhost", now=None):
    """The findings by check."""
    found = examine_connection(host, port, tls, **({} if now is None else {"clock": lambda: now}))
    assert tuple(finding.check for finding in found) == STEPS
    return {finding.check: finding for finding in found}


def test_every_step_to_a_good_server_is_ok(server_tls, site_tls):
    with http_server(server_tls) as port:
        found = go(port, site_tls)
    assert {finding.verdict for finding in found.values()} == {"ok"}
    assert {finding.remedy for finding in found.values()} == {None}
    assert found["tls"].found == "TLSv1.3, both certificates accepted"
    assert "127.0.0.1" in found["dns"].found


def test_A17_an_unknown_name_is_found_and_nothing_after_it_is_tried(site_tls):
    found = go(1, site_tls, host="server.invalid")
    assert (found["dns"].verdict, found["dns"].found) == ("FAIL", "server.invalid is not known")
    assert found["dns"].remedy == "have server.invalid added to the DNS or to /etc/hosts"
    assert [found[step].found for step in STEPS[1:]] == ["not looked at: needs dns"] * 4


def test_A17_a_name_server_that_does_not_answer_is_told_from_an_unknown_name(site_tls, monkeypatch):
    def again(*_, **__):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", again)
    found = go(1, site_tls, host="server.example.org")
    assert found["dns"].found == "no DNS server answered for server.example.org"
    assert found["dns"].remedy == "check that this machine reaches its DNS server (/etc/resolv.conf)"


def test_an_address_needs_no_dns(server_tls, site_tls):
    with http_server(server_tls) as port:
        found = go(port, site_tls, host="127.0.0.1")
    assert found["dns"].found == "127.0.0.1 is an address, no name is looked up"
    assert found["tls"].verdict == "ok"


def test_A17_a_closed_port_is_found(site_tls):
    port = free_port()
    found = go(port, site_tls)
    assert found["dns"].verdict == "ok"
    assert (found["port"].verdict, found["port"].found) == ("FAIL", f"localhost port {port}: nothing listens there")
    assert found["port"].remedy == f"ask the centre whether sahfl-server runs and listens at localhost port {port}"
    assert {found[step].verdict for step in STEPS[2:]} == {"skip"}


CONNECT = {
    "silent firewall": (TimeoutError(), "no answer within 5 s", "have the firewall allow outbound TCP"),
    "no route": (OSError(113, "No route to host"), "No route to host", "check this machine's network cable"),
    "forbidden": (PermissionError(1, "Operation not permitted"), "Operation not permitted", "have the firewall allow"),
}


@pytest.mark.parametrize(("error", "said", "remedy"), CONNECT.values(), ids=CONNECT.keys())
def test_A17_what_keeps_a_connection_from_being_made_is_told_apart(site_tls, monkeypatch, error, said, remedy):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(connection.socket, "create_connection", refuse)
    found = go(1, site_tls)
    assert found["port"].verdict == "FAIL"
    assert said in found["port"].found
    assert found["port"].remedy.startswith(remedy)


def test_A15_a_server_of_another_authority_is_not_trusted(site_tls, tmp_path):
    other = make_consortium(tmp_path / "other", sites=["bern"])
    with http_server(tls_of(other.server / "server.crt", other.server / "server.key")) as port:
        found = go(port, site_tls)
    assert found["tls"].verdict == "FAIL"
    assert "not from this consortium's authority" in found["tls"].found
    assert "TLS inspection" in found["tls"].remedy
    assert found["health"].verdict == found["clock"].verdict == "skip"


def test_A15_a_certificate_for_another_host_is_named(tmp_path):
    paths = make_consortium(tmp_path, sites=["bern"], host="server.example.org", also=())
    with http_server(ServerKit.load(paths.server).tls()) as port:
        by_name = go(port, SiteKit.load(paths.sites["bern"]).tls())
        by_address = go(port, SiteKit.load(paths.sites["bern"]).tls(), host="127.0.0.1")
    assert by_name["tls"].found == "the server's certificate is not for localhost"
    assert by_address["tls"].found == "the server's certificate is not for 127.0.0.1"
    assert "host in consortium.yaml" in by_name["tls"].remedy


@pytest.mark.parametrize(("made", "said"), [(LONG_AGO, "has expired"), (LATER, "is not valid yet")])
def test_A15_a_server_certificate_out_of_its_time_says_what_this_clock_says(tmp_path, made, said):
    paths = make_consortium(tmp_path, sites=["bern"], now=made)
    site_tls = SiteKit.load(paths.sites["bern"], now=made).tls()
    with http_server(tls_of(paths.server / "server.crt", paths.server / "server.key")) as port:
        found = go(port, site_tls)
    assert found["tls"].found.startswith(f"the server's certificate {said}, by this machine's clock (20")
    assert found["tls"].remedy == "if that clock is right, have the centre renew it: sahfl renew"


def test_A15_an_expired_certificate_of_the_site_is_told_from_one_of_the_server(paths, tmp_path):
    old = make_consortium(tmp_path, sites=["bern"], now=LONG_AGO)
    context = tls_of(paths.server / "server.crt", paths.server / "server.key", authority=old.folder / "server/ca.crt")
    tls = SiteKit.load(old.sites["bern"], now=LONG_AGO).tls()
    tls.load_verify_locations(paths.server / "ca.crt")  # so that only the site's own certificate is refused
    with http_server(context) as port:
        found = go(port, tls)
    assert found["tls"].found == "this site's certificate has expired"
    assert found["tls"].remedy == "have the centre issue a new kit: sahfl renew"


def test_a_revoked_site_is_told_so(tmp_path):
    paths = make_consortium(tmp_path, sites=["bern", "graz"])
    revoke(tmp_path, "bern")
    with http_server(ServerKit.load(paths.server).tls()) as port:
        revoked = go(port, SiteKit.load(paths.sites["bern"]).tls())
        active = go(port, SiteKit.load(paths.sites["graz"]).tls())
    assert revoked["tls"].found == "this site's certificate was revoked"
    assert revoked["tls"].remedy == "ask the centre why; access needs a new kit"
    assert active["tls"].verdict == "ok"


def test_a_site_of_another_consortium_is_told_so(paths, server_tls, tmp_path):
    other = make_consortium(tmp_path, sites=["bern"])
    tls = SiteKit.load(other.sites["bern"]).tls()
    tls.load_verify_locations(paths.server / "ca.crt")
    with http_server(server_tls) as port:
        found = go(port, tls)
    assert found["tls"].found == "the server does not accept this site's authority"
    assert found["tls"].remedy == "unpack the kit of this consortium again"


def test_A15_plain_http_at_the_port_is_recognised(site_tls):
    with http_server() as port:
        found = go(port, site_tls)
    assert found["tls"].found == f"localhost port {port} answers plain HTTP, not TLS"
    assert "takes TLS away" in found["tls"].remedy


def test_something_else_at_the_port_is_recognised(site_tls):
    with byte_server(b"SSH-2.0-OpenSSH_9.2\r\n") as port:
        found = go(port, site_tls)
    assert found["tls"].found == f"localhost port {port} does not speak TLS"
    assert found["tls"].remedy == "check host and port in kit.json"


def test_a_connection_that_is_cut_is_no_crash(site_tls):
    with byte_server(b"") as port:
        found = go(port, site_tls)
    assert found["tls"].found == "the connection ended before TLS was agreed"
    assert found["tls"].remedy == "have the firewall let TLS through to the server unchanged"


def test_a_server_that_hangs_up_without_a_word_refuses_the_site(server_tls, site_tls):
    """As asyncio's servers do: they close the connection before they send what OpenSSL has to say."""
    with byte_server(b"", tls=server_tls) as port:
        found = go(port, site_tls)
    assert found["tls"].found == "the server ended the connection once it saw this site's certificate"
    assert found["tls"].remedy.startswith("ask the centre whether this site's certificate was revoked or replaced")


def test_tls_with_something_else_than_http_is_recognised(server_tls, site_tls):
    with byte_server(b"220 mail.example.org ESMTP\r\n", tls=server_tls) as port:
        found = go(port, site_tls)
    assert found["tls"].found == f"localhost port {port} speaks TLS but not HTTP"


def test_a_server_of_old_tls_is_told_so(paths, site_tls):
    context = tls_of(paths.server / "server.crt", paths.server / "server.key")
    context.maximum_version = context.maximum_version.TLSv1_2
    with http_server(context) as port:
        found = go(port, site_tls)
    assert found["tls"].found.startswith("no common TLS settings (")
    assert found["tls"].verdict == "FAIL"


def test_a_server_that_is_not_well_is_found(server_tls, site_tls):
    with http_server(server_tls, status=503) as port:
        found = go(port, site_tls)
    assert (found["health"].verdict, found["health"].found) == ("FAIL", "the server answers 503 at /health")
    assert found["health"].remedy == "ask the centre for: sahfl status server.yaml"


NOW = datetime.now(UTC).replace(microsecond=500_000)
OFFSETS = {  # seconds by which the server's clock differs from this machine's
    0: ("ok", "agrees with the server's"),
    -1: ("ok", "agrees with the server's"),
    -4: ("warn", "4 s ahead of the server's"),
    -5: ("FAIL", "5 s ahead of the server's; requests are refused from 5 s ahead and 305 s behind"),
    -3600: ("FAIL", "3600 s ahead of the server's; requests are refused from 5 s ahead and 305 s behind"),
    60: ("warn", "60 s behind the server's"),
    304: ("warn", "304 s behind the server's"),
    305: ("FAIL", "305 s behind the server's; requests are refused from 5 s ahead and 305 s behind"),
}


@pytest.mark.parametrize(("offset_s", "expected"), OFFSETS.items(), ids=map(str, OFFSETS))
def test_a_clock_that_differs_from_the_server_s_is_found(server_tls, site_tls, offset_s, expected):
    date = format_datetime(NOW.replace(microsecond=0) + timedelta(seconds=offset_s), usegmt=True)
    with http_server(server_tls, date=date) as port:
        found = go(port, site_tls, now=NOW)["clock"]
    assert (found.verdict, found.found) == expected
    assert (found.remedy is None) == (found.verdict == "ok")


@pytest.mark.parametrize("date", ["", "yesterday"])
def test_a_server_without_a_date_leaves_the_clock_open(server_tls, site_tls, date):
    with http_server(server_tls, date=date) as port:
        assert go(port, site_tls)["clock"].found == "the server sent no date"


def test_the_window_of_the_clock_is_the_one_of_flower():
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

    assert connection.AHEAD_S == SYSTEM_TIME_TOLERANCE
    assert connection.BEHIND_S == TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE


# --- answers without an end ---

DRIPS = {
    "a drip": (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
    "a head that drips": (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
    "only beginnings": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(reply, id=name, marks=[pytest.mark.slow] * (name == "one header"))
        for name, reply in ENDLESS.items()
    ],
)
def test_of_an_endless_answer_only_its_start_is_read(server_tls, site_tls, reply):
    with endless_server(reply, server_tls) as (port, taken):
        found = go(port, site_tls)
    assert found["tls"].verdict == ("ok" if reply not in (ENDLESS["headers"], ENDLESS["one header"]) else "FAIL")
    assert sum(taken) < 100 << 20


@pytest.mark.parametrize("reply", DRIPS.values(), ids=DRIPS.keys())
def test_an_answer_that_does_not_end_in_time_is_named(server_tls, site_tls, monkeypatch, reply):
    monkeypatch.setattr(connection, "ANSWER_S", 0.5)
    with endless_server(reply, server_tls, pause_s=0.01) as (port, _):
        found = go(port, site_tls)
    assert found["tls"].verdict == "FAIL"
    assert found["tls"].found == f"localhost port {port} sends an answer that does not end within 0 s"
    assert found["tls"].remedy == f"ask the centre what listens on port {port}"
    with endless_server(reply, pause_s=0.01) as (port, _):
        assert go(port, site_tls)["tls"].verdict == "FAIL"
