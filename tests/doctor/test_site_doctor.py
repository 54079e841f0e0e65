"""The whole doctor of a site, and each of its own checks both ways."""

import json
import os
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from harness.fake_servers import http_server
from harness.trust_kits import free_port, make_consortium

from sahfl.config import ViewsConfig, load_site
from sahfl.data.phantom import CohortSpec, write_cohort
from sahfl.doctor import examine_site, healthy
from sahfl.doctor.site import case_bytes, examine_data, examine_policy, examine_roster
from sahfl.federation.site.audit import AuditLog
from sahfl.federation.site.known_roster import accept_roster, require_roster
from sahfl.federation.site.secret import renew_secret
from sahfl.federation.site.site import Site
from sahfl.trust.kit import ServerKit
from sahfl.trust.provision import renew, revoke
from sahfl.trust.roster import load_roster

LET_IN = (400, {"error": "no instance"})
ALL = (
    "user versions environment kit certificates dns port tls health clock admission ntp "
    "policy folder disk memory device data audit state roster answers"
)


@pytest.fixture
def paths(tmp_path):
    return make_consortium(tmp_path / "consortium", sites=["bern", "graz"], port=free_port())


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    spec = CohortSpec("bern", "sah", "standard", n_cases=2, seed=1, shape=(32, 32, 8), spacing_mm=(5.0, 5.0, 12.0))
    return write_cohort(tmp_path_factory.mktemp("scans"), spec, on_case=lambda done, total: None)


@pytest.fixture
def site(tmp_path, paths, cohort):
    """A site file with changes, as the site's settings."""

    def make(**changes):
        settings = {
            "name": "bern",
            "folder": "work",
            "data": {"source": "datalist", "path": str(cohort)},
            "kit": str(paths.sites["bern"]),
            "device": "cpu",
        }
        (tmp_path / "site.yaml").write_text(yaml.safe_dump(settings | changes))
        return load_site(tmp_path / "site.yaml")

    return make


def go(config, **more):
    found = examine_site(config, **more)
    assert " ".join(finding.check for finding in found) == ALL
    for finding in found:
        assert (finding.remedy is None) == (finding.verdict in ("ok", "skip"))
        assert "\n" not in finding.found + (finding.remedy or "")
    return {finding.check: finding for finding in found}


def test_a_healthy_site_is_healthy(site, paths):
    with http_server(ServerKit.load(paths.server).tls(), on_post=LET_IN, port=paths.port):
        found = go(site())
    assert healthy(found.values()), found
    assert found["kit"].found == f"bern of test, server localhost port {paths.port}"
    assert found["certificates"].found.startswith("the site's is valid until 20")
    assert found["admission"].found == "the server accepts this site's key and has the same versions"
    assert found["data"].found == "2 cases, all files are there; sahfl check reads and checks them"
    assert found["audit"].found == "no request was received yet"
    assert not (site().folder).exists()


def test_A17_a_server_that_is_down_leaves_one_failure_and_names_what_was_not_looked_at(site, paths):
    found = go(site())
    assert [name for name, finding in found.items() if finding.verdict == "FAIL"] == ["port"]
    assert found["admission"].found == "not looked at: needs health"


# --- kit and certificates -------------------------------------------------------------------------------------------


def test_a_site_without_a_kit_is_told_where_to_get_one(site):
    found = go(site(kit=None))
    assert found["kit"].verdict == "FAIL"
    assert (
        found["kit"].remedy
        == "unpack the kit of the coordinating centre and name its folder under 'kit' in the site file"
    )
    assert {found[check].found for check in ("certificates", "dns", "clock", "admission")} == {
        "not looked at: needs kit"
    }


def test_a_key_that_others_may_read_is_found(site, paths):
    (paths.sites["bern"] / "node.key").chmod(0o644)
    found = go(site())["kit"]
    assert found.verdict == "FAIL"
    assert "has mode 0644, expected 0600" in found.found


def test_a_changed_kit_is_found(site, paths):
    path = paths.sites["bern"] / "kit.json"
    path.write_text(path.read_text().replace("localhost", "evil.example.org"))
    found = go(site())["kit"]
    assert (found.verdict, found.remedy) == ("FAIL", "put the kit's file back")


def test_the_kit_of_another_site_is_found(site, paths):
    found = go(site(kit=str(paths.sites["graz"])))["kit"]
    assert found.found == "is the kit of graz, this site is bern"
    assert found.remedy == "set name: graz in the site file, or unpack the kit of bern"


def test_A15_a_certificate_that_ends_soon_is_a_warning_and_an_expired_one_a_failure(site, paths):
    end = json.loads((paths.sites["bern"] / "kit.json").read_text())["expires"]
    end = datetime.fromisoformat(end)
    soon = go(site(), clock=lambda: end - timedelta(days=29, hours=1))["certificates"]
    assert soon.verdict == "warn"
    assert "in 29 days" in soon.found
    assert soon.remedy == "ask the coordinating centre for a new kit (`sahfl renew bern`)"
    late = go(site(), clock=lambda: end + timedelta(days=1))["kit"]
    assert late.verdict == "FAIL"
    assert "client.crt: expired on" in late.found


