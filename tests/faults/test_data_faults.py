"""Bad data, by the ids of the fault list: what a site refuses, what it says, and what the server learns."""

import dataclasses
import gzip
import json
import os
import re
import shutil

import nibabel
import numpy as np
import pytest
from flwr.app import ConfigRecord
from harness.one_case import check_case
from harness.tiny_study import TINY, changed

from sahfl.config import SiteConfig, Study, parse
from sahfl.data.checks import check_cases, scan_keys, usable_cases
from sahfl.data.ct import read_scan
from sahfl.data.manifest import Case, declared_folds
from sahfl.data.phantom import PROFILES, make_case
from sahfl.data.sources.datalist import SiteScansDatalist
from sahfl.errors import DataChanged, DataError, DataRefused, DataShared, PayloadError, RunFailed
from sahfl.federation.protocol import read_scan_keys, scan_keys_reply
from sahfl.federation.server.roster import require_patients_to_train_on
from sahfl.federation.site.site import Site
from sahfl.payload import Header
from sahfl.report.run_tables import support_sentences
from sahfl.results.support import fold_support, support_notes
from sahfl.simulation.simulate import site_configs
from sahfl.task import SiteDescription

SPACING = (2.0, 2.0, 5.0)


@pytest.fixture(scope="session")
def phantom():
    return make_case(3, kind="tbi", profile=PROFILES["standard"], shape=(96, 112, 24), spacing_mm=SPACING)


def save(path, voxels, affine):
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_qform(affine, 1)
    nibabel.save(image, path)
    return path


def a_case(folder, phantom, name="0000", *, image=None, label=None, patient="p", affine=None):
    affine = phantom.affine if affine is None else affine
    paths = (
        save(folder / f"{name}.nii.gz", phantom.image if image is None else image, affine),
        save(folder / f"{name}-mask.nii.gz", phantom.label if label is None else label, affine),
    )
    return Case(f"bern-{name}", *paths, patient)


def rules_of(case):
    return {finding.rule for finding in check_case(case).findings if finding.severity == "error"}


# --- D01: files that cannot be read ---------------------------------------------------------------------------------


def damage_gz_inside(path):
    content = bytearray(gzip.compress(gzip.decompress(path.read_bytes())))
    content[-5] ^= 1
    path.write_bytes(content)


D01 = {
    "missing": (lambda path: path.unlink(), "missing"),
    "zero-byte": (lambda path: path.write_bytes(b""), "unreadable"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "unreadable"),
    "checksum": (damage_gz_inside, "unreadable"),
    "not-nifti": (lambda path: path.write_bytes(gzip.compress(b"Muster^Hans " * 200)), "unreadable"),
    "a-folder": (lambda path: (path.unlink(), path.mkdir()), "unreadable"),
    "a-pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "unreadable"),
}


@pytest.mark.parametrize("which", ["image", "label"])
@pytest.mark.parametrize(("break_file", "rule"), D01.values(), ids=D01.keys())
def test_D01_a_file_that_cannot_be_read_is_listed_with_the_reason(tmp_path, phantom, which, break_file, rule):
    case = a_case(tmp_path, phantom)
    break_file(getattr(case, which))
    (finding,) = check_case(case).findings
    if case.image.is_dir():  # a folder is read as a DICOM series, and this one holds none
        assert (finding.rule, finding.severity) == ("not_ct", "error")
        return
    assert (finding.rule, finding.severity) == (rule, "error")
    assert which in finding.text or "checksum" in finding.text
    assert "Muster" not in finding.text


def test_D01_permission_denied_is_not_corrupt(tmp_path, phantom):
    case, user = a_case(tmp_path, phantom), os.geteuid()
    case.image.chmod(0)
    if user == 0:
        os.seteuid(65534)  # root may read every file; nobody may not
    try:
        (finding,) = check_case(case).findings
    finally:
        os.seteuid(user)
    assert (finding.rule, finding.severity) == ("permission", "error")


