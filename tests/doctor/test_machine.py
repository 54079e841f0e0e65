"""What the doctor says about the machine, each check both ways."""

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from sahfl.doctor import machine
from sahfl.doctor.findings import Finding, as_json, as_lines, healthy, skip_all
from sahfl.doctor.machine import (
    addresses_of,
    examine_device,
    examine_disk,
    examine_folder,
    examine_memory,
    examine_synchronisation,
    examine_user,
    examine_versions,
)
from sahfl.errors import ConfigError, TrustError

Usage = namedtuple("Usage", "total used free")

# --- findings -------------------------------------------------------------------------------------------------------


def test_a_line_says_verdict_check_finding_and_remedy():
    findings = [Finding.ok("dns", "fine"), Finding.fail("port", "closed", remedy="open it")]
    assert as_lines(findings) == ["ok    dns   fine", "FAIL  port  closed -> open it"]
    assert as_lines([]) == []


def test_only_a_failure_is_unhealthy():
    fine = [Finding.ok("a", "x"), Finding.warn("b", "x", remedy="y"), *skip_all(["c"], needs="b")]
    assert healthy(fine)
    assert not healthy([*fine, Finding.fail("d", "x", remedy="y")])


def test_the_json_holds_what_the_lines_say():
    found = as_json([Finding.warn("disk", "little", remedy="more")], file="site.yaml", kind="site")
    assert found == {
        "schema": 1,
        "file": "site.yaml",
        "kind": "site",
        "healthy": True,
        "findings": [{"check": "disk", "verdict": "warn", "found": "little", "remedy": "more"}],
    }


ERRORS = {
    "says what to do": (TrustError("kit: got a, expected b; unpack it"), "kit: got a, expected b", "unpack it"),
    "does not say": (TrustError("kit: is damaged"), "kit: is damaged", "do this"),
    "several lines": (ConfigError("a.yaml: 1 problem(s)\n  name: no"), "a.yaml: 1 problem(s) name: no", "do this"),
}


@pytest.mark.parametrize(("error", "found", "remedy"), ERRORS.values(), ids=ERRORS.keys())
def test_an_error_becomes_one_line_with_one_remedy(error, found, remedy):
    finding = Finding.of_error("kit", error, remedy="do this")
    assert (finding.verdict, finding.found, finding.remedy) == ("FAIL", found, remedy)


# --- versions -------------------------------------------------------------------------------------------------------


def test_the_installed_versions_are_those_of_this_release():
    found = examine_versions()
    assert found.verdict == "ok", found.found
    assert "flwr 1.42.0" in found.found
    assert f"torch {torch.__version__}" in found.found


def test_A16_another_version_of_a_library_is_named_with_both_versions():
    found = examine_versions(["flwr==1.99.0", "numpy>=1", "no-such-library>=2", 'pytest>=999; extra == "dev"'])
    assert found.verdict == "FAIL"
    assert found.found == "flwr 1.42.0, expected ==1.99.0; no-such-library is not installed"
    assert "constraints.txt" in found.remedy


def test_an_old_python_is_named(monkeypatch):
    monkeypatch.setattr(machine, "OLDEST_PYTHON", (99, 0))
    assert examine_versions([]).found.startswith("Python 3.")


# --- user, folder, disk ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("uid", "verdict"), [(0, "warn"), (999, "ok")])
def test_root_is_told_that_it_sees_more_than_the_service(monkeypatch, uid, verdict):
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    found = examine_user()
    assert found.verdict == verdict
    assert uid != 0 or "sudo -u sahfl" in found.remedy


def test_a_folder_that_is_there_or_can_be_made_is_ok(tmp_path):
    assert examine_folder(tmp_path).found == f"{tmp_path} can be written"
    assert examine_folder(tmp_path / "a" / "b").found == f"{tmp_path / 'a' / 'b'} can be made"
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_found(tmp_path):
    (tmp_path / "file").touch()
    found = examine_folder(tmp_path / "file" / "site")
    assert (found.verdict, found.found) == ("FAIL", f"{tmp_path / 'file'} is a file")