# --- admission ------------------------------------------------------------------------------------------------------

VERSIONS = {"server": {"sahfl": "9.9.9"}, "client": {"sahfl": "0.1.0"}}
LATE = {"server": "2026-01-01T00:00:00+00:00", "client": "2026-01-01T00:10:00+00:00"}
REFUSED = {
    "A16 versions": (426, {"error": "version", **VERSIONS}, "the server has sahfl 9.9.9", "install the same"),
    "C07 unknown": (401, {"error": "unknown key"}, "lacks this site's key", "have the centre copy its newest"),
    "C07 revoked": (401, {"error": "revoked"}, "its key was revoked", "have the centre copy its newest"),
    "clock": (401, {"error": "clock", **LATE}, "clock is 600 s ahead of the server's", "set it right"),
    "let in": (200, {}, "what answers there is not a sahfl server", "have the centre copy its newest"),
    "broken": (500, {}, "the server has a problem of its own (HTTP 500)", "have the centre copy its newest"),
}


@pytest.mark.parametrize(("status", "body", "said", "remedy"), REFUSED.values(), ids=REFUSED.keys())
def test_A16_what_the_server_would_say_at_the_handshake_is_said_before(site, paths, status, body, said, remedy):
    with http_server(ServerKit.load(paths.server).tls(), on_post=(status, body), port=paths.port):
        found = go(site())["admission"]
    assert found.verdict == "FAIL"
    assert said in found.found
    assert found.remedy.startswith(remedy)


def test_C07_a_revoked_site_is_told_at_the_door(site, paths):
    revoke(paths.folder, "bern")
    with http_server(ServerKit.load(paths.server).tls(), on_post=LET_IN, port=paths.port):
        found = go(site())
    assert found["tls"].found == "this site's certificate was revoked"


# --- policy, data, audit --------------------------------------------------------------------------------------------


def test_the_policy_is_said_in_one_line_and_obeying_anybody_is_a_warning(site):
    closed = examine_policy(site())
    assert closed.verdict == "ok"
    assert (
        closed.found == "signed requests only; finetune; lora_c, conv_lora, cp_lora, dora_c, conv_dora, cp_dora; "
        "groups of 5 patients or more"
    )
    opened = examine_policy(site(policy={"require_signature": False, "stages": []}))
    assert (opened.verdict, opened.remedy) == ("warn", "set policy.require_signature: true")
    assert opened.found.startswith("unsigned requests are accepted; no training; ")


def test_scans_that_are_absent_are_counted_without_naming_a_file(site, cohort, tmp_path):
    content = json.loads(cohort.read_text())
    for case in content["sites"]["bern"]:
        case["image"] = f"{cohort.parent}/{case['image']}"
        case["label"] = f"{cohort.parent}/{case['label']}"
    content["sites"]["bern"][1]["image"] = "Muster_Hans.nii.gz"
    (tmp_path / "list.json").write_text(json.dumps(content))
    found, n_cases, _ = examine_data(site(data={"source": "folder", "path": "list.json"}))
    assert (found.verdict, n_cases) == ("FAIL", 2)
    assert found.found == "1 of 2 cases cannot be read, the first is bern-0001"
    assert found.remedy == "let the service's user read them: sahfl check names each"


def test_scans_that_may_not_be_read_are_found(site, monkeypatch):
    config = site()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
    assert examine_data(config)[0].found == "2 of 2 cases cannot be read, the first is bern-0000"


def test_a_path_without_scans_is_found(site, tmp_path):
    found, n_cases, _ = examine_data(site(data={"source": "folder", "path": str(tmp_path / "absent")}))
    assert (found.verdict, n_cases) == ("FAIL", 0)
    assert "got nothing (no such" in found.found
    assert found.remedy == "correct the path"


def test_patients_of_a_dicom_export_are_counted_without_reading_whose_they_are(site, tmp_path):
    for name in ("one", "two", "empty"):
        (tmp_path / "export" / name).mkdir(parents=True)
        if name != "empty":
            (tmp_path / "export" / name / "slice").write_bytes(bytes(128) + b"DICM" + bytes(8))
    found, n_cases, n_slices = examine_data(site(data={"source": "folder", "path": "export"}))
    assert (found.verdict, n_cases, n_slices) == ("ok", 2, 1)


def test_simulated_patients_are_no_files(site):
    cohort = {"source": "phantom", "seed": 1, "shape": [32, 32, 8], "spacing_mm": [5.0, 5.0, 12.0]}
    config = site(data=cohort | {"patients": {"kind": "sah", "n_cases": 7}})
    assert examine_data(config) == (examine_data(config)[0], 7, 40)
    assert examine_data(config)[0].verdict == "ok"