@pytest.mark.parametrize(("share", "trains"), [(0.0, False), (0.24, False), (0.25, True), (1.0, True)])
def test_D01_a_threshold_decides_whether_the_site_may_train(tmp_path, phantom, share, trains):
    cases = [a_case(tmp_path, phantom, f"000{i}", image=phantom.image + 3 * i, patient=f"p{i}") for i in range(4)]
    cases[2].image.write_bytes(b"")
    entries = [{"image": c.image.name, "label": c.label.name, "patient": c.patient} for c in cases]
    (tmp_path / "datalist.json").write_text(json.dumps({"sites": {"bern": entries}}))
    data = SiteScansDatalist(source="datalist", path=tmp_path / "datalist.json")
    site = Site(SiteConfig(name="bern", folder=tmp_path / "work", data=data, max_refused_share=share))
    if trains:
        site.prepare(lambda done, total: None)
        assert site.describe(n_folds=3, seed=1).n_refused == 1
        return
    with pytest.raises(DataRefused, match=r"1 of 4 case\(s\) are refused \(25.0%\).*\n  unreadable \(1x\)"):
        site.prepare(lambda done, total: None)
    with pytest.raises(DataRefused):  # nor may it be asked to train all the same
        site.training_cases(fold=0, n_folds=3, seed=1)


@pytest.mark.slow
def test_D01_by_default_a_site_file_allows_no_refused_case_and_a_simulation_goes_on(federate):
    assert SiteConfig.model_fields["max_refused_share"].default == 0.0

    def spoil(folder):
        (folder / "sites" / "sah_a" / "scans" / "images" / "0001.nii.gz").write_bytes(b"")

    folder, grid = federate(changed(TINY, finetune__rounds=1), spoil=spoil)
    assert {site.max_refused_share for site in grid.nodes.values()} == {1.0}
    results = json.loads((folder.path / "results.json").read_text())
    (site,) = [site for site in results["sites"] if site["site"] == "sah_a"]
    assert (site["n_volumes"], site["n_refused"], site["findings"]["unreadable"]) == (2, 1, 1)


@pytest.mark.slow
def test_D01_a_refused_site_tells_the_server_the_class_of_the_error_and_no_more(federate):
    def spoil(folder):
        (folder / "sites" / "sah_a" / "scans" / "images" / "0001.nii.gz").write_bytes(b"")

    folder, _ = federate(changed(TINY, finetune__rounds=1), spoil=spoil, site={"max_refused_share": 0.3})
    (out,) = [line for line in folder.journal() if line["event"] == "site_out"]
    assert (out["site"], out["reason"]) == ("sah_a", "error at the site: DataRefused (details in the site's log)")


# --- D02: scans that do not fit -------------------------------------------------------------------------------------


def moved(affine, mm):
    affine = affine.copy()
    affine[0, 3] += mm
    return affine


def test_D02_an_affine_that_differs_by_more_than_a_micrometre_is_an_error(tmp_path, phantom):
    case = a_case(tmp_path, phantom)
    save(case.label, phantom.label, moved(phantom.affine, 5e-4))
    assert rules_of(case) == set()
    save(case.label, phantom.label, moved(phantom.affine, 0.1))
    assert rules_of(case) == {"affine"}


D02 = {
    "label-of-one-slice": ({"label": lambda p: p.label[:, :, 0]}, {"shape"}),
    "label-of-another-shape": ({"label": lambda p: p.label[1:]}, set()),  # a warning, in tests/data/test_regrid.py
    "four-dimensions": ({k: lambda p: np.stack([p.image] * 2, -1) for k in ("image", "label")}, {"not_3d"}),
    "nan-voxels": ({"image": lambda p: np.where(p.label > 0, np.nan, p.image).astype(np.float32)}, {"not_finite"}),
    "no-rescale-intercept": ({"image": lambda p: (p.image + 1024).clip(0).astype(np.uint16)}, {"shifted"}),
    "no-rescale-slope": ({"image": lambda p: p.image * 0.25}, {"not_hu"}),
    "windowed-picture": ({"image": lambda p: p.image.clip(0, 80) * 3}, {"windowed"}),
    "probabilities-as-label": ({"label": lambda p: p.label * np.float32(0.1)}, {"label_values"}),
    "inverted-label": ({"label": lambda p: (p.label == 0).astype(np.uint8)}, {"label_share", "label_place"}),
    "empty-label": ({"label": lambda p: p.label * 0}, set()),
    "multi-valued-label": ({"label": lambda p: np.where(p.label > 0, 200, 0).astype(np.uint8)}, set()),
}


