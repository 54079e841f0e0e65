"""Cells of earlier runs: taken where all that determines them is the same, and run again where anything is not."""

import dataclasses
import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from harness.in_process import Stop, stop_at
from harness.tiny_study import TINY, changed

from sahfl.cell_names import Pretraining
from sahfl.config import Study, parse
from sahfl.errors import AdapterError
from sahfl.events import Warned, listening
from sahfl.federation.requests import Requests
from sahfl.federation.server.reuse import Reuse
from sahfl.federation.server.roster import OTHER_SECRET
from sahfl.run import software
from sahfl.run.cell_store import CellStore, Entry, Identity
from sahfl.run.folder import RunFolder
from sahfl.task import SiteDescription

ADDED = {"method": "lora_c", "rank": 2}
LARGER = changed(TINY, finetune__methods=[*TINY["finetune"]["methods"], ADDED], name="larger")
SMALL = changed(TINY, finetune__methods=[{"method": "cp_lora", "rank": 2}], finetune__rounds=1)
PARTS = ("base", "methods", "comparisons", "sites")


def adapters(folder):
    return {
        str(path.relative_to(folder.path)): path.read_bytes()
        for path in sorted(folder.path.glob("adapters/*/*/*.safetensors"))
    }


def asked(grid, kind):
    """Stage and method of every request of a kind."""
    headers = [request.content["header"] for _, request, _ in grid.seen if request.metadata.message_type == kind]
    return {(header["stage"], header["method"]) for header in headers}


@pytest.mark.slow
def test_a_larger_grid_runs_its_new_cells_alone_and_ends_as_if_it_had_run_all(federate, tmp_path):
    cells = tmp_path / "cells"
    first, _ = federate(TINY, name="first", cells=cells)
    assert first.read_json("results.json")["cells"] == {"total": 5, "reused": 0}
    alone, _ = federate(LARGER, name="alone")
    larger, grid = federate(LARGER, name="larger", cells=cells, lanes=2)
    assert asked(grid, "train") == asked(grid, "evaluate") == {("finetune", "lora_c-r2")}
    results, expected = (folder.read_json("results.json") for folder in (larger, alone))
    assert results["cells"] == {"total": 7, "reused": 5}
    assert {part: results[part] for part in PARTS} == {part: expected[part] for part in PARTS}
    assert adapters(larger) == adapters(alone)
    assert len(results["rounds"]) == len(expected["rounds"])
    reused = [line["cell"] for line in larger.journal() if line["event"] == "reused"]
    assert sorted(reused) == sorted(
        ["pretrain", *(f"{method}/fold-{fold}" for method in ("zero_shot", "cp_lora-r2") for fold in (0, 1))]
    )
    again, grid = federate(LARGER, name="larger")  # the run holds what it took: it goes on without the store
    assert asked(grid, "train") == asked(grid, "evaluate") == set()
    assert adapters(again) == adapters(alone)


@pytest.fixture(scope="module")
def small(federate_once, tmp_path_factory):
    """A small study, and the folder of the cells that it kept."""
    cells = tmp_path_factory.mktemp("small") / "cells"
    return federate_once(SMALL, cells=cells)[0], cells


@pytest.fixture
def first(small, tmp_path):
    """That study, with a copy of its cells for this test."""
    shutil.copytree(small[1], tmp_path / "cells")
    return small[0]


@pytest.mark.slow
def test_a_damaged_cell_is_told_and_run_again(federate, first, tmp_path):
    entries = sorted((tmp_path / "cells").glob("*/*"))
    assert len(entries) == 3
    for entry in entries:
        content = bytearray(entry.read_bytes())
        content[-3] ^= 1
        entry.write_bytes(content)
    second, _ = federate(SMALL, name="second", cells=tmp_path / "cells")
    assert len([line for line in second.journal() if line["event"] == "damaged_cell"]) == 3
    assert second.read_json("results.json")["cells"]["reused"] == 0
    assert adapters(second) == adapters(first)
    third, _ = federate(SMALL, name="third", cells=tmp_path / "cells")
    assert third.read_json("results.json")["cells"] == {"total": 3, "reused": 3}


@pytest.mark.slow
def test_a_cell_in_which_a_site_was_missing_is_not_kept(federate, tmp_path):

    def refuse(site, request, reply):
        if request.metadata.message_type == "train" and site == "sah_b":
            reply.content["metrics"]["n_volumes"] = 0
        return reply

    federate(SMALL, change=refuse, cells=tmp_path / "cells")
    assert len(list((tmp_path / "cells").glob("*/*"))) == 1  # pretraining, where it was not asked


