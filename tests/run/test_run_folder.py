"""A run on disk: opening, the lock, the journal, and what a crash at the worst moment leaves."""

import json
import os
import re
import resource
import subprocess
import sys

import numpy as np
import pytest
from harness.tiny_study import TINY, changed

from sahfl import __version__
from sahfl.adapters import digest
from sahfl.config import Study, parse
from sahfl.errors import ConfigError, RunError, StorageError, VersionsDiffer
from sahfl.run.folder import Checkpoint, RunFolder
from sahfl.run.session import open_session

STUDY = parse(Study, TINY, where="test")
CELL = "cp_lora-r2/fold-0"
ROUND = {"event": "round", "stage": "finetune", "method": "cp_lora-r2", "fold": 0, "committed": True, "used": []}


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", STUDY)


def checkpoint(round_, value=None):
    state = {"a": np.full((2, 2), round_ if value is None else value, np.float32)}
    return Checkpoint(round_, state, ROUND | {"round": round_, "loss": 0.1 + round_})


def files(folder, cell=CELL):
    return sorted(path.name for path in (folder.path / "state" / cell).iterdir())


def lines(folder):
    return (folder.path / "journal.jsonl").read_text().splitlines()


# --- opening --------------------------------------------------------------------------------------------------------


def test_a_run_reopens_with_the_settings_that_it_was_created_with(folder):
    again = RunFolder.reopen(folder.path)
    assert again.study() == STUDY
    assert again.study().fingerprint() == STUDY.fingerprint()


def test_an_empty_folder_may_become_a_run(tmp_path):
    (tmp_path / "empty").mkdir()
    assert RunFolder.create(tmp_path / "empty", STUDY).study() == STUDY


@pytest.mark.parametrize("kind", ["folder with a file", "file"])
def test_a_folder_that_holds_something_is_refused_with_a_hint_and_left_alone(tmp_path, kind):
    path = tmp_path / "run"
    content = path / "thesis.txt" if kind == "folder with a file" else path
    content.parent.mkdir(exist_ok=True)
    content.write_text("mine")
    with pytest.raises(RunError, match=f"^{re.escape(str(path))}: is not empty; name another folder \\(out\\)$"):
        RunFolder.create(path, STUDY)
    assert content.read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_refused_with_the_reason(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"run: cannot be written \(Not a directory\); name another folder \(out\)$"):
        RunFolder.create(tmp_path / "file" / "run", STUDY)


def test_a_folder_without_settings_holds_no_run(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(RunError, match=r"holds no run to resume \(study.json is missing\)$"):
            RunFolder.reopen(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"name": "tiny"'])
def test_damaged_settings_are_refused_naming_the_file(folder, content):
    (folder.path / "study.json").write_bytes(content)
    with pytest.raises(RunError, match=r"study.json: cannot be read as settings$"):
        RunFolder.reopen(folder.path)


def test_settings_of_another_version_name_what_does_not_fit(folder):
    (folder.path / "study.json").write_text(json.dumps(changed(TINY, seed=-1)))
    with pytest.raises(ConfigError, match=r"study.json: 1 problem\n  seed: "):
        RunFolder.reopen(folder.path)


# --- lock -----------------------------------------------------------------------------------------------------------

HOLD = (
    "import sys\n"
    "from pathlib import Path\n"
    "from sahfl.run.folder import RunFolder\n"
    "with RunFolder(Path(sys.argv[1])).lock():\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()\n"
)


def test_a_run_that_another_process_works_on_is_refused_until_that_process_ends_however_it_ends(folder):
    command = [sys.executable, "-c", HOLD, folder.path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=r"run: another process works on this run; wait for it, or stop it$"):
            folder.lock().__enter__()
        other.kill()
    with folder.lock():
        pass


def test_a_lock_is_given_back_when_the_block_ends(folder):
    for _ in range(2):
        with folder.lock():
            pass


OTHER_VERSION = r"ran with sahfl 9\.9\.9, this is sahfl .*; install that version to go on, or archive the run"


def test_a_run_of_another_version_is_not_continued_and_its_versions_are_named(folder):
    open_session(folder)
    open_session(folder)  # of this version
    assert {line["sahfl"] for line in folder.journal()} == {__version__}
    folder.note({"event": "resumed", "sahfl": "9.9.9"})
    n_lines = len(folder.journal())
    with pytest.raises(VersionsDiffer, match=OTHER_VERSION):
        open_session(folder)
    assert len(folder.journal()) == n_lines
    assert RunFolder.reopen(folder.path).study() == STUDY  # a report or a prediction only reads


def test_settings_that_only_another_version_has_are_refused_by_the_versions(folder):
    path = folder.path / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"of_a_newer_version": 1}))
    with pytest.raises(ConfigError, match="of_a_newer_version"):
        RunFolder.reopen(folder.path)
    folder.note({"event": "started", "sahfl": "9.9.9"})
    with pytest.raises(VersionsDiffer, match=OTHER_VERSION):
        RunFolder.reopen(folder.path)


