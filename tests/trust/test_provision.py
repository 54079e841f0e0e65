"""Provisioning adds what is missing and never writes over a key; whatever interrupts it, the next call goes on."""

import fcntl
import json
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from harness.trust_kits import copy_of, make_consortium, settings_of

from sahfl.config import load_site
from sahfl.config.policy import SitePolicy
from sahfl.errors import StorageError, TrustError
from sahfl.trust import provision
from sahfl.trust.kit import ServerKit, SiteKit
from sahfl.trust.provision import renew, revoke

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
KEYS = {
    "authority/ca.key",
    "authority/signing.key",
    "server/server.key",
    "server/signing.key",
    "sites/a/client.key",
    "sites/a/node.key",
    "sites/b/client.key",
    "sites/b/node.key",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_consortium(tmp_path_factory.mktemp("consortium") / "c", sites=["a", "b"], port=8443, now=NOW)


@pytest.fixture
def paths(made, tmp_path):
    return copy_of(made, tmp_path / "c")


ROSTERS = ("roster.", "sites/a/roster.", "sites/b/roster.")


def content(folder, *but):
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: data for name, data in files.items() if not name.startswith(but)} if but else files


def again(paths, sites=("a", "b"), now=NOW + DAY, **more):
    return provision.provision(settings_of(sites=sites, port=8443, **more), paths.folder, now=now)


def states(lines):
    return {line.who: line.state for line in lines}


def usable(paths, *sites, now=NOW + DAY):
    assert set(ServerKit.load(paths.server, now=now).sites()) == set(sites)
    for site in sites:
        assert SiteKit.load(paths.folder / "sites" / site, now=now).site == site


# --- what is written ------------------------------------------------------------------------------------------------


def test_each_folder_holds_what_its_owner_needs_and_nothing_more(paths):
    kit = {"ca.crt", "client.crt", "client.key", "node.key", "kit.json", "kit.sig", "site.yaml"}
    kit |= {"roster.json", "roster.sig"}
    server = {"ca.crt", "server.crt", "server.key", "signing.key", "sites.json", "revoked.crl", "server.yaml"}
    authority = {"ca.key", "ca.crt", "signing.key", "issued.json"}
    expected = {f"sites/{site}/{name}" for site in "ab" for name in kit}
    expected |= {f"server/{name}" for name in server} | {f"authority/{name}" for name in authority}
    expected |= {"roster.json", "roster.sig"}
    assert set(content(paths.folder)) == expected


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o177])
def test_c10_private_keys_are_their_owner_s_alone_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask & 0o077)
    try:
        make_consortium(tmp_path / "c", sites=["a", "b"], now=NOW)
    finally:
        os.umask(before)
    modes = {n: stat.S_IMODE((tmp_path / "c" / n).stat().st_mode) for n in content(tmp_path / "c")}
    assert {name for name in modes if name.endswith(".key")} == KEYS
    assert {modes[name] for name in KEYS} == {0o600}
    for folder in ("", "authority", "server", "sites/a"):
        assert stat.S_IMODE((tmp_path / "c" / folder).stat().st_mode) == 0o700


def test_the_example_of_a_site_s_file_is_one_and_names_every_setting_of_a_policy_with_its_default(paths):
    site = load_site(paths.sites["a"] / "site.yaml")
    assert (site.name, site.kit, site.policy) == ("a", paths.sites["a"], SitePolicy())
    text = (paths.sites["a"] / "site.yaml").read_text()
    assert set(yaml.safe_load(text)["policy"]) == set(SitePolicy.model_fields)
    assert "  # Obey only requests that the consortium's signer signed" in text


def test_a_new_kit_asks_for_masks_where_all_sites_of_the_consortium_can_be_masked(paths, tmp_path):
    again(paths, ("a", "b", "c"))
    two, three = (
        yaml.safe_load((paths.folder / "sites" / site / "site.yaml").read_text())["policy"] for site in ("a", "c")
    )
    assert (two["unmasked"], three["unmasked"]) == (True, False)
    assert two | {"unmasked": False} == three


