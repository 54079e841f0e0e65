"""The sizes of an adapter's training steps: equal for all methods, ranks, kernels and factors."""

import pytest
import torch
from harness.adapted_layers import put_on
from torch import Generator, nn

from sahfl.adapters.attach import attach
from sahfl.adapters.exchanged import factored_layers, private_layers
from sahfl.adapters.steps import INNER_RATE, rate_of
from sahfl.adapters.updates.geometry import kernel_of
from sahfl.config import AdapterTuning, WeightTuning

RATE = 1e-3
KERNELS = [(nn.Conv2d, 3), (nn.Conv2d, 1), (nn.ConvTranspose2d, 2), (nn.Conv3d, 3), (nn.Conv3d, (1, 3, 3))]
FORMS = ["lora_c", "conv_lora", "cp_lora"]


def adapted(kind, size, method, n_in=64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = kind(n_in, 32, size, bias=False)
    return put_on(base, method)


def steps(layer, n, space):
    """Change of a kernel after n steps of AdamW, each channel's as a share of a new channel's length, 1 / sqrt 3."""
    factors = rate_of(nn.Sequential(layer))
    rates = {name: RATE * factors(f"0.{name}") for name, p in layer.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(
        [{"params": [layer.get_parameter(name)], "lr": rate} for name, rate in rates.items()], weight_decay=0.0
    )
    generator = Generator().manual_seed(1)
    x = torch.randn(2, layer.base.in_channels, *space, generator=generator)
    weights = torch.randn(layer.base(x).shape, generator=generator)
    for _ in range(n):
        optimiser.zero_grad()
        (layer(x) * weights).sum().backward()
        optimiser.step()
    moved = kernel_of(layer.merged()) - kernel_of(layer.base)
    return moved.square().sum().div(layer.base.out_channels / 3).sqrt().item()


@pytest.mark.parametrize("rank", [1, 8, 128, 512])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "size"), KERNELS, ids=str)
def test_the_first_step_moves_a_kernel_by_alpha_times_the_learning_rate(kind, size, form, rank):
    """Also with far more terms than a kernel has numbers, which are no longer orthogonal to each other."""
    layer = adapted(kind, size, AdapterTuning(method=form, rank=rank, alpha=16.0))
    relative = steps(layer, 1, (5,) * (3 if kind is nn.Conv3d else 2)) / (16 * RATE)
    assert relative == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize("scaling", ["steps", "rank", "sqrt_rank"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "size"), KERNELS, ids=str)
def test_the_aggregation_scales_shared_and_private_terms_as_the_layer_does(kind, size, form, scaling):
    method = AdapterTuning(method=form, rank=4, private_rank=3, scaling=scaling)
    net = nn.Sequential(adapted(kind, size, method))
    for describe, update in ((factored_layers, net[0].update), (private_layers, net[0].private)):
        (described,) = describe(net, method)
        assert described.scale(update.up.shape[1]) == pytest.approx(net[0].scale, rel=1e-12)


def test_inner_factors_of_private_terms_have_their_own_rates():
    net = nn.Sequential(adapted(nn.Conv2d, 3, AdapterTuning(method="conv_lora", rank=4, private_rank=3)))
    with torch.no_grad():
        net[0].private.down.mul_(10)
    ratio = rate_of(net)("0.private.down") / rate_of(net)("0.update.down")
    assert ratio == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("form", FORMS)
def test_an_inner_factor_moves_relative_to_its_size(form):
    layer = adapted(nn.Conv2d, 3, AdapterTuning(method=form, rank=4))
    before = {name: layer.update.get_parameter(name).detach().clone() for name in layer.update.inner_factors}
    nn.init.ones_(layer.update.up)  # so that they have a gradient in the first step
    steps(layer, 1, (5, 5))
    for name, start in before.items():
        moved = (layer.update.get_parameter(name) - start).square().mean().sqrt() / start.square().mean().sqrt()
        assert moved.item() == pytest.approx(INNER_RATE * RATE, rel=1e-3)


def test_how_the_length_of_a_term_is_shared_among_its_factors_does_not_change_its_training():
    moved = []
    for share in (1.0, 50.0):
        layer = adapted(nn.Conv2d, 3, AdapterTuning(method="cp_lora", rank=4))
        with torch.no_grad():
            layer.update.factor_in.mul_(share)
            layer.update.factor_height.div_(share)
        steps(layer, 4, (5, 5))
        moved.append(layer.merged().weight - layer.base.weight)
    torch.testing.assert_close(*moved, rtol=1e-3, atol=1e-6)


def test_all_that_is_no_inner_factor_has_the_usual_rate():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True))
    attach(net, AdapterTuning(method="cp_dora", also_train=("norm",), all_magnitudes=True), seed=0)
    inner = {f"0.update.factor_{name}" for name in ("in", "height", "width")}
    factors = {name: rate_of(net)(name) for name, _ in net.named_parameters()}
    assert {name for name, factor in factors.items() if factor != 1} == inner
    whole = nn.Sequential(nn.Conv2d(3, 4, 3))
    attach(whole, WeightTuning(method="full"), seed=0)
    assert {rate_of(whole)(name) for name, _ in whole.named_parameters()} == {1.0}
