"""A withdrawn patient: used by nothing any more, gone from the site's folder, and named nowhere."""

import json
import shutil

import nibabel
import numpy as np
import pytest
from harness import asking
from harness.asking import METHOD, STUDY, evaluating, training

from sahfl.adapters import exchanged
from sahfl.adapters.attach import staying
from sahfl.errors import ConfigError, SiteStateLost
from sahfl.federation import protocol
from sahfl.federation.site import withdrawal
from sahfl.federation.site.audit import AuditLog
from sahfl.federation.site.case_results import read_results
from sahfl.federation.site.folder_check import check_folder
from sahfl.federation.site.ledger import Ledger
from sahfl.federation.site.site import Site
from sahfl.federation.site.site_check import check_site
from sahfl.federation.site.withdrawal import withdraw
from sahfl.federation.site.withdrawn import FILE, read_withdrawn
from sahfl.networks import fine_tuned_network
from sahfl.payload import Header

hospital = asking.hospital
TRAIN, EVALUATE, DESCRIBE = protocol.TRAIN, protocol.EVALUATE, protocol.DESCRIBE
PRIVATE = METHOD.model_copy(update={"private_rank": 1})


@pytest.fixture
def real(hospital):
    """A hospital that is not a site of a simulation, after a round of two trainings, and evaluations, of study a."""
    hospital.config = hospital.config.model_copy(update={"simulated": False})
    for fold in (0, 1):
        train(hospital, fold=fold)
        hospital.sums(evaluating(fold=fold))
    return hospital


def train(hospital, study="a", method=METHOD, seed=STUDY.seed, **changes):
    net = fine_tuned_network(STUDY.views, STUDY.model, hospital.network, method, seed)
    away = staying(net, method, net.parts)
    start = {name: value for name, value in exchanged.read(net).items() if name not in away}
    request = hospital.request(training(method=method, seed=seed, **changes), start, study=study * 64)
    return hospital.send(TRAIN, request)


def one_patient(hospital):
    """A case of a patient who was trained on, and the other cases."""
    first, *others = Site(hospital.config).known_cases()
    assert first.case.patient not in {item.case.patient for item in others}
    return first, others


def left_in(hospital, item):
    """Files of the site's folder that hold something of a case: its hashes, its ids or its slices."""
    words = [item.content, item.voxels, item.case.patient, item.case.id]
    files = [path for path in hospital.config.folder.rglob("*") if path.is_file()]
    ours = [path for path in files if not path.is_relative_to(hospital.config.folder / "scans")]
    return {
        path.relative_to(hospital.config.folder).as_posix()
        for path in ours
        if any(word in path.name or word.encode() in path.read_bytes() for word in words)
    }


def test_nothing_of_the_patient_is_left_but_counts_and_the_hashes_that_keep_the_scans_out(real):
    check_site(real.config)
    item, others = one_patient(real)
    used = Ledger(real.config).usage()
    before = left_in(real, item)
    assert {"manifest.json", "cases.jsonl", "checks.json", "checks.html", "ledger.jsonl"} <= before
    assert any(name.startswith("cache/") for name in before)
    n_lines = len(list(read_results(real.config.folder)))
    done = withdraw(real.config, item.case.id)
    assert left_in(real, item) == {"ledger.jsonl", FILE}
    assert item.case.patient not in (real.config.folder / FILE).read_text()
    assert Ledger(real.config).usage() == used
    assert {kept.case for kept in read_results(real.config.folder)} <= {other.case.id for other in others}
    assert len(list(read_results(real.config.folder))) == n_lines - 1
    assert [one.case for one in Site(real.config).known_cases()] == [one.case for one in others]
    assert (real.config.folder / FILE).stat().st_mode & 0o777 == 0o600
    assert done.n_scans == 1
    assert set(done.files) == set(item.case.files())  # the hospital's own files are named, and left alone
    assert all(path.exists() for path in done.files)