def test_the_certificates_say_what_they_are_for(paths):
    def read(path):
        return x509.load_pem_x509_certificate(path.read_bytes())

    def names(certificate):
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    server, site = read(paths.server / "server.crt"), read(paths.sites["a"] / "client.crt")
    assert [name.value for name in names(site)] == ["urn:sahfl:test:a"]
    assert [str(name.value) for name in names(server)] == ["localhost", "127.0.0.1"]
    assert site.subject.rfc4514_string() == "CN=a,O=test"
    assert server.subject.rfc4514_string() == "CN=server,O=test"
    authority = read(paths.authority / "ca.crt")
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert len({server.serial_number, site.serial_number, authority.serial_number}) == 3


def test_the_record_and_the_list_of_sites_name_the_serial_of_each_certificate(paths):
    listed = json.loads((paths.server / "sites.json").read_text())
    assert (listed["schema"], listed["consortium"], set(listed["sites"])) == (1, "test", {"a", "b"})
    for site, folder in paths.sites.items():
        certificate = x509.load_pem_x509_certificate((folder / "client.crt").read_bytes())
        assert listed["sites"][site]["certificate"] == f"{certificate.serial_number:x}"
        assert listed["sites"][site]["node_key"] == json.loads((folder / "kit.json").read_text())["node_key"]
        assert listed["sites"][site]["expires"] == "2027-04-02T12:00:00Z"


def test_the_kit_says_where_the_server_is_under_any_kind_of_name(tmp_path):
    for n, host in enumerate(["127.0.0.1", "::1", "fl.example.org"]):
        paths = make_consortium(tmp_path / str(n), sites=["a"], host=host, also=[host, "localhost"], now=NOW)
        assert SiteKit.load(paths.sites["a"], now=NOW).host == host


# --- again ----------------------------------------------------------------------------------------------------------


def test_provisioning_again_changes_no_byte(paths):
    before = content(paths.folder)
    assert states(again(paths)) == {"authority": "valid", "server": "valid", "a": "valid", "b": "valid"}
    assert content(paths.folder) == before


def test_a_new_site_is_added_and_the_others_are_not_touched(paths):
    before = content(paths.folder, "server/sites.json", "authority/issued.json", *ROSTERS)
    assert states(again(paths, ("a", "b", "c")))["c"] == "new"
    after = content(paths.folder, "server/sites.json", "authority/issued.json", "sites/c/", *ROSTERS)
    assert after == before
    usable(paths, "a", "b", "c")


def test_a_kit_that_was_handed_over_is_not_made_again(paths):
    before = (paths.server / "sites.json").read_bytes()
    paths.sites["a"].rename(paths.folder.parent / "handed over")
    again(paths)
    assert not paths.sites["a"].exists()
    assert (paths.server / "sites.json").read_bytes() == before


def test_a_server_folder_that_was_moved_gets_its_lists_to_be_copied(paths):
    paths.server.rename(paths.folder.parent / "on the server")
    again(paths, ("a", "b", "c"))
    assert set(content(paths.server)) == {"sites.json", "revoked.crl"}


def test_a_site_that_left_the_file_stays_until_it_is_revoked(paths):
    assert states(again(paths, ("a",)))["b"] == "not in the consortium file"
    usable(paths, "a", "b")


def test_a_server_that_moved_shows_whose_certificate_has_the_old_address(paths):
    lines = states(again(paths, host="new.example.org"))
    assert lines == {
        "authority": "valid",
        "server": "has localhost, 127.0.0.1: renew",
        "a": "has localhost:8443: renew",
        "b": "has localhost:8443: renew",
    }
    renew(paths.folder, "server", now=NOW)
    assert states(renew(paths.folder, "a", now=NOW))["a"] == "new"
    assert SiteKit.load(paths.sites["a"], now=NOW).host == "new.example.org"


def test_the_folder_of_another_consortium_is_refused(paths):
    before = content(paths.folder)
    with pytest.raises(TrustError, match="belongs to consortium 'test', got 'mine'; name another folder with --out"):
        again(paths, name="mine")
    assert content(paths.folder) == before


def test_a_folder_that_lost_its_authority_gets_no_second_one(paths):
    paths.authority.rename(paths.folder.parent / "safe")
    with pytest.raises(TrustError, match=r"has server and sites but no authority/; put the authority's folder back"):
        again(paths)
    with pytest.raises(TrustError, match="holds no authority/ to issue certificates"):
        renew(paths.folder, "a")


def test_an_authority_that_has_expired_issues_nothing(paths):
    with pytest.raises(TrustError, match=r"ca.crt: expired on .*; provision a new consortium in a new folder"):
        renew(paths.folder, "a", now=NOW + 3651 * DAY)


