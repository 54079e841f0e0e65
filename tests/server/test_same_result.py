"""A study gives the same numbers, whatever carries its messages."""

import json

from harness.commands import journal
from harness.deployed import Deployment
from harness.tiny_study import TINY, changed

from sahfl.adapters.files import load_tensors
from sahfl.config import Study, parse
from sahfl.run.folder import RunFolder
from sahfl.simulation.simulate import simulate

SITES = ("tbi_a", "sah_a", "sah_b")
THREE = changed(TINY, pretrain__sites=["tbi_a"], finetune__sites=["sah_a", "sah_b"])


def numbers(run):
    paths = [*run.glob("adapters/**/*.safetensors"), *run.glob("base/*.safetensors")]
    states = {str(path.relative_to(run)): load_tensors(path)[0] for path in sorted(paths)}
    return {path: {name: value.tobytes() for name, value in state.items()} for path, state in states.items()}


def results(run):
    found = json.loads((run / "results.json").read_text())
    return found["base"], found["methods"], found["comparisons"]


def cells_in_turn(run):
    """Methods and folds of the rounds of fine-tuning, in the order in which they were committed."""
    return [(line["method"], line["fold"]) for line in journal(run, "round") if line["stage"] == "finetune"]


def test_a_server_of_two_lanes_ends_in_the_adapters_and_results_of_a_simulation_of_one_bit_for_bit(tmp_path):
    settings = THREE | {"common_random_numbers": False}  # as with hospitals, where each method has its own batches
    simulated = RunFolder.create(tmp_path / "simulated", parse(Study, settings, where="test"))
    simulate(simulated, workers=2, lanes=1)
    with Deployment(tmp_path / "deployed", sites=SITES, study=THREE) as deployment:
        run = deployment.submit()
        server = deployment.server("--until-done")
        sites = [deployment.site(site) for site in SITES]
        assert server.process.wait(300) == 0, server.log
        assert [site.stop() for site in sites] == [0, 0, 0]
        assert len(list((deployment.state / "cells").glob("*/*.safetensors"))) == 5  # all of them, for later studies
    assert len(numbers(run)) == 3
    assert numbers(run) == numbers(simulated.path)
    assert results(run) == results(simulated.path)
    assert cells_in_turn(run) != sorted(cells_in_turn(run))
    assert cells_in_turn(simulated.path) == sorted(cells_in_turn(simulated.path))
