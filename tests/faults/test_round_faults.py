"""Faults of rounds and checkpoints, by the ids of the fault list: real files, real kills."""

import errno
import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from harness.commands import journal, run, start, tensors, wait_for_no_process, wait_for_round, write
from harness.tiny_study import TINY, changed

from sahfl.adapters.files import load_tensors, save_tensors
from sahfl.config import Study, parse
from sahfl.errors import RunFailed, StorageError
from sahfl.events import Paused, RoundFailed, Warned, listening
from sahfl.run.folder import Checkpoint, RunFolder

STUDY = parse(Study, TINY, where="test")
CELL = "cp_lora-r2/fold-0"
ROUND = {"event": "round", "stage": "finetune", "method": "cp_lora-r2", "fold": 0, "committed": True, "used": []}
NUMBERS = ("base", "sites", "methods", "comparisons", "support")
"""Parts of results.json that hold no times."""


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", STUDY)


def checkpoint(round_):
    state = {"a": np.full((40, 50), round_, np.float32)}
    return Checkpoint(round_, state, ROUND | {"round": round_})


def committed(folder):
    return [line["round"] for line in folder.journal() if line["event"] == "round" and line["committed"]]


def in_a_child(work):
    """Run something in a forked process and say how it ended: an exit code, or minus the signal."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# --- A01, A20: the whole run is killed ------------------------------------------------------------------------------


def killed_after(federate, seconds):
    """Start or resume the run in a forked process and kill it after some seconds, unless it ended before."""
    if (pid := os.fork()) == 0:
        try:
            federate(TINY)
        finally:
            os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


@pytest.mark.slow
def test_A20_a_run_killed_at_random_moments_ends_as_one_that_was_not(federate, whole):
    reference, _ = whole
    chance = random.Random(20)
    assert all(killed_after(federate, chance.uniform(0.1, 1.5)) for _ in range(3))
    resumed, _ = federate(TINY)
    assert tensors(resumed.path) == tensors(reference.path)
    ours, theirs = (each.read_json("results.json") for each in (resumed, reference))
    assert {part: ours[part] for part in NUMBERS} == {part: theirs[part] for part in NUMBERS}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One uninterrupted run of the command."""
    path = tmp_path_factory.mktemp("finished")
    code, _, err = run(write(path / "study.yaml", TINY), "--out", path / "run")
    assert code == 0, err
    return path / "run"


@pytest.mark.slow
def test_A01_a_server_killed_in_the_middle_of_a_round_goes_on_at_the_last_committed_one(finished, tmp_path):
    path = tmp_path / "run"
    process = start(write(tmp_path / "study.yaml", TINY), "--out", path)
    wait_for_round(process, path, cell=CELL)
    os.kill(process.pid, signal.SIGKILL)  # the server's process alone; its workers end by themselves
    process.communicate(timeout=60)
    wait_for_no_process(process.pid)
    done = committed(RunFolder(path))
    code, _, err = run("--resume", path)
    assert code == 0, err
    assert tensors(path) == tensors(finished)
    assert [line["event"] for line in journal(path) if "at" in line] == ["started", "resumed", "finished"]
    (resumed,) = journal(path, "resumed")
    assert resumed["after"] == "killed or crashed"
    assert committed(RunFolder(path))[: len(done)] == done  # no committed round is run again
    assert len(committed(RunFolder(path))) == 2 + 2 * 2
    assert RunFolder(path).read_json("results.json")["interruptions"] == 1


@pytest.mark.slow
def test_A20_the_whole_simulation_killed_twenty_times_ends_as_one_that_was_not(finished, tmp_path):
    chance, kills, runs = random.Random(2020), 0, 0
    study = write(tmp_path / "study.yaml", TINY)
    while kills < 20:
        path, runs = tmp_path / f"run-{runs}", runs + 1
        while kills < 20 and not (path / "results.json").exists():
            known = (path / "study.json").exists()
            process = start("--resume", path) if known else start(study, "--out", path)
            try:
                process.communicate(timeout=chance.uniform(1.0, 14.0))
                assert process.returncode == 0
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                kills += 1
        code, _, err = run("--resume", path) if (path / "study.json").exists() else run(study, "--out", path)
        assert code == 0, err
        assert tensors(path) == tensors(finished)
        ours, theirs = (RunFolder(each).read_json("results.json") for each in (path, finished))
        assert {part: ours[part] for part in NUMBERS} == {part: theirs[part] for part in NUMBERS}
    print(f"{kills} kills over {runs} runs")


