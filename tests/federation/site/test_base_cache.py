"""The installed base: read once per process, and again when its file changes."""

import os

import numpy as np
import pytest

from sahfl.adapters import digest
from sahfl.adapters.files import save_tensors
from sahfl.config import SiteConfig, parse
from sahfl.errors import AdapterError
from sahfl.federation.site import site as module
from sahfl.federation.site.site import Site

STATE = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}


@pytest.fixture
def site(tmp_path):
    module._read_base.cache_clear()
    config = {"name": "a", "folder": str(tmp_path), "data": {"source": "folder", "path": str(tmp_path)}}
    site = Site(parse(SiteConfig, config, where="test"))
    site.install_base(STATE, digest(STATE))
    return site


def test_the_second_round_reads_no_file_and_gets_the_same_bits(site, monkeypatch):
    first = site.base(digest(STATE))
    monkeypatch.setattr(module, "load_tensors", None)
    second = site.base(digest(STATE))
    for name, array in STATE.items():
        np.testing.assert_array_equal(first[name], array)
        assert second[name] is first[name]


def test_nobody_can_change_the_base_for_the_next_round(site):
    with pytest.raises(ValueError, match="read-only"):
        site.base(digest(STATE))["a"][0, 0] = 7


def test_a_file_that_changes_is_noticed_although_it_was_read_before(site):
    site.base(digest(STATE))
    path = site._base_file(digest(STATE))
    save_tensors(path, STATE | {"b": np.zeros(4, np.float32)})
    os.utime(path, ns=(1, 1))  # whatever the resolution of this file system's clock
    with pytest.raises(AdapterError, match="was changed on disk"):
        site.base(digest(STATE))


def test_a_base_that_was_never_installed_is_an_error(site):
    with pytest.raises(AdapterError):
        site.base("0" * 64)
