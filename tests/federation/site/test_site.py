"""A site: its checks, counts, folds and base network, and the app that answers for it."""

import json
import logging
import shutil

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from harness.tiny_study import TINY

from sahfl.adapters import digest, exchanged
from sahfl.adapters.files import save_tensors
from sahfl.config import AdapterTuning, EvaluationConfig, LocalTraining, SiteConfig, SitePolicy, Study, ZeroShot, parse
from sahfl.data.ct import read_scan
from sahfl.data.sources.datalist import SiteScansDatalist
from sahfl.errors import AdapterError, DataError
from sahfl.federation import flower, protocol
from sahfl.federation.site.app import SiteFailure, app
from sahfl.federation.site.site import Site
from sahfl.networks import whole_network
from sahfl.payload import Header
from sahfl.simulation.simulate import open_policy, site_configs
from sahfl.statistics.sums import EvaluationSums
from sahfl.task import Task

STUDY = parse(Study, TINY, where="test")
SEED, FOLDS = STUDY.seed, 2
BASE = {"a": np.ones((2, 2), np.float32)}


@pytest.fixture
def phantom(tmp_path, scans):
    """The simulated hospital sah_a with three patients, prepared."""
    (config,) = [config for config in site_configs(STUDY, tmp_path) if config.name == "sah_a"]
    shutil.copytree(scans / "sah_a" / "scans", config.folder / "scans")
    site = Site(config)
    site.prepare(lambda done, total: None)
    return site


@pytest.fixture
def hospital(tmp_path, scans):
    """Make a site of a datalist over copies of the phantom scans, from (patient, fold) of each case."""

    def make(*cases, prepare=True):
        shutil.copytree(scans / "sah_a" / "scans", tmp_path / "scans", dirs_exist_ok=True)
        entries = [
            {"image": f"images/{i:04d}.nii.gz", "label": f"labels/{i:04d}.nii.gz", "patient": patient}
            | ({} if fold is None else {"fold": fold})
            for i, (patient, fold) in enumerate(cases)
        ]
        datalist = tmp_path / "scans" / "mine.json"
        datalist.write_text(json.dumps({"sites": {"bern": entries}}))
        data = SiteScansDatalist(source="datalist", path=datalist)
        site = Site(SiteConfig(name="bern", folder=tmp_path / "bern", data=data, policy=open_policy()))
        if prepare:
            site.prepare(lambda done, total: None)
        return site

    return make


def split(site, fold, n_folds=FOLDS):
    training = site.training_cases(fold=fold, n_folds=n_folds, seed=SEED)
    return set(training), set(site.held_out_cases(fold=fold, n_folds=n_folds, seed=SEED))


def test_a_smaller_number_of_training_patients_is_among_those_of_a_larger_one(phantom):
    def trained(most, seed=SEED):
        return phantom.training_cases(fold=0, n_folds=3, seed=seed, most=most)

    every, one = trained(None), trained(1)
    assert trained(2) == trained(9) == every  # in the same order
    assert [len(patients(every)), len(patients(one))] == [2, 1]
    assert patients(one) < patients(every)
    assert len({frozenset(patients(trained(1, seed))) for seed in range(9)}) > 1  # drawn anew for each study


def patients(cases):
    return {item.case.patient for item in cases}


# --- preparing and describing ---------------------------------------------------------------------------------------


def test_a_phantom_site_writes_its_cohort_checks_it_and_tells_of_each_case(tmp_path):
    (config,) = [config for config in site_configs(STUDY, tmp_path) if config.name == "sah_b"]
    heard = []
    Site(config).prepare(lambda done, total: heard.append((done, total)))
    assert heard == [(1, 2), (2, 2), (1, 2), (2, 2)]  # written, then checked
    assert [item.case.id for item in Site(config).cases()] == ["sah_b-0000", "sah_b-0001"]


def test_a_phantom_site_describes_itself_in_counts(phantom):
    volumes = [read_scan(item.case).volume_ml for item in phantom.cases()]
    description = phantom.describe(n_folds=FOLDS, seed=SEED)
    assert (description.site, description.source) == ("sah_a", "phantom (standard)")
    assert (description.n_volumes, description.n_patients, description.n_refused) == (3, 3, 0)
    assert description.n_positive == sum(volume > 0 for volume in volumes)
    assert description.volume_ml == round(sum(volumes), 1)
    assert sorted(description.fold_sizes) == [1, 2]


