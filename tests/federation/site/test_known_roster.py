"""Which other sites a site believes: those of the roster that its people accepted."""

import shutil

import pytest
from harness.asking import CLOSED
from harness.trust_kits import copy_of, make_consortium, settings_of

from sahfl.config import SiteConfig, parse
from sahfl.errors import ConfigError, RosterNotAccepted, SiteStateLost, StorageError, TrustError
from sahfl.federation.site.audit import FILE as AUDIT
from sahfl.federation.site.audit import read_lines
from sahfl.federation.site.folder_check import check_folder
from sahfl.federation.site.known_roster import (
    FILE,
    accept_roster,
    accepted_roster,
    require_roster,
    signed_by_rostered,
)
from sahfl.trust.attestation import attest
from sahfl.trust.provision import provision, renew
from sahfl.trust.roster import load_roster


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    return make_consortium(tmp_path_factory.mktemp("keys") / "keys", sites=["graz", "bern"])


@pytest.fixture
def paths(consortium, tmp_path):
    return copy_of(consortium, tmp_path / "keys")


@pytest.fixture
def config(paths, tmp_path):
    (tmp_path / "work").mkdir()
    data = {"source": "datalist", "path": "list.json"}
    settings = {"name": "graz", "folder": str(tmp_path / "work"), "kit": str(paths.sites["graz"]), "data": data}
    return parse(SiteConfig, settings, where="test").model_copy(update={"policy": CLOSED})


def lines(config):
    return [line for line in read_lines(config.folder / AUDIT) if line["event"] == "roster_accepted"]


def test_the_first_roster_of_the_kit_is_in_force_with_one_line_in_the_audit_log(config, paths):
    found = require_roster(config)
    assert found == load_roster(paths.sites["graz"]) == accepted_roster(config.folder)
    assert require_roster(config) == found
    (line,) = lines(config)
    assert (line["details"]["roster"], line["details"]["sites"]) == (found.sha256, ["bern", "graz"])


def test_a_later_roster_waits_for_a_person(config, paths):
    first = require_roster(config)
    provision(settings_of(sites=["graz", "bern", "new"], port=paths.port), paths.folder)
    second = load_roster(paths.sites["graz"])
    assert require_roster(config) == first
    joined = attest(paths.folder / "sites" / "new", b"document")
    with pytest.raises(TrustError, match=rf"new is not in the roster .* The kit has a roster with it, {second.sha256}"):
        signed_by_rostered(config, joined, b"document")
    assert accept_roster(config, second.sha256.upper()) == second
    assert require_roster(config) == second
    assert signed_by_rostered(config, joined, b"document") == "new"
    assert [line["details"]["roster"] for line in lines(config)] == [first.sha256, second.sha256]


def test_a_site_with_another_key_is_not_believed_until_its_roster_is_accepted(config, paths, tmp_path):
    require_roster(config)
    shutil.copytree(paths.sites["bern"], tmp_path / "old")
    renew(paths.folder, "bern")
    assert signed_by_rostered(config, attest(tmp_path / "old", b"x"), b"x") == "bern"
    waits = load_roster(config.kit)
    with pytest.raises(TrustError, match=rf"bern has another key than .* The kit has a roster with it, {waits.sha256}"):
        signed_by_rostered(config, attest(paths.sites["bern"], b"x"), b"x")
    accept_roster(config, waits.sha256)  # as the message says
    assert signed_by_rostered(config, attest(paths.sites["bern"], b"x"), b"x") == "bern"


def test_a_site_whose_kit_lacks_the_newest_roster_gets_it_from_the_centre_also_for_its_own_new_key(config, paths):
    require_roster(config)
    old = {name: (paths.sites["graz"] / name).read_bytes() for name in ("roster.json", "roster.sig")}
    for site, named in (("bern", "bern has another key"), ("graz", "graz, this site, has another key")):
        renew(paths.folder, site)
        for name, content in old.items():  # the centre sends these two by hand
            (paths.sites["graz"] / name).write_bytes(content)
        with pytest.raises(TrustError, match=rf"{named} .* ask the coordinating centre for roster.json and roster.sig"):
            signed_by_rostered(config, attest(paths.sites[site], b"x"), b"x")
        for name in old:  # as the message says
            shutil.copy(paths.folder / name, paths.sites["graz"] / name)
        accept_roster(config, load_roster(paths.sites["graz"]).sha256)
        assert signed_by_rostered(config, attest(paths.sites[site], b"x"), b"x") == site
        old = {name: (paths.sites["graz"] / name).read_bytes() for name in old}


@pytest.mark.parametrize("sha256", ["", "abc", "0" * 63, "0" * 64])
def test_another_hash_than_that_of_the_kit_s_roster_accepts_nothing(config, sha256):
    with pytest.raises(ConfigError, match="accept-roster: "):
        accept_roster(config, sha256)
    assert accepted_roster(config.folder) is None


def test_a_kit_without_a_roster_is_told_how_to_follow(config, paths):
    for name in ("roster.json", "roster.sig"):
        (paths.sites["graz"] / name).unlink()
    with pytest.raises(RosterNotAccepted, match=r"ask the coordinating centre for roster.json and roster.sig"):
        require_roster(config)
    assert signed_by_rostered(config, attest(paths.sites["bern"], b"x"), b"x") == "bern"
    for name in ("roster.json", "roster.sig"):  # as the message says
        shutil.copy(paths.folder / name, paths.sites["graz"] / name)
    assert require_roster(config).note.sites.keys() == {"graz", "bern"}


def test_a_roster_that_was_lost_or_put_back_stops_the_site(config):
    require_roster(config)
    check_folder(config)
    (config.folder / FILE).unlink()
    with pytest.raises(SiteStateLost, match="accept a roster again: sahfl-client accept-roster"):
        check_folder(config)
    accept_roster(config, load_roster(config.kit).sha256)
    check_folder(config)


def test_a_damaged_roster_is_an_error_and_no_roster(config):
    require_roster(config)
    (config.folder / FILE).write_text("{}")
    with pytest.raises(StorageError, match=r"roster.json: cannot be read"):
        require_roster(config)
