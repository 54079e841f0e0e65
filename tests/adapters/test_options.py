"""The options of the methods on the project's own network: which tensors train, and how an update is scaled."""

import logging
import math
from dataclasses import replace

import pytest
import torch
from harness.adapted_layers import METHODS, PATHS, an_input, compute_by, make_layer, trained
from torch import nn

from sahfl.adapters import exchanged
from sahfl.adapters.attach import attach, restore
from sahfl.adapters.exchanged import factored_layers
from sahfl.adapters.peft import is_peft_form, peft_settings
from sahfl.config import AdapterTuning, WeightTuning
from sahfl.errors import AdapterError
from sahfl.model import MultiViewUNet

PATHS_OF = {
    "encoder": [f"encoder.{depth}" for depth in (1, 2, 3, 4)],
    "encoder.1": ["encoder.1"],
    "encoder.2": ["encoder.2"],
    "encoder.4": ["encoder.4"],
    "bottleneck": ["bottleneck"],
    "decoder": [f"decoder.{depth}" for depth in (4, 3, 2, 1)],
    "decoder.4": ["decoder.4"],
    "decoder.1": ["decoder.1"],
    "head": ["head"],
}


@pytest.fixture
def net():
    return MultiViewUNet(3, size="tiny", seed=0)


def trainable(net):
    names = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert names == set(exchanged.parameters(net))
    return names


def inside(names, part):
    return {name for name in names if any(name.startswith(f"net.{path}.") for path in PATHS_OF[part])}


def all_names(net):
    return {name for name, _ in net.named_parameters()}


def norm_names(net):
    norms = [path for path, module in net.named_modules() if isinstance(module, nn.GroupNorm)]
    return {f"{path}.{name}" for path in norms for name in ("weight", "bias")}


# --- standard fine-tuning -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "part"),
    [("encoder", "encoder"), ("bottleneck", "bottleneck"), ("decoder", "decoder"), ("last_layer", "head")],
)
def test_fine_tuning_a_part_trains_its_tensors_and_no_others(method, part, net):
    everything, x = all_names(net), torch.rand(2, 3, 32, 32)
    before = net(x)
    attach(net, WeightTuning(method=method), seed=0, parts=net.parts)
    assert trainable(net) == inside(everything, part) != set()
    assert torch.equal(net(x), before)


def test_the_parts_cover_the_network_without_overlap(net):
    names = [name for part in ("encoder", "bottleneck", "decoder", "head") for name in inside(all_names(net), part)]
    assert sorted(names) == sorted(all_names(net))
    assert {part.partition(".")[0] for part in net.parts} == {"encoder", "bottleneck", "decoder", "head"}


def test_fine_tuning_norms_and_biases_trains_these_and_no_others(net):
    norms, biases = norm_names(net), {name for name in all_names(net) if name.endswith(".bias")}
    attach(net, WeightTuning(method="norm_bias"), seed=0, parts=net.parts)
    assert trainable(net) == norms | biases
    assert norms - biases
    assert biases - norms


# --- where adapters go ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [(part,) for part in PATHS_OF] + [("encoder.1", "head"), ("decoder", "bottleneck")])
def test_adapters_go_on_the_chosen_layers_only(layers, net):
    convolutions = {path for path, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)}
    attached = attach(net, AdapterTuning(method="conv_lora", rank=1, layers=layers), seed=0, parts=net.parts)
    expected = {path for part in layers for path in inside({f"{path}." for path in convolutions}, part)}
    assert {f"{path}." for path in attached.adapted} == expected != set()
    assert trainable(net) == {f"{path}update.{name}" for path in expected for name in ("up", "down")}


ALSO = {
    "head": (("head",), lambda names, norms: inside(names, "head")),
    "norm": (("norm",), lambda names, norms: norms),
    "bias": (("bias",), lambda names, norms: {name for name in names if name.endswith(".bias")}),
    "decoder": (("decoder",), lambda names, norms: inside(names, "decoder")),
    "head-and-norm": (("head", "norm"), lambda names, norms: inside(names, "head") | norms),
    "all-three": (
        ("bias", "encoder.1", "norm"),
        lambda names, norms: norms | inside(names, "encoder.1") | {name for name in names if name.endswith(".bias")},
    ),
}


