"""Training from scratch: random weights in the place of the base, and a number of rounds of its own."""

import json

import numpy as np
import pytest
from harness.tiny_study import TINY, changed

from sahfl.adapters import exchanged
from sahfl.config import Study, WeightTuning, parse
from sahfl.federation import protocol
from sahfl.networks import fine_tuned_network, whole_network
from sahfl.progress import RunProgress

STUDY = parse(Study, TINY, where="test")
SCRATCH = {"method": "full", "start": "scratch", "rounds": 1}
SETTINGS = changed(TINY, pretrain__rounds=1, finetune__methods=[{"method": "zero_shot"}, {"method": "full"}, SCRATCH])


def start(**settings):
    base = {name: np.ones_like(value) for name, value in whole().items()}
    method = WeightTuning(**{"method": "full"} | settings)
    return exchanged.read(fine_tuned_network(STUDY.views, STUDY.model, base, method, STUDY.seed))


def whole():
    return exchanged.read(whole_network(STUDY.views, STUDY.model, STUDY.seed))


def equal(one, other):
    return all(np.array_equal(value, other[name]) for name, value in one.items())


def test_it_starts_from_random_weights_that_differ_from_the_base_the_pretraining_and_between_repeats():
    assert all((value == 1).all() for value in start().values())
    first = start(start="scratch")
    assert first.keys() == whole().keys()
    assert equal(first, start(start="scratch"))
    for other in (start(), whole(), start(start="scratch", repeat=2)):
        assert not equal(first, other)


@pytest.mark.slow
def test_a_study_trains_it_in_its_own_rounds_and_compares_fine_tuning_with_it(federate):
    folder, grid = federate(SETTINGS)
    rounds = {}
    for _, request, _ in grid.seen:
        if request.metadata.message_type == protocol.TRAIN:
            task, header = protocol.read_request(request.content)
            rounds.setdefault(header.method, set()).add((task.round, task.rounds))
    assert rounds == {"pretrain": {(1, 1)}, "full": {(1, 2), (2, 2)}, "full-scratch-rounds1": {(1, 1)}}
    results = json.loads((folder.path / "results.json").read_text())
    starts = {row["id"]: row["start"] for row in results["methods"]}
    assert starts == {"zero_shot": None, "full": "base", "full-scratch-rounds1": "scratch"}
    pairs = [(row["method"], row["reference"]) for row in results["comparisons"]]
    assert ("full", "full-scratch-rounds1") in pairs
    assert ("full-scratch-rounds1", "full") not in pairs
    card = json.loads((folder.path / "adapters/full-scratch-rounds1/fold-0/adapter_config.json").read_text())
    assert card["sahfl"]["rounds"] == 1
    again = {request.metadata.message_type for _, request, _ in federate(SETTINGS)[1].seen}
    assert not again & {protocol.TRAIN, protocol.EVALUATE}  # all is done


def test_the_work_of_a_study_counts_each_method_s_own_rounds():
    once, twice = (
        RunProgress(parse(Study, changed(SETTINGS, finetune__methods=[SCRATCH | {"rounds": rounds}]), where="test"))
        for rounds in (1, 2)
    )
    assert twice.total - once.total == 3 * 2 * 2  # sites, steps, folds
