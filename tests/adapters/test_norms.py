"""Which DoRA magnitudes a norm cancels, found by running the network and checked against their gradients."""

import pytest
import torch
from monai.networks.nets import BasicUNet, DynUNet, SegResNet, UNet
from torch import nn

from sahfl.adapters import exchanged
from sahfl.adapters.attach import attach
from sahfl.adapters.norms import normed_convolutions
from sahfl.config import AdapterTuning

DORA = AdapterTuning(method="conv_dora", rank=1)
INSTANCE = ("instance", {"affine": True})


def basic_unet():
    return BasicUNet(2, 1, 1, features=(4, 4, 4, 8, 8, 4), norm=INSTANCE), torch.rand(2, 1, 32, 32)


def unet():
    net = UNet(3, 1, 1, channels=(4, 8, 12), strides=(2, 2), num_res_units=2, norm=INSTANCE)
    return net, torch.rand(2, 1, 8, 8, 8)


def seg_res_net():
    return SegResNet(spatial_dims=2, init_filters=8, blocks_down=(1, 1), blocks_up=(1,)), torch.rand(2, 1, 16, 16)


def dyn_unet():
    kernels, strides = [3, 3, 3], [1, 2, 2]
    net = DynUNet(2, 1, 1, kernels, strides, strides[1:], filters=[4, 6, 8], res_block=True)
    return net, torch.rand(2, 1, 16, 16)


@pytest.fixture(params=[basic_unet, unet, seg_res_net, dyn_unet], ids=lambda make: make.__name__)
def net_and_input(request):
    torch.manual_seed(0)
    net, x = request.param()
    for module in net.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-12  # a norm cancels the scale up to its epsilon
    return net.double().eval(), x.double()


def test_the_listed_magnitudes_have_no_gradient_and_all_others_have_one(net_and_input):
    net, x = net_and_input
    listed = normed_convolutions(net, x)
    attach(net, DORA.model_copy(update={"all_magnitudes": True}), seed=0)
    y = net(x)
    (y * torch.randn_like(y)).sum().backward()
    lengths = {
        name.removesuffix(".magnitude"): (parameter.grad * parameter).abs().max().item()
        for name, parameter in exchanged.parameters(net).items()
        if name.endswith(".magnitude")
    }
    largest = max(lengths.values())
    dead = {path for path, length in lengths.items() if length < 1e-6 * largest}
    assert listed == dead
    assert 0 < len(listed) < len(lengths)


def test_attaching_with_an_example_leaves_out_the_listed_magnitudes_only(net_and_input):
    net, x = net_and_input
    listed = normed_convolutions(net, x)
    before = net(x)
    attached = attach(net, DORA, seed=0, example=x)
    assert set(attached.without_magnitude) == listed
    kept = {path for path in attached.adapted if net.get_submodule(path).magnitude is not None}
    assert kept == set(attached.adapted) - listed
    assert torch.equal(net(x), before)


class Branching(nn.Module):
    """One convolution before a norm, and what ``use`` makes of its output and the norm's."""

    def __init__(self, use, norm, between=None):
        super().__init__()
        self.conv, self.norm, self.use, self.between = nn.Conv2d(1, 4, 3), norm, use, between

    def forward(self, x):
        y = self.conv(x)
        return self.use(y, self.norm(y if self.between is None else self.between(y)))


def only_norm(y, normed):
    return normed


NORMED = {
    "instance": (only_norm, nn.InstanceNorm2d(4), None),
    "group-per-channel": (only_norm, nn.GroupNorm(4, 4), None),
    "in-a-dictionary": (lambda y, normed: {"logits": [normed, None]}, nn.InstanceNorm2d(4), None),
}
NOT_NORMED = {
    "batch-norm": (only_norm, nn.BatchNorm2d(4), None),
    "running-statistics": (only_norm, nn.InstanceNorm2d(4, track_running_stats=True), None),
    "several-channels-a-group": (only_norm, nn.GroupNorm(2, 4), None),
    "also-used-elsewhere": (lambda y, normed: y + normed, nn.InstanceNorm2d(4), None),
    "also-returned": (lambda y, normed: (y, normed), nn.InstanceNorm2d(4), None),
    "activation-between": (only_norm, nn.InstanceNorm2d(4), nn.Softplus()),
    "activation-in-place-between": (only_norm, nn.InstanceNorm2d(4), nn.ELU(inplace=True)),
}


@pytest.mark.parametrize(("use", "norm", "between"), NORMED.values(), ids=NORMED.keys())
def test_a_convolution_whose_output_only_goes_into_a_norm_of_each_channel_is_listed(use, norm, between):
    assert normed_convolutions(Branching(use, norm, between), torch.rand(2, 1, 8, 8)) == {"conv"}


@pytest.mark.parametrize(("use", "norm", "between"), NOT_NORMED.values(), ids=NOT_NORMED.keys())
def test_a_convolution_whose_scale_reaches_the_output_is_not_listed(use, norm, between):
    assert normed_convolutions(Branching(use, norm, between), torch.rand(2, 1, 8, 8)) == frozenset()


@pytest.mark.parametrize("normed_first", [True, False])
def test_a_convolution_that_is_used_twice_is_listed_only_if_both_outputs_are_normed(normed_first):
    conv, norm = nn.Conv2d(2, 2, 1), nn.InstanceNorm2d(2)
    places = [norm, nn.Identity()] if normed_first else [nn.Identity(), norm]
    once_bare = nn.Sequential(conv, places[0], nn.Softplus(), conv, places[1], nn.Softplus())
    assert normed_convolutions(once_bare, torch.rand(1, 2, 4, 4)) == frozenset()
    assert normed_convolutions(nn.Sequential(conv, norm, conv, norm), torch.rand(1, 2, 4, 4)) == {"0"}


def test_looking_leaves_the_network_as_it_was_and_works_without_gradients():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2), nn.BatchNorm2d(2)).train()
    net[2].eval()
    net.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        assert normed_convolutions(net, torch.rand(2, 1, 8, 8)) == {"0"}
    assert [module.training for module in net] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