def test_a_hospital_describes_patients_refused_cases_and_findings_by_hand(hospital, tmp_path):
    site = hospital(("Muster", None), ("Muster", None), ("Meier", None), prepare=False)
    (tmp_path / "scans" / "images" / "0002.nii.gz").write_bytes(b"not a scan")
    site = Site(site.config.model_copy(update={"max_refused_share": 0.5}))
    site.prepare(lambda done, total: None)
    description = site.describe(n_folds=FOLDS, seed=SEED)
    assert description.source == "datalist"
    assert (description.n_volumes, description.n_patients, description.n_refused) == (2, 1, 1)
    assert description.findings["unreadable"] == 1
    assert sum(description.fold_sizes) == 1
    assert not [word for word in ("Muster", "Meier", "nii") if word in description.model_dump_json()]


def test_a_site_without_a_usable_case_is_refused_with_the_rules_that_are_broken(hospital, tmp_path):
    site = hospital(("Muster", None), prepare=False)
    (tmp_path / "scans" / "images" / "0000.nii.gz").write_bytes(b"not a scan")
    with pytest.raises(DataError, match=r"^none of 1 case\(s\) can be used:\n  unreadable \(1x\)"):
        site.prepare(lambda done, total: None)


@pytest.mark.parametrize("content", [None, b"", b"[{}]"])
def test_a_site_that_was_not_prepared_says_so(phantom, content):
    manifest = phantom.config.folder / "manifest.json"
    manifest.unlink() if content is None else manifest.write_bytes(content)
    with pytest.raises(DataError, match=r"^site sah_a: .*manifest.json is missing or damaged; check the data again$"):
        phantom.cases()


@pytest.mark.parametrize("part", ["images", "labels"])
def test_a_scan_that_changes_after_the_check_stops_training_and_evaluation(phantom, part):
    path = phantom.config.folder / "scans" / part / "0001.nii.gz"
    path.write_bytes(path.read_bytes() + b"x")
    said = r"^case sah_a-0001: its files changed after they were checked"
    with pytest.raises(DataError, match=said):
        phantom.training_cases(fold=0, n_folds=FOLDS, seed=SEED)
    with pytest.raises(DataError, match=said):
        [phantom.held_out_cases(fold=fold, n_folds=FOLDS, seed=SEED) for fold in range(FOLDS)]


# --- folds ----------------------------------------------------------------------------------------------------------


def test_training_and_held_out_cases_share_no_patient_and_are_all_cases(hospital):
    site = hospital(("Muster", None), ("Meier", None), ("Muster", None))
    held = []
    for fold in range(FOLDS):
        training, held_out = split(site, fold)
        assert not patients(training) & patients(held_out)
        assert training | held_out == set(site.cases())
        held += held_out
    assert sorted(item.case.id for item in held) == [item.case.id for item in site.cases()]


def test_pretraining_uses_every_case(phantom):
    assert phantom.training_cases(fold=-1, n_folds=FOLDS, seed=SEED) == phantom.cases()


def test_a_datalist_s_own_folds_are_used(hospital):
    site = hospital(("Muster", 1), ("Meier", 0), ("Huber", 1))
    assert patients(split(site, 1)[1]) == {"Muster", "Huber"}
    assert patients(split(site, 0)[1]) == {"Meier"}
    assert site.describe(n_folds=FOLDS, seed=SEED).fold_sizes == (1, 2)


def test_a_fold_that_the_study_does_not_have_is_refused(hospital):
    site = hospital(("Muster", 0), ("Meier", 2))
    with pytest.raises(DataError, match=r"got fold 2, expected 0 to 1 for every case or none$"):
        site.describe(n_folds=FOLDS, seed=SEED)


def test_a_site_whose_patients_are_all_in_one_fold_cannot_train_on_that_fold(hospital):
    site = hospital(("Muster", 0), ("Meier", 0))
    with pytest.raises(DataError, match=r"^site bern: all patients are in fold 0, none is left to train on$"):
        site.training_cases(fold=0, n_folds=FOLDS, seed=SEED)
    assert split(site, 1) == (set(site.cases()), set())


