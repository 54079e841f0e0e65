"""The whole doctor of a server, and each of its own checks both ways."""

import socket
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from harness.fake_servers import byte_server, http_server, tls_of
from harness.tiny_study import TINY, changed
from harness.trust_kits import free_port, make_consortium

from sahfl.config import load_server
from sahfl.doctor import examine_server, healthy
from sahfl.doctor.server import examine_names, names_of
from sahfl.trust.kit import ServerKit
from sahfl.trust.provision import revoke

ALL = "user versions environment kit certificates names port queue ntp folder disk memory sites"
SITES = ["tbi_a", "tbi_b", "sah_a", "sah_b", "sah_c"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return make_consortium(tmp_path_factory.mktemp("consortium"), sites=SITES)


@pytest.fixture
def server(tmp_path, paths):
    """A server file with changes, as the server's settings."""

    def make(**changes):
        settings = {"kit": str(paths.server), "folder": "state", "host": "127.0.0.1", "port": free_port()}
        (tmp_path / "server.yaml").write_text(yaml.safe_dump(settings | changes))
        return load_server(tmp_path / "server.yaml")

    return make


def go(config, **more):
    found = examine_server(config, **more)
    assert " ".join(finding.check for finding in found) == ALL
    for finding in found:
        assert (finding.remedy is None) == (finding.verdict in ("ok", "skip"))
        assert "\n" not in finding.found + (finding.remedy or "")
    return {finding.check: finding for finding in found}


def test_a_healthy_server_is_healthy(server):
    config = server()
    found = go(config)
    assert healthy(found.values()), found
    assert found["kit"].found == "test, 5 active sites: sah_a, sah_b, sah_c, tbi_a, tbi_b"
    assert found["names"].found == "localhost leads to this machine"
    assert found["port"].found == f"127.0.0.1 port {config.port} is free"
    assert found["queue"].found == "0 studies wait"
    assert not config.folder.exists()


# --- kit, certificates, names ---------------------------------------------------------------------------------------


def test_a_server_without_its_kit_is_told(server, tmp_path):
    found = go(server(kit=str(tmp_path / "absent")))
    assert found["kit"].verdict == "FAIL"
    assert {found[check].found for check in ("certificates", "names", "port", "queue")} == {"not looked at: needs kit"}


def test_A15_certificates_that_end_are_named_the_first_with_its_remedy(server, paths):
    kit = ServerKit.load(paths.server)
    found = go(server(), clock=lambda: kit.certificate_expires - timedelta(days=10))["certificates"]
    assert found.verdict == "warn"
    assert found.found.count(" expires on ") == 6
    assert found.remedy == "run `sahfl renew server`"


def test_A15_an_expired_certificate_of_one_site_is_a_failure(server, tmp_path):
    long_ago = datetime.now(UTC) - timedelta(days=500)
    old = make_consortium(tmp_path / "old", sites=["bern"], now=long_ago)
    newer = tmp_path / "old"
    from sahfl.trust.provision import renew

    renew(newer, "server")
    found = go(server(kit=str(old.server)))["certificates"]
    assert found.verdict == "FAIL"
    assert "bern: the site's certificate expired on" in found.found
    assert found.remedy == "run `sahfl renew bern` and hand over the new kit"


def test_the_names_are_those_of_the_certificate(paths, tmp_path):
    assert names_of(ServerKit.load(paths.server)) == ("localhost", "127.0.0.1")
    other = make_consortium(tmp_path, sites=["bern"], host="server.invalid", also=())
    assert names_of(ServerKit.load(other.server)) == ("server.invalid",)


def test_a_certificate_whose_name_leads_elsewhere_is_a_warning():
    found = examine_names(("server.invalid", "192.0.2.1"))
    assert found.verdict == "warn"
    assert found.found.startswith("server.invalid is not known, 192.0.2.1 is 192.0.2.1; none of this is")
    assert examine_names(("server.invalid", "127.0.0.1")).verdict == "ok"


# --- port -----------------------------------------------------------------------------------------------------------


def test_A17_a_port_that_another_program_has_is_found(server):
    with byte_server(b"SSH-2.0-OpenSSH_9.2\r\n") as port:
        found = go(server(port=port))["port"]
    assert (found.verdict, found.found) == ("FAIL", f"127.0.0.1 port {port} is taken by another program")
    assert found.remedy.startswith("end the other program (ss -ltnp names it)")


def test_A17_a_port_that_another_consortium_s_server_has_is_found(server, tmp_path):
    other = make_consortium(tmp_path / "other", sites=["bern"])
    with http_server(tls_of(other.server / "server.crt", other.server / "server.key")) as port:
        assert "is taken by another program" in go(server(port=port))["port"].found


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_A17_the_server_itself_at_its_port_is_well(server, paths, host):
    with http_server(ServerKit.load(paths.server).tls()) as port:
        found = go(server(host=host, port=port))["port"]
    assert (found.verdict, found.found) == ("ok", f"{host} port {port} is taken by this server")


def test_an_address_of_another_machine_is_found(server):
    found = go(server(host="192.0.2.1"))["port"]
    assert found.verdict == "FAIL"
    assert found.remedy == "set host in server.yaml to an address of this machine, or to 0.0.0.0 for all"


def test_a_port_that_the_user_may_not_take_is_found(server, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    found = go(server(port=443))["port"]
    assert (found.verdict, found.found) == ("FAIL", "127.0.0.1 port 443 may not be taken by this user")
    assert found.remedy == "use a port from 1024 on, or give the unit CAP_NET_BIND_SERVICE"


# --- queue ----------------------------------------------------------------------------------------------------------


DEPLOYED = changed(TINY, data={"source": "sites"}, rounds__unmasked=True)


def submit(config, name, study):
    (config.folder / "queue").mkdir(parents=True, exist_ok=True)
    (config.folder / "queue" / name).write_text(yaml.safe_dump(study))


def test_studies_that_wait_are_named(server):
    config = server()
    for name in ("10-a.yaml", "20-b.yaml"):
        submit(config, name, DEPLOYED)
    assert go(config)["queue"].found == "2 studies wait: 10-a, 20-b"


def test_a_study_that_cannot_be_read_is_found(server):
    config = server()
    submit(config, "10-a.yaml", changed(DEPLOYED, seed=-1))
    found = go(config)["queue"]
    assert found.verdict == "FAIL"
    assert "10-a.yaml: 1 problem line " in found.found
    assert found.remedy == f"correct {config.folder / 'queue' / '10-a.yaml'}, or take it out of the queue"


def test_a_study_that_names_scans_itself_is_found(server):
    config = server()
    submit(config, "10-a.yaml", TINY)
    found = go(config)["queue"]
    assert found.found == "10-a.yaml: data.source is phantom, expected sites"
    assert found.remedy == "set data: {source: sites}, since each site's own file names its scans"


def test_C07_a_study_with_a_site_that_is_revoked_is_found(server, tmp_path):
    other = make_consortium(tmp_path / "other", sites=SITES)
    revoke(other.folder, "sah_b")
    config = server(kit=str(other.server))
    submit(config, "10-a.yaml", DEPLOYED)
    found = go(config)["queue"]
    assert found.found == "10-a.yaml asks for sah_b, no active site of this consortium"
    assert found.remedy == "correct the study's sites, or provision and renew those sites"
    journal = config.folder / "runs" / "10-a" / "journal.jsonl"
    journal.parent.mkdir(parents=True)
    journal.touch()  # a study that has begun goes on without the site
    assert go(config)["queue"].found == "1 studies wait: 10-a"
