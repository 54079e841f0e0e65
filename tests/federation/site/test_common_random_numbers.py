"""Methods of a simulation share the batches of a site and the starts of their adapters; at a hospital they do not."""

import numpy as np
import pytest
from harness.tiny_study import TINY, changed

from sahfl.adapters import exchanged
from sahfl.adapters.files import load_tensors
from sahfl.config import AdapterTuning, Study, parse
from sahfl.federation import protocol
from sahfl.networks import fine_tuned_network, whole_network

STUDY = parse(Study, TINY, where="test")
CP = {"method": "cp_lora", "rank": 2}
METHODS = [CP | {"label": "a"}, CP | {"label": "b"}, CP | {"label": "a", "repeat": 2}]
SETTINGS = changed(TINY, finetune__methods=METHODS, finetune__rounds=1, pretrain__rounds=1)


def final(folder, method):
    return load_tensors(folder.path / "adapters" / method / "fold-0" / "adapter_model.safetensors")[0]


def equal(one, other):
    return all(np.array_equal(value, other[name]) for name, value in one.items())


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_methods_of_equal_settings_train_equally_on_shared_batches_alone_and_repeats_never(federate, shared):
    folder, _ = federate(SETTINGS | {"common_random_numbers": shared})
    first, second, again = (final(folder, f"cp_lora-r2-{name}") for name in ("a", "b", "a-repeat2"))
    assert equal(first, second) == shared
    assert not equal(first, again)


@pytest.mark.slow
def test_a_site_alone_and_the_federation_draw_the_same_batches_there(federate):
    methods = [CP, CP | {"trained_at": "sah_a"}]
    settings = changed(SETTINGS, finetune__methods=methods, finetune__folds=2)
    _, grid = federate(settings)
    losses = {}
    for site, request, reply in grid.seen:
        if site == "sah_a" and request.metadata.message_type == protocol.TRAIN:
            task, header = protocol.read_request(request.content)
            losses[header.method, task.fold] = reply.content.metric_records["metrics"]["loss"]
    assert losses["cp_lora-r2", 0] == losses["cp_lora-r2-at-sah_a", 0] != losses["cp_lora-r2", 1]


BASE = exchanged.read(whole_network(STUDY.views, STUDY.model, STUDY.seed))


def start(**settings):
    method = AdapterTuning(**{"method": "lora_c", "rank": 2} | settings)
    return exchanged.read(fine_tuned_network(STUDY.views, STUDY.model, BASE, method, STUDY.seed))


@pytest.mark.parametrize(
    "settings",
    [{"method": "dora_c"}, {"aggregation": "project"}, {"trained_at": "sah_a"}, {"label": "x"}, {"learning_rate": 0.1}],
)
def test_adapters_of_one_form_and_rank_start_alike(settings):
    plain, other = start(), start(**settings)
    assert equal(plain, other)
    assert {name.rpartition(".")[2] for name in other.keys() - plain.keys()} <= {"magnitude"}


def test_lora_c_on_rows_starts_as_conv_lora_does():
    assert equal(start(matrix="rows"), start(method="conv_lora"))


@pytest.mark.parametrize("settings", [{"method": "conv_lora"}, {"rank": 3}, {"repeat": 2}])
def test_adapters_of_another_form_rank_or_repeat_start_differently(settings):
    plain, other = start(), start(**settings)
    common = [name for name in plain if name in other and name.endswith("down")]
    assert common
    assert not any(np.array_equal(plain[name], other[name]) for name in common)