@pytest.mark.parametrize(("parts", "rules"), D02.values(), ids=D02.keys())
def test_D02_each_defect_has_its_verdict(tmp_path, phantom, parts, rules):
    case = a_case(tmp_path, phantom, **{name: make(phantom) for name, make in parts.items()})
    assert rules_of(case) == rules


@pytest.mark.parametrize("codes", [("L", "P", "S"), ("R", "A", "I"), ("P", "S", "L"), ("S", "R", "A")], ids="".join)
def test_D02_another_orientation_gives_the_same_scan_findings_and_volume(tmp_path, phantom, codes):
    plain = a_case(tmp_path, phantom, "0000")
    turned = a_case(tmp_path, phantom, "0001")
    for path in (turned.image, turned.label):
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes()))
        wanted = nibabel.orientations.axcodes2ornt(codes)
        way = nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), wanted)
        other = image.as_reoriented(way)
        save(path, np.asarray(other.dataobj), other.affine)
    one, two = read_scan(plain), read_scan(turned)
    assert np.array_equal(one.image, two.image)  # the phantom is asymmetric: one side bleeds
    assert np.array_equal(one.label, two.label)
    assert not np.array_equal(one.label, one.label[::-1])
    checked = check_cases([plain, turned])
    assert checked[0].voxels == checked[1].voxels
    assert checked[0].volume_ml == pytest.approx(checked[1].volume_ml)


# --- D03: one patient in two places ---------------------------------------------------------------------------------


def test_D03_a_datalist_with_one_patient_in_two_folds_is_refused(tmp_path, phantom):
    case = a_case(tmp_path, phantom)
    cases = [dataclasses.replace(case, fold=0), dataclasses.replace(case, id="bern-0001", fold=1)]
    with pytest.raises(DataError, match="case bern-0001: its patient is also in fold 0, expected one fold"):
        declared_folds(cases, n_folds=2)


def test_D03_the_same_scan_under_two_patient_ids_is_used_once(tmp_path, phantom):
    cases = [a_case(tmp_path, phantom, "0000", patient="p"), a_case(tmp_path, phantom, "0001", patient="q")]
    first, second = check_cases(cases)
    assert first.usable
    (finding,) = (finding for finding in second.findings if finding.severity == "error")
    assert finding.rule == "duplicate"
    assert finding.text == "case bern-0001: same voxels as case bern-0000 (another patient id)"
    assert usable_cases([first, second]) == (first,)


def give_scans(folder, giver, taker):
    """Put the first scan of one site into another site's cohort."""
    for part in ("images", "labels"):
        source = folder / "sites" / giver / "scans" / part / "0000.nii.gz"
        shutil.copyfile(source, folder / "sites" / taker / "scans" / part / "0000.nii.gz")


def both_have_one(folder):
    give_scans(folder, "sah_a", "tbi_b")


def test_D03_the_same_scan_at_two_sites_ends_the_study_naming_both(federate, tmp_path):
    with pytest.raises(
        DataShared, match=r"the same scan lies at two sites \(tbi_b and sah_a: 1, for example key [0-9a-f]{16}"
    ):
        federate(changed(TINY, compare_sites=True), spoil=both_have_one)
    journal = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    (shared,) = [line for line in journal if line["event"] == "shared_scans"]
    assert shared["sites"] == ["tbi_b", "sah_a"]
    assert not [line for line in journal if line["event"] == "round"]
    for site in shared["sites"]:  # each data manager finds the case behind the key
        known = json.loads((tmp_path / "run" / "sites" / site / "scan_keys.json").read_text())
        assert {case for case, key in known.items() if key in shared["keys"]} == {f"{site}-0000"}