def test_A20_a_run_killed_before_its_settings_were_whole_starts_in_the_same_folder(tmp_path):
    (tmp_path / "run").mkdir()
    killed = subprocess.Popen(["true"])
    killed.wait()
    (tmp_path / "run" / f"study.json.{killed.pid}.tmp").write_text('{"name": "ti')
    assert RunFolder.create(tmp_path / "run", STUDY).study() == STUDY
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["study.json"]


# --- A02: the commit is killed --------------------------------------------------------------------------------------


def die(*_args, **_kwargs):
    os._exit(99)


def die_in_the_middle(descriptor, _mode):
    os.write(descriptor, b"\x40" + b"\x00" * 500)
    os._exit(99)


POINTS = {
    "before-the-temporary-file": (os, "open", die, 1),
    "in-the-middle-of-writing-it": (os, "fdopen", die_in_the_middle, 1),
    "before-its-flush": (os, "fsync", die, 1),
    "before-the-rename": (Path, "replace", die, 1),
    "after-the-rename-before-the-journal-line": (RunFolder, "note", die, 2),
}


@pytest.mark.parametrize(("owner", "name", "stop", "found"), POINTS.values(), ids=POINTS.keys())
def test_A02_a_kill_inside_a_commit_leaves_the_old_state_or_the_new_one(folder, owner, name, stop, found):
    folder.commit(CELL, checkpoint(1))

    def commit_and_die():
        setattr(owner, name, stop)
        folder.commit(CELL, checkpoint(2))

    assert in_a_child(commit_and_die) == 99
    again = RunFolder.reopen(folder.path)
    last = again.last_checkpoint(CELL)
    assert last.round == found
    assert np.array_equal(last.state["a"], checkpoint(found).state["a"])
    assert committed(again) == list(range(1, found + 1))
    again.commit(CELL, checkpoint(found + 1))
    assert again.last_checkpoint(CELL).round == found + 1
    assert committed(again) == list(range(1, found + 2))
    assert not [path for path in (folder.path / "state").rglob("*.tmp")]


def change_record(folder, **values):
    path = folder.path / "state" / CELL / "round-00002.safetensors"
    state, note = load_tensors(path)
    note["record"] |= values
    save_tensors(path, state, note)


def other_cell(folder):
    folder.commit("pretrain", checkpoint(2))
    source = folder.path / "state" / "pretrain" / "round-00002.safetensors"
    shutil.copyfile(source, folder.path / "state" / CELL / source.name)


def other_round(folder):
    path = folder.path / "state" / CELL / "round-00002.safetensors"
    shutil.copyfile(path, path.with_name("round-00003.safetensors"))
    path.unlink()


def flipped(folder):
    path = folder.path / "state" / CELL / "round-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)


WRONG = {
    "tensor-flipped": flipped,
    "round-changed": lambda folder: change_record(folder, round=7),
    "line-changed": lambda folder: change_record(folder, used=[{"site": "mallory"}]),
    "of-another-cell": other_cell,
    "under-another-round": other_round,
}


@pytest.mark.parametrize("damage", WRONG.values(), ids=WRONG.keys())
def test_A02_a_checkpoint_that_is_not_what_was_committed_is_warned_of_and_the_one_before_is_used(folder, damage):
    for round_ in (1, 2):
        folder.commit(CELL, checkpoint(round_))
    damage(folder)
    events = []
    with listening(events.append):
        assert folder.last_checkpoint(CELL).round == 1
    assert [type(event) for event in events] == [Warned]
    assert events[0].text.startswith(f"{CELL}: round-0000")
    assert events[0].text.endswith(" is damaged; the run goes on from the checkpoint before")
    assert [line["cell"] for line in folder.journal() if line["event"] == "damaged_checkpoint"] == [CELL]


