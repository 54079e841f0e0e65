"""A settings file of a few hundred bytes takes no more memory than it has settings."""

import os
import re
import time
import tracemalloc

import pytest

from sahfl.config import load_site, load_study
from sahfl.errors import ConfigError
from sahfl.settings_file import MOST_LEVELS, read_settings, read_text

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
"""Nine levels of nine: a billion values in 500 bytes."""


def test_values_that_repeat_a_billion_times_are_refused_with_line_and_remedy(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(LAUGHS)
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError) as caught:
            load_study(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    found = "got the alias *a0, expected each value in full; write what stands at &a0 here too"
    assert str(caught.value) == f"{path}, line 2: {found}"


def test_the_remedy_for_an_alias_works(tmp_path):
    aliased, written = "a: &x {b: 1}\nc: *x\n", "a: &x {b: 1}\nc: {b: 1}\n"
    with pytest.raises(ConfigError, match="line 2: got the alias"):
        read_text(aliased, tmp_path / "site.yaml")
    assert read_text(written, tmp_path / "site.yaml").content == {"a": {"b": 1}, "c": {"b": 1}}


def test_an_alias_of_what_contains_it_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"line 1: got the alias \*x"):
        read_text("a: &x [*x]\n", tmp_path / "site.yaml")


@pytest.mark.parametrize("text", ["a: " + "[" * 5000, "a: " + "{b: " * 5000, "- " * 5000], ids=["list", "map", "block"])
def test_settings_nested_without_end_are_refused_with_their_line(tmp_path, text):
    with pytest.raises(ConfigError, match=rf"line 1: got more than {MOST_LEVELS} levels of settings"):
        read_text(text, tmp_path / "site.yaml")


@pytest.mark.parametrize(
    "value", ["!!bool maybe", "!!timestamp soon", "!!set [1]", "!!map [1]", "!!int ''", "!!binary '*'", "!!omap [a]"]
)
def test_a_value_that_does_not_fit_its_tag_is_one_error(tmp_path, value):
    path = tmp_path / "site.yaml"
    path.write_text(f"name: {value}\n")
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load_site(path)


def test_tens_of_thousands_of_names_and_problems_take_seconds(tmp_path):
    path, began = tmp_path / "site.yaml", time.process_time()
    path.write_text("{" + ",".join(f"{n:05d}" for n in range(40_000)) + "}")
    with pytest.raises(ConfigError, match="and 39"):
        load_site(path)
    path.write_text("policy: {studies: [" + "1," * 40_000 + "]}")
    with pytest.raises(ConfigError, match="and 39"):
        load_site(path)
    assert time.process_time() - began < 30


def test_a_settings_file_of_many_megabytes_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "site.yaml"
    with path.open("wb") as stream:
        stream.truncate(10**12)
    with pytest.raises(ConfigError, match=r"site.yaml: cannot be read \(has 1000000000000 bytes, expected at most"):
        load_site(path)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_a_pipe_or_a_device_in_the_place_of_settings_is_refused(tmp_path, make):
    make(tmp_path / "site.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read \(is a (pipe|device), expected a regular file\)"):
        read_settings(tmp_path / "site.yaml")