def test_all_that_used_the_patient_is_named_and_the_audit_log_has_it_without_the_patient(real):
    item, _ = one_patient(real)
    train(real, "b", seed=4)
    done = withdraw(real.config, item.case.patient)
    trained = [use for use in done.uses if use.kind == "round"]
    evaluated = [use for use in done.uses if use.kind == "evaluation"]
    assert {(use.study[0], use.method, use.round) for use in trained} <= {(name, "cp_lora-r2", 1) for name in "ab"}
    assert [use.study for use in evaluated] == ["a" * 64]  # each patient is held out in one fold
    assert {use.fold for use in trained if use.study[0] == "a"}.isdisjoint({use.fold for use in evaluated})
    assert sorted(done.used_in("a" * 64)) == [
        f"cp_lora-r2, fold {1 - evaluated[0].fold}: trained in rounds [1]",
        f"zero_shot, fold {evaluated[0].fold}: evaluated",
    ]
    line = real.audit()[-1]
    assert line["event"] == "withdrawn"
    assert line["details"]["studies"] == sorted(done.studies)
    assert line["details"]["trainings"] == sorted({use.training for use in trained})
    text = (real.config.folder / "audit.jsonl").read_text()
    assert not [word for word in (item.content, item.voxels, item.case.patient, item.case.id) if word in text]


def test_what_is_kept_of_a_training_with_the_patient_goes_and_of_one_without_stays(real):
    item, _ = one_patient(real)
    for fold in (0, 1):
        train(real, "c", PRIVATE, fold=fold)
    names = {fold: Header("c" * 64, "finetune", PRIVATE.id, fold, round=1, base="").training for fold in (0, 1)}
    folder = real.config.folder
    assert all(list((folder / "private").glob(f"{name}-*")) for name in names.values())
    assert all(list((folder / "answered").glob(f"{name}-*.reply")) for name in names.values())
    done = withdraw(real.config, item.case.id)
    with_it = {use.fold for use in done.uses if use.kind == "round" and use.study[0] == "c"}
    assert len(with_it) == 1
    for fold, name in names.items():
        for kept in ("private", "answered", "starts"):
            assert bool(list((folder / kept).glob(f"{name}-*"))) == (fold not in with_it), (fold, kept)
    rounds = "".join(path.read_text() for path in (folder / "answered").glob("*.jsonl"))
    assert all(name in rounds for name in names.values())  # answered stays answered


def test_a_study_with_the_patient_is_closed_for_every_kind_of_request_and_a_new_one_trains_without(real):
    item, others = one_patient(real)
    before = protocol.read_description(real.send(DESCRIBE, real.request(training(round=0, rounds=0), study="b" * 64)))
    used = Ledger(real.config).usage()
    withdraw(real.config, item.case.id)
    for kind, task in ((DESCRIBE, training(round=0, rounds=0)), (TRAIN, training(round=2)), (EVALUATE, evaluating())):
        error, line = real.refuses(kind, real.request(task, real.start if kind == TRAIN else None))
        assert (error, line["event"]) == ("PatientWithdrawn", "refused")
        assert line["details"]["reason"].startswith("study aaaaaaaaaaaa: is closed at this site")
    now = protocol.read_description(real.send(DESCRIBE, real.request(training(round=0, rounds=0), study="b" * 64)))
    assert (now.n_volumes, before.n_volumes) == (len(others), len(others) + 1)
    assert now.data != before.data  # kept cells of this data count no more
    for fold in (0, 1):
        train(real, "b", fold=fold)
        real.send(EVALUATE, real.request(evaluating(fold=fold), study="b" * 64))
    after = Ledger(real.config).usage()
    assert after[item.content] == used[item.content]
    assert all(after[other.content].rounds > 0 for other in others)
    assert check_folder(real.config) > 0


def renamed(hospital, tmp_path, entry):
    """The site's data with the first case under other settings, in a new datalist."""
    path = hospital.config.folder / "scans" / "datalist.json"
    cases = json.loads(path.read_text())
    cases["sites"]["sah_a"][0] |= entry(path.parent, cases["sites"]["sah_a"][0])
    moved = path.with_name("renamed.json")
    moved.write_text(json.dumps(cases))
    settings = json.loads(hospital.config.model_dump_json()) | {"data": {"source": "datalist", "path": str(moved)}}
    return type(hospital.config).model_validate_json(json.dumps(settings))


def copied(folder, case):
    shutil.copy(folder / case["image"], folder / "copy.nii.gz")
    return {"image": "copy.nii.gz", "patient": "somebody-else"}


