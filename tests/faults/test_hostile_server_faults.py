"""Case C of the faults: a server, or somebody at a hospital, who asks for more, sends other things, covers tracks."""

import json
import logging
from hashlib import sha256

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Context, MetricRecord, RecordDict
from harness.asking import NAME, TRAINING, evaluating, task_of, training
from harness.canaries import CANARY, canary_hospitals
from harness.tiny_study import TINY, changed
from harness.trust_kits import make_consortium

from sahfl.config import AdapterTuning, EvaluationConfig, WeightTuning
from sahfl.errors import AuditBroken
from sahfl.federation import flower, protocol
from sahfl.federation.site.app import SiteFailure, answering
from sahfl.federation.site.audit import FILE, AuditLog, read_lines, verify
from sahfl.federation.site.guard import guarded
from sahfl.federation.site.site import Site
from sahfl.statistics.sums import EvaluationSums
from sahfl.trust.signing import Signer

TRAIN, EVALUATE = protocol.TRAIN, protocol.EVALUATE


def broken(task, **settings):
    """A request whose task is not one that a server of ours could write."""
    text = json.loads(task.model_dump_json())
    for path, value in settings.items():
        *parents, last = path.split("__")
        section = text
        for parent in parents:
            section = section[parent]
        section[last] = value
    return ConfigRecord({"json": json.dumps(text)})


OUTSIDE = {
    "rounds": {"rounds": 100_000},
    "steps": {"local__steps": 10**9},
    "a learning rate that is no number": {"learning_rate": float("nan")},
    "an infinite learning rate": {"learning_rate": float("inf")},
    "a path": {"folder": "/etc"},
    "a path in a setting": {"method__label": "../../x"},
    "an unknown fold": {"fold": 7},
    "another task": {"stage": "upload"},
    "a setting of no task": {"local__export": True},
}


@pytest.mark.parametrize("settings", OUTSIDE.values(), ids=OUTSIDE.keys())
def test_C02_settings_outside_the_policy_or_of_no_task_are_refused_and_audited(hospital, settings):
    content = hospital.request(training(), hospital.start)
    content["task"] = broken(training(), **settings)
    error, line = hospital.refuses(TRAIN, content)
    assert error in {"PolicyRefused", "PayloadError"}
    assert (line["event"], line["details"]["asked"]) == ("refused", "train")
    assert line["details"]["reason"]
    assert not list(hospital.config.folder.glob("norms"))
    assert verify(hospital.config.folder / FILE)


def test_C02_a_refused_training_never_starts_and_one_within_the_policy_does(hospital, caplog):
    hospital.allow(most_rounds=1)
    with caplog.at_level(logging.INFO):
        assert hospital.refuses(TRAIN, hospital.request(training(), hospital.start))[0] == "PolicyRefused"
        assert "event=trained" not in caplog.text
        hospital.allow(most_rounds=2)
        answer = hospital.send(TRAIN, hospital.request(training(), hospital.start))
    assert set(answer["metrics"]) == {"n_volumes", "loss", "seconds"}
    assert hospital.audit()[-1]["event"] == "answered"


ASKED = {
    "full weights": training(method=WeightTuning(method="full")),
    "weights beside the factors": training(method=AdapterTuning(method="cp_lora", rank=2, also_train=("encoder",))),
    "norms": training(method=WeightTuning(method="norm_bias")),
    "pretraining": task_of(**{**TRAINING, "stage": "pretrain", "fold": -1}),
    "factors as large as weights": training(method=AdapterTuning(method="lora_c", rank=512)),
}


@pytest.mark.parametrize("task", ASKED.values(), ids=ASKED.keys())
def test_C03_weights_and_norms_are_refused(hospital, task):
    error, line = hospital.refuses(TRAIN, hospital.request(task, hospital.start))
    assert (error, line["event"]) == ("PolicyRefused", "refused")


def test_C03_norms_that_must_stay_stay_when_the_server_asks_for_them(hospital):
    method = AdapterTuning(method="cp_lora", rank=2, also_train=("norm",))
    hospital.allow(also_train=("norm",), norms_stay=True)
    open_ = training(method=method)
    error, line = hospital.refuses(TRAIN, hospital.request(open_, hospital.start))
    assert error == "PolicyRefused"
    assert "norms_stay" in line["details"]["reason"]


