"""The doctor of a site at the real port of a server: who is let in, and that asking disturbs nobody."""

import json

import pytest
from harness.live_site import Client, Server, client, wait_until, write_site
from harness.tiny_study import TINY
from harness.trust_kits import make_consortium

from sahfl.config import load_site
from sahfl.doctor import examine_site, healthy
from sahfl.federation.flower import handshake
from sahfl.trust.provision import renew, revoke


@pytest.fixture
def consortium(tmp_path):
    return make_consortium(tmp_path / "keys", sites=["sah_a", "sah_b"])


@pytest.fixture
def site(tmp_path, consortium):
    return load_site(write_site(tmp_path / "site", TINY, "sah_a", consortium))


def found_by(site):
    return {finding.check: finding for finding in examine_site(site)}


def test_a_site_that_the_server_knows_is_let_in(site, consortium):
    with Server(consortium) as server:
        found = found_by(site)
        assert healthy(found.values()), found
        assert not server.connected("sah_a")
    assert found["admission"].verdict == "ok"


def test_C07_a_revoked_certificate_is_refused_at_the_door(site, consortium):
    revoke(consortium.folder, "sah_a")
    with Server(consortium):
        found = found_by(site)
    assert found["tls"].found == "the server ended the connection once it saw this site's certificate"
    assert found["admission"].verdict == "skip"


def test_C07_a_node_key_that_the_server_does_not_have_is_named(site, consortium):
    old = consortium.server / "sites.json"
    known = json.loads(old.read_text())
    del known["sites"]["sah_a"]
    old.write_text(json.dumps(known))
    with Server(consortium):
        found = found_by(site)["admission"]
    assert (found.verdict, found.found) == ("FAIL", "the server's list lacks this site's key")
    assert found.remedy == "have the centre copy its newest server/sites.json and server/revoked.crl to the server"


def test_A16_another_version_is_named_with_both(site, consortium, monkeypatch):
    with Server(consortium):
        monkeypatch.setattr("sahfl.federation.flower.probe.own_versions", lambda: handshake.own_versions() | OLD)
        found = found_by(site)["admission"]
    assert found.verdict == "FAIL"
    assert "the server has sahfl 0.1.0, this site has sahfl 0.0.1" in found.found
    assert found.remedy == "install the same"


OLD = {handshake.VERSION: "0.0.1"}


def test_a_renewed_kit_is_let_in(site, consortium):
    renew(consortium.folder, "sah_a")
    with Server(consortium):
        assert found_by(site)["admission"].verdict == "ok"


@pytest.mark.slow
def test_asking_does_not_disturb_the_process_that_is_connected(tmp_path, consortium):
    file = write_site(tmp_path / "site", TINY, "sah_a", consortium)
    with Server(consortium) as server, client(file) as running:
        assert isinstance(running, Client)
        running.wait_for("connected", timeout_s=120)
        instance = server.fleet.seats()[0].instance
        assert healthy(examine_site(load_site(file)))
        wait_until(lambda: server.connected("sah_a"), why=running)
        assert server.fleet.seats()[0].instance == instance
        assert running.lines("not_connected") == []