@pytest.mark.slow
def test_D03_sites_without_a_common_scan_pass_and_only_salted_keys_leave(federate):
    folder, grid = federate(changed(TINY, compare_sites=True, finetune__rounds=1, pretrain__rounds=1))
    assert (folder.path / "results.json").exists()
    replies = {
        s: reply.content for s, request, reply in grid.seen if request.metadata.message_type == "query.scan_keys"
    }
    assert replies.keys() == {"tbi_a", "tbi_b", "sah_a", "sah_b", "sah_c"}
    for content in replies.values():
        assert set(content) == {"header", "scan_keys"}
        assert set(content["scan_keys"]) == {"keys"}
        assert all(len(bytes.fromhex(key)) == 8 for key in content["scan_keys"]["keys"])


@pytest.mark.slow
def test_D03_keys_leave_only_if_the_study_asks_and_the_site_allows_it(federate):
    _, grid = federate(changed(TINY, finetune__rounds=1), name="silent")
    assert not [1 for _, request, _ in grid.seen if request.metadata.message_type == "query.scan_keys"]
    with pytest.raises(RunFailed, match="got 0 of 2 sites"):
        federate(changed(TINY, compare_sites=True), name="closed", policy={"share_scan_keys": False})


def test_D03_another_study_has_other_keys(tmp_path, phantom):
    checked = [check_case(a_case(tmp_path, phantom))]
    assert scan_keys(checked, "one").values() != scan_keys(checked, "two").values()
    assert list(scan_keys(checked, "one").values()) == list(scan_keys(checked, "one").values())


HEADER = Header("s", stage="finetune", method="scan_keys", fold=-1, round=0, base="")
BAD_KEYS = {
    "too-few": ["0123456789abcdef"],
    "twice": ["0123456789abcdef"] * 2,
    "no-hex": ["0123456789abcdef", "Muster^Hans....."],
    "too-long": ["0123456789abcdef", "0123456789abcdef0"],
    "none": [],
}


@pytest.mark.parametrize("keys", BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_D03_unusable_keys_are_refused_without_showing_them(keys):
    with pytest.raises(PayloadError, match="scan keys: expected") as caught:
        read_scan_keys(scan_keys_reply(HEADER, keys), header=HEADER, n_volumes=2)
    assert "Muster" not in str(caught.value)


def test_D03_keys_of_another_study_are_refused():
    content = scan_keys_reply(dataclasses.replace(HEADER, study="other"), ["0123456789abcdef"])
    with pytest.raises(PayloadError, match="study: got 'other', expected 's'"):
        read_scan_keys(content, header=HEADER, n_volumes=1)


@pytest.mark.slow
def test_D03_a_site_that_sends_no_usable_keys_is_left_out_by_name(federate):
    def change(site, request, reply):
        if site == "sah_c" and request.metadata.message_type == "query.scan_keys":
            reply.content["scan_keys"] = ConfigRecord({"keys": []})
        return reply

    folder, _ = federate(changed(TINY, compare_sites=True, finetune__rounds=1), change=change)
    (out,) = [line for line in folder.journal() if line["event"] == "site_out"]
    assert (out["site"], out["reason"]) == ("sah_c", "scan keys: expected 2 different keys, one for each volume")


# --- D04: little to rest on -----------------------------------------------------------------------------------------


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [value] if isinstance(value, float) else []


def without_blood(*names):
    def spoil(folder):
        for site, index in names:
            path = folder / "sites" / site / "scans" / "labels" / f"{index:04d}.nii.gz"
            image = nibabel.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes()))
            save(path, np.zeros(image.shape, np.uint8), image.affine)

    return spoil


@pytest.mark.slow
def test_D04_a_fold_with_no_positive_case_is_declared_and_has_no_dice_but_a_support(federate):
    settings = changed(TINY, finetune__sites=["sah_b"], finetune__rounds=1, rounds__quorum=1.0)
    folder, _ = federate(settings, spoil=without_blood(("sah_b", 0)))
    results = json.loads((folder.path / "results.json").read_text(), parse_constant=pytest.fail)
    empty = [part["fold"] for part in results["support"]["folds"] if part["n_positive"] == 0]
    assert len(empty) == 1
    (note,) = [line for line in folder.journal() if line["event"] == "policy" and line["rule"] == "fold_without_blood"]
    assert (note["fold"], note["n_patients"]) == (empty[0], 1)
    assert note in results["support"]["notes"]
    for method in results["methods"]:
        assert {part["fold"]: part["n"] for part in method["by_fold"]} == {empty[0]: 0, 1 - empty[0]: 1}
        assert [part["dice"] for part in method["by_fold"] if part["n"] == 0] == [None]
        assert method["metrics"]["dice"]["overall"]["n"] == 1
        assert method["no_blood"]["n"] == 1
    assert all(np.isfinite(numbers(results)))