# --- journal --------------------------------------------------------------------------------------------------------


def test_notes_come_back_in_order(folder):
    assert folder.journal() == []
    records = [{"event": "a", "text": "größer\u2028\n[red]"}, {"event": "b", "n": [1, 2.5, None]}]
    for record in records:
        folder.note(record)
    assert folder.journal() == records
    assert len(lines(folder)) == 2


@pytest.mark.parametrize("torn", [b'{"event": "rou', b"\x00\x00\x00", b"\xff\xfe{", b'{"event": "x"'])
def test_a_torn_last_line_is_ignored_and_the_next_note_starts_on_a_new_line(folder, torn):
    folder.note({"event": "started"})
    with (folder.path / "journal.jsonl").open("ab") as stream:
        stream.write(torn)
    again = RunFolder.reopen(folder.path)
    assert again.journal() == [{"event": "started"}]
    again.note({"event": "resumed"})
    again.note({"event": "finished"})
    assert [line["event"] for line in again.journal()] == ["started", "resumed", "finished"]
    assert again.unreadable_lines() == 1


def test_lines_that_are_no_event_are_left_out_and_counted(folder):
    assert folder.unreadable_lines() == 0
    (folder.path / "journal.jsonl").write_bytes(
        b'{"event": "started"}\n\n[1]\nnull\n{"event": 3}\n{}\n\xff\n{"event": "b"}\n'
    )
    assert [line["event"] for line in folder.journal()] == ["started", "b"]
    assert folder.unreadable_lines() == 5


# --- checkpoints ----------------------------------------------------------------------------------------------------


def test_the_last_two_checkpoints_are_kept_and_each_round_is_in_the_journal_with_its_hash(folder):
    for round_ in (1, 2, 3):
        folder.commit(CELL, checkpoint(round_))
    assert files(folder) == ["round-00002.safetensors", "round-00003.safetensors"]
    expected = [checkpoint(r).record | {"sha256": digest(checkpoint(r).state)} for r in (1, 2, 3)]
    assert folder.journal() == expected
    last = folder.last_checkpoint(CELL)
    assert (last.round, last.record) == (3, expected[-1])
    assert np.array_equal(last.state["a"], checkpoint(3).state["a"])


def test_a_cell_without_a_checkpoint_has_none(folder):
    assert folder.last_checkpoint(CELL) is None


def test_cells_do_not_see_each_other_s_checkpoints(folder):
    folder.commit("pretrain", checkpoint(4))
    assert folder.last_checkpoint(CELL) is None
    assert folder.last_checkpoint("pretrain").round == 4


def test_a_journal_line_lost_between_checkpoint_and_journal_is_added_once(folder):
    folder.commit(CELL, checkpoint(1))
    folder.commit(CELL, checkpoint(2))
    (folder.path / "journal.jsonl").write_text(lines(folder)[0] + "\n")
    for _ in range(3):
        assert RunFolder.reopen(folder.path).last_checkpoint(CELL).round == 2
    assert [line["round"] for line in folder.journal()] == [1, 2]


