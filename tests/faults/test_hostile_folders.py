"""Folders that came from somebody else end in one error, whatever their files hold: runs, adapters, exports, cells."""

import json
import os
import random
import shutil

import numpy as np
import pytest
from harness.finished_run import write_run
from harness.made_run import make_run, results_of
from harness.tiny_study import TINY, changed

from sahfl.adapters import digest
from sahfl.adapters.files import save_tensors
from sahfl.adapters.folder import read_adapter
from sahfl.adapters.peft import from_peft
from sahfl.errors import AdapterError, SahflError
from sahfl.export.folders import export
from sahfl.prediction.exported import read_exported
from sahfl.prediction.networks import read_trained
from sahfl.run.cell_store import CellStore, Identity, hash_of
from sahfl.run.folder import RunFolder, _seal

STUDY = changed(TINY, finetune__methods=[{"method": "cp_lora", "rank": 2}, {"method": "lora_c", "rank": 1}])
CONTENTS = {
    "empty": b"",
    "null": b"null",
    "list": b"[1, 2]",
    "text": b'"../../etc/passwd"',
    "deep": b"[" * 100_000,
    "deep-mapping": b'{"a":' * 100_000,
    "long-number": b"1" * 5000,
    "no-text": b"\xff\xfe\x00",
    "mapping": b'{"sahfl": {}, "name": "x", "sums": 1}',
    "half-a-tensor": (2**60).to_bytes(8, "little") + b"{}",
}


def replaced(path, content):
    path.unlink()
    path.write_bytes(content)


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def huge(path):
    path.unlink()
    with path.open("wb") as stream:
        stream.truncate(2**41)


def loop(path):
    path.unlink()
    path.symlink_to(path.name)


def folder(path):
    path.unlink()
    path.mkdir()


CHANGES = {name: (lambda path, content=content: replaced(path, content)) for name, content in CONTENTS.items()}
CHANGES |= {"pipe": pipe, "device": device, "huge": huge, "loop": loop, "folder": folder}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    write_run(path, STUDY, folds=1)
    return path


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


READ = ["study.json", "base/base.safetensors", "adapters/cp_lora-r2/fold-0/adapter_model.safetensors"]
READ += ["adapters/cp_lora-r2/fold-0/adapter_config.json"]


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_run_with_a_hostile_file_segments_nothing(run, name, change):
    change(run / name)
    with pytest.raises(SahflError) as caught:
        read_trained(run, method="cp_lora-r2", fold=0)
    assert str(run) in str(caught.value)


