"""The device of a site's file, on machines with and without GPUs."""

import pytest
import torch
from harness.tiny_study import TINY

from sahfl.adapters import digest, exchanged
from sahfl.config import SiteConfig, Study, parse
from sahfl.errors import ConfigError
from sahfl.federation.site.device import choose_device, resolve
from sahfl.federation.site.kinds import received
from sahfl.federation.site.site import Site
from sahfl.networks import whole_network
from sahfl.payload import Header
from sahfl.task import Task

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
    with pytest.raises(
        ConfigError, match="device: expected auto, cpu, cuda or one of several GPUs such as cuda:1, got"
    ):
        parse(SiteConfig, SITE | {"device": name}, where="site.yaml")


def test_settings_of_the_service_have_defaults():
    site = parse(SiteConfig, SITE, where="site.yaml")
    assert (site.kit, site.device, site.threads, site.log) == (None, "auto", None, "text")
    assert parse(SiteConfig, SITE | {"log": "json", "threads": 4}, where="site.yaml").threads == 4


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_site_s_network_is_on_its_device(tmp_path, monkeypatch, stage):
    study = parse(Study, TINY, where="test")
    base = exchanged.read(whole_network(study.views, study.model, study.seed))
    site = Site(parse(SiteConfig, SITE | {"folder": str(tmp_path), "device": "cuda:1"}, where="test"))
    site.install_base(base, digest(base))
    asked = []
    monkeypatch.setattr(received, "choose_device", lambda name: asked.append(name) or torch.device("meta"))
    task = Task(stage=stage, seed=3, views=study.views, model=study.model, folds=2, method=study.finetune.methods[1])
    header = Header("a" * 64, stage=stage, method="cp_lora-r2", fold=-1, round=0, base=digest(base))
    net = received.network_of(site, task, header)
    assert {parameter.device.type for parameter in net.parameters()} == {"meta"}
    assert asked == ["cuda:1"]
    assert len(exchanged.parameters(net)) > 0