@pytest.mark.slow
def test_a_crash_while_a_cell_is_taken_leaves_it_to_be_taken_again(federate, tmp_path, monkeypatch):
    small = changed(TINY, finetune__methods=[{"method": "cp_lora", "rank": 2}])
    first, _ = federate(small, name="first", cells=tmp_path / "cells")
    commit = RunFolder.commit

    def crash(folder, cell, checkpoint):
        if cell == "cp_lora-r2/fold-1":
            raise KeyboardInterrupt
        commit(folder, cell, checkpoint)

    monkeypatch.setattr(RunFolder, "commit", crash)
    with pytest.raises(KeyboardInterrupt):
        federate(small, name="second", cells=tmp_path / "cells")
    monkeypatch.setattr(RunFolder, "commit", commit)
    second, grid = federate(small, name="second", cells=tmp_path / "cells")
    assert asked(grid, "train") == asked(grid, "evaluate") == set()
    results, expected = (folder.read_json("results.json") for folder in (second, first))
    assert results["cells"] == {"total": 3, "reused": 3}
    assert results["methods"] == expected["methods"]
    assert adapters(second) == adapters(first)


def describes_other(name, at):
    """A change under which a site describes itself with another software or secret."""

    def change(site, request, reply):
        if site == at and request.metadata.message_type == "query.describe":
            known = json.loads(reply.content["description"]["json"])
            reply.content["description"]["json"] = json.dumps(known | {name: "0123456789abcdef"})
        return reply

    return change


@pytest.mark.slow
def test_a_cell_of_other_software_at_a_site_is_run_again_and_what_the_site_had_no_part_in_is_taken(
    federate, first, tmp_path
):
    cells = tmp_path / "cells"
    second, grid = federate(SMALL, name="second", cells=cells, change=describes_other("software", "sah_b"))
    assert asked(grid, "train") == {("finetune", "cp_lora-r2")}
    assert second.read_json("results.json")["cells"] == {"total": 3, "reused": 1}
    third, grid = federate(SMALL, name="third", cells=cells, change=describes_other("software", "sah_b"))
    assert asked(grid, "train") == set()
    assert third.read_json("results.json")["cells"] == {"total": 3, "reused": 3}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["software", "batches"])
def test_other_software_or_another_secret_between_two_sessions_is_no_change_of_the_data_and_keeps_no_cell(
    federate, tmp_path, name
):
    cells, warnings = tmp_path / "cells", []
    with pytest.raises(Stop):
        federate(SMALL, cells=cells, change=stop_at(13), lanes=2)  # pretraining is done, fine-tuning has begun
    assert len(list(cells.glob("*/*"))) == 1
    with listening(lambda event: warnings.append(event.text) if isinstance(event, Warned) else None):
        folder, _ = federate(SMALL, cells=cells, change=describes_other(name, "sah_b"), lanes=2)
    assert [text for text in warnings if OTHER_SECRET in text] == [f"sah_b: {OTHER_SECRET}"] * (name == "batches")
    assert not [line for line in folder.journal() if line["event"] == "site_out"]
    assert all(not line["missing"] for line in folder.journal() if line["event"] == "round")
    named = [line[name] for line in folder.journal() if line["event"] == "described" and line["site"] == "sah_b"]
    assert len(named) == len(set(named)) == 2
    assert len(list(cells.glob("*/*"))) == 1


# --- what a cell is --------------------------------------------------------------------------------------------------


def description(site, data="0" * 16, software="0" * 16, batches="0" * 16):
    counts = {"n_volumes": 4, "n_patients": 4, "n_positive": 4, "volume_ml": 40.0, "n_refused": 0, "confirmations": 0}
    folds = {"fold_sizes": (2, 2), "fold_positive": (2, 2)}
    hashes = {"data": data, "software": software, "batches": batches}
    return SiteDescription(site=site, source="phantom", findings={}, **hashes, **counts, **folds)


SITES = {site: description(site) for site in TINY["data"]["sites"]}


def identity(settings=TINY, *, method=1, fold=0, sites=SITES, base="b" * 64):
    study = parse(Study, settings, where="test")
    chosen = Pretraining() if method is None else study.finetune.methods[method]
    cells = Reuse(None, Requests(study, study.fingerprint(), base), RunFolder(Path("no-run")))
    return cells._identity(chosen, fold, sites)


