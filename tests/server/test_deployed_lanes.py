"""Two cells at a time in a deployment: a stop and a resumption, and what later studies take of the cells."""

import json
import os
import shutil

import pytest
from harness.commands import journal
from harness.deployed import ROOT, Command, Deployment, wait_for
from harness.tiny_study import changed
from test_same_result import SITES, THREE, cells_in_turn, numbers

from sahfl.config import Study, parse
from sahfl.run.folder import RunFolder
from sahfl.simulation.simulate import simulate

METHOD = {"method": "cp_lora", "rank": 2, "private_rank": 1, "stays": ["norm"], "local_steps": 3}
LOCAL = {"steps": 12, "batch_size": 2}
LONG = changed(THREE, finetune__methods=[METHOD], finetune__rounds=4, finetune__local=LOCAL, rounds__payload="int8")
"""With what a site keeps for each cell: a part of its own, and what rounding has left over."""
NAME = "cp_lora-r2-private1-stays-norm-local3"
CELLS = (f"{NAME}/fold-0", f"{NAME}/fold-1")


def changed_code(folder):
    """Where a site finds another sahfl: the same but for a line in what trains."""
    shutil.copytree(ROOT / "sahfl", folder / "sahfl", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "sahfl" / "training.py").open("a") as stream:
        stream.write("# another line\n")
    return os.pathsep.join(map(str, (folder, ROOT / "client", ROOT / "tests")))


def asked(deployment, site):
    """Methods that a site trained, by the number of the study that asked, as its own audit log has it."""
    lines = [json.loads(line) for line in (deployment.folder / "sites" / site / "audit.jsonl").read_text().splitlines()]
    trained = [line["details"] for line in lines if line["details"].get("asked") == "train"]
    studies = list(dict.fromkeys(line["details"]["study"] for line in lines if line["event"] == "study"))
    return [{part["method"] for part in trained if part["study"] == study} for study in studies]


@pytest.mark.slow
def test_a_server_stopped_in_two_cells_goes_on_in_both_and_later_studies_take_them_but_for_other_software(tmp_path):
    settings = LONG | {"common_random_numbers": False}  # as with hospitals, where each method has its own batches
    undisturbed = RunFolder.create(tmp_path / "simulated", parse(Study, settings, where="test"))
    simulate(undisturbed, workers=2, lanes=1)
    with Deployment(tmp_path / "deployed", sites=SITES, study=LONG) as deployment:
        run = deployment.submit()
        server = deployment.server()
        sites = {site: deployment.site(site) for site in SITES}
        wait_for(lambda: (deployment.status()["study"] or {"cells": {}})["cells"].keys() == set(CELLS), 240)
        for cell in CELLS:
            server.wait_for_line(f"event=round cell={cell} round=2 ", timeout_s=240)
        assert server.stop() == 0
        assert [line["event"] for line in journal(run)][-1] == "interrupted"
        rounds = cells_in_turn(run)
        assert {rounds.count((NAME, fold)) for fold in (0, 1)} <= {1, 2, 3}
        server = deployment.server("--until-done")
        assert server.process.wait(300) == 0, server.log
        assert numbers(run) == numbers(undisturbed.path)
        assert sorted(cells_in_turn(run)) == sorted(cells_in_turn(undisturbed.path))  # no round was done twice
        assert len(list((deployment.state / "cells").glob("*/*"))) == 3

        larger = deployment.submit("larger", finetune__methods=[METHOD, {"method": "lora_c", "rank": 2}])
        server = deployment.server("--until-done")
        assert server.process.wait(300) == 0, server.log
        assert [asked(deployment, site) for site in SITES[1:]] == [[{NAME}, {"lora_c-r2"}]] * 2
        assert json.loads((larger / "results.json").read_text())["cells"] == {"total": 5, "reused": 3}
        assert numbers(run).items() < numbers(larger).items()

        assert sites["sah_b"].stop() == 0
        more = {"PYTHONPATH": changed_code(tmp_path / "other"), "PYTHONSAFEPATH": "1"}  # not from where pytest runs
        other = Command(deployment.folder / "other.log", "sahfl_client", deployment.folder / "sah_b.yaml", **more)
        deployment.commands.append(other)
        again = deployment.submit("again")
        server = deployment.server("--until-done")
        assert server.process.wait(300) == 0, server.log
        assert [line["cell"] for line in journal(again, "reused")] == ["pretrain"]  # sah_b has no part in it
        assert not [line for line in journal(again, "round") if line["missing"] or line["refused"]]
        assert len(list((deployment.state / "cells").glob("*/*"))) == 7
