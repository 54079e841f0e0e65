"""Mixed precision: bfloat16 in the convolutions, the parameters' own type everywhere else."""

import pytest
import torch
from harness.adapted_layers import KINDS, METHODS, PATHS, an_input, compute_by, make_layer, tensors_of, trained

SETTINGS = {
    "k3": {"kernel_size": 3, "padding": 1},
    "k1": {"kernel_size": 1},
    "no-bias": {"kernel_size": 2, "stride": 2, "bias": False},
}


def relative(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


@pytest.fixture(params=METHODS.values(), ids=METHODS.keys())
def method(request):
    return request.param


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_finite_and_close_to_float32(kind, setting, method, path, monkeypatch):
    compute_by(monkeypatch, path)
    layer, x = trained(make_layer(kind, setting, method, torch.float32)), an_input(kind, torch.float32)
    if layer.base.bias is not None:
        layer.base.bias.requires_grad_(True)
    x.requires_grad_()
    wanted = {"input": x} | tensors_of(layer)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = layer(x)
        results.append((y.float(), torch.autograd.grad(y.float().square().sum(), list(wanted.values()))))
    (exact, exact_gradients), (rounded, gradients) = results
    assert rounded.isfinite().all()
    assert relative(rounded, exact) < 0.02
    for name, got, expected in zip(wanted, gradients, exact_gradients, strict=True):
        assert got.dtype == wanted[name].dtype == torch.float32, name
        assert relative(got, expected) < 0.05, name


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_nothing_in_bfloat16_either(kind, method, path, monkeypatch):
    compute_by(monkeypatch, path)
    layer, x = make_layer(kind, SETTINGS["k3"], method, torch.float32), an_input(kind, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x).float(), layer.base(x).float())
        with torch.no_grad():
            assert torch.equal(layer(x).float(), layer.base(x).float())


@pytest.mark.parametrize("path", PATHS)
def test_a_layer_that_is_bfloat16_itself_trains(method, path, monkeypatch):
    compute_by(monkeypatch, path)
    layer = trained(make_layer(KINDS[0], SETTINGS["k3"], method, torch.float32)).bfloat16()
    x = an_input(KINDS[0], torch.bfloat16)
    layer(x).float().square().sum().backward()
    for name, tensor in tensors_of(layer).items():
        assert tensor.grad.dtype == torch.bfloat16, name
        assert tensor.grad.isfinite().all(), name
