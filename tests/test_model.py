import re

import pytest
import torch
from torch import nn

from sahfl.config import AdapterTuning, ModelConfig, ViewsConfig
from sahfl.config.network import NETWORKS
from sahfl.data.views import n_channels
from sahfl.model import WIDTHS, MultiViewUNet
from sahfl.unet import BLOOD_PRIOR_LOGIT

CHANNELS = n_channels(ViewsConfig())


VIEWS = ("axial", "coronal", "sagittal")
ROLES = [*(f"encoder.{n}" for n in (1, 2, 3, 4)), "bottleneck", *(f"decoder.{n}" for n in (4, 3, 2, 1)), "head"]


def small_net(seed=0, channels=3, **options):
    return MultiViewUNet(channels, size="tiny", seed=seed, **options)


def n_parameters(**options):
    with torch.device("meta"):  # counts only; the large network would take a second to fill
        return sum(value.numel() for value in MultiViewUNet(CHANNELS, seed=0, **options).parameters())


def test_the_sizes_have_as_many_parameters_as_the_setting_says():
    said = re.findall(r"\d{6,}", ModelConfig.model_fields["size"].description)
    assert [n_parameters(size=size) for size in WIDTHS] == [int(count) for count in said]


def test_networks_for_three_views_have_three_times_the_parameters():
    assert n_parameters(size="tiny", views=VIEWS) == 3 * n_parameters(size="tiny")


def test_outputs_for_deep_supervision_cost_a_weight_per_channel_and_a_bias():
    extra = n_parameters(size="tiny", deep_supervision=True) - n_parameters(size="tiny")
    assert extra == WIDTHS["tiny"][1] + 1 + WIDTHS["tiny"][2] + 1


def test_every_size_of_the_setting_can_be_built():
    assert {name for name, kind in NETWORKS.items() if kind.load() is MultiViewUNet} == set(WIDTHS)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, second, other = (small_net(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["net.encoder.1.0.conv.weight"], other["net.encoder.1.0.conv.weight"])


def test_the_global_random_state_is_neither_used_nor_changed():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = small_net()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = small_net()
    assert torch.equal(first.net.bottleneck[0].conv.weight, second.net.bottleneck[0].conv.weight)


@pytest.mark.parametrize("size", [(96, 112), (96, 80), (112, 80)], ids=["axial", "coronal", "sagittal"])
def test_a_logit_per_pixel_comes_out_in_every_view(size):
    with torch.no_grad():
        assert small_net()(torch.rand(2, 3, *size)).shape == (2, 1, *size)


def test_there_are_no_buffers_that_could_carry_a_sites_statistics():
    assert list(small_net().buffers()) == []


def test_a_slice_does_not_depend_on_the_others_in_its_batch():
    net, slices = small_net(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(slices)[:1], net(slices[:1]), rtol=0, atol=1e-5)


def test_the_norms_are_instance_norms():
    net = MultiViewUNet(9, size="tiny", seed=0)
    slices = torch.rand(2, 9, 32, 48, generator=torch.Generator().manual_seed(0))
    found = net(slices)
    norms = [(path, module) for path, module in net.named_modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == 18
    for path, module in norms:
        instance = nn.InstanceNorm2d(module.num_channels, eps=module.eps, affine=True)
        instance.load_state_dict(module.state_dict())
        net.set_submodule(path, instance)
    torch.testing.assert_close(net(slices), found, atol=1e-5, rtol=1e-5)


def test_blood_is_rare_at_the_start():
    with torch.no_grad():
        probability = torch.sigmoid(small_net()(torch.rand(1, 3, 32, 32))).mean().item()
    assert probability == pytest.approx(torch.sigmoid(torch.tensor(BLOOD_PRIOR_LOGIT)).item(), abs=0.03)


def test_a_side_that_is_not_a_multiple_of_16_is_refused():
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        small_net()(torch.rand(1, 3, 32, 40))


# --- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [(), VIEWS], ids=["shared", "per view"])
def test_the_parts_are_named_by_role_and_hold_every_module_once(views):
    net = small_net(views=views)
    assert list(net.parts) == ROLES
    paths = [path for paths in net.parts.values() for path in paths]
    inside = [module for path in paths for module in net.get_submodule(path).parameters()]
    assert len(inside) == len(set(inside)) == len(list(net.parameters()))
    assert all(len(paths) == max(1, len(views)) for paths in net.parts.values())


def test_a_part_in_a_setting_is_a_part_of_the_network():
    settings = set(AdapterTuning.model_fields["layers"].annotation.__args__[0].__args__[1].__args__)
    assert settings == {*ROLES, "encoder", "decoder"}


def test_no_convolution_before_a_norm_has_a_bias_that_the_norm_would_take_away():
    with_bias = [
        path
        for path, module in small_net(deep_supervision=True).named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None
    ]
    assert with_bias == ["net.head.1", "net.head.2", "net.head.3"]


# --- a network per view ---------------------------------------------------------------------------------------------


def test_each_view_has_a_network_of_its_own():
    net, slices = small_net(views=VIEWS), torch.rand(1, 3, 32, 32)
    alone = [net(slices, view) for view in VIEWS]
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)
    with torch.no_grad():
        for parameter in net.get_submodule("coronal").parameters():
            parameter.zero_()
    assert [torch.equal(net(slices, view), before) for view, before in zip(VIEWS, alone, strict=True)] == [
        True,
        False,
        True,
    ]


def test_a_shared_network_sees_every_view_alike():
    net, slices = small_net(), torch.rand(1, 3, 32, 32)
    assert all(torch.equal(net(slices, view), net(slices)) for view in VIEWS)


def test_without_a_view_the_networks_are_averaged():
    net, slices = small_net(views=VIEWS), torch.rand(1, 3, 32, 32)
    mean = sum(net(slices, view) for view in VIEWS) / 3
    torch.testing.assert_close(net(slices), mean)


def test_the_start_of_a_view_s_network_does_not_depend_on_the_other_views():
    both, one = small_net(views=("axial", "coronal")), small_net(views=("coronal",))
    assert torch.equal(both.coronal.bottleneck[0].conv.weight, one.coronal.bottleneck[0].conv.weight)
    assert not torch.equal(both.coronal.bottleneck[0].conv.weight, both.axial.bottleneck[0].conv.weight)


def test_a_batch_of_one_view_gives_the_others_no_gradient():
    net = small_net(views=VIEWS)
    net(torch.rand(1, 3, 32, 32), "sagittal").sum().backward()
    with_gradient = {name.partition(".")[0] for name, value in net.named_parameters() if value.grad is not None}
    assert with_gradient == {"sagittal"}


# --- deep supervision -----------------------------------------------------------------------------------------------


def test_deep_supervision_adds_outputs_at_half_and_quarter_size_in_training_alone():
    net, slices = small_net(deep_supervision=True), torch.rand(2, 3, 32, 48)
    assert [tuple(level.shape) for level in net(slices)] == [(2, 1, 32, 48), (2, 1, 16, 24), (2, 1, 8, 12)]
    net.eval()
    assert net(slices).shape == (2, 1, 32, 48)


def test_the_finest_output_is_the_same_with_and_without_deep_supervision():
    net, slices = small_net(deep_supervision=True), torch.rand(2, 3, 32, 32)
    finest = net(slices)[0]
    torch.testing.assert_close(net.eval()(slices), finest, rtol=0, atol=0)


def test_every_output_starts_at_rare_blood():
    for output in small_net(deep_supervision=True).net.head.values():
        assert output.bias.item() == BLOOD_PRIOR_LOGIT
