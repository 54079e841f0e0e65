"""The ledger: every scan counts, under whatever name; budgets stop; nothing takes a use back."""

import json
import shutil

import pytest
from harness import asking
from harness.asking import METHOD, STUDY, evaluating, header_of, training

from sahfl.adapters import exchanged
from sahfl.config.policy import Budget
from sahfl.errors import LedgerBroken, StorageError
from sahfl.federation import protocol
from sahfl.federation.site import ledger
from sahfl.federation.site.audit import FILE as AUDIT
from sahfl.federation.site.audit import AuditLog, read_lines
from sahfl.federation.site.kinds import train
from sahfl.federation.site.ledger import FILE, HEAD, Ledger
from sahfl.federation.site.site import Site
from sahfl.networks import fine_tuned_network

hospital = asking.hospital
TRAIN, EVALUATE = protocol.TRAIN, protocol.EVALUATE


@pytest.fixture
def real(hospital):
    """A hospital that is not a site of a simulation: three patients in two folds."""
    hospital.config = hospital.config.model_copy(update={"simulated": False})
    return hospital


def counts(hospital):
    """Rounds and evaluations of each scan, the most used first."""
    used = Ledger(hospital.config).usage().values()
    return sorted(((one.rounds, one.evaluations) for one in used), reverse=True)


def ask(hospital, study="a" * 64, **changes):
    return hospital.send(TRAIN, hospital.request(training(**changes), hospital.start, study=study))


def test_each_round_and_evaluation_of_a_scan_is_a_use_and_a_resend_is_none(real):
    for _ in range(3):
        ask(real)
    assert counts(real) == [(1, 0)]
    ask(real, fold=1)
    assert counts(real) == [(1, 0)] * 3
    for _ in range(2):
        real.sums(evaluating())
    assert counts(real) == [(1, 1), (1, 1), (1, 0)]  # two of three patients are held out
    assert Ledger(real.config).check() > 0


def test_another_study_seed_or_patient_id_does_not_make_a_used_scan_new(real, tmp_path):
    ask(real)
    before = Ledger(real.config).usage()
    for seed, study in enumerate("bcd", start=4):
        start = exchanged.read(fine_tuned_network(STUDY.views, STUDY.model, real.network, METHOD, seed))
        real.send(TRAIN, real.request(training(seed=seed), start, study=study * 64))
    assert sum(one.rounds for one in Ledger(real.config).usage().values()) >= 4
    (first,) = before
    path = real.config.folder / "scans" / "datalist.json"
    cases = json.loads(path.read_text())
    for case in cases["sites"]["sah_a"]:
        case["patient"] = f"renamed-{case['patient']}"
    moved = real.config.folder / "scans" / "renamed.json"
    moved.write_text(json.dumps(cases))
    used = Ledger(real.config).usage()
    data = {"source": "datalist", "path": str(moved)}
    real.config = type(real.config).model_validate_json(
        json.dumps(json.loads(real.config.model_dump_json()) | {"data": data})
    )
    Site(real.config).prepare(lambda done, total: None)
    ask(real, study="e" * 64)
    after = Ledger(real.config).usage()
    assert set(after) <= {item.content for item in Site(real.config).cases()}
    grown = [after[scan].rounds - (used[scan].rounds if scan in used else 0) for scan in after]
    assert min(grown) >= 0
    assert sum(grown) in (1, 2)  # with other patient ids, the folds are others
    assert first in after


def test_a_spent_budget_stops_before_the_work_and_says_who_can_raise_it(real, monkeypatch):
    real.allow(budget=Budget(rounds=1, evaluations=1))
    ask(real)
    monkeypatch.setattr(train, "train_locally", lambda *a, **k: pytest.fail("trained"))
    error, line = real.refuses(TRAIN, real.request(training(round=2), real.start))
    assert (error, line["event"]) == ("BudgetSpent", "refused")
    text = "policy.budget.rounds: 1 of 1 scans were used 1 times, over all studies; sahfl ledger shows them"
    assert text in line["details"]["reason"]
    assert counts(real) == [(1, 0)]
    real.sums(evaluating())
    error, line = real.refuses(EVALUATE, real.request(evaluating(), study="b" * 64))
    assert error == "BudgetSpent"
    monkeypatch.undo()
    real.allow(budget=Budget(rounds=2, evaluations=1))
    real.send(TRAIN, real.request(training(round=2), real.start))
    assert counts(real)[0][0] == 2


