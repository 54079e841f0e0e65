import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from sahfl.adapters import exchanged
from sahfl.adapters.adapted import AdaptedConv
from sahfl.adapters.attach import attach, attach_everything, merge
from sahfl.config import AdapterTuning, WeightTuning
from sahfl.errors import AdapterError
from sahfl.model import MultiViewUNet

CP = AdapterTuning(method="cp_lora", rank=2, alpha=4.0)
FULL = WeightTuning(method="full")


def slice_net():
    return MultiViewUNet(3, size="tiny", seed=0), torch.rand(2, 3, 32, 32)


def volume_net():
    """A network that sahfl does not use itself: three dimensions, residual units, strided and transposed layers."""
    torch.manual_seed(0)
    net = UNet(spatial_dims=3, in_channels=1, out_channels=1, channels=(4, 8, 16), strides=(2, 2), num_res_units=1)
    return net.eval(), torch.rand(1, 1, 8, 8, 8)


@pytest.fixture(params=[slice_net, volume_net], ids=["slices", "volumes"])
def net_and_input(request):
    return request.param()


def trainable(net):
    return {name for name, parameter in net.named_parameters() if parameter.requires_grad}


def randomise(net):
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in exchanged.parameters(net).values():
            parameter.normal_(0, 0.3)


def test_a_network_with_fresh_adapters_computes_what_it_computed_before_bit_for_bit(net_and_input):
    net, x = net_and_input
    before = net(x)
    attach(net, CP, seed=1)
    assert torch.equal(net(x), before)


def test_every_convolution_is_adapted(net_and_input):
    net, _ = net_and_input
    kinds = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    n_convolutions = sum(isinstance(module, kinds) for module in net.modules())
    attach(net, CP, seed=1)
    assert sum(isinstance(module, AdaptedConv) for module in net.modules()) == n_convolutions > 5


def test_exactly_the_exchanged_tensors_are_trainable(net_and_input):
    net, _ = net_and_input
    attach(net, CP, seed=1)
    assert trainable(net) == set(exchanged.parameters(net))
    assert all(name.rpartition(".")[2].startswith("factor_") for name in exchanged.parameters(net))


def test_training_the_exchanged_tensors_changes_the_output_and_nothing_else(net_and_input):
    net, x = net_and_input
    attach(net, CP, seed=1)
    before, frozen = net(x), {name: value.clone() for name, value in net.state_dict().items()}
    net(x).square().sum().backward()
    with torch.no_grad():
        for parameter in exchanged.parameters(net).values():
            parameter -= parameter.grad.sign() * 0.1
    assert (net(x) - before).abs().max() > 1e-3
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, frozen[name])}
    assert changed <= set(exchanged.parameters(net))


def test_merging_gives_a_plain_network_that_computes_the_same(net_and_input):
    net, x = net_and_input
    names = set(net.state_dict())
    net, x = net.double(), x.double()
    untouched = net(x)
    attach(net, CP, seed=1)
    randomise(net)
    adapted = net(x)
    merge(net)
    assert not any(isinstance(module, AdaptedConv) for module in net.modules())
    assert set(net.state_dict()) == names
    assert (adapted - untouched).abs().max() > 1e-3
    torch.testing.assert_close(net(x), adapted, rtol=1e-10, atol=1e-10)


def test_the_same_seed_gives_the_same_start_and_another_seed_another():
    states = []
    for seed in (1, 1, 2):
        net, _ = slice_net()
        attach(net, CP, seed=seed)
        states.append(exchanged.read(net))
    first, second, other = states
    assert all((first[name] == second[name]).all() for name in first)
    drawn = [name for name in first if not name.endswith("factor_out") and first[name].shape[0] > 1]  # 1: ones
    assert {name.rpartition("_")[2] for name in drawn} == {"in", "height", "width"}
    assert all((first[name] != other[name]).any() for name in drawn)


def test_layers_of_the_same_shape_start_differently():
    net = nn.ModuleDict({"one": nn.Conv2d(4, 4, 3), "other": nn.Conv2d(4, 4, 3)})
    attach(net, CP, seed=1)
    start = exchanged.read(net)
    assert (start["one.update.factor_in"] != start["other.update.factor_in"]).any()


