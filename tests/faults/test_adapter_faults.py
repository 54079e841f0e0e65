"""Adapters that do not belong to a network, by the ids of the fault list: refused by name, never loaded in part."""

import pytest
import torch
from harness.adapted_layers import METHODS
from monai.networks.nets import UNet

from sahfl.adapters import exchanged
from sahfl.adapters.attach import attach, attach_everything
from sahfl.adapters.files import load_tensors, save_tensors
from sahfl.config import AdapterTuning, WeightTuning
from sahfl.errors import AdapterError
from sahfl.model import MultiViewUNet

CP = AdapterTuning(method="cp_lora", rank=2)


def a_net(size="tiny", in_channels=3):
    return MultiViewUNet(in_channels, size=size, seed=0)


def another_architecture():
    with torch.random.fork_rng():
        return UNet(2, 3, 1, channels=(4, 8), strides=(2,))


def a_state(net, method):
    attach(net, method, seed=7, parts=getattr(net, "parts", {}))
    for parameter in exchanged.parameters(net).values():
        torch.nn.init.constant_(parameter, 3.0)
    return exchanged.read(net)


def changed(**changes):
    return CP.model_copy(update=changes)


# --- D07: an adapter of another architecture, method or rank --------------------------------------------------------

NAMES = r"state has missing or unexpected tensors: net\.\S+(, net\.\S+){4} and \d+ more"
SHAPE = r"tensor 'net\.\S+': got shape \(.*\), expected \("
OTHERS = {
    "architecture": (another_architecture, CP, "state has missing or unexpected tensors: model.*more"),
    "width": (lambda: a_net("base"), CP, SHAPE),
    "input-channels": (lambda: a_net(in_channels=5), CP, r"tensor 'net\.encoder\.1\.0\.conv\.update\.factor_in': got"),
    "lower-rank": (a_net, changed(rank=1), r"factor_height.: got shape \(3, 1\), expected \(3, 2\)"),
    "higher-rank": (a_net, changed(rank=3), r"factor_height.: got shape \(3, 3\), expected \(3, 2\)"),
    "joint-kernel": (a_net, changed(joint_kernel=True), NAMES),
    "magnitudes": (a_net, changed(method="cp_dora"), NAMES),
    "fewer-layers": (a_net, changed(layers=("encoder",)), NAMES),
    "another-part-trained": (a_net, changed(also_train=("head",)), r"unexpected tensors: net\.head\.1\.bias, net"),
    "full": (a_net, WeightTuning(method="full"), NAMES),
    "last-layer": (a_net, WeightTuning(method="last_layer"), NAMES),
}


@pytest.mark.parametrize(("make", "method", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_D07_an_adapter_of_another_network_or_method_is_refused_and_nothing_is_loaded(make, method, message):
    unfit = a_state(make(), method)
    net = a_net()
    attach(net, CP, seed=1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(AdapterError, match=message):
        exchanged.load(net, unfit)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("other", METHODS)
@pytest.mark.parametrize("method", METHODS)
def test_D07_the_state_of_one_method_fits_no_other(method, other):
    loaded = a_state(a_net(), METHODS[other])
    net = a_net()
    attach(net, METHODS[method], seed=1)
    if method == other:
        exchanged.load(net, loaded)
        assert all((value == 3).all() for value in exchanged.read(net).values())
        return
    before = exchanged.read(net)
    with pytest.raises(AdapterError, match=r"missing or unexpected tensors: net|tensor 'net\.\S+': got shape"):
        exchanged.load(net, loaded)
    assert all((value == before[name]).all() for name, value in exchanged.read(net).items())


def test_D07_a_base_of_another_width_is_refused():
    wide, net = a_net("base"), a_net()
    attach_everything(wide)
    attach_everything(net)
    with pytest.raises(
        AdapterError, match=r"tensor 'net\.bottleneck\.0\.adn\.N\.bias': got shape \(\d+,\), expected \(128,\)"
    ):
        exchanged.load(net, exchanged.read(wide))


def test_D07_an_adapter_that_was_saved_fits_its_own_network_and_no_other(tmp_path):
    saved = a_state(a_net(), CP)
    save_tensors(tmp_path / "adapter", saved)
    loaded, _ = load_tensors(tmp_path / "adapter")
    own, other = a_net(), a_net()
    attach(own, CP, seed=1)
    exchanged.load(own, loaded)
    assert all((value == saved[name]).all() for name, value in exchanged.read(own).items())
    attach(other, changed(rank=4), seed=1)
    with pytest.raises(AdapterError, match="got shape"):
        exchanged.load(other, loaded)
