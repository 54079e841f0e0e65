"""The audit log: written before anything leaves, chained, and checked line by line."""

import errno
import json
import multiprocessing
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from sahfl.errors import AuditBroken, StorageError
from sahfl.federation.site.audit import FILE, START, AuditLog, read_lines, verify

SAHFL = Path(sys.executable).with_name("sahfl")


@pytest.fixture
def log(tmp_path):
    log = AuditLog(tmp_path / "site")
    for n in range(5):
        log.append("answered", f"Sent to the server: round {n}.", bytes=n)
    return log


def lines(log):
    return log.path.read_bytes().splitlines(keepends=True)


def run(*arguments):
    done = subprocess.run([SAHFL, "audit", *map(str, arguments)], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_a_log_has_one_line_per_event_each_with_the_hash_of_the_one_before(log):
    read = list(read_lines(log.path))
    assert [line["n"] for line in read] == [1, 2, 3, 4, 5]
    assert [line["previous"] for line in read] == [START, *(line["hash"] for line in read[:-1])]
    assert (read[2]["event"], read[2]["words"], read[2]["details"]) == (
        "answered",
        "Sent to the server: round 2.",
        {"bytes": 2},
    )
    verdict = verify(log.path)
    assert (verdict.n, verdict.head, verdict.torn) == (5, log.head(), ())


def test_an_empty_log_and_a_missing_one(tmp_path):
    log = AuditLog(tmp_path)
    assert log.head() == START
    with pytest.raises(AuditBroken, match="cannot be read"):
        verify(log.path)
    log.path.touch()
    assert verify(log.path).n == 0
    log.append("study", "A new study asks.")
    assert verify(log.path).n == 1


def test_a_long_line_does_not_hide_the_one_before(tmp_path):
    log = AuditLog(tmp_path)
    for reason in ("x" * 50_000, "y", "z" * 20_000):
        log.append("refused", "Refused.", reason=reason)
    assert verify(log.path).n == 3


@pytest.mark.parametrize("cut", [1, 7, 200])
def test_a_line_that_a_crash_cut_off_stays_as_evidence_and_the_chain_goes_on(log, cut):
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + lines(log)[-1][:cut])
    assert verify(log.path).torn == (6,)
    log.append("answered", "Sent to the server: more.")
    verdict = verify(log.path)
    assert (verdict.n, verdict.torn) == (7, (6,))  # the line about it has number 6
    assert [line["event"] for line in read_lines(log.path)][-2:] == ["torn", "answered"]


def test_a_line_that_lacks_only_its_end_of_line_is_whole(log):
    log.path.write_bytes(log.path.read_bytes().rstrip(b"\n"))
    assert verify(log.path).n == 5
    log.append("answered", "Sent.")
    assert (verify(log.path).n, verify(log.path).torn) == (6, ())


def test_an_edited_line_is_no_torn_one(log):
    texts = lines(log)
    log.path.write_bytes(b"".join([*texts[:2], texts[2][:40] + b"\n", *texts[3:]]))
    with pytest.raises(AuditBroken, match="line 3: was changed; it is no line of an audit log"):
        verify(log.path)
    log.path.write_bytes(b"".join([*texts[:4], texts[4][:40] + b"\n"]))
    with pytest.raises(AuditBroken, match="line 5: was changed"):
        verify(log.path)


@pytest.mark.parametrize("number", [b"NaN", b"1e999"])
def test_a_line_with_a_number_that_no_line_is_written_with_was_changed(log, number):
    log.append("answered", "Answered.", loss=0.5)
    log.path.write_bytes(log.path.read_bytes().replace(b'"loss":0.5', b'"loss":' + number))
    with pytest.raises(AuditBroken, match="was changed; its hash is another one"):
        verify(log.path)


def test_on_a_full_disk_nothing_is_half_written(log, monkeypatch):
    before = log.path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left on device.*nothing leaves that is not in it: make room"):
        log.append("answered", "Sent.")
    monkeypatch.undo()
    assert log.path.read_bytes() == before
    log.append("answered", "Sent.")
    assert verify(log.path).n == 6


@pytest.mark.parametrize("room", [1, 150, 260, 300])
def test_a_disk_that_takes_a_part_of_a_line_only_changes_nothing(log, room):
    before = log.path.read_bytes()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, hard))
    try:
        with pytest.raises(StorageError, match="make room"):
            log.append("answered", "Sent.", more="x" * 150)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert log.path.read_bytes() == before
    log.append("answered", "Sent.")
    assert verify(log.path).n == 6


def test_a_site_whose_last_line_was_damaged_stops(log):
    log.path.write_bytes(log.path.read_bytes() + b"{}\n")
    with pytest.raises(StorageError, match="its last line is damaged; restore the whole folder from its newest backup"):
        log.append("answered", "Sent.")


def append_many(folder, name):
    for n in range(25):
        AuditLog(Path(folder)).append("answered", f"{name} {n}")


def test_lines_of_several_processes_never_mix(tmp_path):
    spawning = multiprocessing.get_context("spawn")
    writers = [spawning.Process(target=append_many, args=(str(tmp_path), name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert verify(tmp_path / FILE).n == 50


def test_the_end_of_a_log_is_missed_if_its_head_was_noted(log):
    head = log.head()
    assert verify(log.path, head=head).n == 5
    log.append("answered", "Sent.")
    assert verify(log.path, head=head).n == 6
    log.path.write_bytes(b"".join(lines(log)[:4]))
    assert verify(log.path).n == 4
    with pytest.raises(AuditBroken, match=rf"after line 4: lines are missing, no line has the hash {head[:16]}"):
        verify(log.path, head=head)


def test_the_command_verifies_a_site_file_s_log_and_prints_the_head(log, tmp_path):
    site = tmp_path / "site.yaml"
    site.write_text("name: bern\nfolder: site\ndata: {source: datalist, path: datalist.json}\n")
    assert run("verify", site) == (0, f"whole: 5 lines, head {log.head()}\n", "")
    assert run("verify", site, "--head", log.head())[0] == 0
    code, _, said = run("verify", log.path, "--head", "ab" * 32)
    assert (code, "lines are missing" in said) == (3, True)
    log.path.write_bytes(log.path.read_bytes() + b'{"n":')
    assert run("verify", site)[1].splitlines()[0] == "line 6 was cut off by a crash; the lines around it are whole"


def test_the_command_shows_lines_newest_last_and_filters(log):
    log.append("refused", "Refused: the server asked for an evaluation.", reason="policy.evaluation: expected none")
    code, out, _ = run("show", log.path)
    assert code == 0
    assert "round 0" in out.splitlines()[1]
    assert "Refused" in " ".join(out.split("round 4")[1].split())
    assert "policy.evaluation" in out
    assert "round" not in run("show", log.path, "--event", "refused")[1]
    assert "round" not in run("show", log.path, "--since", "2999-01-01")[1]
    assert json.loads(run("show", log.path, "--details")[1].splitlines()[2])["details"] == {"bytes": 2}
