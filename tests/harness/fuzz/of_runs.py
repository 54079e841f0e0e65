"""Fuzzed folders of runs, of adapters and of finished cells, and the status of a server."""

import json
from pathlib import Path

import numpy as np

from harness.fuzz.of_sites import STATE
from harness.fuzz.outcome import Reader
from harness.made_run import around, make_run, results_of
from harness.tiny_study import TINY
from sahfl.adapters import digest
from sahfl.adapters.files import load_tensors, save_tensors
from sahfl.adapters.folder import CONFIG, TENSORS, AdapterNote, read_adapter
from sahfl.commands.status import read_status
from sahfl.config import Study, parse
from sahfl.report.form import check_results
from sahfl.report.page import render_page
from sahfl.report.paper_files import comparison_rows, method_rows
from sahfl.report.summary import conclude
from sahfl.run.cell_store import CellStore, Entry, Identity
from sahfl.run.folder import Checkpoint, RunFolder

CELL = "cp_lora-r2/fold-0"
ROUND = {"event": "round", "stage": "finetune", "method": "cp_lora-r2", "fold": 0, "committed": True}
ROUND |= {"used": [{"site": "bern"}], "at": "2026-11-30T07:00:00+00:00"}


def run(folder: Path) -> Reader:
    """The folder of a run in the middle of a study: settings, journal, checkpoints, an evaluation."""
    made = RunFolder.create(folder / "run", parse(Study, TINY, where="fuzz"))
    for round_ in (1, 2):
        made.commit(CELL, Checkpoint(round_, STATE, ROUND | {"round": round_}))
    made.note({"event": "rate_chosen", "method": "cp_lora-r2", "fold": 0, "rate": 0.005})
    made.write_evaluation(CELL, {"sums": {"bern": [1.0, 2.0]}, "missing": {"graz": "worn out"}})
    whole = {path: path.read_bytes() for path in made.path.rglob("*") if path.is_file()}

    def read(name: str) -> None:
        try:
            RunFolder.reopen(made.path)
            made.journal()
            made.rates("cp_lora-r2")
            made.unreadable_lines()
            made.evaluation(CELL)
            made.last_checkpoint(CELL)
        finally:
            for path, content in whole.items():  # a damaged checkpoint is deleted, and the journal has a line for it
                path.write_bytes(content)

    return Reader.of_folder(made.path, read)


def results(folder: Path) -> Reader:
    """The results of a finished run, and the page and tables that are made of them."""
    made, study = make_run(folder / "run", [], around(lambda id_, site, fold: 0.5 if "lora" in id_ else 0.4),
                           methods=({"method": "zero_shot"}, {"method": "cp_lora", "rank": 2}))  # fmt: skip
    made.write_json("results.json", results_of(made, study))

    def read(name: str) -> None:
        found = made.results()
        check_results(found)
        conclude(found)
        list(method_rows(found)), list(comparison_rows(found))
        render_page(found, (), made.path)

    return Reader.of_folder(made.path, read, "results.json")


def adapters(folder: Path) -> Reader:
    """An adapter folder, a file of tensors, and an entry of the store of finished cells."""
    method = {"method": "cp_lora", "rank": 2}
    note = AdapterNote.model_validate(
        {"method": method, "adapted": (), "over_full_rank": (), "without_magnitude": (), "weights": ()}
        | {"base_sha256": "0" * 64, "sha256": digest(STATE), "parameters": 10}
    )
    save_tensors(folder / TENSORS, STATE)
    (folder / CONFIG).write_text(json.dumps({"sahfl": note.model_dump(mode="json")}))
    save_tensors(
        folder / "base.safetensors", {f"w{i}": np.ones((3, 4), np.float32) for i in range(20)}, {"sha256": "x"}
    )
    store, identity = CellStore(folder / "cells"), Identity({"study": "x"}, {"kind": 1})
    line = {"event": "round", "stage": "finetune", "method": "m", "fold": 0, "round": 1, "committed": True, "used": []}
    store.save(identity, Entry(STATE, [line], {"": {}}, 1.5))
    (entry,) = (folder / "cells").rglob("*.safetensors")

    def read(name: str) -> None:
        read_adapter(folder)
        load_tensors(folder / "base.safetensors")
        store.seconds({"kind": 1})
        store.find(identity)

    names = (TENSORS, CONFIG, "base.safetensors", entry.relative_to(folder).as_posix())
    return Reader.of_folder(folder, read, *names)


def status(folder: Path) -> Reader:
    """The status file of a server."""
    content = {"schema": 3, "server": {"listening": "127.0.0.1:8443", "since": "2026-11-30T07:00:00+00:00"}}
    content |= {"study": {"name": "x", "sites": ["bern"], "cells": {}}, "sites": {"bern": {"state": "connected"}}}
    (folder / "status.json").write_text(json.dumps(content))
    return Reader.of_folder(folder, lambda name: read_status(folder))