@pytest.mark.slow
def test_D04_a_study_without_any_blood_ends_with_a_report_that_says_so(federate):
    settings = changed(TINY, finetune__sites=["sah_b"], finetune__rounds=1)
    folder, _ = federate(settings, spoil=without_blood(("sah_b", 0), ("sah_b", 1)))
    results = json.loads((folder.path / "results.json").read_text(), parse_constant=pytest.fail)
    assert [method["failed"] for method in results["methods"]] == ["no case with blood was evaluated"] * 2
    report = re.sub(r"base64,[^\"']*", "", (folder.path / "report.html").read_text())  # pictures spell anything
    assert "NaN" not in report
    assert "<html" in report


@pytest.mark.slow
def test_D04_a_site_with_one_patient_sits_out_the_fold_that_holds_it_and_the_study_goes_on(federate):
    settings = changed(TINY, data__sites__sah_c__n_cases=1, finetune__rounds=1, rounds__quorum=1.0)
    folder, _ = federate(settings, spoil=lambda path: shutil.rmtree(path / "sites" / "sah_c"))
    (alone,) = [line for line in folder.journal() if line.get("rule") == "sits_out"]
    assert alone["site"] == "sah_c"
    rounds = [line for line in folder.journal() if line["event"] == "round" and line["stage"] == "finetune"]
    used = {line["fold"]: {site["site"] for site in line["used"]} for line in rounds}
    assert used == {alone["fold"]: {"sah_a", "sah_b"}, 1 - alone["fold"]: {"sah_a", "sah_b", "sah_c"}}
    assert not [line for line in rounds if line["missing"]]
    results = json.loads((folder.path / "results.json").read_text())
    assert {note["site"] for note in results["support"]["notes"] if note["rule"] == "small_site"} == {"sah_b", "sah_c"}
    assert {site["site"]: site["n"] for site in results["methods"][1]["by_site"]} == {
        "sah_a": 3,
        "sah_b": 2,
        "sah_c": 1,
    }


def described(site, fold_sizes, fold_positive):
    counts = {"n_volumes": sum(fold_sizes), "n_patients": sum(fold_sizes), "n_positive": sum(fold_positive)}
    known = {
        "site": site,
        "source": "test",
        "volume_ml": 1.0,
        "n_refused": 0,
        "findings": {},
        "data": "0" * 16,
        "software": "0" * 16,
        "batches": "0" * 16,
        "confirmations": 0,
    }
    return SiteDescription(**known, **counts, fold_sizes=fold_sizes, fold_positive=fold_positive)


def test_D04_the_support_is_counted_over_the_sites_that_fine_tune():
    study = parse(Study, TINY, where="test")
    sites = {
        "tbi_a": described("tbi_a", (9, 9), (9, 9)),
        "sah_a": described("sah_a", (3, 2), (0, 1)),
        "sah_b": described("sah_b", (0, 1), (0, 1)),
    }
    assert fold_support(study, sites) == [
        {"fold": 0, "n_patients": 3, "n_positive": 0},
        {"fold": 1, "n_patients": 3, "n_positive": 2},
    ]
    assert [sites["sah_b"].sits_out(fold) for fold in (0, 1)] == [False, True]
    assert [note["rule"] for note in support_notes(study, sites)] == ["fold_without_blood", "small_site", "sits_out"]


LONELY = {
    "one-patient": {"sah_a": (1, 0)},
    "all-in-one-fold": {"sah_a": (0, 3), "sah_b": (0, 1)},
}