def test_work_that_a_crash_ended_counts_once(real, monkeypatch):
    def crash(*arguments, **options):
        raise RuntimeError("power cut")

    monkeypatch.setattr(train, "train_locally", crash)
    for _ in range(2):
        assert real.refuses(TRAIN, real.request(training(), real.start))[0] == "RuntimeError"
    monkeypatch.undo()
    ask(real)
    assert counts(real) == [(1, 0)]


def test_an_answer_has_what_is_left_in_its_line_of_the_audit_log(real):
    real.allow(budget=Budget(rounds=7, evaluations=3))
    ask(real)
    assert real.audit()[-1]["details"]["left"] == {"rounds": 6, "evaluations": 3}
    real.sums(evaluating())
    assert real.audit()[-1]["details"]["left"] == {"rounds": 6, "evaluations": 2}


def cut(folder, earlier):
    path = folder / FILE
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))


def put_back(folder, earlier):
    shutil.copy(earlier, folder / FILE)


def remove(folder, earlier):
    (folder / FILE).unlink()


def change(folder, earlier):
    path = folder / FILE
    path.write_bytes(path.read_bytes().replace(b'"event":"round"', b'"event":"other"'))


def other_head(folder, earlier):
    (folder / HEAD).write_text("0" * 63 + "1\n")


@pytest.mark.parametrize("damage", [cut, put_back, remove, change, other_head])
def test_a_ledger_that_was_cut_changed_or_put_back_stops_all_work(real, tmp_path, damage):
    ask(real)
    earlier = shutil.copy(real.config.folder / FILE, tmp_path / "earlier")
    ask(real, fold=1)
    ask(real, round=2)
    damage(real.config.folder, earlier)
    if damage is change:  # its hashes are verified by the command, and when the site's process begins
        with pytest.raises(LedgerBroken, match=r"was changed; its hash is another one"):
            Ledger(real.config).check()
    else:
        error, _ = real.refuses(TRAIN, real.request(training(round=2, fold=1), real.start))
        assert error == "LedgerBroken"
        with pytest.raises(LedgerBroken, match=r"lacks the line that ledger\.head names"):
            Ledger(real.config).check()


def test_a_line_of_another_form_is_a_broken_ledger_and_no_bug(real):
    ask(real)
    log = AuditLog(real.config.folder, FILE)
    log.append("scans", "A line without a set.")
    with pytest.raises(LedgerBroken, match=r"ledger\.jsonl: was changed; it has a line that is not a ledger's"):
        Ledger(real.config).check()


def test_an_audit_log_with_something_else_than_a_hash_of_the_ledger_is_no_bug(real):
    ask(real)
    AuditLog(real.config.folder).append("answered", "Something.", ledger=["no", "hash"])
    with pytest.raises(LedgerBroken, match=r"lacks a line that it had at line \d+ of the audit log"):
        Ledger(real.config).check()


def test_a_crash_between_the_line_and_the_head_is_no_damage(real):
    ask(real)
    head, audited = (real.config.folder / HEAD).read_text(), (real.config.folder / AUDIT).read_bytes()
    ask(real, fold=1)
    lines = (real.config.folder / FILE).read_bytes().splitlines(keepends=True)
    (real.config.folder / FILE).write_bytes(b"".join(lines[:3]))  # the line of a set of scans, and not yet its head
    (real.config.folder / HEAD).write_text(head)
    (real.config.folder / AUDIT).write_bytes(audited)
    ask(real, fold=1, round=2)
    assert Ledger(real.config).check() >= 4


def test_a_simulated_site_keeps_no_ledger(hospital):
    ask(hospital)
    assert not (hospital.config.folder / FILE).exists()
    assert Ledger(hospital.config).usage() == {}
    assert "left" not in hospital.audit()[-1]["details"]


