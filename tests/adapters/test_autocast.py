"""Mixed precision: bfloat16 in the convolutions, the parameters' own type everywhere else."""

import itertools

import pytest
import torch
from harness.adapted_layers import KINDS, METHODS, PATHS, an_input, compute_by, make_layer, tensors_of, trained

from sahfl.adapters.attach import attach
from sahfl.adapters.updates.geometry import Geometry, convolve, input_gradient, kernel_gradient

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


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("axes", [2, 3])
def test_strided_convolutions_of_narrow_maps_are_right_in_bfloat16(axes, transposed):
    """oneDNN computes some of them from memory that nobody wrote, on processors with AMX."""
    torch.manual_seed(4)
    for width, kernel, stride in itertools.product(range(1, 8), range(1, 5), (1, 2, 3)):
        if width < kernel:
            continue
        nothing = (0,) * axes
        move = Geometry(transposed, (*(1,) * (axes - 1), stride), nothing, (1,) * axes, nothing)
        x = torch.randn(2, 4, *(4,) * (axes - 1), width)
        weight = torch.randn(5, 4, *(1,) * (axes - 1), kernel)
        y = convolve(x, weight, move)
        gradient = torch.randn_like(y)
        exact = y, input_gradient(gradient, x, weight, move), kernel_gradient(gradient, x, weight.shape, move)
        x, weight, gradient = x.bfloat16(), weight.bfloat16(), gradient.bfloat16()
        rounded = (
            convolve(x, weight, move),
            input_gradient(gradient, x, weight, move),
            kernel_gradient(gradient, x, weight.shape, move),
        )
        for got, expected in zip(rounded, exact, strict=True):
            assert got.dtype == torch.bfloat16
            assert relative(got.float(), expected) < 0.02, (width, kernel, stride)


def test_only_narrow_strided_convolutions_in_bfloat16_are_computed_in_float32(monkeypatch):
    seen = []

    def look(x, *rest):
        seen.append(x.dtype)
        return real(x, *rest)

    real = torch.nn.functional.conv2d
    monkeypatch.setattr("torch.nn.functional.conv2d", look)
    weight = torch.ones(5, 4, 1, 2)
    for stride, width, autocast in [(2, 3, False), (2, 3, True), (2, 8, False), (1, 3, False)]:
        move = Geometry(False, (1, stride), (0, 0), (1, 1), (0, 0))
        x = torch.ones(1, 4, 5, width, dtype=torch.float32 if autocast else torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            assert convolve(x, weight.to(x.dtype), move).dtype == torch.bfloat16
    assert seen == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]


@pytest.mark.parametrize("kind", ["Conv3d", "ConvTranspose3d", "ConvTranspose2d"])
def test_strided_layers_of_every_kind_are_right_in_bfloat16(kind):
    """Movements of which oneDNN computed NaN, or ended the process, on a processor with AMX."""
    settings = {
        "Conv3d": [{"kernel_size": 3, "stride": (2, 2, 1), "padding": 1}, {"kernel_size": 3, "stride": (2, 1, 1)}],
        "ConvTranspose3d": [
            {"kernel_size": (4, 3, 2), "stride": (2, 1, 2), "output_padding": (1, 0, 0)},
            {"kernel_size": (2, 3, 2), "stride": (1, 3, 1), "dilation": (2, 2, 1)},
        ],
        "ConvTranspose2d": [
            {"kernel_size": 3, "stride": 2, "output_padding": 1},
            {"kernel_size": 3, "stride": (3, 1), "dilation": 2},
        ],
    }
    method = METHODS["conv_lora"]
    for setting, width in itertools.product(settings[kind], (1, 4)):
        torch.manual_seed(0)
        base = getattr(torch.nn, kind)(width, 5, **setting)
        net = torch.nn.Sequential(base)
        attach(net, method, seed=0)
        layer = trained(net[0])
        space = (4, 5, 4) if "3d" in kind else (5, 4)
        x = torch.randn(2, width, *space)
        results = []
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                y = layer(x.requires_grad_())
            results.append(
                [y.float(), *torch.autograd.grad(y.float().square().sum(), [x, *tensors_of(layer).values()])]
            )
        for exact, rounded in zip(*results, strict=True):
            assert relative(rounded, exact) < 0.05
