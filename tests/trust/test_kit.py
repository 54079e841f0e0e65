"""A kit is loaded as a whole or refused with the file that is wrong and what to do."""

import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from harness.trust_kits import copy_of, make_consortium

from sahfl.errors import TrustError
from sahfl.trust import keys
from sahfl.trust.certificates import load_certificate, load_revoked, pem
from sahfl.trust.kit import ServerKit, SiteKit
from sahfl.trust.provision import renew, revoke

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SITE_FILES = ["ca.crt", "client.crt", "client.key", "kit.json", "kit.sig", "node.key"]
SERVER_FILES = ["ca.crt", "revoked.crl", "server.crt", "server.key", "signing.key", "sites.json"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_consortium(tmp_path_factory.mktemp("consortium"), sites=["a", "b"], port=8443, now=NOW)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return make_consortium(tmp_path_factory.mktemp("other"), sites=["a", "b"], name="other", now=NOW)


@pytest.fixture
def paths(made, tmp_path):
    return copy_of(made, tmp_path / "c")


def load_site(paths, now=NOW):
    return SiteKit.load(paths.sites["a"], now=now)


def load_server(paths, now=NOW):
    return ServerKit.load(paths.server, now=now)


# --- what a kit says ------------------------------------------------------------------------------------------------


def test_a_site_s_kit_says_who_it_is_and_where_the_server_is(paths):
    kit = load_site(paths)
    assert (kit.consortium, kit.site, kit.host, kit.port) == ("test", "a", "localhost", 8443)
    assert kit.certificate_expires == NOW + 397 * DAY
    assert kit.authority_expires == NOW + 3650 * DAY
    assert kit.signer == load_server(paths).signer.public


def test_the_server_knows_the_sites_by_the_bytes_that_flower_compares(paths):
    sites = load_server(paths).sites()
    assert set(sites) == {"a", "b"}
    for site, folder in paths.sites.items():
        assert sites[site] == public_key_to_bytes(SiteKit.load(folder, now=NOW).node_key.public_key())


def test_the_server_reads_its_list_of_sites_again_at_each_look(paths):
    kit = load_server(paths)
    revoke(paths.folder, "a", now=NOW)
    assert set(kit.sites()) == {"b"}
    assert {site: entry.state for site, entry in kit.entries().items()} == {"a": "revoked", "b": "active"}


def test_c10_no_repr_shows_a_secret(paths):
    for kit in (load_site(paths), load_server(paths)):
        assert "key" not in repr(kit)


# --- damage ---------------------------------------------------------------------------------------------------------

FILES = [("site", name) for name in SITE_FILES] + [("server", name) for name in SERVER_FILES]


def load(paths, which, now=NOW):
    return load_site(paths, now) if which == "site" else load_server(paths, now)


def file_of(paths, which, name):
    return (paths.sites["a"] if which == "site" else paths.server) / name


@pytest.mark.parametrize(("which", "name"), FILES)
def test_a_missing_file_is_named(paths, which, name):
    path = file_of(paths, which, name)
    path.unlink()
    with pytest.raises(TrustError, match=f"{path}: cannot be read .No such file or directory.; expected a whole kit"):
        load(paths, which)


@pytest.mark.parametrize(("which", "name"), FILES)
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe{", b"{}", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_damaged_file_is_refused(paths, which, name, content):
    path = file_of(paths, which, name)
    path.write_bytes(content)
    with pytest.raises(TrustError, match=str(path).replace("kit.sig", "kit.json")):
        load(paths, which)


@pytest.mark.parametrize(("which", "name"), FILES)
def test_a15_a_file_of_another_consortium_is_refused(paths, other, which, name):
    shutil.copy(file_of(other, which, name), file_of(paths, which, name))
    if name in ("signing.key", "sites.json"):  # each whole by itself; the sites then refuse what the server says
        assert load(paths, which)
        return
    with pytest.raises(TrustError, match=r"ca.crt|kit.json|client.key|server.key"):
        load(paths, which)


@pytest.mark.parametrize("name", ["client.crt", "client.key", "node.key"])
def test_a_file_of_another_site_is_refused(paths, name):
    shutil.copy(paths.sites["b"] / name, paths.sites["a"] / name)
    with pytest.raises(TrustError, match=r"put the kit's file back|use all files of one kit"):
        load_site(paths)


def test_the_authority_s_own_certificate_is_no_site_s(paths):
    shutil.copy(paths.sites["a"] / "ca.crt", paths.sites["a"] / "client.crt")
    with pytest.raises(TrustError, match=r"client.crt: .*use all files of one kit"):
        load_site(paths)


def test_the_whole_certificate_of_another_site_is_refused(paths):
    for name in ("client.crt", "client.key"):
        shutil.copy(paths.sites["b"] / name, paths.sites["a"] / name)
    with pytest.raises(TrustError, match=r"client.crt: is made out to 'b', expected 'a'"):
        load_site(paths)


def test_a_server_s_certificate_is_no_site_s(paths):
    for end in (".crt", ".key"):
        shutil.copy(paths.server / f"server{end}", paths.sites["a"] / f"client{end}")
    with pytest.raises(TrustError, match=r"client.crt: is not a certificate of a site"):
        load_site(paths)


@pytest.mark.parametrize("key", ["host", "port", "signer", "site", "consortium"])
def test_c04_a_changed_note_is_refused(paths, key):
    path = paths.sites["a"] / "kit.json"
    note = json.loads(path.read_text())
    path.write_text(json.dumps(note | {key: 1 if key == "port" else "0" * 64}))
    with pytest.raises(TrustError, match=r"kit.json: was changed, or signed by another authority"):
        load_site(paths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "got schema 2, expected 1; use the sahfl that wrote it"),
        ({"consortium": "Other"}, "is damaged: 1 problem"),
        ({"consortium": "other"}, None),
        ({"sites": {"a": {}}}, "is damaged: 4 problem"),
        ({"sites": {"../a": None}}, "is damaged"),
        ({"more": 1}, "more: is not a setting"),
    ],
)
def test_a_list_of_sites_that_does_not_fit_is_refused(paths, change, message):
    path = paths.server / "sites.json"
    kit = load_server(paths)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(TrustError, match=message or "is of consortium 'other', expected 'test'"):
        kit.sites()