def rogue(hospital, change):
    """What a spoiled site app would answer, through the guard that stands around every answer."""
    task = training()
    content = hospital.request(task, hospital.start)

    def work():
        answer = protocol.train_reply(
            hospital_header(content), hospital.start, n_volumes=3, loss=0.5, seconds=1.0, encoding="float32"
        )
        change(answer)
        return answer

    return guarded(hospital.config, TRAIN, content, work)


def hospital_header(content):
    return protocol.read_request(content)[1]


SMUGGLED = {
    "gradients": lambda a: a.__setitem__("gradients", a["state"]),
    "results per case": lambda a: a.__setitem__("cases", ConfigRecord({"dice": [0.5, 0.6]})),
    "a list of Dice": lambda a: a.__setitem__("metrics", MetricRecord({"n_volumes": 3, "loss": [0.5, 0.6]})),
    "another metric": lambda a: a.__setitem__("metrics", MetricRecord({"n_volumes": 3, "loss": 0.5, "dice": 0.7})),
    "file names": lambda a: a.__setitem__("header", ConfigRecord({**a["header"], "study": "Muster_Hans.nii.gz"})),
    "text in the layout": lambda a: a.__setitem__("layout", ConfigRecord({**a["layout"], "note": "Muster"})),
}


@pytest.mark.parametrize("change", SMUGGLED.values(), ids=SMUGGLED.keys())
def test_C03_C05_an_answer_with_anything_that_is_not_listed_does_not_leave(hospital, change):
    with pytest.raises(Exception, match="kept back"):
        rogue(hospital, change)
    line = hospital.audit()[-1]
    assert (line["event"], line["details"]["error"]) == ("refused", "PolicyRefused")
    assert "Muster" not in json.dumps(line)


def test_C03_the_same_answer_without_it_leaves_and_is_audited(hospital):
    answer = rogue(hospital, lambda answer: None)
    line = hospital.audit()[-1]
    numbers = sum(value.size for value in hospital.start.values())
    assert (line["details"]["tensors"], line["details"]["numbers"]) == (len(hospital.start), numbers)
    assert line["details"]["bytes"] == protocol.n_bytes(answer)
    assert f"{numbers:,} numbers (cp_lora-r2, fold 0, round 1 of 2)" in line["words"]


def test_C05_groups_smaller_than_allowed_are_withheld_at_the_site(hospital):
    hospital.allow(smallest_group=5)
    answer = hospital.sums(evaluating())
    sums = EvaluationSums.from_array(np.frombuffer(answer["sums"]["flat"].data, "<f8").copy(), evaluating().evaluation)
    assert sums.withheld.blood == 1
    assert not sums.to_array()[:8].any()
    line = hospital.audit()[-1]
    assert "withholding all results of patients with blood" in line["words"]
    assert line["details"]["withheld"]["blood"] == 1


def test_C05_asking_for_the_same_patients_in_other_strata_or_folds_is_refused(hospital):
    hospital.sums(evaluating())
    moved = EvaluationConfig(replicates=100, volume_edges_ml=(10.1, 30.0))
    for task in (evaluating(evaluation=moved), evaluating(seed=99), evaluating(folds=3)):
        error, line = hospital.refuses(EVALUATE, hospital.request(task))
        assert error == "PolicyRefused"
        assert "than it began with" in line["details"]["reason"]


@pytest.mark.slow
def test_C05_a_study_in_which_sites_withhold_says_so_and_counts_what_is_left(federate):
    settings = changed(TINY, finetune__rounds=1)
    folder, grid = federate(settings, policy={"smallest_group": 2, "smallest_bootstrap": 2}, name="some")
    results = folder.read_json("results.json")
    by_site = {method["id"]: {part["site"] for part in method["withheld"]} for method in results["methods"]}
    assert by_site["zero_shot"] == by_site["cp_lora-r2"] != set()
    for method in results["methods"]:
        told = [
            EvaluationSums.from_array(
                np.frombuffer(reply.content["sums"]["flat"].data, "<f8").copy(), folder.study().evaluation
            )
            for _, request, reply in grid.seen
            if request.metadata.message_type == "evaluate" and request.content["header"]["method"] == method["id"]
        ]
        assert method["metrics"]["dice"]["overall"]["n"] == sum(sums.volume.n for sums in told)
        assert sum(part["blood"] for part in method["withheld"]) == sum(sums.withheld.blood for sums in told)
    assert "Suppressed at" in (folder.path / "report.html").read_text()


# --- C04 ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    return make_consortium(tmp_path_factory.mktemp("keys"), sites=("sah_a", "sah_b", "sah_c", "tbi_a", "tbi_b"))