def test_no_name_of_a_patient_or_file_is_in_the_ledger(real):
    ask(real, fold=1)
    text = (real.config.folder / FILE).read_text()
    cases = json.loads((real.config.folder / "scans" / "datalist.json").read_text())["sites"]["sah_a"]
    assert not [word for case in cases for word in (case["image"], case["patient"]) if word in text]


def test_a_set_of_more_scans_than_a_line_holds_is_counted_whole_also_after_a_crash(real, monkeypatch):
    monkeypatch.setattr(ledger, "MOST_SCANS", 3)
    header, scans = header_of(training(), base=real.base), [f"{number:064x}" for number in range(8)]
    append = AuditLog.append

    def crash_at_the_third(log, event, words, **details):
        if event == "scans" and log.path.exists() and len(list(read_lines(log.path))) == 2:
            raise KeyboardInterrupt
        return append(log, event, words, **details)

    with monkeypatch.context() as patch:
        patch.setattr(AuditLog, "append", crash_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            Ledger(real.config).reserve("round", header, "a" * 64, scans)
    Ledger(real.config).reserve("round", header, "a" * 64, scans)
    assert {scan: one.rounds for scan, one in Ledger(real.config).usage().items()} == dict.fromkeys(scans, 1)
    assert Ledger(real.config).check() == 4  # three parts of the set, and the use


def test_only_what_was_written_since_is_read_again_and_a_changed_beginning_is_noticed(real, monkeypatch):
    header, book = header_of(training(), base=real.base), Ledger(real.config)
    for number in range(5):
        book.reserve("round", header, f"{number:064x}", ["b" * 64])
    read, parsed = [], ledger.parse
    monkeypatch.setattr(ledger, "parse", lambda text: read.append(text) or parsed(text))
    book.reserve("round", header, "e" * 64, ["b" * 64])
    assert book.usage()["b" * 64].rounds == 6
    assert len(read) == 2  # the last use before, and this one
    path = real.config.folder / ledger.FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))
    with pytest.raises(LedgerBroken, match=r"lacks the line that ledger\.head names"):
        book.usage()
    path.write_bytes(b"".join(lines))
    assert book.usage()["b" * 64].rounds == 6


def test_a_ledger_that_was_put_back_with_its_head_lacks_what_the_audit_log_saw(real):
    real.send(TRAIN, real.request(training(), real.start))
    folder = real.config.folder
    earlier = {name: (folder / name).read_bytes() for name in (ledger.FILE, ledger.HEAD)}
    real.send(TRAIN, real.request(training(fold=1), real.start))
    Ledger(real.config).check()
    for name, content in earlier.items():
        (folder / name).write_bytes(content)
    with pytest.raises(LedgerBroken, match=r"lacks a line that it had at line \d+ of the audit log"):
        Ledger(real.config).check()


def test_a_refused_start_uses_no_scan(real):
    crafted = {name: value + 1 for name, value in real.start.items()}
    assert real.refuses(TRAIN, real.request(training(), crafted))[0] == "PolicyRefused"
    assert not Ledger(real.config).usage()


def test_the_same_request_on_other_scans_counts_for_these(real):
    header, book = header_of(training(), base=real.base), Ledger(real.config)
    book.reserve("round", header, "a" * 64, ["b" * 64])
    book.reserve("round", header, "a" * 64, ["c" * 64])
    book.reserve("round", header, "a" * 64, ["b" * 64])
    assert {scan[0]: one.rounds for scan, one in book.usage().items()} == {"b": 1, "c": 1}


def test_a_full_disk_after_the_line_and_before_the_head_is_no_damage(real, monkeypatch):
    header, book = header_of(training(), base=real.base), Ledger(real.config)
    book.reserve("round", header, "1" * 64, ["b" * 64])

    def full(*args, **more):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "write_atomic", full)
        for digit in "234":
            with pytest.raises(StorageError, match="make room"):
                book.reserve("round", header, digit * 64, ["b" * 64])
    book.reserve("round", header, "5" * 64, ["b" * 64])
    assert book.usage()["b" * 64].rounds == 5
    book.check()
