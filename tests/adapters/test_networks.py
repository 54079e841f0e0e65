"""Networks that sahfl does not use itself, with every method: fresh, trained, merged, detached."""

import pytest
import torch
from harness.adapted_layers import METHODS
from monai.networks.nets import DynUNet, SegResNet, UNet
from torch import nn

from sahfl.adapters import exchanged
from sahfl.adapters.adapted import AdaptedConv
from sahfl.adapters.attach import attach, detach, merge
from sahfl.config import AdapterTuning
from sahfl.errors import AdapterError


def unet():
    return UNet(3, 1, 2, channels=(4, 8, 8), strides=(2, 2), num_res_units=2)


def seg_res_net():
    return SegResNet(spatial_dims=3, init_filters=8, blocks_down=(1, 1), blocks_up=(1,))


def dyn_unet():
    strides = [1, 2, 2]
    return DynUNet(3, 1, 2, [3, 3, 3], strides, strides[1:], filters=[4, 6, 8], deep_supervision=True)


@pytest.fixture(params=[unet, seg_res_net, dyn_unet], ids=lambda make: make.__name__)
def net_and_input(request):
    torch.manual_seed(0)
    return request.param().eval(), torch.rand(2, 1, 8, 8, 8)


def a_step(net, x):
    """One step of descent on all that trains; the network is in evaluation mode again afterwards."""
    net.train()
    y = net(x)
    y.square().mean().backward()
    with torch.no_grad():
        for parameter in exchanged.parameters(net).values():
            if parameter.grad is not None:
                parameter -= 0.02 * parameter.grad.sign()
    net.eval()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_a_network_is_adapted_trained_merged_and_restored(net_and_input, method):
    net, x = net_and_input
    before, weights = net(x), {name: value.clone() for name, value in net.state_dict().items()}
    attached = attach(net, method, seed=1)
    assert len(attached.adapted) == sum(isinstance(module, AdaptedConv) for module in net.modules()) > 5
    assert torch.equal(net(x), before)
    with torch.no_grad():
        assert torch.equal(net(x), before)
    a_step(net, x)
    a_step(net, x)
    adapted, trained = net(x), exchanged.read(net)
    assert (adapted - before).abs().max() > 1e-3

    detach(net)
    assert torch.equal(net(x), before)
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert exchanged.parameters(net) == {}

    attach(net, method, seed=2)
    exchanged.load(net, trained)
    assert torch.equal(net(x), adapted)
    merge(net)
    assert set(net.state_dict()) == set(weights)
    torch.testing.assert_close(net(x), adapted, rtol=1e-3, atol=1e-4)


def shared_net():
    """One convolution in two places, and a plain one."""
    torch.manual_seed(0)
    shared = nn.Conv2d(3, 3, 3, padding=1)
    return nn.Sequential(shared, nn.Tanh(), nn.ModuleDict({"a": shared})["a"], nn.Conv2d(3, 1, 1)), shared


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_a_layer_that_is_used_in_two_places_stays_one_layer(method):
    net, shared = shared_net()
    x = torch.rand(1, 3, 6, 6)
    before = net(x)
    attached = attach(net, method, seed=0)
    assert attached.adapted == ("0", "3")
    assert net[0] is net[2]
    assert isinstance(net[0], AdaptedConv)
    assert torch.equal(net(x), before)
    a_step(net, x)
    adapted = net(x)
    trained = exchanged.read(net)
    detach(net)
    assert net[0] is net[2] is shared
    assert torch.equal(net(x), before)
    attach(net, method, seed=0)
    exchanged.load(net, trained)
    assert torch.equal(net(x), adapted)
    merge(net)
    assert net[0] is net[2]
    assert type(net[0]) is nn.Conv2d
    torch.testing.assert_close(net(x), adapted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_a_grouped_layer_is_refused_by_name_and_nothing_is_changed(kind, method):
    net = nn.ModuleDict({"fine": kind(4, 4, 3), "grouped": kind(4, 4, 3, groups=2)})
    with pytest.raises(AdapterError, match="layer 'grouped': has groups=2, an adapter needs groups=1"):
        attach(net, method, seed=0)
    assert type(net["fine"]) is kind


def test_what_was_trained_besides_the_adapters_stays_trained_in_the_merged_network():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2, affine=True), nn.Conv2d(2, 1, 1))
    attach(net, AdapterTuning(method="conv_lora", rank=1, also_train=("norm", "bias")), seed=0)
    x = torch.rand(2, 1, 6, 6)
    a_step(net, x)
    adapted = net(x)
    merge(net)
    torch.testing.assert_close(net(x), adapted)
    assert set(exchanged.parameters(net)) == {"0.bias", "1.bias", "1.weight", "2.bias"}
