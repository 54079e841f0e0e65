import re

import pytest
import torch

from sahfl.config import ModelConfig, ViewsConfig
from sahfl.data.views import n_channels
from sahfl.model import BLOOD_PRIOR_LOGIT, FEATURES, MultiViewUNet

CHANNELS = n_channels(ViewsConfig())


def small_net(seed=0, channels=3):
    return MultiViewUNet(channels, size="tiny", seed=seed)


def test_the_sizes_have_as_many_parameters_as_the_setting_says():
    said = re.findall(r"[\d.]+", ModelConfig.model_fields["size"].description.split(":")[1].split("million")[0])
    for size, millions in zip(FEATURES, said, strict=True):
        with torch.device("meta"):  # counts only; the large network would take a second to fill
            n_parameters = sum(value.numel() for value in MultiViewUNet(CHANNELS, size=size, seed=0).parameters())
        assert n_parameters / 1e6 == pytest.approx(float(millions), rel=0.01)


def test_every_size_of_the_setting_can_be_built():
    assert set(ModelConfig.model_fields["size"].annotation.__args__) == set(FEATURES)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, second, other = (small_net(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["net.conv_0.conv_0.conv.weight"], other["net.conv_0.conv_0.conv.weight"])


def test_the_global_random_state_is_neither_used_nor_changed():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = small_net()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = small_net()
    assert torch.equal(first.net.conv_0.conv_0.conv.weight, second.net.conv_0.conv_0.conv.weight)


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


def test_blood_is_rare_at_the_start():
    with torch.no_grad():
        probability = torch.sigmoid(small_net()(torch.rand(1, 3, 32, 32))).mean().item()
    assert probability == pytest.approx(torch.sigmoid(torch.tensor(BLOOD_PRIOR_LOGIT)).item(), abs=0.03)


def test_the_parts_are_named_by_role():
    parts = ["conv_0", "down_1", "down_2", "down_3", "down_4", "upcat_4", "upcat_3", "upcat_2", "upcat_1", "final_conv"]
    assert [name for name, _ in small_net().net.named_children()] == parts