def test_a_layers_start_does_not_depend_on_what_stands_before_it():
    alone = nn.ModuleDict({"b": nn.Conv2d(4, 4, 3)})
    after = nn.ModuleDict({"a": nn.Conv2d(4, 4, 3), "b": nn.Conv2d(4, 4, 3)})
    attach(alone, CP, seed=1)
    attach(after, CP, seed=1)
    assert (exchanged.read(alone)["b.update.factor_in"] == exchanged.read(after)["b.update.factor_in"]).all()


def test_attaching_twice_is_refused_naming_the_layer_and_what_to_do():
    net, _ = slice_net()
    attach(net, CP, seed=1)
    before = exchanged.read(net)
    for method in (CP, FULL):
        with pytest.raises(
            AdapterError, match=r"layer 'net\.encoder\.1\.0\.conv' carries an adapter .*; merge or detach it"
        ):
            attach(net, method, seed=1)
    assert all((value == before[name]).all() for name, value in exchanged.read(net).items())


def test_a_merged_network_takes_an_adapter_again():
    net, x = slice_net()
    attach(net, CP, seed=1)
    randomise(net)
    merge(net)
    before = net(x)
    attach(net, CP, seed=2)
    assert torch.equal(net(x), before)
    assert trainable(net) == set(exchanged.parameters(net)) != set()


def test_a_grouped_convolution_in_the_network_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(AdapterError, match="layer '1': has groups=2, an adapter needs groups=1"):
        attach(net, CP, seed=1)
    assert type(net[0]) is nn.Conv2d  # not half adapted


def test_a_network_without_a_convolution_inside_it_is_refused():
    for net in (nn.Conv2d(3, 4, 3), nn.Sequential(nn.Linear(3, 3))):
        with pytest.raises(AdapterError, match="holds no convolution to adapt"):
            attach(net, CP, seed=1)


@pytest.mark.parametrize("put_on", [attach_everything, lambda net: attach(net, FULL, seed=0)], ids=["pretrain", "full"])
def test_full_fine_tuning_trains_and_exchanges_every_parameter(net_and_input, put_on):
    net, x = net_and_input
    before = net(x)
    put_on(net)
    everything = {name for name, _ in net.named_parameters()}
    assert set(exchanged.parameters(net)) == trainable(net) == everything
    assert torch.equal(net(x), before)


def test_an_adapter_takes_back_what_pretraining_declared():
    net, _ = slice_net()
    attach_everything(net)
    attach(net, CP, seed=1)
    assert trainable(net) == set(exchanged.parameters(net))
    assert all("factor_" in name for name in exchanged.parameters(net))


class Standardised(nn.Conv2d):
    """A convolution that computes its kernel from its weight."""

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight - self.weight.mean(), self.bias)


class Renamed(nn.Conv2d):
    """A convolution by another name."""


def hooked():
    layer = nn.Conv2d(3, 4, 3)
    layer.register_forward_hook(lambda module, inputs, y: 2 * y)
    return layer


MORE_THAN_A_CONVOLUTION = {
    "own-forward": lambda: Standardised(3, 4, 3),
    "hook": hooked,
    "weight-norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
    "transposed-spectral-norm": lambda: nn.utils.parametrizations.spectral_norm(nn.ConvTranspose3d(3, 4, 3)),
}


@pytest.mark.parametrize("make", MORE_THAN_A_CONVOLUTION.values(), ids=MORE_THAN_A_CONVOLUTION.keys())
def test_a_layer_that_does_more_than_a_convolution_is_refused_by_name(make):
    net = nn.Sequential(nn.Conv2d(3, 3, 1), make())
    with pytest.raises(AdapterError, match="layer '1': does more than a plain convolution"):
        attach(net, CP, seed=1)
    assert type(net[0]) is nn.Conv2d


def test_a_convolution_by_another_name_is_adapted():
    net = nn.Sequential(Renamed(3, 4, 3))
    attach(net, CP, seed=1)
    merge(net)
    assert type(net[0]) is Renamed


def test_training_everything_is_refused_while_the_network_carries_an_adapter():
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    attach(net, CP, seed=1)
    with pytest.raises(AdapterError, match="layer '0' carries an adapter already"):
        attach_everything(net)
    assert trainable(net) == set(exchanged.parameters(net))