def test_a_node_key_that_is_none_is_refused_naming_the_site(paths):
    path = paths.server / "sites.json"
    listed = json.loads(path.read_text())
    for line in ("", "ssh-rsa AAAA", "ecdsa-sha2-nistp384 AAAA", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA=="):
        listed["sites"]["b"]["node_key"] = line
        path.write_text(json.dumps(listed))
        with pytest.raises(TrustError, match=r"sites.json: b: node_key is not an EC public key"):
            load_server(paths)


# --- modes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o700])
@pytest.mark.parametrize(
    ("which", "name"),
    [("site", "client.key"), ("site", "node.key"), ("server", "server.key"), ("server", "signing.key")],
)
def test_c10_a_key_that_others_may_read_is_refused_with_the_remedy(paths, which, name, mode):
    path = file_of(paths, which, name)
    path.chmod(mode)
    with pytest.raises(TrustError, match=f"{path}: has mode {mode:04o}, expected 0600: run `chmod 600 {path}`"):
        load(paths, which)


def test_a_key_that_its_owner_may_only_read_is_fine(paths):
    (paths.sites["a"] / "client.key").chmod(0o400)
    assert load_site(paths).site == "a"


def test_a_private_key_is_never_written_over(tmp_path):
    keys.write_private(tmp_path / "a.key", b"first")
    with pytest.raises(TrustError, match=r"a.key: exists already, and a private key is never written over"):
        keys.write_private(tmp_path / "a.key", b"second")
    assert (tmp_path / "a.key").read_bytes() == b"first"


# --- time -----------------------------------------------------------------------------------------------------------

REMEDY = {"site": "ask the coordinating centre for a new kit", "server": "run `sahfl renew server`"}


@pytest.mark.parametrize("which", REMEDY)
def test_a15_an_expired_certificate_says_since_when_and_what_to_do(paths, which):
    load(paths, which, now=NOW + 397 * DAY)
    with pytest.raises(
        TrustError, match=r"\.crt: expired on 2027-04-02 12:00 UTC \(now 2027-04-02 12:01 UTC\); " + REMEDY[which]
    ):
        load(paths, which, now=NOW + 397 * DAY + timedelta(minutes=1))


@pytest.mark.parametrize("which", REMEDY)
def test_a15_a_certificate_that_is_not_valid_yet_says_that_the_clock_is_wrong(paths, which):
    load(paths, which, now=NOW - timedelta(minutes=5))
    with pytest.raises(
        TrustError, match="is valid from 2026-03-01 11:55 UTC, but the clock of this machine shows 2026-03-01 11:54"
    ):
        load(paths, which, now=NOW - timedelta(minutes=6))


@pytest.mark.parametrize("which", REMEDY)
def test_a15_an_expired_authority_is_named(paths, which):
    with pytest.raises(
        TrustError, match=r"ca.crt: expired on .* the coordinating centre has to provision the consortium anew"
    ):
        load(paths, which, now=NOW + 3651 * DAY)


def test_a_certificate_does_not_outlive_the_authority(paths):
    renew(paths.folder, "a", now=NOW + 3600 * DAY)
    assert load_site(paths, now=NOW + 3600 * DAY).certificate_expires == NOW + 3650 * DAY


@pytest.mark.parametrize(("days", "warnings"), [(366, 0), (367, 0), (368, 1), (396, 1)])
def test_a15_a_site_is_warned_from_thirty_days_before_the_end(paths, days, warnings):
    found = load_site(paths).warnings(NOW + days * DAY)
    assert len(found) == warnings
    for line in found:
        assert line == (
            f"a: the site's certificate expires on 2027-04-02 12:00 UTC, in {397 - days} days; ask the coordinating "
            "centre for a new kit (`sahfl renew a`)"
        )


def test_a15_a_process_that_outlives_its_certificate_warns_that_it_has_expired(paths):
    assert load_site(paths).warnings(NOW + 398 * DAY)[0].startswith("a: the site's certificate expired on 2027-04-02")


def test_a15_the_server_is_warned_of_its_own_end_and_of_each_active_site_s(paths):
    kit = load_server(paths)
    revoke(paths.folder, "b", now=NOW)
    assert kit.warnings(NOW) == []
    own, site = kit.warnings(NOW + 380 * DAY)
    assert own == "the server's certificate expires on 2027-04-02 12:00 UTC, in 17 days; run `sahfl renew server`"
    assert site.startswith("a: the site's certificate expires")
    assert "the consortium's authority expired" in kit.warnings(NOW + 3651 * DAY)[-1]


def test_a_revocation_list_from_a_clock_that_was_ahead_is_refused_rather_than_locking_everybody_out(paths):
    revoke(paths.folder, "a", now=NOW + DAY)
    with pytest.raises(
        TrustError, match=r"revoked.crl: is valid from 2026-03-02 11:55 UTC, but the clock of this machine shows"
    ):
        load_server(paths)


def test_a_revocation_list_lasts_as_long_as_its_authority_and_then_says_what_to_do(paths):
    path, authority = paths.server / "revoked.crl", load_certificate(paths.server / "ca.crt")
    assert load_revoked(path, authority=authority, now=NOW + 3650 * DAY).serials == frozenset()
    with pytest.raises(TrustError, match=r"revoked.crl: has ended with its authority; provision the consortium anew"):
        load_revoked(path, authority=authority, now=NOW + 3651 * DAY)


def test_a_running_server_keeps_what_it_knew_when_the_new_revocation_list_is_another_s(paths, other):
    kit = ServerKit.load(paths.server, now=NOW)
    context = kit.tls()
    before = context.cert_store_stats()
    shutil.copy(other.server / "revoked.crl", paths.server / "revoked.crl")
    with pytest.raises(TrustError, match=r"revoked.crl: was not made by the authority in ca.crt"):
        kit.read_revoked(context)
    assert context.cert_store_stats() == before


def test_an_authority_of_another_kind_is_refused(paths):
    key, name = Ed25519PrivateKey.generate(), x509.Name([])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW - DAY, NOW + DAY)
    (paths.sites["a"] / "ca.crt").write_bytes(pem(builder.sign(key, None)))
    with pytest.raises(TrustError, match=r"ca.crt: is not an authority of sahfl, expected an EC key"):
        load_site(paths)


