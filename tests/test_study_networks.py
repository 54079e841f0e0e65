"""What both ends build: the network of a study, at its start, as pretrained, and with a method on it."""

import pytest
import torch
from torch import nn

from sahfl.adapters import exchanged
from sahfl.adapters.adapted import AdaptedConv
from sahfl.config import AdapterTuning, ModelConfig, ViewsConfig, WeightTuning
from sahfl.networks import fine_tuned_network, whole_network

VIEWS = ViewsConfig(weights={"axial": 1.0, "sagittal": 0.5})
MODELS = {
    "shared": ModelConfig(),
    "per_view": ModelConfig(planes="per_view"),
    "deep": ModelConfig(planes="per_view", deep_supervision=True),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def model(request):
    return request.param


def tuned(model, method):
    base = exchanged.read(whole_network(VIEWS, model, 3))
    return fine_tuned_network(VIEWS, model, base, method, 3)


def networks_of(model):
    return {"net"} if model.planes == "shared" else set(VIEWS.weights)


def test_there_is_a_network_for_each_view_in_use_or_one_for_all(model):
    assert {name for name, _ in whole_network(VIEWS, model, 3).named_children()} == networks_of(model)


def test_adapters_reach_every_convolution_of_every_view(model):
    net = tuned(model, AdapterTuning(method="cp_lora", rank=2))
    adapted = {path for path, module in net.named_modules() if isinstance(module, AdaptedConv)}
    assert {path.partition(".")[0] for path in adapted} == networks_of(model)
    bare = [path for path, m in net.named_modules() if isinstance(m, nn.Conv2d) and not path.endswith(".base")]
    assert bare == []


@pytest.mark.parametrize(
    ("method", "role"),
    [("encoder", "encoder."), ("bottleneck", "bottleneck."), ("decoder", "decoder."), ("last_layer", "head.")],
)
def test_a_part_is_trained_in_the_network_of_every_view(model, method, role):
    net = tuned(model, WeightTuning(method=method))
    expected = {name for name, _ in net.named_parameters() if name.partition(".")[2].startswith(role)}
    assert set(exchanged.parameters(net)) == expected != set()


def test_a_magnitude_is_left_out_where_the_norm_of_its_own_view_cancels_it(model):
    net = tuned(model, AdapterTuning(method="dora_c", rank=2))
    kept = [name for name in exchanged.parameters(net) if name.endswith("magnitude")]
    # Only the transposed convolutions and the outputs feed no norm.
    per_network = 4 + (3 if model.deep_supervision else 1)
    assert len(kept) == per_network * len(networks_of(model))
    assert all(".up." in name or ".head." in name for name in kept)


def test_what_the_adapters_of_one_view_learn_leaves_the_other_views_alone():
    net, slices = tuned(MODELS["per_view"], AdapterTuning(method="cp_lora", rank=2)).eval(), torch.rand(1, 9, 32, 32)
    before = {view: net(slices, view) for view in VIEWS.weights}
    with torch.no_grad():
        for name, parameter in exchanged.parameters(net).items():
            if name.startswith("sagittal."):
                parameter.normal_(0, 0.3)
    assert torch.equal(net(slices, "axial"), before["axial"])
    assert not torch.allclose(net(slices, "sagittal"), before["sagittal"], atol=1e-3)
