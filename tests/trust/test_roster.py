"""The roster: what the authority signs of all sites, for each of them."""

import json

import pytest
from cryptography import x509
from harness.trust_kits import make_consortium, settings_of

from sahfl.errors import TrustError
from sahfl.trust.attestation import attest, key_of
from sahfl.trust.certificates import key_hash
from sahfl.trust.provision import provision, renew, revoke
from sahfl.trust.roster import FILE, SIGNATURE, kit_has_roster, load_roster


@pytest.fixture
def paths(tmp_path):
    return make_consortium(tmp_path / "keys", sites=["a", "b"])


def certificate(kit):
    return x509.load_pem_x509_certificate((kit / "client.crt").read_bytes())


def test_each_kit_has_the_keys_of_all_sites(paths):
    rosters = [load_roster(kit) for kit in (*paths.sites.values(), paths.sites["a"])]
    assert len({roster.sha256 for roster in rosters}) == 1
    assert rosters[0].note.sites == {site: key_hash(certificate(kit)) for site, kit in paths.sites.items()}
    assert (paths.folder / FILE).read_bytes() == rosters[0].text
    signed = attest(paths.sites["b"], b"document")
    assert key_of(signed) == rosters[0].note.sites["b"]


def test_a_site_that_joins_is_in_the_roster_of_all_kits_that_are_here(paths, tmp_path):
    before = load_roster(paths.sites["a"])
    paths.sites["b"].rename(tmp_path / "handed over")
    provision(settings_of(sites=["a", "b", "c"], port=paths.port), paths.folder)
    after = load_roster(paths.sites["a"])
    assert list(after.changes(before)) == [f"new: c, key {after.note.sites['c'][:16]}"]
    assert load_roster(paths.folder / "sites" / "c") == after
    assert load_roster(tmp_path / "handed over") == before


def test_a_renewed_site_has_another_key_and_a_revoked_one_none(paths):
    first = load_roster(paths.sites["a"])
    renew(paths.folder, "b")
    second = load_roster(paths.sites["a"])
    keys = [roster.note.sites["b"][:16] for roster in (first, second)]
    assert list(second.changes(first)) == [f"another key: b, {keys[0]} before, {keys[1]} now"]
    revoke(paths.folder, "b")
    assert list(load_roster(paths.sites["a"]).changes(second)) == ["gone: b"]
    assert list(second.changes(None)) == [f"new: {site}, key {key[:16]}" for site, key in second.note.sites.items()]


def test_the_roster_of_a_consortium_without_changes_is_not_signed_anew(paths):
    before = (paths.folder / SIGNATURE).read_bytes()
    provision(settings_of(sites=["a", "b"], port=paths.port), paths.folder)
    assert (paths.folder / SIGNATURE).read_bytes() == before


@pytest.mark.parametrize("lost", [FILE, SIGNATURE])
def test_a_roster_that_lost_a_file_is_made_again(paths, lost):
    (paths.sites["a"] / lost).unlink()
    provision(settings_of(sites=["a", "b"], port=paths.port), paths.folder)
    assert load_roster(paths.sites["a"]) == load_roster(paths.sites["b"])


def test_a_changed_roster_is_refused(paths):
    path = paths.sites["a"] / FILE
    content = json.loads(path.read_text())
    content["sites"]["invented"] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(TrustError, match="was changed, or signed by another authority"):
        load_roster(paths.sites["a"])


def test_a_kit_of_an_earlier_version_has_none(paths):
    (paths.sites["a"] / FILE).unlink()
    assert not kit_has_roster(paths.sites["a"])
    with pytest.raises(TrustError, match=r"roster\.json"):
        load_roster(paths.sites["a"])


def forget_key(paths, site):
    """Make the record that of an earlier version, which had no hashes of keys."""
    path = paths.authority / "issued.json"
    record = json.loads(path.read_text())
    del record["holders"][site]["certificates"][-1]["key_sha256"]
    path.write_text(json.dumps(record))


def test_a_record_of_an_earlier_version_has_the_keys_of_the_kits_that_are_here(paths):
    before = load_roster(paths.sites["a"])
    forget_key(paths, "b")
    provision(settings_of(sites=["a", "b"], port=paths.port), paths.folder)
    assert load_roster(paths.sites["a"]) == before


def test_there_is_no_roster_without_a_site_whose_key_is_not_known_until_it_is_renewed(paths, tmp_path):
    forget_key(paths, "b")
    for place in (paths.folder, *paths.sites.values()):
        (place / FILE).unlink()
        (place / SIGNATURE).unlink()
    paths.sites["b"].rename(tmp_path / "handed over")
    renew(paths.folder, "a")
    assert not kit_has_roster(paths.sites["a"])
    assert not (paths.folder / FILE).exists()
    renew(paths.folder, "b")
    assert set(load_roster(paths.sites["a"]).note.sites) == {"a", "b"}
