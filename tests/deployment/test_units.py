"""The systemd units: understood by systemd, closed as far as PyTorch allows, and started as the programs expect."""

import configparser
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = {path.stem: path for path in sorted(ROOT.glob("*/*.service"))}
MOST_EXPOSURE = 20
"""Tenths of systemd's exposure level (0 safe, 100 unsafe); a service without any hardening has 96."""
STOP_S = 10
"""Within this, both processes end after SIGTERM (A11)."""
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


class _Repeated(dict):
    """Values of a key that a unit gives several times, all kept."""

    def __setitem__(self, key, value):
        if key in self and isinstance(value, list):
            value = self[key] + value
        super().__setitem__(key, value)


def settings(name):
    parser = configparser.RawConfigParser(strict=False, dict_type=_Repeated, comment_prefixes=("#",))
    parser.optionxform = str
    parser.read_string(UNITS[name].read_text())
    return {
        section: {key: value.split("\n") for key, value in parser[section].items()} for section in parser.sections()
    }


@pytest.fixture(params=UNITS)
def name(request):
    return request.param


def test_there_is_a_unit_for_each_program():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(UNITS) == set(scripts) - {"sahfl"} == {"sahfl-server", "sahfl-client"}


def test_a_unit_starts_its_program_with_a_settings_file(name):
    (start,) = settings(name)["Service"]["ExecStart"]
    assert re.fullmatch(rf"/opt/sahfl/bin/{name} /etc/sahfl(-server)?/(site|server)\.yaml", start)


def test_a_unit_stops_its_program_by_sigterm_and_waits_longer_than_it_takes(name):
    service = settings(name)["Service"]
    assert service["KillSignal"] == ["SIGTERM"]
    assert service["KillMode"] == ["mixed"]
    assert int(service["TimeoutStopSec"][0]) > STOP_S


def test_a_unit_starts_again_after_a_failure_but_not_with_wrong_settings(name):
    unit = settings(name)
    assert unit["Service"]["Restart"] == ["on-failure"]
    assert unit["Service"]["RestartPreventExitStatus"] == ["2"]
    assert unit["Unit"]["StartLimitIntervalSec"] == ["0"]


def test_a_worker_killed_for_memory_does_not_end_its_parent():
    assert settings("sahfl-client")["Service"]["OOMPolicy"] == ["continue"]


def test_flower_calls_home_in_no_unit(name):
    (line, _) = settings(name)["Service"]["Environment"]
    assert line.split() == ["FLWR_TELEMETRY_ENABLED=0", "FLWR_DISABLE_UPDATE_CHECK=1"]


def test_a_unit_writes_into_one_folder_and_leaves_no_core(name):
    service = settings(name)["Service"]
    assert service["User"] == service["Group"] == service["StateDirectory"]
    assert service["ReadWritePaths"] == service["WorkingDirectory"] == [f"/var/lib/{service['User'][0]}"]
    assert service["UMask"] == ["0077"]
    assert service["LimitCORE"] == ["0"]


def test_the_server_may_hold_more_connections_than_a_thousand_open_files():
    assert int(settings("sahfl-server")["Service"]["LimitNOFILE"][0]) >= 65536


def test_the_two_units_share_no_user_and_no_folder():
    client, server = (settings(name)["Service"] for name in ("sahfl-client", "sahfl-server"))
    assert client["User"] != server["User"]
    assert client["ReadWritePaths"] != server["ReadWritePaths"]


def installed(name, folder):
    """The unit with a program that exists here, as systemd-analyze asks for one."""
    path = folder / UNITS[name].name
    path.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={shutil.which('true')}", UNITS[name].read_text()))
    return path


def analyze(*arguments):
    return subprocess.run(["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, timeout=60)


@needs_systemd
def test_systemd_understands_every_line_of_a_unit(name, tmp_path):
    result = analyze("verify", "--man=no", str(installed(name, tmp_path)))
    assert (result.returncode, result.stderr) == (0, "")


@needs_systemd
def test_a_unit_is_exposed_no_more_than_it_has_to(name, tmp_path):
    result = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSURE}", str(installed(name, tmp_path)))
    assert result.returncode == 0, result.stdout + result.stderr