def test_files_that_vanish_after_loading_are_an_error_with_what_to_do(paths):
    site, server = load_site(paths), load_server(paths)
    (paths.sites["a"] / "client.key").unlink()
    (paths.server / "server.crt").unlink()
    with pytest.raises(TrustError, match=r"client.crt: cannot be used any more; put the kit's files back"):
        site.tls()
    with pytest.raises(TrustError, match=r"server.crt: cannot be used any more; put the kit's files back"):
        server.tls()


# --- the one authority, and nothing else ----------------------------------------------------------------------------


def trusted(context):
    """The authorities that a context trusts, by their bytes."""
    return context.get_ca_certs(binary_form=True)


MORE = {
    "a second authority": lambda other: (other.sites["a"] / "ca.crt").read_bytes(),
    "text": lambda other: b"and this\n",
    "a key": lambda other: (other.sites["a"] / "client.key").read_bytes(),
}


@pytest.mark.parametrize("at", ["behind", "before"])
@pytest.mark.parametrize("more", MORE.values(), ids=MORE.keys())
def test_a_file_with_more_than_its_one_certificate_is_refused(paths, other, more, at):
    for load, path, what in (
        (load_site, paths.sites["a"] / "ca.crt", "certificate"),
        (load_site, paths.sites["a"] / "client.crt", "certificate"),
        (load_server, paths.server / "ca.crt", "certificate"),
        (load_server, paths.server / "server.crt", "certificate"),
        (load_server, paths.server / "revoked.crl", "revocation list"),
    ):
        before = path.read_bytes()
        path.write_bytes(before + more(other) if at == "behind" else more(other) + before)
        with pytest.raises(TrustError, match=f"{path.name}: holds more than its one {what} in PEM"):
            load(paths)
        path.write_bytes(before)
        load(paths)


