"""The sizes of the steps that a site takes in a round."""

import numpy as np
from harness.tiny_study import TINY, changed

from sahfl.adapters import exchanged
from sahfl.adapters.steps import INNER_RATE
from sahfl.config import Study, parse
from sahfl.federation import protocol
from sahfl.federation.tensors import read_state
from sahfl.networks import fine_tuned_network, whole_network
from sahfl.training import Schedule

STEPS = 4
SETTINGS = changed(
    TINY,
    finetune__methods=[{"method": "cp_lora", "rank": 2}],
    finetune__rounds=1,
    finetune__local={"steps": STEPS, "batch_size": 2, "weight_decay": 0.0},
    pretrain__rounds=1,
)


def root_mean_square(value):
    return np.sqrt(np.square(value.astype(np.float64)).mean())


def test_a_site_moves_inner_factors_relative_to_their_size_and_the_others_by_the_learning_rate(federate):
    study = parse(Study, SETTINGS, where="test")
    (method,) = study.finetune.methods
    base = exchanged.read(whole_network(study.views, study.model, study.seed))
    like = exchanged.read(fine_tuned_network(study.views, study.model, base, method, study.seed))
    schedule = Schedule(method.learning_rate, 0.0, STEPS, 1, 1)
    most = 1.1 * sum(schedule.rate(step) for step in range(STEPS))  # AdamW's step is about the learning rate, or less
    _, grid = federate(SETTINGS)
    trained = [
        (read_state(request.content, like=like), read_state(reply.content, like=like))
        for _, request, reply in grid.seen
        if request.metadata.message_type == protocol.TRAIN and protocol.read_task(request.content).stage == "finetune"
    ]
    assert trained
    for start, sent in trained:
        for name, before in start.items():
            moved, size = root_mean_square(sent[name] - before), root_mean_square(before)
            if name.endswith("factor_out"):
                assert 0.1 * most < moved < most
            elif before.shape[0] > 1:
                assert 0.1 * most < moved / (INNER_RATE * size) < most, name
