"""Certificates of another time, authority or host, and other versions, between processes: said, and tried again."""

import json
import re
import shutil
import socket
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from harness.deployed import Command, Deployment, environment, wait_for
from harness.fake_servers import http_server, tls_of
from harness.trust_kits import make_consortium

from sahfl.trust.authority import Authority
from sahfl.trust.certificates import pem
from sahfl.trust.keys import key_pem

SITE = "tbi_a"
LONG_AGO = datetime.now(UTC) - timedelta(days=500)
LATER = datetime.now(UTC) + timedelta(days=5)
NEAR_ITS_END = datetime.now(UTC) - timedelta(days=397 - 20)
LONGEST_PAUSE_S = 20


@pytest.fixture
def deployment(tmp_path):
    with Deployment(tmp_path / "deployed", sites=(SITE,)) as deployment:
        yield deployment


def site_status(deployment):
    return json.loads((deployment.folder / "sites" / SITE / "status.json").read_text())


def says_once(deployment, site, text):
    """The daemon says in one line, and in its status, why it is not connected; and goes on."""
    site.wait_for_line(text, timeout_s=60)
    wait_for(lambda: text in (site_status(deployment)["reason"] or ""), 5, lambda: site.log)
    (line,) = [line for line in site.log.splitlines() if text in line]
    assert "event=not_connected" in line
    assert 0.1 <= float(re.search(r"next_try_s=([\d.]+)", line)[1]) <= LONGEST_PAUSE_S
    assert site_status(deployment)["connected"] is False
    assert site_status(deployment)["pid"] == site.process.pid
    assert site.process.poll() is None


def connects(deployment, site):
    site.wait_for_line("event=connected", timeout_s=60)
    wait_for(lambda: site_status(deployment)["connected"], 5)
    assert site_status(deployment)["reason"] is None
    assert "Traceback" not in site.log
    assert site.stop() == 0


def server_kit(deployment, name, *, hosts=("localhost",), now=None):
    """The server's folder with a certificate of the same authority for other hosts, or of another time."""
    folder = deployment.folder / name
    shutil.copytree(deployment.consortium.server, folder)
    certify(deployment, folder / "server", "server", list(hosts), now=now or datetime.now(UTC))
    return folder


def certify(deployment, path, kind, holder, *, now):
    """Put another certificate of the same authority, made at some moment, in the place of one."""
    key = ec.generate_private_key(ec.SECP256R1())
    authority = Authority.load(deployment.consortium.authority)
    certificate = getattr(authority, f"{kind}_certificate")(key.public_key(), holder, now=now, days=397)
    path.with_suffix(".key").write_bytes(key_pem(key))
    path.with_suffix(".crt").write_bytes(pem(certificate))


def start_server(deployment, name, *, kit=None, **more):
    """``sahfl-server`` at the port that the site knows, with another kit or environment."""
    settings = yaml.safe_load(deployment.server_file.read_text())
    path = deployment.folder / f"{name}-server.yaml"
    path.write_text(
        yaml.safe_dump(
            settings | {"folder": str(deployment.folder / f"{name}-state")} | ({"kit": str(kit)} if kit else {})
        )
    )
    server = Command(deployment.folder / f"{name}-server.log", "sahfl_server", path, **more)
    deployment.commands.append(server)
    return server


def of_version(number, folder):
    """Environment of a process in which sahfl has another version."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"import sahfl\nsahfl.__version__ = {number!r}\n")
    return {"PYTHONPATH": f"{folder}:{environment()['PYTHONPATH']}"}


@pytest.mark.slow
def test_A15_a_daemon_says_of_each_certificate_of_its_server_what_is_wrong_and_connects_in_the_end(
    deployment, tmp_path
):
    other = make_consortium(tmp_path / "other", sites=(SITE,), port=deployment.port)
    expired = server_kit(deployment, "expired", now=LONG_AGO)
    site = deployment.site(SITE)
    for folder, said in (
        (None, "the server speaks no TLS at this port"),
        (expired, "certificate has expired"),
        (server_kit(deployment, "future", now=LATER), "certificate is not yet valid"),
    ):
        tls = folder and tls_of(folder / "server.crt", folder / "server.key")
        with http_server(tls, port=deployment.port):
            says_once(deployment, site, said)
    refused = start_server(deployment, "expired", kit=expired)
    assert refused.process.wait(60) == 2
    assert "server.crt: expired on " in refused.log.splitlines()[-1]
    foreign = start_server(deployment, "foreign", kit=other.server)
    says_once(deployment, site, "the server's certificate is not trusted: self-signed certificate in certificate chain")
    foreign.wait_for_line("event=tls_refused", timeout_s=60)
    assert foreign.stop() == 0
    elsewhere = start_server(deployment, "elsewhere", kit=server_kit(deployment, "host", hosts=["sah.example.org"]))
    says_once(deployment, site, "Hostname mismatch")
    assert elsewhere.stop() == 0
    server = deployment.server()
    connects(deployment, site)
    with closing(socket.create_connection(("127.0.0.1", deployment.port))) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        server.wait_for_line('reason="it speaks plain HTTP; this port takes TLS 1.3 only"', timeout_s=20)
    assert server.stop() == 0


@pytest.mark.slow
def test_A15_a_daemon_with_an_old_kit_stays_says_so_and_connects_with_a_new_one_which_it_warns_of(deployment):
    kit = deployment.consortium.sites[SITE] / "client"
    certify(deployment, kit, "site", SITE, now=LONG_AGO)
    server = deployment.server()
    site = deployment.site(SITE)
    says_once(deployment, site, "client.crt: expired on ")
    assert "ask the coordinating centre for a new kit" in site_status(deployment)["reason"]
    certify(deployment, kit, "site", SITE, now=LATER)
    says_once(deployment, site, "client.crt: is valid from ")
    assert deployment.status()["sites"][SITE]["state"] != "connected"
    certify(deployment, kit, "site", SITE, now=NEAR_ITS_END)
    site.wait_for_line("event=certificate ", timeout_s=60)
    assert (
        "in 19 days" in site_status(deployment)["warnings"][0] or "in 20 days" in site_status(deployment)["warnings"][0]
    )
    connects(deployment, site)
    assert site.log.count("event=certificate ") == 1
    assert server.process.poll() is None


@pytest.mark.slow
def test_A16_a_daemon_of_another_version_is_told_both_and_connects_to_a_server_of_its_own(deployment, tmp_path):
    newer = start_server(deployment, "newer", **of_version("9.9.9", tmp_path / "newer"))
    site = deployment.site(SITE)
    says_once(
        deployment, site, "versions differ: the server has sahfl 9.9.9, this site has sahfl 0.1.0; install the same"
    )
    newer.wait_for_line("event=refused", timeout_s=10)
    (line,) = [line for line in newer.log.splitlines() if "event=refused" in line]
    assert line.endswith('reason=version server="sahfl 9.9.9" client="sahfl 0.1.0"')
    assert newer.stop() == 0
    deployment.server()
    connects(deployment, site)
