"""Real TLS 1.3 handshakes between the contexts of real kits."""

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta

import pytest
from harness.trust_kits import copy_of, make_consortium

from sahfl.trust.kit import ServerKit, SiteKit
from sahfl.trust.provision import renew, revoke

NOW = datetime.now(UTC)


def shake(client, server, name="localhost"):
    """Connect, and bring a byte each way: (what the client met, what the server met), each None or the error's text."""
    ours, theirs = socket.socketpair()
    met = {}

    def serve():
        try:
            with theirs, server.wrap_socket(theirs, server_side=True) as stream:
                stream.sendall(stream.recv(1))
        except OSError as error:
            met["server"] = str(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ours, client.wrap_socket(ours, server_hostname=name) as stream:
            stream.sendall(b"x")  # with TLS 1.3 a client hears of its own refusal when it reads
            assert stream.recv(1) == b"x"
            assert stream.version() == "TLSv1.3"
    except OSError as error:
        met["client"] = str(error)
    thread.join(10)
    assert not thread.is_alive()
    return met.get("client"), met.get("server")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("consortium")
    return make_consortium(folder, sites=["a", "b"], now=NOW - timedelta(days=100))


@pytest.fixture
def paths(made, tmp_path):
    return copy_of(made, tmp_path / "c")


def server_of(paths):
    return ServerKit.load(paths.server).tls()


def client_of(paths, site="a"):
    return SiteKit.load(paths.sites[site]).tls()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_a_site_and_the_server_of_one_consortium_connect(paths, name):
    assert shake(client_of(paths), server_of(paths), name) == (None, None)


def test_a15_a_server_under_another_name_is_refused(paths):
    client, _ = shake(client_of(paths), server_of(paths), "elsewhere.example")
    assert "Hostname mismatch" in client


def test_a15_a_server_of_another_authority_is_refused(paths, tmp_path):
    other = make_consortium(tmp_path / "other", sites=["a"])
    client, _ = shake(client_of(paths), server_of(other))
    assert "CERTIFICATE_VERIFY_FAILED" in client


def test_a15_a_site_of_another_authority_is_refused(paths, tmp_path):
    other = make_consortium(tmp_path / "other", sites=["a"])
    client = client_of(other)
    client.load_verify_locations(paths.server / "ca.crt")
    _, server = shake(client, server_of(paths))
    assert "CERTIFICATE_VERIFY_FAILED" in server


def test_c07_a_client_without_a_certificate_is_refused(paths):
    client = ssl.create_default_context(cafile=paths.server / "ca.crt")
    _, server = shake(client, server_of(paths))
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in server


def test_a_kit_trusts_nobody_but_its_own_authority(paths):
    for context in (client_of(paths), server_of(paths)):
        assert context.cert_store_stats()["x509_ca"] == 1
        assert context.cert_store_stats()["x509"] == 1


def test_an_older_tls_is_refused_by_both_sides(paths):
    old = ssl.create_default_context(cafile=paths.server / "ca.crt")
    old.load_cert_chain(paths.sites["a"] / "client.crt", paths.sites["a"] / "client.key")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    _, server = shake(old, server_of(paths))
    assert "UNSUPPORTED_PROTOCOL" in server
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.load_cert_chain(paths.server / "server.crt", paths.server / "server.key")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    client, _ = shake(client_of(paths), old)
    assert "PROTOCOL_VERSION" in client.upper()


def test_the_server_s_certificate_is_not_a_site_s_nor_the_other_way_round(paths):
    client = client_of(paths)
    client.load_cert_chain(paths.server / "server.crt", paths.server / "server.key")
    _, server = shake(client, server_of(paths))
    assert "unsuitable certificate purpose" in server
    wrong = server_of(paths)
    wrong.load_cert_chain(paths.sites["b"] / "client.crt", paths.sites["b"] / "client.key")
    client, _ = shake(client_of(paths), wrong)
    assert "unsuitable certificate purpose" in client


OUT_OF_TIME = {"expired": (NOW - timedelta(days=30), "expired"), "early": (NOW + timedelta(days=2), "not yet valid")}


@pytest.mark.parametrize(("made_at", "reason"), OUT_OF_TIME.values(), ids=OUT_OF_TIME.keys())
def test_a15_a_certificate_out_of_its_time_is_refused(paths, made_at, reason):
    """The authority renewed one side on a machine with a wrong clock, or long ago; the other side's clock is right."""
    paths.authority.joinpath("issued.json").write_text(
        paths.authority.joinpath("issued.json").read_text().replace('"certificates": 397', '"certificates": 20')
    )
    right, kit = client_of(paths), server_of(paths)
    renew(paths.folder, "a", now=made_at)
    stale = SiteKit.load(paths.sites["a"], now=made_at + timedelta(days=1)).tls()
    _, server = shake(stale, kit)
    assert reason in server
    renew(paths.folder, "server", now=made_at)
    client, _ = shake(right, ServerKit.load(paths.server, now=made_at + timedelta(days=1)).tls())
    assert reason in client


def test_c07_a_revoked_site_is_refused_and_the_others_are_not(paths):
    client, other = client_of(paths), client_of(paths, "b")
    revoke(paths.folder, "a")
    _, server = shake(client, server_of(paths))
    assert "certificate revoked" in server
    assert shake(other, server_of(paths)) == (None, None)


def test_c07_a_server_that_runs_refuses_what_was_revoked_since(paths):
    kit = ServerKit.load(paths.server)
    context = kit.tls()
    client, other = client_of(paths), client_of(paths, "b")
    assert shake(client, context) == (None, None)
    revoke(paths.folder, "a")
    kit.read_revoked(context)
    assert "certificate revoked" in shake(client, context)[1]
    assert shake(other, context) == (None, None)


def test_a_session_cannot_be_resumed_past_a_revocation(paths):
    assert server_of(paths).num_tickets == 0


def test_the_old_kit_of_a_renewed_site_works_until_the_new_one_is_in_use(paths):
    old = client_of(paths)
    renew(paths.folder, "a")
    assert shake(old, server_of(paths)) == (None, None)
    assert shake(client_of(paths), server_of(paths)) == (None, None)


def test_a_site_that_was_revoked_and_renewed_connects_with_its_new_kit_only(paths):
    old = client_of(paths)
    revoke(paths.folder, "a")
    renew(paths.folder, "a")
    assert "certificate revoked" in shake(old, server_of(paths))[1]
    assert shake(client_of(paths), server_of(paths)) == (None, None)


def test_sites_keep_their_connection_when_the_server_is_renewed(paths):
    client = client_of(paths)
    renew(paths.folder, "server")
    assert shake(client, server_of(paths)) == (None, None)