@pytest.mark.parametrize("method", ["cp_lora", "dora_c"])
@pytest.mark.parametrize(("also_train", "expected"), ALSO.values(), ids=ALSO.keys())
def test_weights_named_besides_train_as_well_and_their_layers_get_no_adapter(also_train, expected, method, net):
    names, norms, x = all_names(net), norm_names(net), torch.rand(2, 3, 32, 32)
    before = net(x)
    attached = attach(net, AdapterTuning(method=method, rank=1, also_train=also_train), seed=0, parts=net.parts)
    assert torch.equal(net(x), before)
    own = {name for name in trainable(net) if ".update." not in name and not name.endswith(".magnitude")}
    assert {name.replace(".base.", ".") for name in own} == expected(names, norms)
    parts = [part for part in also_train if part not in ("norm", "bias")]
    assert not [part for part in parts if inside({f"{path}." for path in attached.adapted}, part)]
    assert attached.adapted


def test_an_unknown_part_is_refused_with_those_that_there_are(net):
    with pytest.raises(AdapterError, match="MultiViewUNet: has no part 'head'; its parts are: stem"):
        attach(net, AdapterTuning(method="cp_lora", layers=("head",)), seed=0, parts={"stem": "net.conv_0"})
    with pytest.raises(AdapterError, match="Sequential: has no part 'head'; its parts are: none"):
        attach(nn.Sequential(nn.Conv2d(1, 1, 1)), WeightTuning(method="last_layer"), seed=0)


def test_a_choice_that_leaves_no_layer_for_an_adapter_is_refused(net):
    method = AdapterTuning(method="cp_lora", layers=("head",), also_train=("head",))
    with pytest.raises(AdapterError, match="holds no convolution to adapt among the chosen layers"):
        attach(net, method, seed=0, parts=net.parts)


def test_a_rank_above_the_full_rank_is_legal_and_logged_by_layer(caplog):
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Conv2d(16, 1, 1)).double()
    x = torch.rand(1, 1, 5, 5, dtype=torch.float64)
    with caplog.at_level(logging.INFO, "sahfl"):
        attached = attach(net, AdapterTuning(method="conv_lora", rank=4), seed=0)
    assert attached.over_full_rank == ("1",)
    assert "event=over_full_rank layers=1" in caplog.text
    trained(net[0])
    trained(net[1])
    torch.testing.assert_close(nn.Sequential(net[0].merged(), net[1].merged())(x), net(x))


def test_magnitudes_that_a_norm_cancels_are_left_out_and_logged_unless_wanted(caplog, net):
    example = torch.zeros(1, 3, 32, 32)
    with caplog.at_level(logging.INFO, "sahfl"):
        attached = attach(net, AdapterTuning(method="cp_dora"), seed=0, parts=net.parts, example=example)
    left_out = set(attached.without_magnitude)
    assert (
        f"event=magnitude_left_out reason=norm_cancels_it layers={','.join(attached.without_magnitude)}" in caplog.text
    )
    magnitudes = {name.removesuffix(".magnitude") for name in trainable(net) if name.endswith(".magnitude")}
    assert magnitudes == set(attached.adapted) - left_out
    ups = [f"net.decoder.{n}.up" for n in (4, 3, 2, 1)]
    assert magnitudes == {"net.head.1", *ups}  # all others of this network stand before a norm
    wanted = MultiViewUNet(3, size="tiny", seed=0)
    assert not attach(
        wanted, AdapterTuning(method="cp_dora", all_magnitudes=True), seed=0, example=example
    ).without_magnitude


@pytest.mark.parametrize("method", ["conv_lora", "cp_dora"])
def test_adapters_on_unnormed_layers_go_where_no_norm_cancels_a_magnitude(method, net):
    example, x = torch.zeros(1, 3, 32, 32), torch.rand(2, 3, 32, 32)
    before = net(x)
    tuning = AdapterTuning(method=method, rank=2, layers=("unnormed",))
    attached = attach(net, tuning, seed=0, parts=net.parts, example=example)
    assert torch.equal(net(x), before)
    assert set(attached.adapted) == {"net.head.1", *(f"net.decoder.{n}.up" for n in (4, 3, 2, 1))}
    assert not attached.without_magnitude
    assert sum(name.endswith(".magnitude") for name in trainable(net)) == (5 if method == "cp_dora" else 0)
    again = MultiViewUNet(3, size="tiny", seed=0)
    restore(again, attached)
    assert trainable(again) == trainable(net)