def test_the_table_shows_what_ends_soon(paths):
    assert states(again(paths, now=NOW + 370 * DAY))["a"] == "expires soon"
    lines = again(paths, now=NOW + 398 * DAY)
    assert states(lines) == {"authority": "valid", "server": "expired", "a": "expired", "b": "expired"}
    assert [line.days_left for line in lines] == [3252, 0, 0, 0]


def test_two_commands_do_not_work_in_one_folder(paths):
    descriptor = os.open(paths.folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(TrustError, match="another sahfl is working in it"):
            again(paths)
    finally:
        os.close(descriptor)


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be written \(Not a directory\); no key is lost"):
        make_consortium(tmp_path / "file" / "c", sites=["a"])


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 1}', '{"schema": 9}'])
def test_a_damaged_record_is_named_and_nothing_is_written(paths, content):
    (paths.authority / "issued.json").write_text(content)
    before = (paths.server / "sites.json").read_bytes()
    with pytest.raises(TrustError, match=r"issued.json: (is damaged|got schema 9)"):
        again(paths, ("a", "b", "c"))
    assert (paths.server / "sites.json").read_bytes() == before


# --- renew and revoke -----------------------------------------------------------------------------------------------


def test_a_renewed_site_gets_a_new_certificate_and_keeps_its_node_key(paths):
    old, but = content(paths.sites["a"]), ("server/sites.json", "authority/", "sites/a", *ROSTERS)
    before = content(paths.folder, *but)
    assert states(renew(paths.folder, "a", now=NOW + 100 * DAY))["a"] == "new"
    new = content(paths.sites["a"])
    assert json.loads(new["kit.json"])["node_key"] == json.loads(old["kit.json"])["node_key"]
    assert not {"client.crt", "client.key", "kit.json", "kit.sig"} & {name for name in old if new[name] == old[name]}
    assert content(paths.folder / "sites" / "a.previous") == old
    assert content(paths.folder, *but) == before
    usable(paths, "a", "b", now=NOW + 100 * DAY)
    assert SiteKit.load(paths.sites["a"], now=NOW + 100 * DAY).certificate_expires == NOW + 497 * DAY


def test_renewing_twice_keeps_both_kits_before(paths):
    first = content(paths.sites["a"])
    renew(paths.folder, "a", now=NOW)
    second = content(paths.sites["a"])
    renew(paths.folder, "a", now=NOW)
    assert content(paths.folder / "sites" / "a.previous") == first
    assert content(paths.folder / "sites" / "a.previous-2") == second


def test_a_site_whose_kit_is_not_here_gets_a_new_node_key(paths):
    old = ServerKit.load(paths.server, now=NOW).sites()
    paths.sites["a"].rename(paths.folder.parent / "handed over")
    renew(paths.folder, "a", now=NOW)
    new = ServerKit.load(paths.server, now=NOW).sites()
    assert new["a"] != old["a"]
    assert new["b"] == old["b"]
    usable(paths, "a", "b")


def test_a_renewed_server_keeps_its_lists_its_file_and_the_pair_before(paths):
    (paths.server / "server.yaml").write_text("changed by hand")
    old = content(paths.server)
    sites = content(paths.folder / "sites")
    renew(paths.folder, "server", now=NOW + DAY)
    new = content(paths.server)
    assert {name for name in old if new[name] != old[name]} == {"server.crt", "server.key"}
    assert new["server.crt.previous"] == old["server.crt"]
    assert new["server.key.previous"] == old["server.key"]
    assert content(paths.folder / "sites") == sites
    usable(paths, "a", "b")


def test_c07_a_revoked_site_is_out_of_the_list_and_in_the_revocation_list(paths):
    before = content(paths.folder, "server/", "authority/", *ROSTERS)
    assert states(revoke(paths.folder, "a", now=NOW + DAY))["a"] == "revoked"
    assert (paths.sites["a"] / "REVOKED").read_text() == "a was revoked on 2026-03-02 12:00 UTC\n"
    assert content(paths.folder, "server/", "authority/", "sites/a/REVOKED", *ROSTERS) == before
    listed = x509.load_pem_x509_crl((paths.server / "revoked.crl").read_bytes())
    certificate = x509.load_pem_x509_certificate((paths.sites["a"] / "client.crt").read_bytes())
    assert [entry.serial_number for entry in listed] == [certificate.serial_number]
    assert listed.next_update_utc == NOW + 3650 * DAY
    assert set(ServerKit.load(paths.server, now=NOW + DAY).sites()) == {"b"}
    assert states(again(paths))["a"] == "revoked"


