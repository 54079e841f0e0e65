"""No variable of the environment decides whom a program trusts, or through whom it talks."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from harness.trust_kits import free_port, make_consortium

from sahfl import environment
from sahfl.doctor.machine import examine_environment
from sahfl.environment import REDIRECTING
from sahfl.federation.flower.supernode import FleetLink
from sahfl.trust.kit import SiteKit

PROGRAMS = {
    "sahfl": "from sahfl.cli import main",
    "sahfl-server": "from sahfl_server.main import main",
    "sahfl-client": "from sahfl_client.main import main",
}
REPORT = """
import os, sys
sys.argv = ["program", "--help"]
{program}
try:
    main()
except SystemExit:
    pass
from sahfl.environment import ignored_variables
import json
print(json.dumps([sorted(os.environ), ignored_variables()]))
"""
HOSTILE = {name: "/nonexistent" for name in REDIRECTING} | {"https_proxy": "socks5://nobody:1", "all_proxy": "::"}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_each_program_forgets_these_variables_before_a_library_reads_them(program):
    code = REPORT.format(program=program)
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | HOSTILE, capture_output=True, text=True, check=True
    )
    left, ignored = json.loads(done.stdout.splitlines()[-1])
    assert set(HOSTILE) & set(left) == set()
    assert set(HOSTILE) <= set(ignored)


def test_loading_a_program_loads_no_library_that_reads_them():
    for program in PROGRAMS.values():
        code = f"import sys\n{program}\nprint(*({{'ssl', '_ssl', 'httpx', 'flwr', 'cryptography'}} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == ""


@pytest.fixture
def site(tmp_path):
    paths = make_consortium(tmp_path / "consortium", sites=["bern"], port=free_port())
    settings = {"name": "bern", "folder": "work", "kit": str(paths.sites["bern"]), "device": "cpu"}
    settings["data"] = {"source": "datalist", "path": "none.json"}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "site.yaml"


def test_the_doctor_names_what_is_ignored_and_shows_no_value(site):
    code = 'import sys; sys.argv = ["sahfl", "doctor", sys.argv[1], "--json"]\nfrom sahfl.cli import main\nmain()'
    secret = {"HTTPS_PROXY": "http://user:hunter2@proxy:1", "SSL_CERT_FILE": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(site)], env=os.environ | secret, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    (found,) = [line for line in json.loads(done.stdout)["findings"] if line["check"] == "environment"]
    assert found["verdict"] == "warn"
    assert {"HTTPS_PROXY", "SSL_CERT_FILE"} <= set(found["found"].replace(",", "").split())
    assert "hunter2" not in done.stdout + done.stderr


def test_without_such_variables_the_doctor_has_nothing_to_say(monkeypatch):
    monkeypatch.setattr(environment, "_found", [])
    assert examine_environment().verdict == "ok"


def test_a_link_to_the_server_reads_no_environment_even_without_a_program(tmp_path, monkeypatch):
    paths = make_consortium(tmp_path / "consortium", sites=["bern"], port=free_port())
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    kit = SiteKit.load(paths.sites["bern"])
    link = FleetLink(kit.host, kit.port, tls=kit.tls(), node_key=kit.node_key, headers={})
    link.close()