def test_keys_of_patients_are_salted_by_study_and_site(phantom, hospital):
    keys = phantom.patient_keys(SEED)
    assert len(set(keys.values())) == 3
    assert not set(keys.values()) & set(phantom.patient_keys(SEED + 1).values())
    elsewhere = hospital(("Muster", None), ("Meier", None), ("Huber", None))  # the very same scans
    assert not set(keys.values()) & set(elsewhere.patient_keys(SEED).values())


# --- base -----------------------------------------------------------------------------------------------------------


def test_an_installed_base_comes_back(phantom):
    phantom.install_base(BASE, digest(BASE))
    assert np.array_equal(phantom.base(digest(BASE))["a"], BASE["a"])


def test_a_base_that_does_not_match_its_hash_is_refused_and_not_kept(phantom):
    with pytest.raises(AdapterError, match=r"^site sah_a: the base's content does not match its hash 000000000000$"):
        phantom.install_base(BASE, "0" * 64)
    assert not list(phantom.config.folder.glob("base-*"))


def test_a_base_that_changed_on_disk_is_refused(phantom):
    phantom.install_base(BASE, digest(BASE))
    (path,) = phantom.config.folder.glob("base-*")
    save_tensors(path, {"a": BASE["a"] + 1})
    with pytest.raises(
        AdapterError, match=rf"^site sah_a: the installed base {digest(BASE)[:12]} was changed on disk$"
    ):
        phantom.base(digest(BASE))


def test_a_base_that_was_never_installed_is_refused(phantom):
    with pytest.raises(AdapterError, match="No such file"):
        phantom.base("0" * 64)


@pytest.mark.parametrize("hash_", ["../../x", "", "A" * 64, "0" * 63 + "/", "/" + "0" * 63])
def test_a_hash_that_could_be_a_path_is_refused(phantom, hash_):
    message = rf"^site sah_a: got a base hash of {len(hash_)} characters, expected 64 hex digits$"
    with pytest.raises(AdapterError, match=message):
        phantom.base(hash_)
    with pytest.raises(AdapterError, match=r"does not match its hash"):
        phantom.install_base(BASE, hash_)


# --- the app --------------------------------------------------------------------------------------------------------


def ask(site, kind, *, tensors=None, base="", config=None, header=None, **task):
    """The reply of the site's app to one message; the header fits the task unless the test changes it."""
    flower.enter_run(1)
    settings = {"stage": "finetune", "seed": SEED, "views": STUDY.views, "model": STUDY.model, "folds": FOLDS}
    trains = kind == protocol.TRAIN
    settings |= {"method": AdapterTuning(method="cp_lora") if trains else ZeroShot(method="zero_shot")} | task
    named = {
        "stage": "finetune",
        "method": "cp_lora-r8" if trains else "zero_shot",
        "fold": task.get("fold", -1),
        "round": task.get("round", 0),
    }
    named |= {"base": base} | (header or {})
    content = protocol.request(Task.model_validate(settings), Header("a" * 64, **named), tensors or {})
    message = flower.new_message(content, 7, kind, "", None)
    flower.give_id(message)
    site = config if config is not None else site.config.model_dump_json()
    return app(message, Context(1, 7, {"site": site}, RecordDict(), {}))


@pytest.fixture(scope="module")
def network():
    return exchanged.read(whole_network(STUDY.views, STUDY.model, SEED))


def evaluate(site, network, fold):
    ask(site, protocol.INSTALL_BASE, tensors=network, base=digest(network))
    evaluation = EvaluationConfig(replicates=100)
    reply = ask(site, protocol.EVALUATE, base=digest(network), fold=fold, evaluation=evaluation)
    sums = np.frombuffer(reply.content["sums"]["flat"].data, "<f8")
    return EvaluationSums.from_array(sums.astype(np.float64), evaluation)