# --- the matrix of LoRA-C -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "same"), [("lora_c", "conv_lora"), ("dora_c", "conv_dora")])
def test_lora_c_on_rows_is_conv_lora_in_start_counts_aggregation_and_peft(method, same):
    found = []
    for tuning in (AdapterTuning(method=method, rank=2, matrix="rows"), AdapterTuning(method=same, rank=2)):
        net = MultiViewUNet(3, size="tiny", seed=0)
        attach(net, tuning, seed=3, parts=net.parts, example=torch.zeros(1, 3, 32, 32))
        plain = nn.Sequential(nn.Conv2d(2, 3, 3))
        attach(plain, tuning, seed=3)
        described = [replace(layer, kernel=None) for layer in factored_layers(net, tuning)]
        found.append((exchanged.read(net), described, peft_settings(plain, tuning, "base")))
        assert is_peft_form(plain, tuning)
        assert not is_peft_form(plain, tuning.model_copy(update={"matrix": "square", "method": "lora_c"}))
    (state, layers, settings), (other, others, theirs) = found
    assert state.keys() == other.keys()
    assert all((value == other[name]).all() for name, value in state.items())
    assert layers == others
    assert settings == theirs


# --- scale and dropout ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scaling", ["steps", "rank", "sqrt_rank"])
def test_the_update_is_alpha_by_the_length_of_the_first_step_or_by_the_rank_or_its_root(name, scaling):
    method = METHODS[name].model_copy(update={"rank": 4, "alpha": 6.0, "scaling": scaling})
    numbers = 4 * 3 * 3 if method.method in ("lora_c", "dora_c") else 4  # LoRA-C: r x width terms of height numbers
    length = (numbers + numbers * (numbers - 1) * 2 / (math.pi * 4 * 3 * 3)) ** 0.5  # in kernels of 4 x 3 x 3 numbers
    expected = {"steps": 6.0 / length, "rank": 6.0 / 4, "sqrt_rank": 6.0 / 2}[scaling]
    layer = trained(make_layer(nn.Conv2d, {"kernel_size": 3}, method))
    layer.magnitude = None
    change = layer.merged().weight - layer.base.weight
    torch.testing.assert_close(change, expected * layer.update.delta(layer.update.up))


def with_dropout(name, rank=4, chance=0.5):
    method = METHODS[name].model_copy(update={"rank": rank, "rank_dropout": chance})
    layer = trained(make_layer(nn.Conv2d, {"kernel_size": 2}, method))
    return layer, an_input(nn.Conv2d)[:1]


@pytest.mark.parametrize("name", METHODS)
def test_dropout_is_off_in_evaluation_and_in_what_is_merged(name):
    layer, x = with_dropout(name)
    plain, _ = with_dropout(name, chance=0.0)
    assert not torch.equal(layer.train()(x), plain(x))
    assert torch.equal(layer.eval()(x), plain(x))
    torch.testing.assert_close(layer.train().merged()(x), plain(x))


@pytest.mark.parametrize("name", ["lora_c", "conv_lora", "cp_lora", "cp_lora-joint"])
def test_dropout_leaves_the_mean_output_as_it_is(name):
    torch.manual_seed(0)
    layer, x = with_dropout(name, chance=0.25)
    layer.train()
    with torch.no_grad():
        mean = sum(layer(x) for _ in range(1500)) / 1500
        change = layer.eval()(x) - layer.base(x)
        assert (mean - layer(x)).norm() < 0.05 * change.norm()


@pytest.mark.parametrize("name", ["conv_lora", "cp_lora"])
def test_dropout_leaves_out_whole_terms_and_scales_up_the_others(name):
    torch.manual_seed(0)
    layer, x = with_dropout(name, rank=1, chance=0.5)
    change = layer.eval()(x) - layer.base(x)
    outputs = [layer.train()(x) - layer.base(x) for _ in range(20)]
    kept = [torch.allclose(output, 2 * change) for output in outputs]
    assert all(one or not output.any() for one, output in zip(kept, outputs, strict=True))
    assert 0 < sum(kept) < 20


@pytest.mark.parametrize("name", METHODS)
def test_dropout_is_the_same_in_every_way_of_computing(name, monkeypatch):
    layer, x = with_dropout(name)
    results = []
    for path in PATHS:
        compute_by(monkeypatch, path)
        torch.manual_seed(5)
        layer.zero_grad()
        y = layer.train()(x)
        y.square().sum().backward()
        results.append([y, *(p.grad.clone() for p in layer.parameters() if p.requires_grad)])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-9, atol=1e-9)
