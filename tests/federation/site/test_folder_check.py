"""A site's folder: what was lost, or put back to an earlier state, is named before any work begins."""

import json
import shutil

import pytest
from harness import asking
from harness.asking import evaluating, training

from sahfl import __version__
from sahfl.errors import LedgerBroken, SahflError, SiteStateLost, VersionsDiffer
from sahfl.federation import protocol
from sahfl.federation.site import folder_check, guard
from sahfl.federation.site.answered import forget_round
from sahfl.federation.site.audit import AuditLog
from sahfl.federation.site.folder_check import LISTED, check_folder
from sahfl.federation.site.kinds.table import KINDS
from sahfl.federation.site.secret import renew_secret, site_secret
from sahfl.federation.site.site import Site
from sahfl.payload import Header

hospital = asking.hospital
TRAIN = protocol.TRAIN


@pytest.fixture
def real(hospital):
    """A hospital that is not a site of a simulation, and makes its own secret."""
    hospital.config = hospital.config.model_copy(update={"simulated": False, "secret": None})
    return hospital


def train(hospital, **changes):
    return hospital.send(TRAIN, hospital.request(training(**changes), hospital.start))


def answer(config, kind="train", *, study="a", round_=1, training_="0" * 16, sahfl=__version__, batches="b" * 16):
    """The line of an answer in the audit log, without the work."""
    details = {"asked": kind, "study": study * 64, "training": training_, "round": round_}
    return AuditLog(config.folder).append("answered", "Sent.", **details, batches=batches, sahfl=sahfl)


def in_a_new_process(monkeypatch):
    monkeypatch.setattr(folder_check, "_whole", set())


# --- what a folder lacks --------------------------------------------------------------------------------------------