@pytest.fixture
def signer(consortium):
    return Signer.load(consortium.server / "signing.key")


@pytest.fixture
def signed(hospital, consortium):
    """The hospital with its kit and the policy that no line of its file weakens."""
    hospital.allow(require_signature=True)
    hospital.config = hospital.config.model_copy(update={"kit": consortium.sites["sah_a"]})
    return hospital


def test_C04_an_unsigned_or_foreign_base_or_adapter_start_is_refused_and_not_kept(signed, signer):
    for kind, content in (
        (protocol.INSTALL_BASE, signed.request(task_of(), signed.network)),
        (TRAIN, signed.request(training(), signed.start)),
    ):
        assert signed.refuses(kind, content)[0] == "TrustError"
        error, line = signed.refuses(kind, content, Signer.of(Ed25519PrivateKey.generate()))
        assert (error, line["event"], line["details"]["error"]) == ("TrustError", "refused", "TrustError")
    assert signed.send(TRAIN, signed.request(training(), signed.start), signer)


def test_C04_a_base_or_start_that_was_changed_after_it_was_signed_is_refused(signed, signer):
    def spoil(content):
        array = content["state"]["flat"]
        array.data = array.data[:-4] + b"\x00\x00\x00\x40"

    others = {name: value + 1 for name, value in signed.network.items()}
    content = signed.request(task_of(), others, base="0" * 64)
    for kind, content in (
        (protocol.INSTALL_BASE, signed.request(task_of(), signed.network)),
        (TRAIN, signed.request(training(), signed.start)),
    ):
        signed.send(kind, content, signer)
        spoil(content)
        assert signed.refuses(kind, content)[0] == "TrustError"
    content = signed.request(task_of(), others)  # the signer itself sends another network under the base's hash
    error, line = signed.refuses(protocol.INSTALL_BASE, content, signer)
    assert (error, line["event"]) == ("AdapterError", "refused")


def test_C04_a_site_without_a_kit_or_with_another_s_refuses_everything(signed, signer, consortium):
    for kit, reason in ((None, "no kit names the signer"), (consortium.sites["sah_b"], "is the kit of site sah_b")):
        signed.config = signed.config.model_copy(update={"kit": kit})
        error, line = signed.refuses(protocol.DESCRIBE, signed.request(task_of()), signer)
        assert error == "TrustError"
        assert reason in line["details"]["reason"]


def test_C04_a_study_whose_requests_are_signed_runs_at_sites_that_ask_for_it(federate, consortium, signer):
    folder, grid = federate(
        changed(TINY, finetune__rounds=1),
        policy={"require_signature": True},
        site=lambda config: {"kit": consortium.sites[config.name]},
        signer=signer,
    )
    assert folder.read_json("results.json")["methods"][1]["metrics"]["dice"]["overall"]["n"] > 0
    assert all("signature" in request.content for _, request, _ in grid.seen)
    for site in grid.nodes.values():
        events = [line["event"] for line in read_lines(site.folder / FILE)]
        assert events[:2] == ["policy", "study"]
        assert set(events[2:]) == {"answered"}
        assert len(events) == 2 + sum(name == site.name for name, _, _ in grid.seen)
        assert verify(site.folder / FILE).torn == ()


# --- C06 ------------------------------------------------------------------------------------------------------------


def test_C06_a_patient_s_name_is_nowhere_off_site(federate, scans, tmp_path, caplog):
    sites = canary_hospitals(scans, tmp_path / "hospitals")
    datalist = tmp_path / "hospitals" / "datalist.json"
    datalist.write_text(json.dumps({"sites": sites}))
    settings = changed(TINY, finetune__rounds=1, compare_sites=True)
    settings["data"] = {"source": "datalist", "path": str(datalist)}

    def fail_late(site, request, reply):
        if request.metadata.message_type == "query.describe" and site == "sah_c":
            for image in (tmp_path / "hospitals" / "sites" / "sah_c" / "scans").glob("*image*"):
                image.write_bytes(CANARY.encode())
        return reply

    with caplog.at_level(logging.ERROR):
        folder, grid = federate(settings, change=fail_late, policy={"smallest_group": 1})
    assert "case sah_c-000" in caplog.text  # the site's own log names the case that fails
    assert {reply.error.reason for _, _, reply in grid.seen if reply.has_error()} == {"DataChanged"}
    for _, _, reply in grid.seen:
        if not reply.has_error():
            records = [dict(record) for record in reply.content.config_records.values()]
            arrays = [array.data for record in reply.content.array_records.values() for array in record.values()]
            assert CANARY not in repr([records, dict(reply.content.metric_records)])
            assert not [data for data in arrays if CANARY.encode() in data]
    off_site = [p for p in folder.path.rglob("*") if p.is_file() and "sites" not in p.relative_to(folder.path).parts]
    assert {"report.html", "results.json", "journal.jsonl"} <= {path.name for path in off_site}
    assert not [path for path in off_site if CANARY.encode() in path.read_bytes()]
    logs = [site.folder / FILE for site in grid.nodes.values()]
    assert all(path.exists() and CANARY not in path.read_text() for path in logs)  # nor in what an auditor is given


