import contextlib

import pytest
import yaml
from harness.trust_kits import settings_of
from hypothesis import given
from hypothesis import strategies as st

from sahfl.config import load_consortium
from sahfl.config.consortium import Consortium
from sahfl.errors import ConfigError

GOOD = {"name": "test", "server": {"host": "fl.example.org"}, "sites": ["bern", "graz"]}


def load(tmp_path, settings):
    path = tmp_path / "consortium.yaml"
    path.write_text(yaml.safe_dump(settings))
    return load_consortium(path)


def test_a_short_file_gets_every_default(tmp_path):
    consortium = load(tmp_path, GOOD)
    assert consortium.sites == ("bern", "graz")
    assert (consortium.server.port, consortium.server.also) == (8443, ())
    assert (consortium.valid_days.authority, consortium.valid_days.certificates) == (3650, 397)


def test_all_problems_of_a_file_come_in_one_message(tmp_path):
    bad = {
        "name": "Test Consortium",
        "server": {"host": "https://fl.example.org", "port": 0, "also": ["*.example.org", "fl:8443"], "cert": "x"},
        "sites": ["bern", "bern", "server"],
        "valid_days": {"authority": 100, "certificates": 397},
    }
    with pytest.raises(ConfigError) as info:
        load(tmp_path, bad)
    text = str(info.value)
    assert text.startswith(f"{tmp_path / 'consortium.yaml'}: 8 problems\n")
    for problem in (
        " name: expected 1 to 40 lower-case letters",
        " server.host: expected a DNS name or an IP address, without scheme, port or wildcard, got",
        " server.port: expected at least 1, got 0",
        " server.also.0: expected a DNS name",
        " server.also.1: expected a DNS name",
        " server.cert: is not a setting; its section has host, port, also",
        " sites: named twice: bern",
        " valid_days: authority: 100 is less than certificates: 397",
    ):
        assert problem in text


@pytest.mark.parametrize("site", ["server", "authority"])
def test_a_site_cannot_have_a_name_that_the_commands_use(tmp_path, site):
    with pytest.raises(ConfigError, match=f"sites: no site can be called {site}; choose another name"):
        load(tmp_path, GOOD | {"sites": ["bern", site]})


@pytest.mark.parametrize("sites", [[], ["../etc"], ["a.previous"], [".a.new"], ["A"], "bern", None])
def test_a_name_that_could_be_another_folder_is_refused(tmp_path, sites):
    with pytest.raises(ConfigError, match=r" sites(\.0)?: "):
        load(tmp_path, GOOD | {"sites": sites})


HOSTS = ["localhost", "fl.example.org", "FL-1.example", "10.0.0.1", "::1", "2001:db8::1", "xn--grn-ioa.example"]
NO_HOSTS = [
    "",
    " ",
    "a b",
    "-a",
    "a-",
    "a..b",
    "a.",
    "1.2.3",
    "300.1.1.1",
    "grün.example",
    "a_b",
    "fe80::1%eth0",
    "a" * 64,
]


@pytest.mark.parametrize("host", HOSTS)
def test_names_and_addresses_are_hosts(host):
    assert settings_of(sites=["a"], host=host).server.host == host


@pytest.mark.parametrize("host", NO_HOSTS)
def test_what_no_certificate_can_be_made_out_to_is_no_host(host):
    with pytest.raises(ConfigError, match=r"server\.host"):
        settings_of(sites=["a"], host=host)


@given(st.text(max_size=20))
def test_any_text_is_a_host_or_a_problem_of_the_file(host):
    with contextlib.suppress(ConfigError):
        assert settings_of(sites=["a"], host=host).server.host == host


def test_the_record_of_the_authority_holds_the_file_unchanged():
    settings = settings_of(sites=["a", "b"], also=["10.0.0.1"])
    assert Consortium.model_validate_json(settings.model_dump_json()) == settings