def test_a_kit_trusts_the_authority_that_was_checked_whatever_its_file_holds_later(paths, other):
    site, server = load_site(paths), load_server(paths)
    for kit in (site, server):
        with (kit.folder / "ca.crt").open("ab") as stream:
            stream.write((other.sites["a"] / "ca.crt").read_bytes())
        (authority,) = trusted(kit.tls())
        assert x509.load_der_x509_certificate(authority) == kit.authority


def test_a_kit_with_the_line_ends_of_another_system_is_the_same_kit(paths):
    path = paths.sites["a"] / "ca.crt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    load_site(paths)


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646])
@pytest.mark.parametrize(("load", "names"), [(load_site, SITE_FILES), (load_server, SERVER_FILES)])
def test_a_kit_that_others_may_change_is_refused_and_the_remedy_works(paths, mode, load, names):
    folder = paths.sites["a"] if load is load_site else paths.server
    for name in (name for name in names if not name.endswith(".key")):
        (folder / name).chmod(mode)
        with pytest.raises(TrustError) as caught:
            load(paths)
        expected = f"others may change it (mode {mode:04o}), expected its owner alone"
        remedy = str(caught.value).split("`")[1]
        assert str(caught.value) == f"{folder / name}: {expected}; run `{remedy}`"
        subprocess.run(remedy.split(), check=True)
        load(paths)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o707])
@pytest.mark.parametrize("load", [load_site, load_server])
def test_a_kit_s_folder_that_others_may_change_is_refused(paths, mode, load):
    folder = paths.sites["a"] if load is load_site else paths.server
    folder.chmod(mode)
    with pytest.raises(TrustError, match=rf"others may change it \(mode {mode:04o}\).*chmod go-w {folder}`"):
        load(paths)