def test_a_line_of_another_cell_with_equal_tensors_does_not_stand_for_the_lost_one(folder):
    folder.commit("pretrain", checkpoint(1))
    other = checkpoint(1)
    folder.commit(CELL, Checkpoint(1, other.state, other.record | {"fold": 1}))
    (folder.path / "journal.jsonl").write_text(lines(folder)[0] + "\n")
    folder.last_checkpoint(CELL)
    assert [line.get("fold") for line in folder.journal()] == [0, 1]


@pytest.mark.parametrize("damage", ["tensor", "header", "empty", "half"])
def test_a_damaged_checkpoint_is_noted_and_the_one_before_is_used(folder, damage):
    folder.commit(CELL, checkpoint(1))
    folder.commit(CELL, checkpoint(2))
    newest = folder.path / "state" / CELL / "round-00002.safetensors"
    content = newest.read_bytes()
    flipped = bytearray(content)
    flipped[-1 if damage == "tensor" else 10] ^= 1
    newest.write_bytes({"empty": b"", "half": content[: len(content) // 2]}.get(damage, bytes(flipped)))
    assert folder.last_checkpoint(CELL).round == 1
    assert files(folder) == ["round-00001.safetensors"]
    assert folder.journal()[-1] == {"event": "damaged_checkpoint", "cell": CELL, "file": "round-00002.safetensors"}


def test_the_temporary_file_of_a_crash_is_no_checkpoint(folder):
    folder.commit(CELL, checkpoint(1))
    (folder.path / "state" / CELL / "round-00002.safetensors.123.tmp").write_bytes(b"half")
    assert folder.last_checkpoint(CELL).round == 1


@pytest.fixture
def small_files():
    """Files of more than 4 kB cannot be written, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_at_a_commit_leaves_the_old_checkpoint_and_no_journal_line(folder, small_files):
    folder.commit(CELL, checkpoint(1))
    big = Checkpoint(2, {"a": np.ones(5000, np.float32)}, checkpoint(2).record)
    with pytest.raises(StorageError, match=r"cannot be written \(File too large\); what was committed is whole"):
        folder.commit(CELL, big)
    assert files(folder) == ["round-00001.safetensors"]
    again = RunFolder.reopen(folder.path)
    assert again.last_checkpoint(CELL).round == 1
    assert [line["round"] for line in again.journal()] == [1]


def test_a_full_disk_at_the_journal_line_loses_nothing_that_was_committed(folder, small_files):
    folder.commit(CELL, checkpoint(1))
    # 100 bytes are left for the next line: it is torn
    with (folder.path / "journal.jsonl").open("ab") as stream:
        stream.write(b" " * (3900 - stream.tell()) + b"\n")
    with pytest.raises(StorageError, match=r"cannot be written \(File too large\); what was committed is whole"):
        folder.commit(CELL, checkpoint(2))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    again = RunFolder.reopen(folder.path)
    assert again.last_checkpoint(CELL).round == 2
    assert [line["round"] for line in again.journal()] == [1, 2]
    assert os.path.getsize(folder.path / "journal.jsonl") > 4000


# --- results --------------------------------------------------------------------------------------------------------


def test_results_come_back_and_what_was_not_written_is_none(folder):
    assert folder.evaluation("zero_shot/fold-0") == {"sums": {}, "missing": {}}
    known = {"sums": {"sah_b": [0.1, 2.0], "sah_a": [1.5]}, "missing": {}}
    folder.write_evaluation("zero_shot/fold-0", known)
    assert folder.evaluation("zero_shot/fold-0") == known
    text = (folder.path / "evaluation" / "zero_shot" / "fold-0.json").read_text()
    assert text == '{"missing":{},"sums":{"sah_a":[1.5],"sah_b":[0.1,2.0]}}\n'
    assert folder.read_json("results.json") is None


def test_results_that_are_not_finite_are_never_written(folder):
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write_json("results.json", {"dice": float("nan")})
    assert folder.read_json("results.json") is None


@pytest.mark.parametrize("content", [b"", b'{"sums": ', b"\xff"])
def test_a_damaged_result_is_refused_with_what_to_do(folder, content):
    (folder.path / "results.json").write_bytes(content)
    with pytest.raises(RunError, match=r"results.json: is damaged; delete it to have it made again$"):
        folder.read_json("results.json")