def lose(name):
    def damage(folder, earlier):
        for path in folder.glob(name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def put_back(*names):
    def damage(folder, earlier):
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            if (earlier / name).is_dir():
                shutil.copytree(earlier / name, path)
            elif (earlier / name).exists():
                shutil.copy(earlier / name, path)

    return damage


def other_secret(folder, earlier):
    (folder / "batches.key").write_bytes(b"x" * 32)


DAMAGE = {
    "secret-lost": (lose("batches.key"), SiteStateLost, "is missing, and the answers in the audit log drew"),
    "secret-of-another-time": (other_secret, SiteStateLost, "is another secret than the one from which the answers"),
    "ledger-lost": (lose("ledger.*"), LedgerBroken, "lacks a line that it had at line"),
    "ledger-put-back": (put_back("ledger.jsonl", "ledger.head"), LedgerBroken, "lacks a line that it had at line"),
    "audit-log-lost": (lose("audit.jsonl"), SiteStateLost, "that it had when the ledger noted a use, so it was cut"),
    "audit-log-put-back": (put_back("audit.jsonl"), SiteStateLost, "that it had when the ledger noted a use"),
    "audit-log-and-ledger-lost": (
        lambda folder, earlier: [lose(name)(folder, earlier) for name in ("audit.jsonl", "ledger.*")],
        SiteStateLost,
        "lacks its first lines, though this site was asked before",
    ),
    "studies-lost": (lose("studies.json"), SiteStateLost, "lacks study aaaaaaaaaaaa, which got an answer at line"),
    "studies-put-back": (put_back("studies.json"), SiteStateLost, "lacks the settings of the evaluation of study aaa"),
    "answered-lost": (lose("answered"), SiteStateLost, r"lacks round 1 of training [0-9a-f]{16}, which got an answer"),
    "answered-put-back": (put_back("answered"), SiteStateLost, r"lacks round 2 of training [0-9a-f]{16}"),
    "settings-lost": (lose("trainings"), SiteStateLost, r"trainings/.* lacks round 1 of training"),
}


@pytest.mark.parametrize(("damage", "error", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_file_that_was_lost_or_put_back_alone_stops_all_work_and_is_named(
    real, tmp_path, monkeypatch, damage, error, message
):
    train(real)
    earlier = shutil.copytree(real.config.folder, tmp_path / "earlier")
    train(real, round=2)
    real.sums(evaluating())
    assert check_folder(real.config) == 3
    damage(real.config.folder, earlier)
    with pytest.raises(error, match=message) as info:
        check_folder(real.config)
    assert "; restore " in str(info.value)
    in_a_new_process(monkeypatch)
    monkeypatch.setattr(guard, "_admit", lambda *_: pytest.fail("read the request"))
    for _ in range(2):  # the line that it writes about the failure repairs nothing
        leaves, line = real.refuses(TRAIN, real.request(training(fold=1), real.start))
        assert (leaves, line["event"]) == (error.__name__, "failed")
        in_a_new_process(monkeypatch)


def test_a_folder_that_is_put_back_as_a_whole_goes_on_elsewhere_and_refuses_what_it_refused_before(
    real, tmp_path, monkeypatch
):
    train(real)
    moved = real.config.model_copy(update={"folder": tmp_path / "elsewhere" / "sah_a"})
    shutil.copytree(real.config.folder, moved.folder)
    answers = [train(real, round=2)]
    shutil.rmtree(real.config.folder)
    real.config = moved
    in_a_new_process(monkeypatch)
    Site(moved).prepare(lambda done, total: None)  # as each session of a server begins
    answers.append(train(real, round=2))
    assert [bytes(reply["state"]["flat"].data) for reply in answers] == [bytes(answers[0]["state"]["flat"].data)] * 2
    other = {name: value + 1e-4 for name, value in real.start.items()}
    assert real.refuses(TRAIN, real.request(training(round=2), other))[0] == "RoundAlreadyAnswered"
    assert real.refuses(TRAIN, real.request(training(round=1), other))[0] == "RoundAlreadyAnswered"
    assert check_folder(moved) == 2


# --- what is no damage ----------------------------------------------------------------------------------------------


def test_a_folder_of_a_site_that_was_asked_nothing_is_whole(real):
    assert check_folder(real.config) == 0
    assert not (real.config.folder / "batches.key").exists()


def test_a_released_round_is_not_missing(real, monkeypatch):
    for round_ in (1, 2):
        train(real, round=round_)
    name = Header("a" * 64, stage="finetune", method="cp_lora-r2", fold=0, round=1, base="").training
    for round_ in (2, 1):
        assert forget_round(real.config, name, round_) == 1
        assert check_folder(real.config) == 2
    train(real, learning_rate=0.004)
    assert check_folder(real.config) == 3


def test_a_crash_after_the_line_of_a_release_is_no_damage(real, monkeypatch):
    train(real)
    name = Header("a" * 64, stage="finetune", method="cp_lora-r2", fold=0, round=1, base="").training
    monkeypatch.setattr("sahfl.federation.site.round_list.RoundList.forget", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        forget_round(real.config, name, 1)
    assert check_folder(real.config) == 1


def test_a_secret_that_a_person_renews_counts_from_then_on_and_the_audit_log_has_it(real, monkeypatch):
    train(real)
    before = site_secret(real.config)
    (real.config.folder / "batches.key").unlink()
    with pytest.raises(SiteStateLost, match="or draw from a new one from now on: sahfl-client new-secret SITE_FILE"):
        site_secret(real.config)  # also in a process that found the folder whole before
    renew_secret(real.config)
    assert real.audit()[-1]["event"] == "secret_renewed"
    assert site_secret(real.config) != before
    assert before.hex() not in (real.config.folder / "audit.jsonl").read_text()
    in_a_new_process(monkeypatch)
    train(real, round=2)
    assert check_folder(real.config) == 2
    (real.config.folder / "batches.key").write_bytes(before)
    with pytest.raises(SiteStateLost, match="is another secret"):
        check_folder(real.config)


def test_a_secret_in_the_site_file_that_changed_is_noticed_and_renewed_by_the_same_command(real):
    real.config = real.config.model_copy(update={"secret": "1" * 64})
    train(real)
    changed = real.config.model_copy(update={"secret": "2" * 64})
    with pytest.raises(SiteStateLost, match="is another secret"):
        check_folder(changed)
    renew_secret(changed)
    assert check_folder(changed) == 1
    assert not (real.config.folder / "batches.key").exists()


def test_a_simulated_site_is_not_checked(hospital):
    train(hospital)
    shutil.rmtree(hospital.config.folder / "answered")
    folder_check.require_whole(hospital.config)


# --- versions -------------------------------------------------------------------------------------------------------


def test_a_folder_in_which_a_newer_version_worked_is_refused_by_both_versions_and_an_older_one_is_taken(real):
    folder = real.config.folder
    folder.mkdir(exist_ok=True)
    for version in ("9.9.9", "of no form"):
        answer(real.config, "query.describe", sahfl=version)
        with pytest.raises(VersionsDiffer, match=rf"sahfl '{version}' worked here last, this is sahfl '.*'") as info:
            check_folder(real.config)
        assert str(info.value).endswith("; install that version or a newer one")
    answer(real.config, "query.describe", sahfl="0.0.1")
    with pytest.raises(SahflError) as info:  # of the study, which this test did not note
        check_folder(real.config)
    assert not isinstance(info.value, VersionsDiffer)


def test_a_folder_of_a_version_that_noted_less_is_taken_over(real):
    AuditLog(real.config.folder).append("answered", "Sent.", asked=TRAIN, study="a" * 64, round=1, ledger="0" * 64)
    assert check_folder(real.config) == 0
    train(real, round=2)
    assert check_folder(real.config) == 1


# --- all kinds ------------------------------------------------------------------------------------------------------


def test_every_kind_that_is_answered_once_has_a_list_that_is_compared(real):
    once = {name for name, kind in KINDS.items() if kind.once}
    assert once | {protocol.CONFIRM_START} == set(LISTED)


@pytest.mark.parametrize("kind", LISTED)
def test_a_round_of_each_listed_kind_is_missed(real, kind):
    (real.config.folder / "studies.json").write_text(
        json.dumps({"a" * 64: {"since": "2026-11-01", "settings": "0" * 64, "evaluation": None, "base": None}})
    )
    renew_secret(real.config)
    batches = real.audit()[-1]["details"]["batches"]
    answer(real.config, kind, batches=batches)
    with pytest.raises(SiteStateLost, match=rf"{LISTED[kind][0]}/.*: lacks round 1 of training 0000000000000000"):
        check_folder(real.config)