def annotated_anew(folder, case):
    label = nibabel.load(folder / case["label"])
    voxels = np.asarray(label.dataobj).copy()
    voxels[0, 0, 0] = 1 - voxels[0, 0, 0]
    nibabel.save(nibabel.Nifti1Image(voxels, label.affine, label.header), folder / "anew.nii.gz")
    return {"label": "anew.nii.gz", "patient": "somebody-else"}


OTHERWISE = {
    "as-it-was": lambda folder, case: {},
    "another-patient-id": lambda folder, case: {"patient": "somebody-else"},
    "another-file": copied,
    "another-annotation": annotated_anew,
}


@pytest.mark.parametrize("entry", OTHERWISE.values(), ids=OTHERWISE.keys())
def test_a_withdrawn_scan_stays_out_under_whatever_name_and_shows_in_no_picture(real, tmp_path, entry):
    item, others = one_patient(real)
    withdraw(real.config, item.case.id)
    config = renamed(real, tmp_path, entry)
    verdict = check_site(config)
    assert [case["case"] for case in verdict.checks["cases"]] == [other.case.id for other in others]
    assert item.case.id not in verdict.page.read_text()


MOMENTS = {
    "before-the-audit-line": (AuditLog, "append"),
    "before-anything-is-deleted": (withdrawal, "_delete"),
    "after-the-kept-files": (withdrawal, "delete_results"),
    "before-the-last-check-is-corrected": (Site, "remove_withdrawn"),
}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS.keys())
def test_a_crash_at_any_moment_leaves_the_patient_out_and_the_same_call_finishes(real, monkeypatch, moment):
    item, others = one_patient(real)
    with monkeypatch.context() as patch:
        patch.setattr(*moment, lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            withdraw(real.config, item.case.id)
    assert [one.case.id for one in Site(real.config).check(lambda *_: None)] == [other.case.id for other in others]
    assert real.refuses(TRAIN, real.request(training(round=2), real.start))[0] == "PatientWithdrawn"
    done = withdraw(real.config, item.case.patient)
    assert done.studies == ("a" * 64,)
    assert left_in(real, item) == {"ledger.jsonl", FILE}
    assert len(read_withdrawn(real.config.folder)) == 1
    check_folder(real.config)


def test_a_patient_whom_nobody_knows_is_refused_and_one_whose_files_are_gone_is_found_in_the_last_check(real):
    with pytest.raises(ConfigError, match="its data and its last check have no patient or case of this name"):
        withdraw(real.config, "nobody")
    assert not (real.config.folder / FILE).exists()
    path = real.config.folder / "scans" / "datalist.json"
    cases = [
        case | {"patient": f"patient-{n}"} for n, case in enumerate(json.loads(path.read_text())["sites"]["sah_a"])
    ]
    configs = []
    for name, listed in (("all.json", cases), ("without.json", cases[1:])):
        path.with_name(name).write_text(json.dumps({"sites": {"sah_a": listed}}))
        data = {"source": "datalist", "path": str(path.with_name(name))}
        settings = json.loads(real.config.model_dump_json()) | {"data": data}
        configs.append(type(real.config).model_validate_json(json.dumps(settings)))
    Site(configs[0]).prepare(lambda done, total: None)
    with pytest.raises(ConfigError, match="this case was of another patient at the last check; name the patient"):
        withdraw(configs[1], "sah_a-0000")  # the ids are places in the data
    assert withdraw(configs[1], "patient-0").studies == ("a" * 64,)


def test_a_record_that_was_lost_or_damaged_stops_all_work(real, monkeypatch):
    item, _ = one_patient(real)
    withdraw(real.config, item.case.id)
    (real.config.folder / FILE).write_text("{")
    with pytest.raises(SiteStateLost, match=r"withdrawn\.json: cannot be read; restore the whole folder"):
        check_folder(real.config)
    assert real.refuses(TRAIN, real.request(training(), real.start, study="b" * 64))[0] == "SiteStateLost"
    (real.config.folder / FILE).unlink()
    with pytest.raises(SiteStateLost, match=r"lacks the patient who was withdrawn at line \d+ of the audit log"):
        check_folder(real.config)
