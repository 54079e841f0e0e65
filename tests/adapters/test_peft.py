"""Agreement with Hugging Face PEFT where it is right: two dimensions, no dilation, zeros as padding."""

import warnings

import pytest
import torch
from torch import Generator, nn

from sahfl.adapters.attach import attach
from sahfl.adapters.peft import peft_settings
from sahfl.config import AdapterTuning

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of the libraries that it pulls in
    from peft import LoraConfig, get_peft_model

RANK, ALPHA = 3, 5.0
LAYERS = {
    "k1": {"kernel_size": 1},
    "k3": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "uneven-no-bias": {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 0), "bias": False},
}


def two_convolutions(setting):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 6, **setting), nn.Tanh(), nn.Conv2d(6, 5, 1)).double()


def of_peft(setting, net, method):
    """PEFT's network, with the settings that an adapter folder has for it."""
    settings = peft_settings(net, method, base="none") | {"inference_mode": False, "base_model_name_or_path": None}
    return get_peft_model(two_convolutions(setting), LoraConfig(**settings))


def of_sahfl(setting, method):
    net = two_convolutions(setting)
    attach(net, method, seed=0)
    return net


def shared_tensors(theirs, ours, *, dora):
    """Pairs of what trains in both: PEFT's tensor and ours."""
    for path in ("0", "2"):
        layer, other = ours.get_submodule(path), theirs.base_model.model.get_submodule(path)
        yield other.lora_A["default"].weight, layer.update.down
        yield other.lora_B["default"].weight, layer.update.up
        if dora:
            yield other.lora_magnitude_vector["default"].weight, layer.magnitude


@pytest.mark.parametrize("scaling", ["rank", "sqrt_rank", "steps"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("setting", LAYERS.values(), ids=LAYERS.keys())
def test_outputs_and_gradients_are_those_of_peft(setting, dora, scaling):
    form = "conv_dora" if dora else "conv_lora"
    method = AdapterTuning(method=form, rank=RANK, alpha=ALPHA, scaling=scaling)
    ours = of_sahfl(setting, method)
    theirs = of_peft(setting, ours, method)
    pairs = list(shared_tensors(theirs, ours, dora=dora))
    generator = Generator().manual_seed(1)
    with torch.no_grad():
        for their, our in pairs:
            our.copy_(torch.rand(our.shape, generator=generator, dtype=our.dtype) + 0.1)
            their.copy_(our.view(their.shape))
    inputs = [torch.randn(2, 4, 6, 7, dtype=torch.float64, generator=Generator().manual_seed(2)) for _ in range(2)]
    outputs = [net(x.requires_grad_()) for net, x in zip((theirs, ours), inputs, strict=True)]
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)
    for y in outputs:
        y.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-9, atol=1e-9)
    for their, our in pairs:
        assert our.grad.abs().max() > 1e-3
        torch.testing.assert_close(their.grad.view(our.shape), our.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_the_same_numbers_train_as_in_peft(dora):
    method = AdapterTuning(method="conv_dora" if dora else "conv_lora", rank=RANK)
    ours = of_sahfl(LAYERS["k3"], method)
    theirs = of_peft(LAYERS["k3"], ours, method)
    counts = [sum(p.numel() for p in net.parameters() if p.requires_grad) for net in (theirs, ours)]
    assert counts[0] == counts[1]