@pytest.mark.parametrize("name", ["study.json", "results.json", "journal.jsonl"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_report_of_a_hostile_run_is_one_error(sahfl, run, name, change):
    (run / name).touch()
    change(run / name)
    code, out, err = sahfl("report", run)
    assert (code, out) == (2, "")
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1


def other_types(value):
    """The same JSON value with one part of another type, for each of its parts but the deepest."""
    yield from ([], {}, "x", 1, -1.5, None, True) if not isinstance(value, (dict, list)) else ([], {}, "x", 1, None)
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(parts)[:40]:
        for changed_part in other_types(part):
            whole = value.copy()
            whole[key] = changed_part
            yield whole
    for key in list(value)[:40] if isinstance(value, dict) else ():
        yield {name: part for name, part in value.items() if name != key}


def survives(path, read, *, times=300):
    """Write a JSON file with each part in another type; reading gives a result or an error of sahfl."""
    whole = json.loads(path.read_bytes())
    changed_values = list(other_types(whole))
    refused = 0
    for value in random.Random(5).sample(changed_values, min(times, len(changed_values))):
        path.write_text(json.dumps(value))
        try:
            read()
        except SahflError:
            refused += 1
    assert refused > times // 20
    path.write_text(json.dumps(whole))
    read()


def test_settings_of_other_types_are_refused(run):
    survives(run / "study.json", lambda: RunFolder(run).study())


def test_an_adapter_s_note_of_other_types_is_refused(run):
    path = run / "adapters" / "cp_lora-r2" / "fold-0"
    survives(path / "adapter_config.json", lambda: read_trained(run, method="cp_lora-r2", fold=0), times=60)
    survives(path / "adapter_config.json", lambda: read_adapter(path))


def test_an_evaluation_of_other_types_is_refused(tmp_path):
    made, study = make_run(tmp_path / "run", [], lambda method, site, fold: [0.5] * 12)
    path = made.path / "evaluation" / "zero_shot" / "fold-0.json"
    assert path.is_file()
    survives(path, lambda: results_of(made, study), times=60)


@pytest.mark.parametrize("used", [1, [1], [{}], [{"site": 1}], {"site": "a"}])
def test_lines_of_a_journal_with_other_types_count_as_unreadable(tmp_path, used):
    (tmp_path / "journal.jsonl").write_text(
        "\n".join(
            json.dumps(line)
            for line in (
                {"event": "round", "round": 1, "used": used},
                {"event": "round", "round": "1"},
                {"event": "round", "round": True},
                {"event": "reused"},
                {"event": "rate_chosen", "method": "a", "fold": [], "rate": 1},
                {"event": "started", "at": "yesterday"},
                {"event": "started", "at": "2026-01-01T00:00:00"},
                {"event": "started", "at": "2026-01-01T00:00:00+00:00"},
            )
        )
    )
    folder = RunFolder(tmp_path)
    assert [line["event"] for line in folder.journal()] == ["started"]
    assert folder.unreadable_lines() == 7


@pytest.mark.parametrize("record", [None, [], {}, {"event": "round"}, {"event": "round", "round": "../../1"}])
def test_a_checkpoint_whose_record_is_no_round_is_damaged(tmp_path, record):
    folder, state = RunFolder(tmp_path), {"a": np.zeros(2, np.float32)}
    path = tmp_path / "state" / "cell" / "round-00001.safetensors"
    save_tensors(path, state, {"cell": "cell", "record": record, "seal": _seal("cell", record)})
    assert folder.last_checkpoint("cell") is None
    assert not path.exists()


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"rounds": 1},
        {"rounds": [1]},
        {"rounds": [], "evaluations": [], "seconds": 1, "stays": None},
        {"rounds": [], "evaluations": {}, "seconds": "x", "stays": None},
    ],
)
def test_a_kept_cell_of_another_form_is_damaged(tmp_path, more):
    store, identity, state = CellStore(tmp_path), Identity({"a": 1}, {"b": 2}), {"a": np.zeros(2, np.float32)}
    body = {"identity": identity.content, "sha256": digest(state)} | more
    path = tmp_path / hash_of(identity.kind)[:16] / f"{identity.key}.safetensors"
    save_tensors(path, state, {"body": body, "seal": hash_of(body)})
    with pytest.raises(AdapterError, match="its record is not the one of a cell"):
        store.find(identity)
    store.seconds(identity.kind)


def test_tensors_of_peft_in_another_shape_are_refused():
    state = {"base_model.model.a.lora_B.weight": np.zeros((2, 3, 4), np.float32)}
    with pytest.raises(AdapterError, match=r"has shape \(2, 3, 4\), expected \(out, rank, 1"):
        from_peft(state, without_magnitude=frozenset())


@pytest.mark.parametrize("name", ["config.json", "network.safetensors"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_an_export_with_a_hostile_file_segments_nothing(exported, tmp_path, name, change):
    place = shutil.copytree(exported, tmp_path / "export")
    change(place / "safetensors" / name)
    with pytest.raises(SahflError):
        read_exported(place)


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    place = tmp_path_factory.mktemp("export") / "export"
    (written,) = export(finished, place, ["safetensors"], method="cp_lora-r2", fold=0)
    return written.folder.parent