# --- A10: below the quorum ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_A10_below_the_quorum_the_run_pauses_naming_sites_then_fails_and_can_be_resumed(federate, whole, tmp_path):
    reference, _ = whole
    settings = changed(TINY, rounds__attempts=3, rounds__deadline_s=0.2, rounds__pause_s=0.4)

    def cut(site, request, reply):
        gone = request.metadata.message_type == "train" and request.content["header"]["stage"] == "finetune"
        return None if gone and site != "sah_a" else reply

    events, began = [], time.monotonic()
    with listening(events.append), pytest.raises(RunFailed, match=r"got 1 usable replies of 3 sites") as info:
        federate(settings, change=cut)
    assert time.monotonic() - began < 60
    assert info.value.exit_code == 3
    paused = [event for event in events if isinstance(event, Paused)]
    assert [(event.text, event.seconds) for event in paused] == [(f"{CELL}, round 1: without sah_b, sah_c", 0.4)] * 2
    lines = [line for line in RunFolder(tmp_path / "run").journal() if line["event"] == "paused"]
    assert [(line["cell"], line["round"], line["seconds"]) for line in lines] == [(CELL, 1, 0.4)] * 2
    assert [item["site"] for item in lines[0]["sites"]] == ["sah_b", "sah_c"]
    resumed, _ = federate(settings)
    assert resumed.read_json("results.json")["methods"] == reference.read_json("results.json")["methods"]


def test_A10_without_a_pause_the_attempts_follow_at_once(federate):
    def cut(site, request, reply):
        return None if request.metadata.message_type == "train" else reply

    events = []
    with listening(events.append), pytest.raises(RunFailed):
        federate(changed(TINY, rounds__deadline_s=0.1), change=cut)
    assert [type(event) for event in events if isinstance(event, Paused | RoundFailed)] == [RoundFailed] * 2


# --- A12: the disk is full ------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", place], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_A12_a_full_disk_is_a_typed_error_and_the_run_goes_on_once_there_is_room(small_disk):
    folder = RunFolder.create(small_disk / "run", STUDY)
    for round_ in (1, 2):
        folder.commit(CELL, checkpoint(round_))
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as stream, suppress(OSError):
        while stream.write(b"x" * 4096):
            pass
    what = r"cannot be written \(No space left on device\); what was committed is whole; make room, then go on$"
    with pytest.raises(StorageError, match="round-00003.safetensors: " + what) as info:
        folder.commit(CELL, checkpoint(3))
    assert info.value.exit_code == 3
    with pytest.raises(StorageError, match="results.json: " + what):
        folder.write_json("results.json", {"a": 1})
    with pytest.raises(StorageError, match="journal.jsonl: " + what):
        folder.note({"event": "x", "text": "y" * 5000})
    assert RunFolder.reopen(folder.path).last_checkpoint(CELL).round == 2
    filler.unlink()
    folder.commit(CELL, checkpoint(3))
    assert folder.last_checkpoint(CELL).round == 3
    assert committed(folder) == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    ["state/cp_lora-r2/fold-0", *(pytest.param(part, marks=pytest.mark.slow) for part in ("journal", "adapters/"))],
)
def test_A12_a_disk_that_fills_anywhere_ends_the_run_and_it_resumes_to_the_same(
    federate, whole, monkeypatch, tmp_path, part
):
    reference, _ = whole
    flush, seen = os.fsync, []

    def full(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if f"/run/{part}" in path and "/sites/" not in path:
            seen.append(path)
            if len(seen) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left on device"):
            federate(TINY)
    assert not (tmp_path / "run" / "results.json").exists()
    resumed, _ = federate(TINY)
    assert tensors(resumed.path) == tensors(reference.path)
    ours, theirs = (each.read_json("results.json") for each in (resumed, reference))
    assert {part: ours[part] for part in NUMBERS} == {part: theirs[part] for part in NUMBERS}