def test_revoking_takes_back_every_certificate_that_a_site_ever_had_and_renewing_gives_none_back(paths):
    renew(paths.folder, "a", now=NOW)
    old = ServerKit.load(paths.server, now=NOW).sites()["a"]
    revoke(paths.folder, "a", now=NOW + DAY)
    renew(paths.folder, "a", now=NOW + DAY)
    listed = x509.load_pem_x509_crl((paths.server / "revoked.crl").read_bytes())
    assert len(list(listed)) == 2
    assert ServerKit.load(paths.server, now=NOW + DAY).sites()["a"] != old
    assert not (paths.sites["a"] / "REVOKED").exists()
    usable(paths, "a", "b")


def test_of_two_revocations_in_one_second_the_later_list_has_the_later_date(paths):
    def made():
        return x509.load_pem_x509_crl((paths.server / "revoked.crl").read_bytes()).last_update_utc

    dates = [made()]
    for site in "ab":
        revoke(paths.folder, site, now=NOW)
        dates.append(made())
    assert dates[0] < dates[1] < dates[2]


@pytest.mark.parametrize("command", [renew, revoke])
@pytest.mark.parametrize("name", ["c", "authority", "../a", ""])
def test_who_has_no_certificate_is_neither_renewed_nor_revoked(paths, command, name):
    before = content(paths.folder)
    with pytest.raises(TrustError, match=r"has no '.*', expected one of: server, a, b$"):
        command(paths.folder, name, now=NOW)
    assert content(paths.folder) == before


def test_the_server_cannot_be_revoked(paths):
    with pytest.raises(TrustError, match="the sites have no list of revoked servers; `sahfl renew server`"):
        revoke(paths.folder, "server")


# --- interruptions --------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process."""


def interrupted(monkeypatch, at, act):
    """Run until the ``at``-th step on the disk, which does not happen any more; whether it was reached."""
    left = [at]

    def counted(step):
        def run(*arguments, **options):
            left[0] -= 1
            if left[0] <= 0:
                raise Killed
            return step(*arguments, **options)

        return run

    with monkeypatch.context() as patch:
        for name in ("rename", "replace"):
            patch.setattr(f"pathlib.Path.{name}", counted(getattr(Path, name)))
        try:
            act()
        except Killed:
            return True
    return False


ACTS = {
    "provision": lambda paths: again(paths, ("a", "b", "c"), now=NOW),
    "renew": lambda paths: renew(paths.folder, "a", now=NOW),
    "renew server": lambda paths: renew(paths.folder, "server", now=NOW),
    "revoke": lambda paths: revoke(paths.folder, "b", now=NOW),
}


@pytest.mark.parametrize("act", ACTS)
def test_a_command_that_is_killed_at_any_step_is_gone_on_with_by_the_next(made, tmp_path, monkeypatch, act):
    at = 0
    while True:
        at += 1
        paths = copy_of(made, tmp_path / str(at))
        private = {name: data for name, data in content(paths.folder).items() if name in KEYS}
        if not interrupted(monkeypatch, at, lambda paths=paths: ACTS[act](paths)):
            break
        again(paths, ("a", "b", "c"), now=NOW)
        revoked = states(again(paths, ("a", "b", "c"), now=NOW))["b"] == "revoked"
        usable(paths, *("ac" if revoked else "abc"), now=NOW)
        assert set(private.values()) <= set(content(paths.folder).values())  # no key was lost, wherever it lies now
        left = [path.name for path in paths.folder.rglob(".*")]
        assert left == []
    assert at > 3


def test_a_first_provisioning_that_is_killed_at_any_step_is_gone_on_with_by_the_next(tmp_path, monkeypatch):
    at = 0
    while True:
        at += 1
        folder = tmp_path / str(at)
        if not interrupted(monkeypatch, at, lambda folder=folder: make_consortium(folder, sites=["a"], now=NOW)):
            break
        paths = make_consortium(folder, sites=["a"], now=NOW)
        usable(paths, "a", now=NOW)
        assert not list(folder.rglob(".*"))
    assert at > 15