def test_C06_the_text_of_an_error_stays_in_the_site_s_log(hospital, caplog):
    def answer(site, content):
        raise FileNotFoundError(2, "No such file", f"/srv/{CANARY}_Hans.nii.gz")

    content = hospital.request(task_of())
    message = flower.new_message(content, 7, protocol.DESCRIBE, "", None)
    context = Context(1, 7, {"site": hospital.config.model_dump_json()}, RecordDict(), {})
    with caplog.at_level(logging.ERROR), pytest.raises(SiteFailure, match=r"^FileNotFoundError$"):
        answering(answer, Site)(message, context)
    assert CANARY in caplog.text
    line = hospital.audit()[-1]
    assert (line["event"], line["details"]) == ("failed", {"asked": "query.describe", "error": "FileNotFoundError"})


# --- C09 ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path):
    log = AuditLog(tmp_path)
    for n in range(1, 8):
        log.append("answered", f"Sent to the server: round {n}.", study=NAME, bytes=65_792)
    return log


def edited(texts, n):
    return [*texts[: n - 1], texts[n - 1].replace(b"65792", b"65793"), *texts[n:]]


def forged(texts, n):
    """Edited, with a hash that fits again: the next line gives it away."""
    line = json.loads(texts[n - 1])
    line["details"]["bytes"] = 1
    rest = {name: value for name, value in line.items() if name != "hash"}

    def text(value):
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    return [*texts[: n - 1], text(rest | {"hash": sha256(text(rest)).hexdigest()}) + b"\n", *texts[n:]]


TAMPERED = {
    "edited": (lambda t: edited(t, 4), 4, "was changed; its hash is another one"),
    "edited with a new hash": (lambda t: forged(t, 4), 5, "does not follow line number 4"),
    "spaces added": (lambda t: [*t[:3], t[3].replace(b'":', b'": ', 1), *t[4:]], 4, "was changed"),
    "removed": (lambda t: [*t[:3], *t[4:]], 4, "does not follow line number 3: a line was removed, added or moved"),
    "first removed": (lambda t: t[1:], 1, "does not follow line number 0"),
    "reordered": (lambda t: [*t[:3], t[4], t[3], *t[5:]], 4, "does not follow line number 3"),
    "doubled": (lambda t: [*t[:4], t[3], *t[4:]], 5, "does not follow line number 4"),
    "not a line": (lambda t: [*t[:3], b"gone\n", *t[4:]], 4, "was changed; it is no line of an audit log"),
}


@pytest.mark.parametrize(("tamper", "line", "message"), TAMPERED.values(), ids=TAMPERED.keys())
def test_C09_a_log_that_was_tampered_with_fails_naming_the_line(log, tamper, line, message):
    assert verify(log.path).n == 7
    log.path.write_bytes(b"".join(tamper(log.path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(AuditBroken, match=rf"audit.jsonl, line {line}: {message}"):
        verify(log.path)


def test_C09_the_command_fails_with_the_line(log, sahfl):
    log.path.write_bytes(b"".join(edited(log.path.read_bytes().splitlines(keepends=True), 2)))
    code, out, err = sahfl("audit", "verify", log.path)
    assert (code, out) == (3, "")
    assert "line 2: was changed" in err


def test_A12_nothing_leaves_that_cannot_be_written_to_the_audit_log(hospital, monkeypatch, caplog):
    def full(self, stream, *arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(AuditLog, "_append", full)
    with caplog.at_level(logging.ERROR):
        assert hospital_fails(hospital) == "StorageError"
    assert "nothing leaves that is not in it" in caplog.text
    monkeypatch.undo()
    assert hospital.send(TRAIN, hospital.request(training(), hospital.start))


def hospital_fails(hospital):
    with pytest.raises(SiteFailure) as info:
        hospital.send(TRAIN, hospital.request(training(), hospital.start))
    return str(info.value)
