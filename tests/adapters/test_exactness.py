"""Every method on every kind of layer, computed in every way, against kernels that the tests build themselves."""

import pytest
import torch
from harness.adapted_layers import (
    KINDS,
    LAYERS,
    METHODS,
    PATHS,
    WITH_PRIVATE,
    an_input,
    compute_by,
    defined_weight,
    make_base,
    make_layer,
    put_on,
    tensors_of,
    trained,
)
from torch import Generator, nn
from torch.func import functional_call

# PyTorch says of its own layer that an uneven 'same' padding costs it a copy.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")


@pytest.fixture(params=LAYERS.values(), ids=LAYERS.keys())
def kind_and_setting(request):
    return request.param


ALL = METHODS | WITH_PRIVATE


@pytest.fixture(params=ALL.values(), ids=ALL.keys())
def method(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_a_fresh_adapter_changes_nothing_bit_for_bit(kind_and_setting, method, dtype, monkeypatch):
    kind, setting = kind_and_setting
    layer, x = make_layer(kind, setting, method, dtype), an_input(kind, dtype)
    before = make_base(kind, setting, dtype)(x)
    for path in PATHS:
        compute_by(monkeypatch, path)
        assert torch.equal(layer(x), before), path
        with torch.no_grad():
            assert torch.equal(layer(x), before), path
    assert torch.equal(layer.merged()(x), before)


def test_output_and_gradients_are_those_of_the_defined_kernel(kind_and_setting, method, monkeypatch):
    kind, setting = kind_and_setting
    layer, x = trained(make_layer(kind, setting, method)), an_input(kind).requires_grad_()
    if layer.base.bias is not None:
        layer.base.bias.requires_grad_(True)
    wanted = {"input": x} | tensors_of(layer)
    plain = make_base(kind, setting)
    bias = {} if layer.base.bias is None else {"bias": layer.base.bias}
    expected = functional_call(plain, {"weight": defined_weight(layer, method), **bias}, (x,))
    assert (expected - plain(x)).abs().max() > 0.1
    weights = torch.randn(expected.shape, dtype=expected.dtype, generator=Generator().manual_seed(4))
    gradients = torch.autograd.grad((expected * weights).sum(), list(wanted.values()))
    for path in PATHS:
        compute_by(monkeypatch, path)
        y = layer(x)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10, msg=path)
        got = torch.autograd.grad((y * weights).sum(), list(wanted.values()))
        for name, one, other in zip(wanted, got, gradients, strict=True):
            assert other.abs().max() > 1e-3, name
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, msg=f"{path} {name}")


def test_the_merged_layer_is_plain_and_computes_the_same(kind_and_setting, method):
    kind, setting = kind_and_setting
    layer, x = trained(make_layer(kind, setting, method)), an_input(kind)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    merged = layer.merged()
    assert type(merged) is kind
    torch.testing.assert_close(merged(x), layer(x), rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        merged.weight.zero_()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("path", PATHS)
def test_an_input_that_needs_no_gradient_trains_the_adapter_alike(method, path, monkeypatch):
    compute_by(monkeypatch, path)
    layer, x = trained(make_layer(nn.Conv2d, {"kernel_size": 3}, method)), an_input(nn.Conv2d)
    gradients = []
    for needed in (True, False):
        layer.zero_grad()
        layer(x.clone().requires_grad_(needed)).square().sum().backward()
        gradients.append([tensor.grad.clone() for tensor in tensors_of(layer).values()])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("path", PATHS)
def test_factors_that_are_frozen_get_no_gradient_and_the_others_theirs(method, path, monkeypatch):
    compute_by(monkeypatch, path)
    layer, x = trained(make_layer(nn.Conv3d, {"kernel_size": 2}, method)), an_input(nn.Conv3d)
    layer(x).square().sum().backward()
    everything = {name: tensor.grad.clone() for name, tensor in tensors_of(layer).items()}
    for frozen in ([name] for name in everything):
        layer.zero_grad()
        layer.requires_grad_(False)
        for name in everything.keys() - frozen:
            layer.get_parameter(name).requires_grad_(True)
        layer(x).square().sum().backward()
        for name, gradient in everything.items():
            got = layer.get_parameter(name).grad
            assert (got is None) if name in frozen else torch.allclose(got, gradient, rtol=1e-10), (frozen, name)
    layer.requires_grad_(False)
    assert not layer(x).requires_grad


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_may_overwrite_the_output_in_place(method, kind, path, monkeypatch):
    compute_by(monkeypatch, path)
    layer, x = trained(make_layer(kind, {"kernel_size": 2}, method)), an_input(kind)
    gradients = []
    for in_place in (False, True):
        layer.zero_grad()
        nn.functional.relu(layer(x), inplace=in_place).square().sum().backward()
        gradients.append([tensor.grad.clone() for tensor in tensors_of(layer).values()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_output_channel_whose_kernel_is_zero_stays_finite(method, kind, path, monkeypatch):
    compute_by(monkeypatch, path)
    base, x = make_base(kind, {"kernel_size": 3}), an_input(kind)
    with torch.no_grad():
        (base.weight.transpose(0, 1) if base.transposed else base.weight)[1].zero_()
    before = base(x)
    layer = put_on(base, method)
    assert torch.equal(layer(x), before)
    assert torch.equal(layer.merged()(x), before)
    for name in layer.update.exchanged:
        nn.init.normal_(layer.update.get_parameter(name))
    layer(x).square().sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in tensors_of(layer).values())


@pytest.mark.parametrize("path", PATHS)
def test_channels_last_gives_the_same(method, path, monkeypatch):
    compute_by(monkeypatch, path)
    base, x = make_base(nn.Conv2d, {"kernel_size": 3}), an_input(nn.Conv2d)
    plain = trained(put_on(base, method))(x)
    strided = make_base(nn.Conv2d, {"kernel_size": 3}).to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    fresh = put_on(strided, method)
    assert torch.equal(fresh(x), strided(x))
    y = trained(fresh)(x)
    torch.testing.assert_close(y, plain)
    y.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_input_without_a_batch_and_a_batch_of_none_are_taken(method, kind, path, monkeypatch):
    compute_by(monkeypatch, path)
    layer, x = trained(make_layer(kind, {"kernel_size": 1}, method)), an_input(kind)
    torch.testing.assert_close(layer(x[0]), layer(x)[0])
    nothing = x[:0].requires_grad_()
    y = layer(nothing)
    assert y.shape == layer.base(nothing).shape
    y.sum().backward()
    assert nothing.grad.shape == nothing.shape
    assert not any(tensor.grad.any() for tensor in tensors_of(layer).values())
