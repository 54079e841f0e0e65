"""The command ``sahfl doctor``: lines or JSON on stdout, exit code 2 if something failed."""

import json

import pytest
import yaml
from harness.fake_servers import http_server
from harness.tiny_study import TINY
from harness.trust_kits import free_port, make_consortium

from sahfl.trust.kit import ServerKit


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return make_consortium(tmp_path_factory.mktemp("consortium"), sites=["bern"], port=free_port())


@pytest.fixture
def run(sahfl, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    return lambda *arguments: sahfl("doctor", *arguments)


def write(path, **settings):
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def site_file(tmp_path, paths):
    cohort = {"source": "phantom", "seed": 1, "shape": [32, 32, 8], "spacing_mm": [5.0, 5.0, 12.0]}
    cohort["patients"] = {"kind": "sah", "n_cases": 2}
    return write(tmp_path / "site.yaml", name="bern", folder="work", data=cohort, kit=str(paths.sites["bern"]))


def test_A17_a_site_without_its_server_ends_with_exit_code_2_and_a_line_that_says_what_to_do(run, site_file, paths):
    code, out, err = run(site_file)
    assert (code, err) == (2, "")
    (line,) = [line for line in out.splitlines() if line.startswith("FAIL")]
    assert line.split(maxsplit=2)[1] == "port"
    assert f" -> ask the centre whether sahfl-server runs and listens at localhost port {paths.port}" in line


def failed(out):
    lines = [line.split(maxsplit=2) for line in out.splitlines() if line.startswith("FAIL")]
    return {check: found for _, check, found in lines}


def test_a_wrong_path_of_a_site_file_is_named_with_its_line(run, tmp_path):
    (tmp_path / "file").touch()
    lines = ["name: bern", "folder: file", "kit: nowhere", "data:", "  source: folder", "  path: scans"]
    (tmp_path / "site.yaml").write_text("\n".join(lines))
    found = failed(run(tmp_path / "site.yaml")[1])
    assert found["folder"].startswith(f"{tmp_path / 'site.yaml'}, line 2, folder: {tmp_path / 'file'} is a file")
    assert found["kit"].startswith(f"{tmp_path / 'site.yaml'}, line 3, kit: {tmp_path / 'nowhere'}/")
    assert found["data"].startswith(f"{tmp_path / 'site.yaml'}, line 6, data.path: site bern: {tmp_path / 'scans'}: ")


def test_a_wrong_path_of_a_server_file_is_named_with_its_line(run, tmp_path):
    (tmp_path / "server.yaml").write_text("folder: state\nkit: nowhere\n")
    found = failed(run(tmp_path / "server.yaml")[1])
    assert found["kit"].startswith(f"{tmp_path / 'server.yaml'}, line 2, kit: {tmp_path / 'nowhere'}/")


def test_a_site_with_its_server_is_healthy_and_leaves_no_trace(run, site_file, paths, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    refusal = (400, {"error": "no instance"})
    with http_server(ServerKit.load(paths.server).tls(), on_post=refusal, port=paths.port):
        code, out, err = run(site_file, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["schema"], found["kind"], found["healthy"]) == (1, "site", True)
    assert {finding["verdict"] for finding in found["findings"]} <= {"ok", "warn"}
    assert sorted(tmp_path.rglob("*")) == before


def test_a_server_is_told_from_a_site(run, tmp_path, paths):
    file = write(tmp_path / "server.yaml", kit=str(paths.server), folder="state", host="127.0.0.1", port=free_port())
    code, out, err = run(file, "--json")
    assert (code, err, json.loads(out)["kind"]) == (0, "", "server")


def test_a_study_has_no_doctor(run, tmp_path):
    file = write(tmp_path / "study.yaml", **TINY)
    code, out, err = run(file)
    assert (code, out) == (2, "")
    assert err == f"error: doctor: got {file}, a study file, expected a site file or a server file\n"
