"""The adapted layer against dense kernels that these tests build themselves."""

import math

import pytest
import torch
from torch import Generator, nn

from sahfl.adapters.cp_lora import CPLoRAConv
from sahfl.errors import AdapterError

SETTINGS = {
    "k1": {"kernel_size": 1},
    "k3": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilated-no-bias": {"kernel_size": 3, "dilation": 2, "padding": 2, "bias": False},
    "uneven": {"kernel_size": (3, 1, 2), "stride": (1, 2, 1), "padding": (1, 0, 1)},
}
ONLY_PLAIN = {
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    "reflect": {"kernel_size": 3, "padding": 2, "padding_mode": "reflect", "stride": 2},
    "same": {"kernel_size": 3, "padding": "same"},
}
ONLY_TRANSPOSED = {"output-padding": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}}
LAYERS = {
    f"{kind.__name__}-{name}": (kind, setting)
    for kind in (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    for name, setting in (SETTINGS | (ONLY_TRANSPOSED if "Transpose" in kind.__name__ else ONLY_PLAIN)).items()
}
SIZES = {2: (7, 6), 3: (6, 5, 7)}


def dimensions(kind):
    return 3 if kind.__name__.endswith("3d") else 2


def make_base(kind, setting):
    """A convolution from 4 to 5 channels, float64."""
    n = dimensions(kind)
    setting = {key: value[:n] if isinstance(value, tuple) else value for key, value in setting.items()}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return kind(4, 5, dtype=torch.float64, **setting)


def make_layer(kind, setting, rank=2, seed=0):
    return CPLoRAConv(make_base(kind, setting), rank=rank, alpha=3.0, generator=Generator().manual_seed(seed))


def trained(layer):
    """The layer with all factors away from their start."""
    generator = Generator().manual_seed(9)
    with torch.no_grad():
        for name in layer.exchanged:
            layer.get_parameter(name).normal_(generator=generator)
    return layer


def an_input(kind):
    return torch.randn(2, 4, *SIZES[dimensions(kind)], dtype=torch.float64, generator=Generator().manual_seed(3))


def dense_delta(layer):
    """sum_p out x in x (depth x) height x width, by einsum over the named axes, times alpha / rank."""
    spatial = "dhw"[-len(layer.axes) :]
    factors = [layer.factor_out, layer.factor_in, *(getattr(layer, f"factor_{axis}") for axis in layer.axes)]
    order = f"io{spatial}" if layer.base.transposed else f"oi{spatial}"
    terms = ",".join(f"{letter}p" for letter in "oi" + spatial)
    return 3.0 / layer.factor_out.shape[1] * torch.einsum(f"{terms}->{order}", *factors)


@pytest.fixture(params=LAYERS.values(), ids=LAYERS.keys())
def kind_and_setting(request):
    return request.param


def test_a_fresh_adapter_leaves_the_output_unchanged_bit_for_bit(kind_and_setting):
    kind, setting = kind_and_setting
    base, layer, x = make_base(kind, setting), make_layer(kind, setting), an_input(kind)
    assert torch.equal(layer(x), base(x))


def test_forward_is_the_convolution_with_the_updated_kernel(kind_and_setting):
    kind, setting = kind_and_setting
    layer, base, x = trained(make_layer(kind, setting)), make_base(kind, setting), an_input(kind)
    with torch.no_grad():
        before = base(x)
        base.weight += dense_delta(layer)
        torch.testing.assert_close(layer(x), base(x), rtol=1e-12, atol=1e-12)
        assert (base(x) - before).abs().max() > 0.1


def test_the_merged_convolution_computes_the_same_and_is_plain(kind_and_setting):
    kind, setting = kind_and_setting
    layer, x = trained(make_layer(kind, setting)), an_input(kind)
    merged = layer.merged()
    assert type(merged) is kind
    torch.testing.assert_close(merged(x), layer(x), rtol=1e-12, atol=1e-12)


def test_gradients_of_the_factors_equal_autograd_through_a_dense_kernel(kind_and_setting):
    kind, setting = kind_and_setting
    layer, x = trained(make_layer(kind, setting)), an_input(kind)
    names = sorted(layer.exchanged)
    weights = torch.randn(layer(x).shape, dtype=torch.float64, generator=Generator().manual_seed(4))
    got = torch.autograd.grad((layer(x) * weights).sum(), [layer.get_parameter(name) for name in names])
    plain, delta = make_base(kind, setting), dense_delta(layer)
    adapted = torch.func.functional_call(plain, {"weight": plain.weight.detach() + delta}, (x,))
    expected = torch.autograd.grad((adapted * weights).sum(), [layer.get_parameter(name) for name in names])
    for name, one, other in zip(names, got, expected, strict=True):
        assert other.abs().max() > 0.01, name
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10, msg=name)


