"""Each round of a training is answered once; and the first start of a training is the site's own."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from harness import asking
from harness.asking import METHOD, header_of, training
from harness.tiny_study import TINY, changed

from sahfl.config import LocalTraining
from sahfl.errors import PolicyRefused, RoundAlreadyAnswered, StorageError
from sahfl.federation import protocol
from sahfl.federation.signatures import document
from sahfl.federation.site import answered as module
from sahfl.federation.site.answered import FOLDER, Answered, forget_round
from sahfl.federation.site.case_results import read_results
from sahfl.federation.site.round_list import Line, RoundList
from sahfl.federation.site.starts import require_own_start
from sahfl.federation.tensors import read_state
from sahfl.payload import Header

hospital = asking.hospital
TRAIN = protocol.TRAIN


@pytest.fixture
def real(hospital):
    """A hospital that is not a site of a simulation."""
    hospital.config = hospital.config.model_copy(update={"simulated": False})
    return hospital


def bytes_of(content):
    return document(TRAIN, content)


def second_round(hospital, start):
    return hospital.request(training(round=2), start)


def test_the_same_request_gets_the_same_answer_without_work(real, monkeypatch):
    first = real.send(TRAIN, real.request(training(), real.start))
    monkeypatch.setattr(
        "sahfl.federation.site.kinds.local_training.train", lambda *a, **k: pytest.fail("trained again")
    )
    again = real.send(TRAIN, real.request(training(), real.start))
    assert bytes_of(again) == bytes_of(first)  # seconds included
    assert [line["words"].startswith("Once more, the same: ") for line in real.audit()[-2:]] == [False, True]


def test_an_answer_that_is_no_longer_kept_is_computed_again_to_the_same_tensors(real):
    first = read_state(real.send(TRAIN, real.request(training(), real.start)), like=real.start)
    for path in (real.config.folder / FOLDER).glob("*.reply"):
        path.unlink()
    again = read_state(real.send(TRAIN, real.request(training(), real.start)), like=real.start)
    assert all(np.array_equal(first[name], again[name]) for name in first)


OTHER = {
    "start": lambda real, state: second_round(real, {name: value + 0.001 for name, value in state.items()}),
    "rate": lambda real, state: real.request(training(round=2, learning_rate=0.004), state),
    "steps": lambda real, state: real.request(training(round=2, local=LocalTraining(steps=2, batch_size=2)), state),
    "rounds": lambda real, state: real.request(training(round=2, rounds=3), state),
}


@pytest.mark.parametrize("other", OTHER.values(), ids=OTHER.keys())
def test_another_request_for_an_answered_round_is_refused_until_the_hospital_releases_it(real, other):
    real.send(TRAIN, real.request(training(), real.start))
    real.send(TRAIN, second_round(real, real.start))
    error, line = real.refuses(TRAIN, other(real, real.start))
    assert (error, line["event"]) == ("RoundAlreadyAnswered", "refused")
    reason = line["details"]["reason"]
    assert reason.startswith("round_already_answered: another request was answered for cp_lora-r2, fold 0, round 2;")
    _, name, _ = reason.rpartition("sahfl-client forget-round ")[2].split()
    assert forget_round(real.config, name, 1) == 2  # other settings need the whole training
    real.send(TRAIN, other(real, real.start))
    error, _ = real.refuses(TRAIN, second_round(real, real.start))
    assert error == "RoundAlreadyAnswered"


def test_a_round_before_an_answered_one_gets_no_first_answer(real):
    real.send(TRAIN, real.request(training(rounds=3), real.start))
    real.send(TRAIN, real.request(training(round=3, rounds=3), real.start))
    error, line = real.refuses(TRAIN, real.request(training(round=2, rounds=3), real.start))
    assert error == "RoundAlreadyAnswered"
    assert "a later round than cp_lora-r2, fold 0, round 2, was answered" in line["details"]["reason"]
    real.send(TRAIN, real.request(training(round=3, rounds=3), real.start))  # the same again


def test_of_two_processes_that_answer_one_round_only_one_answer_leaves(real):
    header = header_of(training(), base=real.base)
    answer = real.send(TRAIN, real.request(training(), real.start))
    with pytest.raises(RoundAlreadyAnswered, match="another process answered cp_lora-r2, fold 0, round 1"):
        Answered(real.config, header.study).keep(header, b"\2" * 32, answer)


def test_what_was_refused_or_failed_is_not_an_answer(real):
    crafted = {name: value + 1 for name, value in real.start.items()}
    assert real.refuses(TRAIN, real.request(training(), crafted))[0] == "PolicyRefused"
    real.send(TRAIN, real.request(training(), real.start))


def test_other_studies_methods_and_folds_are_other_trainings(real):
    real.send(TRAIN, real.request(training(), real.start))
    real.send(TRAIN, real.request(training(fold=1), real.start))
    real.send(TRAIN, real.request(training(learning_rate=0.004), real.start, study="b" * 64))
    assert real.refuses(TRAIN, real.request(training(learning_rate=0.004), real.start))[0] == "RoundAlreadyAnswered"


def test_a_simulated_site_notes_its_rounds_and_refuses_none(hospital):
    hospital.send(TRAIN, hospital.request(training(), hospital.start))
    hospital.send(TRAIN, hospital.request(training(learning_rate=0.004), hospital.start))
    header = header_of(training(), base=hospital.base)
    assert Answered(hospital.config, header.study).took_part(header)
    assert not list((hospital.config.folder / FOLDER).glob("*.reply"))


def test_a_line_that_a_crash_cut_off_was_no_answer_and_the_next_line_is_whole(real):
    header, asked = header_of(training(), base=real.base), b"\1" * 32
    answer = real.send(TRAIN, real.request(training(), real.start))
    rounds = Answered(real.config, header.study)
    (path,) = (real.config.folder / FOLDER).glob("*.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])  # round 1 is not noted
    assert rounds.find(header, asked) is None
    rounds.keep(header, asked, answer)
    assert bytes_of(rounds.find(header, asked)) == bytes_of(answer)
    with pytest.raises(RoundAlreadyAnswered):
        rounds.find(header, b"\2" * 32)


OTHER_LINES = {"text": {"round": "1"}, "none": {"training": None}, "half": {"fold": 0.5}, "flag": {"round": True}}


@pytest.mark.parametrize("other", OTHER_LINES.values(), ids=OTHER_LINES.keys())
def test_a_line_with_values_of_another_type_is_not_a_line(tmp_path, other):
    rounds = RoundList.of_study(tmp_path, "study")
    line = Line("0" * 16, "m", 0, 1, "1" * 64)
    rounds.add(line)
    (path,) = tmp_path.glob("*.jsonl")
    with path.open("a") as stream:
        stream.write(json.dumps(asdict(line) | other) + "\n" + "[" * 100_000 + "\n")
    assert rounds.lines() == [line]


def test_a_damaged_answer_does_not_leave_and_its_remedy_works(real):
    header, request = header_of(training(), base=real.base), real.request(training(), real.start)
    answer = real.send(TRAIN, request)
    (path,) = (real.config.folder / FOLDER).glob("*.reply")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StorageError, match=r"\.reply: is damaged; delete it, and the same request is worked on again"):
        Answered(real.config, header.study).find(header, bytes_of(request))
    path.unlink()
    again = real.send(TRAIN, request)
    assert again["state"]["flat"].data == answer["state"]["flat"].data


def test_only_the_owner_reads_the_answers_and_their_bytes_have_a_limit(real, monkeypatch):
    answer = real.send(TRAIN, real.request(training(), real.start))
    rounds = Answered(real.config, "c" * 64)
    size = len(next((real.config.folder / FOLDER).glob("*.reply")).read_bytes())
    monkeypatch.setattr(module, "MOST_BYTES", 2 * size)
    for fold in range(4):
        header = Header("c" * 64, stage="finetune", method="m", fold=fold, round=1, base="")
        rounds.keep(header, bytes([fold]) * 32, answer)
    files = [path for path in (real.config.folder / FOLDER).iterdir() if path.suffix != ".lock"]
    assert len([path for path in files if path.suffix == ".reply"]) == 2
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert rounds.find(Header("c" * 64, stage="finetune", method="m", fold=0, round=1, base=""), b"\0" * 32) is None


@pytest.mark.slow
def test_the_results_of_a_site_say_whether_it_took_part(federate):
    def refuse(site, request, reply):
        lost = site == "sah_b" and request.metadata.message_type == TRAIN
        return None if lost else reply

    settings = changed(TINY, finetune__methods=[{"method": "cp_lora", "rank": 2}], finetune__rounds=1)
    folder, _ = federate(settings | {"rounds": TINY["rounds"] | {"deadline_s": 1.0}}, change=refuse)
    found = {
        site: {kept.took_part for kept in read_results(folder.path / "sites" / site)} for site in ("sah_a", "sah_c")
    }
    assert found == {"sah_a": {True}, "sah_c": {True}}


# --- the start of a training -----------------------------------------------------------------------------------------


def test_the_first_round_begins_with_what_the_site_derives_and_not_with_what_it_received(hospital):
    name = next(name for name in hospital.start if np.abs(hospital.start[name]).max() > 0)
    hospital.allow(common_random_numbers=True)  # so that the batches do not depend on the start
    usual = training(common_random_numbers=True)
    expected = read_state(hospital.send(TRAIN, hospital.request(usual, hospital.start)), like=hospital.start)
    rounded = {**hospital.start, name: hospital.start[name] * np.float32(1 + 5e-7)}
    assert not np.array_equal(rounded[name], hospital.start[name])
    got = read_state(hospital.send(TRAIN, hospital.request(usual, rounded)), like=hospital.start)
    assert all(np.array_equal(got[key], expected[key]) for key in expected)


@pytest.mark.parametrize("amount", [1e-5, -0.1, np.nan, np.inf])
def test_another_start_than_the_site_derives_is_refused_and_nothing_is_trained(hospital, amount):
    for name in (next(iter(hospital.start)), list(hospital.start)[-1]):
        crafted = {**hospital.start, name: hospital.start[name] + np.float32(amount)}
        error, line = hospital.refuses(TRAIN, hospital.request(training(), crafted))
        assert error in ("PolicyRefused", "PayloadError")  # a number that is not finite is none of a state
        assert line["event"] == "refused"


def test_a_start_in_which_a_zero_became_something_is_named():
    own = {"a": np.ones(3, np.float32), "b": np.zeros(3, np.float32)}
    require_own_start({"a": own["a"]}, own)
    with pytest.raises(PolicyRefused, match="got another start of b than this site derives from seed, method and base"):
        require_own_start(own | {"b": np.float32([0, 1e-30, 0])}, own)


@pytest.mark.parametrize("few", [4, 5])
def test_a_training_on_fewer_patients_than_the_policy_allows_is_refused_before_its_first_step(
    hospital, few, monkeypatch
):
    monkeypatch.setattr("sahfl.federation.site.kinds.local_training.train", lambda *a, **k: pytest.fail("trained"))
    limits = hospital.config.policy.adapters.model_copy(update={"least_patients": few})
    hospital.allow(adapters=limits)
    error, line = hospital.refuses(TRAIN, hospital.request(training(), hospital.start))
    assert error == "PolicyRefused"
    found = f"too few patients to train on; policy.adapters.least_patients: got 1, expected at least {few}"
    assert found in line["details"]["reason"]
    assert METHOD.id in str(line["details"]) or line["details"]["asked"] == "train"
