"""The device of a site's file, on machines with and without GPUs."""

import pytest
import torch

from sahfl.config import SiteConfig, parse
from sahfl.errors import ConfigError
from sahfl.federation.device import choose_device, resolve

SITE = {"name": "a", "folder": "x", "data": {"source": "folder", "path": "y"}}


@pytest.mark.parametrize(
    ("name", "n_gpus", "device"),
    [("auto", 0, "cpu"), ("auto", 2, "cuda:0"), ("cpu", 2, "cpu"), ("cuda", 1, "cuda:0"), ("cuda:1", 2, "cuda:1")],
)
def test_a_name_becomes_a_device_that_is_there(name, n_gpus, device):
    assert resolve(name, n_gpus=n_gpus) == device


@pytest.mark.parametrize(
    ("name", "n_gpus", "found"), [("cuda", 0, "no usable GPU"), ("cuda:2", 2, r"2 usable GPU\(s\)")]
)
def test_a_gpu_that_is_not_there_is_one_clear_error(name, n_gpus, found):
    with pytest.raises(ConfigError, match=f"device: got {name}, this machine has {found}; expected cpu, auto, or"):
        resolve(name, n_gpus=n_gpus)


def test_the_processor_is_always_there():
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", "mps"])
def test_other_names_are_refused_with_the_file(name):
    with pytest.raises(ConfigError, match="device: String should match pattern"):
        parse(SiteConfig, SITE | {"device": name}, where="site.yaml")


def test_settings_of_the_service_have_defaults():
    site = parse(SiteConfig, SITE, where="site.yaml")
    assert (site.kit, site.device, site.threads, site.log) == (None, "auto", None, "text")
    assert parse(SiteConfig, SITE | {"log": "json", "threads": 4}, where="site.yaml").threads == 4
