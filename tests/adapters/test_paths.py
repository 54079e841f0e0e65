import pytest
import torch
from torch import nn

from sahfl.adapters import adapted
from sahfl.adapters.adapted import AdaptedConv, choose_path
from sahfl.adapters.attach import attach
from sahfl.adapters.updates import few, geometry
from sahfl.adapters.updates.geometry import Geometry
from sahfl.config import AdapterTuning


def adapted_conv(method="cp_lora", rank=4, *, kind=nn.Conv2d, channels=(128, 128), size=3):
    net = nn.Sequential(kind(*channels, size))
    attach(net, AdapterTuning(method=method, rank=rank), seed=0)
    assert isinstance(net[0], AdaptedConv)
    return net[0]


def path_of(layer, device="cpu", *, batch=8, edge=64):
    x = torch.zeros(1, 1, 1, 1, device=device).expand(batch, layer.base.in_channels, edge, edge)
    return choose_path(layer.base, layer.update, x)


@pytest.mark.parametrize("method", ["lora_c", "conv_lora", "cp_lora"])
def test_a_wide_layer_with_few_terms_is_fused(method):
    assert path_of(adapted_conv(method)) == "fused"


@pytest.mark.parametrize("method", ["lora_c", "conv_lora", "cp_lora"])
def test_a_layer_whose_terms_cost_more_than_its_kernel_is_dense(method):
    assert path_of(adapted_conv(method, rank=200)) == "dense"
    assert path_of(adapted_conv(method, rank=512)) == "dense"


@pytest.mark.parametrize("method", ["lora_c", "conv_lora", "cp_lora"])
def test_a_small_picture_is_dense_because_the_fused_way_has_more_operations(method):
    layer = adapted_conv(method)
    assert path_of(layer, batch=8, edge=4) == "dense"
    assert path_of(layer, batch=1, edge=8) == "dense"
    assert path_of(layer, batch=64, edge=8) == "fused"


@pytest.mark.parametrize("shape", [{"channels": (9, 32)}, {"channels": (32, 1), "size": 1}])
def test_the_network_s_first_and_last_layer_are_dense(shape):
    assert path_of(adapted_conv(**shape)) == "dense"


def test_a_transposed_layer_is_dense_sooner():
    found = [adapted_conv(rank=16, kind=kind, channels=(64, 64), size=2) for kind in (nn.Conv2d, nn.ConvTranspose2d)]
    assert [path_of(layer) for layer in found] == ["fused", "dense"]


def test_another_device_gets_dense_kernels_as_nothing_else_was_measured():
    assert path_of(adapted_conv(), device="meta") == "dense"


def test_a_layer_whose_inner_factors_are_frozen_is_fused_and_keeps_no_input():
    layer = adapted_conv(rank=2)
    layer.update.factor_in.requires_grad_(False)
    layer.update.factor_height.requires_grad_(False)
    layer.update.factor_width.requires_grad_(False)
    x, sizes = torch.randn(2, 128, 5, 5, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.shape) or t, lambda t: t):
        y = layer(x)
    assert path_of(layer) == "fused"
    assert x.shape not in sizes
    y.sum().backward()
    assert layer.update.factor_out.grad is not None


def test_nothing_is_recorded_so_the_kernel_is_made():
    with torch.no_grad():
        assert path_of(adapted_conv()) == "dense"


# --- convolutions to few channels -----------------------------------------------------------------------------------

MOVES = {
    "plain": ((3, 3), Geometry(False, (1, 1), (1, 1), (1, 1), (0, 0))),
    "dilated": ((3, 2), Geometry(False, (1, 1), (2, 0), (2, 3), (0, 0))),
    "padded-beyond": ((2, 2), Geometry(False, (1, 1), (4, 3), (1, 1), (0, 0))),
    "strided": ((3, 3), Geometry(False, (2, 1), (1, 1), (1, 1), (0, 0))),
    "transposed": ((2, 2), Geometry(True, (2, 2), (0, 0), (1, 1), (0, 0))),
    "transposed-odd": ((3, 2), Geometry(True, (2, 3), (1, 0), (1, 2), (1, 2))),
    "transposed-3d": ((2, 3, 1), Geometry(True, (2, 1, 1), (0, 2, 0), (1, 1, 1), (0, 0, 0))),
}


@pytest.mark.parametrize(("sizes", "move"), MOVES.values(), ids=MOVES.keys())
def test_products_and_shifted_sums_equal_a_convolution_and_its_kernel_s_gradient(sizes, move):
    kernel = torch.randn(3, 4, *sizes, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 4, *(7, 6, 5)[: len(sizes)], dtype=torch.float64)
    expected = geometry.convolve(x, kernel, move)
    of_y = torch.randn_like(expected)
    (of_kernel,) = torch.autograd.grad(expected, kernel, of_y)
    with torch.no_grad():
        torch.testing.assert_close(few.convolve_to_few(x, kernel, move), expected)
        torch.testing.assert_close(few.few_kernel_gradient(of_y, x, kernel.shape, move), of_kernel)


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("name", ["plain", "strided", "transposed"])
def test_the_batch_folded_into_the_channels_equals_a_depthwise_convolution(channels, name):
    sizes, move = MOVES[name]
    kernels = torch.randn(channels, 1, *sizes, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, channels, 7, 6, dtype=torch.float64, requires_grad=True)
    expected = geometry.convolve(x, kernels, move, groups=channels)
    of_y = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, [x, kernels], of_y)
    torch.testing.assert_close(geometry.depthwise(x, kernels, move), expected)
    torch.testing.assert_close(geometry.depthwise_gradients(of_y, x.detach(), kernels.detach(), move), gradients)


# --- bfloat16 -------------------------------------------------------------------------------------------------------

FORMS = ["lora_c", "conv_lora", "cp_lora", "dora_c", "conv_dora", "cp_dora"]


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("method", FORMS)
@pytest.mark.parametrize("path", ["dense", "fused"])
def test_gradients_under_autocast_are_those_of_float32_up_to_bfloat16(monkeypatch, path, method, kernel_size):
    net = nn.Sequential(nn.Conv2d(16, 24, kernel_size, padding=kernel_size // 2))
    attach(net, AdapterTuning(method=method, rank=4), seed=0)
    nn.init.normal_(net[0].update.up, std=0.1)
    x = torch.randn(2, 16, 9, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    wanted = [x, *(parameter for parameter in net.parameters() if parameter.requires_grad)]
    found = {}
    for precision, way in (("float32", "dense"), ("bfloat16", path)):
        monkeypatch.setattr(adapted, "choose_path", lambda base, update, x, way=way: way)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            y = net(x)
        assert y.dtype is getattr(torch, precision)
        found[precision] = torch.autograd.grad(y.float().square().sum(), wanted)
    for exact, close in zip(found["float32"], found["bfloat16"], strict=True):
        assert close.dtype is torch.float32
        assert torch.linalg.vector_norm(exact - close) < 0.03 * torch.linalg.vector_norm(exact)