def test_the_room_for_a_case_is_that_of_its_slices():
    assert case_bytes(40) == 3 * (96 * 112 * 40 + 2 * 96 * 112 * 80)  # 6.5 MB
    assert case_bytes(40, 1.0) == 3 * (192 * 224 * 40 + 2 * 192 * 224 * 160)  # 46 MB


def test_the_reckoned_room_is_what_the_cache_takes_and_what_is_there_counts(site):
    config = site()
    _, n_cases, n_slices = examine_data(config)
    reckoned = n_cases * case_bytes(n_slices)
    text = "a cache of 2 cases (22 MB to 169 MB for the views of 2 studies) and a site's networks, logs and results"
    assert go(config)["disk"].found.endswith(f"; {text} take 1.0 to 1.2 GB")
    mine = Site(config)
    mine.check(lambda done, total: None)
    mine.load_views(mine.cases(), ViewsConfig())
    written = sum(path.stat().st_size for path in (config.folder / "cache").glob("*/*.slices"))
    assert reckoned <= written < 1.001 * reckoned  # headers and checksums
    assert go(config)["disk"].found.endswith(f"; {text} take 1.0 to 1.2 GB, 11 MB of it are there")


def test_a_whole_audit_log_is_ok_and_a_changed_one_a_failure(site):
    config = site()
    log = AuditLog(config.folder)
    head = [log.append("asked", "The server asked.", round=number) for number in (1, 2, 3)][-1]
    found = go(config)["audit"]
    assert (found.verdict, found.found) == ("ok", f"3 lines, the chain is whole, its head is {head[:16]}...")
    log.path.write_text(log.path.read_text().replace('"round":2', '"round":9'))
    found = go(config)["audit"]
    assert found.verdict == "FAIL"
    assert "line 2: was changed" in found.found


def test_the_clock_of_the_doctor_is_this_machine_s(site, paths):
    with http_server(ServerKit.load(paths.server).tls(), on_post=LET_IN, port=paths.port):
        assert go(site(), clock=lambda: datetime.now(UTC) + timedelta(minutes=10))["clock"].verdict == "FAIL"


def test_a_lost_file_of_the_site_s_folder_is_a_failure_with_its_remedy(site):
    config = site()
    AuditLog(config.folder).append("policy", "The policy of this site is noted.", policy="0" * 64, changed=[])
    assert go(config)["state"].found == "secret, ledger and lists have all that 0 answers need"
    details = {"asked": "query.describe", "study": "a" * 64, "training": "0" * 16, "round": 0}
    AuditLog(config.folder).append("answered", "Sent.", **details, batches="0" * 16, sahfl="0.0.1")
    found = go(config)["state"]
    assert (found.verdict, found.found) == (
        "FAIL",
        f"{config.folder}/batches.key: is missing, and the answers in the audit log drew their batches from it",
    )
    assert found.remedy.endswith("or draw from a new one from now on: sahfl-client new-secret SITE_FILE")
    renew_secret(config)
    assert go(config)["state"].remedy == "restore the whole folder from its newest backup (docs/keeping.md)"


def test_a_roster_that_waits_is_named_until_it_is_accepted_also_for_this_site_s_own_new_key(paths, site):
    config = site()
    config.folder.mkdir(exist_ok=True)
    assert examine_roster(config).verdict == "ok"
    require_roster(config)
    renew(paths.folder, "graz")
    found = examine_roster(config)
    assert (found.verdict, "this site's new key" in found.found) == ("warn", False)
    accept_roster(config, found.remedy.split()[-1])  # as the remedy says
    assert examine_roster(config).verdict == "ok"
    before = {name: (config.kit / name).read_bytes() for name in ("roster.json", "roster.sig")}
    renew(paths.folder, "bern")
    found = examine_roster(config)
    assert (found.verdict, "this site's new key" in found.found) == ("warn", True)
    newest = {name: (config.kit / name).read_bytes() for name in before}
    for name, content in before.items():  # a kit into which somebody put an old roster
        (config.kit / name).write_bytes(content)
    found = examine_roster(config)
    assert found.verdict == "FAIL"
    assert "ask the coordinating centre for roster.json and roster.sig" in found.remedy
    for name, content in newest.items():
        (config.kit / name).write_bytes(content)
    accept_roster(config, load_roster(config.kit).sha256)
    assert examine_roster(config).verdict == "ok"


def test_a_kit_without_a_roster_is_a_warning_because_only_masked_sums_need_one(site):
    config = site()
    for name in ("roster.json", "roster.sig"):
        (config.kit / name).unlink()
    found = examine_roster(config)
    assert (found.verdict, "its kit has no roster" in found.found) == ("warn", True)
    assert "roster.json and roster.sig" in found.remedy
    assert examine_roster(site(kit=None)).verdict == "skip"
