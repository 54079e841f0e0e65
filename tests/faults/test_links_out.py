"""Folders that somebody else made have no way out: no link in a run, an adapter, an export or a store is followed."""

import os
import shutil

import numpy as np
import pytest
from harness.finished_run import write_run
from harness.tiny_study import TINY, changed

from sahfl.adapters.files import save_tensors
from sahfl.adapters.folder import read_adapter
from sahfl.errors import AdapterError, RunError, SahflError, UnfitFile
from sahfl.export.folders import export
from sahfl.finished_run import load
from sahfl.prediction.exported import read_exported
from sahfl.prediction.networks import read_trained
from sahfl.regular_files import check_inside, check_links
from sahfl.run.cell_store import CellStore, Entry, Identity
from sahfl.run.folder import RunFolder

STUDY = changed(TINY, finetune__methods=[{"method": "cp_lora", "rank": 2}])
IDENTITY = Identity({"a": 1, "data": {}}, {"b": 2})
ENTRY = Entry({"a": np.ones(2, np.float32)}, [], {}, 1.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    write_run(path, STUDY, folds=1)
    return path


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "given" / "run")


def moved_out(path, *, relative=False):
    """Put a file or folder outside, a link in its place; the content stays what it was."""
    outside = path.parents[len(path.parts) - 1 - path.parts.index("given")] / "outside"
    outside.mkdir(exist_ok=True)
    path.rename(outside / path.name)
    path.symlink_to(os.path.relpath(outside / path.name, path.parent) if relative else outside / path.name)
    return outside / path.name


ADAPTER = "adapters/cp_lora-r2/fold-0"
OF_A_RUN = ["study.json", "base", "base/base.safetensors", "adapters", ADAPTER, f"{ADAPTER}/adapter_config.json"]


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("name", [*OF_A_RUN, f"{ADAPTER}/adapter_model.safetensors"])
def test_a_run_with_a_link_out_of_it_is_refused(run, name, relative):
    outside = moved_out(run / name, relative=relative)
    for read in (lambda: read_trained(run, method="cp_lora-r2", fold=0), lambda: RunFolder.reopen(run)):
        with pytest.raises(SahflError) as caught:
            read()
        about = f"{run / name}: leads by a link to {outside}, expected a place in {run}"
        assert str(caught.value) == f"{about}; put a copy in the place of the link, or delete the link"


@pytest.mark.parametrize("name", ["results.json", "journal.jsonl", "report.html", "state"])
def test_neither_a_report_nor_a_list_nor_a_load_reads_or_writes_over_a_link(sahfl, run, name):
    (run / name).symlink_to(run.parents[1] / "not-there-yet")
    code, out, err = sahfl("report", run)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {run / name}: leads by a link to ")
    with pytest.raises(UnfitFile, match="leads by a link to"):
        load(run)
    code, out, _ = sahfl("study", "list", "--runs", run.parent, "--json")
    assert (code, "refused: " in out) == (0, True)
    assert not (run.parents[1] / "not-there-yet").exists()


def test_a_run_may_be_a_link_itself_hold_links_to_itself_and_have_its_logs_at_a_device(run, tmp_path):
    (tmp_path / "short").symlink_to(run)
    (run / "latest").symlink_to("adapters")
    (run / "logs").mkdir(exist_ok=True)
    (run / "logs" / "sah_a.log").symlink_to("/dev/null")
    (run / "loop").symlink_to("loop")
    for path in (run, tmp_path / "short"):
        assert read_trained(path, method="cp_lora-r2", fold=0).folds == (0,)


def test_a_part_of_a_run_that_cannot_be_listed_is_named(run, monkeypatch):
    listed = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("adapters"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UnfitFile, match=r"adapters: cannot be listed; see who owns it"):
        RunFolder(run)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_by_itself_with_a_link_out_of_it_is_refused(finished, tmp_path, name):
    folder = shutil.copytree(finished / ADAPTER, tmp_path / "given" / "adapter")
    (tmp_path / "short").symlink_to(folder)
    assert read_adapter(tmp_path / "short").note.fold == 0
    moved_out(folder / name)
    with pytest.raises(AdapterError, match="leads by a link to"):
        read_adapter(folder)


@pytest.mark.parametrize("name", ["safetensors", "safetensors/config.json", "safetensors/network.safetensors"])
def test_an_export_with_a_link_out_of_it_is_refused(finished, tmp_path, name):
    (written,) = export(finished, tmp_path / "given" / "export", ["safetensors"], method="cp_lora-r2", fold=0)
    place = written.folder.parent
    assert read_exported(place).folds == (0,)
    moved_out(place / name)
    with pytest.raises(UnfitFile, match="leads by a link to"):
        read_exported(place)


@pytest.fixture
def store(tmp_path):
    made = CellStore(tmp_path / "given" / "cells")
    made.save(IDENTITY, ENTRY)
    return made


def test_an_entry_of_a_store_that_is_a_link_is_damaged_and_only_the_link_is_dropped(store, tmp_path):
    (path,) = (tmp_path / "given" / "cells").rglob("*.safetensors")
    outside = moved_out(path)
    with pytest.raises(AdapterError, match="is a link, expected a file"):
        store.find(IDENTITY)
    assert store.seconds(IDENTITY.kind) is None
    store.drop(IDENTITY)
    assert store.find(IDENTITY) is None
    assert outside.is_file()
    store.save(IDENTITY, ENTRY)
    assert store.find(IDENTITY) is not None


def test_a_folder_of_a_store_that_is_a_link_is_neither_read_written_nor_emptied(store, tmp_path):
    (path,) = (tmp_path / "given" / "cells").rglob("*.safetensors")
    outside = moved_out(path.parent)
    save_tensors(outside / "of-somebody-else.safetensors", {"a": np.ones(2, np.float32)})
    actions = [lambda: store.find(IDENTITY), lambda: store.save(IDENTITY, ENTRY), lambda: store.drop(IDENTITY)]
    for act in [*actions, lambda: store.delete(lambda content: True)]:
        with pytest.raises(UnfitFile, match="leads by a link to"):
            act()
    assert store.seconds(IDENTITY.kind) is None
    assert len(list(outside.iterdir())) == 2


def test_a_withdrawal_names_the_run_that_it_cannot_look_into(sahfl, run):
    moved_out(run / "base")
    code, out, err = sahfl("study", "withdraw", "sah_a", "--runs", run.parent)
    assert (code, out) == (2, "")
    assert "leads by a link to" in err


def test_a_folder_that_is_not_there_has_no_links(tmp_path):
    check_links(tmp_path / "missing")
    check_inside(tmp_path / "missing" / "file", tmp_path)
    assert issubclass(UnfitFile, SahflError)
    with pytest.raises(RunError):
        RunFolder.reopen(tmp_path / "missing")
