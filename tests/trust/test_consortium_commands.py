"""sahfl provision, renew and revoke: the table on stdout, what to do next on stderr, one clear line for an error."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from harness.trust_kits import make_consortium

from sahfl.trust.kit import ServerKit, SiteKit

SAHFL = Path(sys.executable).with_name("sahfl")
FILE = {"name": "test", "server": {"host": "fl.example.org"}, "sites": ["bern", "graz"]}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "consortium.yaml"
    path.write_text(yaml.safe_dump(FILE))
    return path


def rows(out):
    return {line.split()[0]: line.split(maxsplit=5)[-1] for line in out.splitlines()}


def test_provision_makes_a_folder_of_the_consortium_s_name_and_says_what_to_do_with_it(sahfl, file):
    code, out, err = sahfl("provision", file)
    assert code == 0
    assert rows(out) == {"authority": "valid", "server": "new", "bern": "new", "graz": "new"}
    assert re.search(" (3650|3649) days  valid", out)  # whole days from now
    assert " 397 days  new" in out
    assert err.splitlines() == [
        "next: bring test/server to the server and start it again",
        "next: hand test/sites/bern to bern over a safe channel; whoever has it can take part as bern",
        "next: hand test/sites/graz to graz over a safe channel; whoever has it can take part as graz",
        "next: the server lets new sites in once it has test/server/sites.json",
    ]
    assert SiteKit.load(Path("test/sites/bern")).host == "fl.example.org"


def test_provision_again_says_how_long_everything_lasts_and_nothing_else(sahfl, file):
    sahfl("provision", file, "--out", "keys")
    code, out, err = sahfl("provision", file, "--out", "keys")
    assert (code, err) == (0, "")
    assert set(rows(out).values()) == {"valid"}


def test_no_secret_is_printed(sahfl, file):
    _, out, err = sahfl("provision", file)
    for key in Path("test").rglob("*.key"):
        for line in key.read_text().splitlines()[1:-1]:
            assert line not in out + err


def test_renew_and_revoke_in_the_folder_itself_need_no_option(sahfl, monkeypatch, tmp_path):
    paths = make_consortium(tmp_path / "keys", sites=["bern", "graz"])
    monkeypatch.chdir(paths.folder)
    code, out, err = sahfl("revoke", "bern")
    assert code == 0
    assert rows(out)["bern"] == "revoked"
    assert err == "next: copy server/sites.json and server/revoked.crl to the server; it refuses bern from then on\n"
    assert set(ServerKit.load(paths.server).sites()) == {"graz"}
    code, out, err = sahfl("renew", "bern")
    assert (code, rows(out)["bern"], rows(out)["graz"]) == (0, "new", "valid")
    assert err.endswith("next: copy server/sites.json to the server\n")
    assert set(ServerKit.load(paths.server).sites()) == {"bern", "graz"}


def test_renew_server_says_to_start_it_again(sahfl, tmp_path):
    paths = make_consortium(tmp_path / "keys", sites=["bern"])
    code, out, err = sahfl("renew", "server", "--folder", paths.folder)
    assert (code, rows(out)["server"]) == (0, "new")
    assert err == f"next: bring {paths.server} to the server and start it again\n"


@pytest.mark.parametrize("command", ["renew", "revoke"])
def test_a_folder_without_an_authority_is_a_user_error(sahfl, command):
    code, out, err = sahfl(command, "bern")
    assert (code, out) == (2, "")
    assert err == "error: .: holds no authority/ to issue certificates; name the folder of `sahfl provision`\n"


def test_a_site_that_does_not_exist_is_a_user_error(sahfl, tmp_path):
    paths = make_consortium(tmp_path / "keys", sites=["bern"])
    code, out, err = sahfl("renew", "wien", "--folder", paths.folder)
    assert (code, out) == (2, "")
    assert err == f"error: {paths.folder}: has no 'wien', expected one of: server, bern\n"


def test_a_bad_file_tells_all_its_problems_and_leaves_no_folder(sahfl, file):
    file.write_text(yaml.safe_dump(FILE | {"sites": [], "port": 1}))
    code, out, err = sahfl("provision", file)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {file}: 2 problems\n")
    assert list(Path.cwd().iterdir()) == []


def test_a_folder_that_cannot_be_written_is_no_traceback(sahfl, file):
    code, out, err = sahfl("provision", file, "--out", file / "keys")
    assert (code, out) == (3, "")
    assert err.startswith(f"error: {file / 'keys'}: cannot be written (Not a directory); no key is lost")


def test_check_prints_the_consortium_file_with_every_default(sahfl, file):
    code, out, err = sahfl("check", file)
    assert (code, err) == (0, "")
    assert yaml.safe_load(out)["valid_days"]["certificates"] == 397


def test_on_a_terminal_the_overview_is_a_table(file, tmp_path):
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "120", "TERM": "xterm"}
    process = subprocess.Popen(
        [SAHFL, "provision", file, "--out", tmp_path / "keys"], stdout=theirs, stderr=subprocess.PIPE, env=environment
    )
    os.close(theirs)
    try:
        process.communicate(timeout=120)
        text = os.read(ours, 100_000).decode()
    finally:
        process.kill()
        os.close(ours)
    assert process.returncode == 0
    assert "days left" in text
    assert "┃" in text or "│" in text