@pytest.mark.parametrize("sizes", LONELY.values(), ids=LONELY.keys())
def test_D04_a_study_without_a_patient_to_train_on_in_a_fold_is_refused_before_it_trains(sizes):
    study = parse(Study, changed(TINY, finetune__sites=list(sizes)), where="test")
    sites = {site: described(site, folds, folds) for site, folds in sizes.items()}
    with pytest.raises(DataError, match=r"no site has a patient to train on, expected .* got sah_a \d vol.*PatientID"):
        require_patients_to_train_on(study, sites)
    require_patients_to_train_on(study, sites | {"sah_a": described("sah_a", (1, 1), (1, 1))})
    of_one_place = {"method": "cp_lora", "rank": 2, "trained_at": "sah_a"}  # which is left out where it has nobody
    alone = changed(TINY, finetune__sites=list(sizes), finetune__methods=[{"method": "zero_shot"}, of_one_place])
    require_patients_to_train_on(parse(Study, alone, where="test"), sites)


@pytest.mark.parametrize("n", [12, None])
def test_D03_likely_repeat_scans_of_a_site_are_noted_in_the_journal_and_the_report(n):
    study = parse(Study, TINY, where="test")
    site = described("sah_a", (9, 9), (9, 9)).model_copy(update={"findings": {"repeat_scan": n}})
    notes = support_notes(study, {"sah_a": site})
    assert [(note["rule"], note["site"], note["n"]) for note in notes] == [("repeat_scans", "sah_a", n)]
    (sentence,) = support_sentences({"support": {"notes": notes}})
    assert sentence.startswith(f"sah_a ({'few' if n is None else n} scans): by their names, they look like repeat")


# --- D05: data that change ------------------------------------------------------------------------------------------


def rewrite(path, *, keep_times):
    """Change one byte inside a scan; the file's size stays."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.slow
@pytest.mark.parametrize(
    "keep_times",
    [pytest.param(True, id="times-kept"), pytest.param(False, id="times-new", marks=pytest.mark.slow)],
)
def test_D05_a_site_whose_data_change_between_rounds_stops_and_the_others_go_on(federate, tmp_path, keep_times):
    def change(site, request, reply):
        if site == "sah_c" and request.metadata.message_type == "query.install_base":
            rewrite(tmp_path / "run" / "sites" / "sah_c" / "scans" / "images" / "0000.nii.gz", keep_times=keep_times)
        return reply

    folder, grid = federate(changed(TINY, finetune__rounds=1), change=change)
    rounds = [line for line in folder.journal() if line["event"] == "round" and line["stage"] == "finetune"]
    assert rounds
    for line in rounds:
        assert {site["site"] for site in line["used"]} == {"sah_a", "sah_b"}
        (lost,) = line["missing"]
        assert (lost["site"], "DataChanged" in lost["reason"]) == ("sah_c", True)
    assert {reply.error.reason for site, _, reply in grid.seen if reply.has_error()} == {"DataChanged"}


def test_D05_the_site_itself_says_which_case_changed(tmp_path, scans):
    shutil.copytree(scans / "sah_a", tmp_path / "sah_a")
    config = next(site for site in site_configs(parse(Study, TINY, where="test"), tmp_path) if site.name == "sah_a")
    site = Site(config)
    site.prepare(lambda done, total: None)
    rewrite(tmp_path / "sah_a" / "scans" / "labels" / "0002.nii.gz", keep_times=True)
    with pytest.raises(DataChanged, match="case sah_a-0002: its files changed after they were checked"):
        site.training_cases(fold=0, n_folds=2, seed=3)


@pytest.mark.slow
def test_D05_a_run_that_is_resumed_over_other_data_leaves_the_site_out(federate, tmp_path):
    class Stop(Exception):
        pass

    def stop(site, request, reply):
        if request.metadata.message_type == "train" and site.startswith("sah"):
            raise Stop
        return reply

    with pytest.raises(Stop):
        federate(TINY, change=stop)
    labels = tmp_path / "run" / "sites" / "sah_b" / "scans" / "labels"
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress((labels / "0000.nii.gz").read_bytes()))
    save(labels / "0000.nii.gz", np.asarray(image.dataobj)[::-1] * 0, image.affine)
    folder, _ = federate(TINY)
    (out,) = [line for line in folder.journal() if line["event"] == "site_out"]
    assert out["site"] == "sah_b"
    assert out["reason"] == "its data changed since this run began; start a new run"
    results = json.loads((folder.path / "results.json").read_text())
    assert [site["out"] for site in results["sites"] if site["site"] == "sah_b"] == [out["reason"]]