def test_only_the_factors_are_trainable(kind_and_setting):
    layer = make_layer(*kind_and_setting)
    trainable = {name for name, parameter in layer.named_parameters() if parameter.requires_grad}
    axes = {2: {"height", "width"}, 3: {"depth", "height", "width"}}[dimensions(kind_and_setting[0])]
    assert trainable == {"factor_out", "factor_in"} | {f"factor_{axis}" for axis in axes} == set(layer.exchanged)


def test_the_adapter_has_rank_times_the_sum_of_the_kernels_axes_parameters():
    flat = make_layer(nn.Conv2d, {"kernel_size": (3, 2)}, rank=7)
    deep = make_layer(nn.ConvTranspose3d, {"kernel_size": (3, 1, 2)}, rank=7)
    assert sum(flat.get_parameter(name).numel() for name in flat.exchanged) == 7 * (5 + 4 + 3 + 2)
    assert sum(deep.get_parameter(name).numel() for name in deep.exchanged) == 7 * (5 + 4 + 3 + 1 + 2)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose3d])
def test_every_unfolding_of_an_update_has_the_rank_of_the_adapter(kind):
    for rank in (1, 2):
        delta = trained(make_layer(kind, {"kernel_size": 3}, rank=rank)).delta().detach()
        assert delta.shape == make_base(kind, {"kernel_size": 3}).weight.shape
        for axis in range(delta.ndim):
            assert torch.linalg.matrix_rank(delta.movedim(axis, 0).flatten(1)) == rank


def test_merging_leaves_the_layer_as_it_was():
    layer = trained(make_layer(nn.Conv2d, {"kernel_size": 3}))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with torch.no_grad():
        layer.merged().weight.zero_()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_the_update_is_scaled_by_alpha_over_rank():
    layers = [
        trained(CPLoRAConv(nn.Conv2d(4, 5, 3), rank=4, alpha=alpha, generator=Generator())) for alpha in (2.0, 6.0)
    ]
    torch.testing.assert_close(3 * layers[0].delta(), layers[1].delta())


def test_the_same_seed_gives_the_same_start_and_another_seed_another():
    first, second, other = (make_layer(nn.Conv2d, {"kernel_size": 3}, seed=seed) for seed in (1, 1, 2))
    for name in ("factor_in", "factor_height", "factor_width"):
        assert torch.equal(first.get_parameter(name), second.get_parameter(name))
        assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


@pytest.mark.parametrize(("kind", "size"), [(nn.Conv2d, (3, 3)), (nn.Conv3d, (3, 2, 1))])
def test_the_in_side_starts_with_the_variance_of_a_kaiming_kernel(kind, size):
    layer = CPLoRAConv(kind(400, 1, size), rank=400, alpha=400.0, generator=Generator().manual_seed(0))
    with torch.no_grad():
        layer.factor_out.fill_(1.0)  # the update is then a sum of `rank` in-side kernels
    fan_in = 400 * math.prod(size)
    assert layer.delta().var().item() == pytest.approx(400 / (3 * fan_in), rel=0.15)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose3d])
def test_a_grouped_convolution_is_refused_naming_its_groups(kind):
    with pytest.raises(AdapterError, match=r"needs a convolution with groups=1, got groups=2"):
        CPLoRAConv(kind(4, 4, 3, groups=2), rank=1, alpha=1.0, generator=Generator())