CP = TINY["finetune"]["methods"][1]
OTHER = {
    "seed": {"settings": changed(TINY, seed=4)},
    "views": {"settings": changed(TINY, views__spacing_mm=3.5)},
    "model": {"settings": changed(TINY, model={"size": "base"})},
    "rounds": {"settings": changed(TINY, finetune__rounds=3)},
    "steps": {"settings": changed(TINY, finetune__local={"steps": 3, "batch_size": 2})},
    "folds": {"settings": changed(TINY, finetune__folds=3)},
    "sites": {"settings": changed(TINY, finetune__sites=["sah_a", "sah_b"])},
    "learning-rate": {
        "settings": changed(TINY, finetune__methods=[{"method": "zero_shot"}, CP | {"learning_rate": 0.1}])
    },
    "label": {"settings": changed(TINY, finetune__methods=[{"method": "zero_shot"}, CP | {"label": "x"}])},
    "place": {"settings": changed(TINY, finetune__methods=[{"method": "zero_shot"}, CP | {"trained_at": "sah_a"}])},
    "repeat": {"settings": changed(TINY, finetune__methods=[{"method": "zero_shot"}, CP | {"repeat": 2}])},
    "payload": {"settings": changed(TINY, rounds__payload="int8")},
    "bound": {"settings": changed(TINY, rounds__most_norm=2.0)},
    "replicates": {"settings": changed(TINY, evaluation__replicates=200)},
    "hostile": {"settings": changed(TINY, hostile={"sah_b": "sign_flip"})},
    "fold": {"fold": 1},
    "base": {"base": "c" * 64},
    "data": {"sites": SITES | {"sah_c": description("sah_c", data="1" * 16)}},
    "a-site-s-batches": {"sites": SITES | {"sah_c": description("sah_c", batches="1" * 16)}},
    "a-site-s-software": {"sites": SITES | {"sah_c": description("sah_c", software="1" * 16)}},
}


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER.keys())
def test_whatever_changes_a_result_makes_another_cell(change):
    assert identity(**change).key != identity().key


@pytest.mark.parametrize("package", ["torch", "monai", "numpy", "scipy"])
def test_another_version_of_what_computes_makes_another_cell(monkeypatch, package):
    known = identity().key
    monkeypatch.setattr(software, "version", lambda name: "0.0" if name == package else version(name))
    assert identity().key != known


SAME = {
    "name": changed(TINY, name="other"),
    "deadline": changed(TINY, rounds__deadline_s=5.0),
    "quorum": changed(TINY, rounds__quorum=1.0),
    "another-method": changed(TINY, finetune__methods=[*TINY["finetune"]["methods"], ADDED]),
}


@pytest.mark.parametrize("settings", SAME.values(), ids=SAME.keys())
def test_what_changes_no_result_of_a_whole_cell_leaves_it_what_it_was(settings):
    assert identity(settings).key == identity().key


def test_the_base_does_not_depend_on_the_grid_nor_zero_shot_on_the_training():
    other = changed(LARGER, finetune__rounds=5, finetune__sites=["sah_a"])
    assert identity(other, method=None, fold=-1).key == identity(method=None, fold=-1).key
    assert identity(changed(TINY, finetune__rounds=5), method=0).key == identity(method=0).key


def test_code_that_computes_makes_another_cell_and_a_report_s_does_not(tmp_path):
    def written(**files):
        package = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, text in ({"training": "a = 1", "report/page": "b = 1"} | files).items():
            path = package / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return software.code_of(package)

    assert written() == written() == written(**{"report/page": "b = 2"})
    assert len({written(), written(training="a = 2"), written(**{"data/ct": ""}), written(training="")}) == 4


def test_without_one_of_its_sites_a_cell_has_no_identity():
    assert identity(sites={site: known for site, known in SITES.items() if site != "sah_c"}) is None


# --- the store -------------------------------------------------------------------------------------------------------

IDENTITY = Identity({"seed": 1}, {"method": "cp"})


def entry(seconds=2.0, **state):
    line = {"event": "round", "stage": "finetune", "method": "cp", "fold": 0, "round": 1, "committed": True, "used": []}
    return Entry(state, [line], {"sums": {"sah_a": [0.1, 1 / 3]}, "missing": {}}, seconds)


@pytest.mark.parametrize(
    "state", [{}, {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}], ids=["zero-shot", "trained"]
)
def test_what_is_found_is_what_was_kept(tmp_path, state):
    store, kept = CellStore(tmp_path), entry(**state)
    assert store.find(IDENTITY) is None
    store.save(IDENTITY, kept)
    found = store.find(IDENTITY)
    np.testing.assert_equal(dataclasses.asdict(found), dataclasses.asdict(kept))
    store.drop(IDENTITY)
    assert store.find(IDENTITY) is None


def test_an_entry_under_another_name_is_not_taken_for_it(tmp_path):
    store, other = CellStore(tmp_path), Identity({"seed": 2}, {"method": "cp"})
    store.save(IDENTITY, entry())
    store._path(IDENTITY).rename(store._path(other))
    with pytest.raises(AdapterError, match="does not match its name"):
        store.find(other)


def test_the_time_of_a_kind_is_the_median_of_its_cells_whatever_their_seeds(tmp_path):
    store = CellStore(tmp_path)
    assert store.seconds(IDENTITY.kind) is None
    for seed, seconds in enumerate((1.0, 9.0, 2.0)):
        store.save(Identity({"seed": seed}, IDENTITY.kind), entry(seconds))
    store.save(Identity({"seed": 1}, {"method": "full"}), entry(100.0))
    assert store.seconds(IDENTITY.kind) == 2.0