def test_a_folder_that_cannot_be_written_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root, as whom tests may run, may write everywhere
    found = examine_folder(tmp_path)
    assert (found.verdict, found.found) == ("FAIL", f"{tmp_path} cannot be written")
    assert f"ReadWritePaths={tmp_path}" in found.remedy


@pytest.mark.parametrize(("free", "verdict"), [(11e9, "ok"), (5e9, "warn"), (1e9, "FAIL")])
def test_a_disk_without_room_is_found(tmp_path, monkeypatch, free, verdict):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free))
    found = examine_disk(tmp_path / "later", least_bytes=2e9, easy_bytes=10e9, what="a cache of 50 cases takes")
    assert found.verdict == verdict
    assert found.found == f"{free / 1e9:.1f} GB free at {tmp_path}; a cache of 50 cases takes 2.0 to 10.0 GB"
    if verdict != "ok":
        assert found.remedy == f"make {(10e9 - free) / 1e9:.1f} GB of room, or set 'folder' to another disk"


def test_room_that_is_in_use_already_is_not_asked_for_again(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(0, 0, 1e9))
    found = examine_disk(tmp_path, least_bytes=2e9, easy_bytes=10e9, what="a cache takes", held_bytes=9.5e9)
    assert (found.verdict, found.remedy) == ("ok", None)
    assert found.found.endswith("a cache takes 2.0 to 10.0 GB, 9.5 GB of it are there")


# --- memory, clock, device ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("free_kb", "verdict"), [(8_000_000, "ok"), (2_000_000, "warn"), (500_000, "FAIL")])
def test_little_memory_is_found(tmp_path, free_kb, verdict):
    (tmp_path / "meminfo").write_text(f"MemTotal: 9000000 kB\nMemAvailable: {free_kb} kB\n")
    found = examine_memory(tmp_path / "meminfo")
    assert found.verdict == verdict
    assert found.found.startswith(f"{free_kb * 1024 / 1e9:.1f} GB free")


@pytest.mark.parametrize("content", [None, "MemTotal: 9000000 kB\n", "MemAvailable: much\n"])
def test_a_system_that_does_not_say_its_memory_is_told(tmp_path, content):
    if content is not None:
        (tmp_path / "meminfo").write_text(content)
    assert examine_memory(tmp_path / "meminfo").verdict == "warn"


CLOCKS = {
    "synchronised": (0, "ok", "is synchronised"),
    "alone": (5, "warn", "no time service"),
    "not allowed": (-1, "warn", "does not report"),
    "no such call": (None, "warn", "does not report"),
}


@pytest.mark.parametrize(("state", "verdict", "said"), CLOCKS.values(), ids=CLOCKS.keys())
def test_a_clock_that_nobody_keeps_right_is_found(monkeypatch, state, verdict, said):
    monkeypatch.setattr(machine, "_clock_state", lambda: state)
    found = examine_synchronisation()
    assert found.verdict == verdict
    assert said in found.found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="adjtimex is a call of Linux")
def test_the_kernel_says_something_about_its_clock():
    assert machine._clock_state() in {-1, 0, 1, 2, 3, 4, 5}


def test_the_cpu_is_always_there():
    assert examine_device("cpu").found.startswith("cpu: cpu, ")


def test_a_gpu_that_is_asked_for_and_absent_is_found(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    found = examine_device("cuda")
    assert found.verdict == "FAIL"
    assert found.found.startswith(f"device: got cuda, this machine has no usable GPU, and torch {torch.__version__} is")
    assert found.remedy == "set device: cpu, or install the GPU's driver and a torch for it"
    assert examine_device("auto").verdict == "ok"


def test_a_gpu_that_is_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70e9, 80e9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    assert examine_device("auto").found == "auto: NVIDIA H100, 70.0 of 80.0 GB free"


def test_names_lead_to_addresses_or_to_none():
    assert "127.0.0.1" in addresses_of("localhost")
    assert addresses_of("server.invalid") == set()