def test_results_per_case_stay_in_the_site_s_folder(phantom, network):
    sums = evaluate(phantom, network, 0)
    rows = [json.loads(line) for line in (phantom.config.folder / "cases.jsonl").read_text().splitlines()]
    held_out = phantom.held_out_cases(fold=0, n_folds=FOLDS, seed=SEED)
    assert [(row["method"], row["fold"], row["case"]) for row in rows] == [
        ("zero_shot", 0, item.case.id) for item in held_out
    ]
    assert sums.volume.n + sums.n_no_blood == len(held_out)
    assert sums.volume.x == pytest.approx(sum(row["volume_ml"] for row in rows))


def test_a_site_without_a_held_out_case_returns_sums_of_nothing(hospital, network):
    sums = evaluate(hospital(("Muster", 0), ("Meier", 0)), network, 1)
    assert not sums.to_array().any()
    assert sums.volume.n == sums.n_no_blood == 0


def refused(site, *arguments, caplog, **more):
    """The error that a server sees, and what the site's log says of it."""
    with caplog.at_level(logging.ERROR), pytest.raises(SiteFailure) as info:
        ask(site, *arguments, **more)
    return str(info.value), caplog.text


LOCAL = LocalTraining(steps=1)
TASKS = {
    "no settings": (protocol.TRAIN, {"fold": 0, "round": 1, "rounds": 1}, "expected settings of a training round"),
    "round 0": (protocol.TRAIN, {"fold": 0, "rounds": 1, "local": LOCAL}, "got round 0 of 1, expected settings"),
    "round beyond the last": (protocol.TRAIN, {"fold": 0, "round": 2, "rounds": 1, "local": LOCAL}, "got round 2 of 1"),
    "no fold": (protocol.TRAIN, {"round": 1, "rounds": 1, "local": LOCAL}, "got fold -1 in stage finetune, expected a"),
    "no evaluation": (protocol.EVALUATE, {"fold": 0}, "expected a held-out fold and settings for evaluation"),
    "evaluation of no fold": (protocol.EVALUATE, {"evaluation": STUDY.evaluation}, "got fold -1, expected a held-out"),
    "filed as another fold": (
        protocol.TRAIN,
        {"fold": 0, "header": {"fold": 1}},
        "header: names another stage, method,",
    ),
    "filed as another method": (protocol.EVALUATE, {"fold": 0, "header": {"method": "full"}}, "header: names another"),
}


@pytest.mark.parametrize(("kind", "task", "message"), TASKS.values(), ids=TASKS.keys())
def test_a_task_that_does_not_fit_is_refused_and_the_text_stays_in_the_log(phantom, caplog, kind, task, message):
    seen, log = refused(phantom, kind, caplog=caplog, **task)
    assert seen == "PayloadError"
    assert message in log


def test_a_site_whose_settings_are_wrong_tells_the_error_s_class_only(phantom, caplog):
    seen, log = refused(phantom, protocol.DESCRIBE, caplog=caplog, config='{"name": "bern", "folder": "/srv/Muster"}')
    assert seen == "ValidationError"
    assert "Muster" in log


def test_a_header_with_unknown_fields_is_refused(phantom, caplog):
    flower.enter_run(1)
    content = protocol.request(
        Task(stage="finetune", seed=SEED, views=STUDY.views, model=STUDY.model, folds=FOLDS),
        Header("a" * 64, stage="finetune", method="x", fold=-1, round=0, base=""),
        {},
    )
    content["header"] = ConfigRecord({"path": "/etc"})
    message: Message = flower.new_message(content, 7, protocol.INSTALL_BASE, "", None)
    with pytest.raises(SiteFailure, match=r"^PayloadError$"):
        app(message, Context(1, 7, {"site": phantom.config.model_dump_json()}, RecordDict(), {}))
    assert "header: has missing or unknown fields" in caplog.text


def test_a_simulated_site_allows_all_that_a_hospital_does_not():
    closed, opened = SitePolicy(), open_policy()
    forbidding = {"require_signature", "norms_stay", "bounded_starts"}
    for name, field in SitePolicy.model_fields.items():
        if field.annotation is bool:
            assert getattr(opened, name) is (name not in forbidding), name
        elif name.startswith("most_"):
            assert getattr(opened, name) > getattr(closed, name), name
