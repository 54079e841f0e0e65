"""Later starts of a round: as far from the one before as training can move them, and confirmed by other sites."""

import math
import time

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from harness import asking
from harness.asking import header_of, training
from harness.tiny_study import TINY, changed
from harness.trust_kits import make_consortium

from sahfl.config import AdapterTuning, LocalTraining
from sahfl.errors import RoundAlreadyAnswered, RunFailed
from sahfl.events import Warned, listening
from sahfl.federation import confirmations, protocol
from sahfl.federation.site.answered import Confirmed, forget_round
from sahfl.federation.site.audit import FILE, read_lines
from sahfl.federation.site.starts import FOLDER, MOST_MISSED
from sahfl.federation.tensors import hash_of_tensors, read_state
from sahfl.training import BETAS, Schedule
from sahfl.trust.attestation import attest

hospital = asking.hospital
TRAIN = protocol.TRAIN
NAMES = ("sah_a", "sah_b", "sah_c", "tbi_a", "tbi_b")


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    return make_consortium(tmp_path_factory.mktemp("keys"), sites=NAMES)


# --- the bound -------------------------------------------------------------------------------------------------------


def worst_gradients(n_steps):
    """Gradients of one number that move AdamW as far as possible in its last step: with b and a the weights of the two
    moments, g is proportional to a / b."""
    first, second = BETAS
    ages = np.arange(n_steps)[::-1]
    return (first / second) ** ages


@pytest.mark.parametrize("n_steps", [1, 2, 8, 40, 300])
def test_no_gradients_move_a_number_farther_than_the_bound(n_steps):
    generator = np.random.default_rng(n_steps)
    kinds = [worst_gradients(n_steps), generator.normal(size=n_steps), np.ones(n_steps), np.eye(n_steps)[0]]
    schedule = Schedule(0.01, 0.0, n_steps, 2, 4)
    moved = []
    for gradients in kinds:
        number = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.AdamW([number], lr=1.0, betas=BETAS, weight_decay=0.0, eps=1e-12)
        for step, gradient in enumerate(gradients):
            optimiser.param_groups[0]["lr"] = schedule.rate(step)
            number.grad = torch.tensor([float(gradient)], dtype=torch.float64)
            optimiser.step()
        moved.append(abs(number.item()))
    assert max(moved) <= schedule.most_moved() * (1 + 1e-9)
    assert moved[2] >= 0.999 * sum(map(schedule.rate, range(n_steps)))  # the bound is near what steady gradients do
    assert schedule.most_moved() <= 3 * moved[2] * (1 + n_steps / 100)


def moved_by(start, share, name):
    return {key: value + np.float32(share if key == name else 0) for key, value in start.items()}


def second(hospital, start, **changes):
    return hospital.request(training(round=2, **changes), start)


def largest(hospital, name, n_rounds=1):
    """The farthest that a start may be from that of ``n_rounds`` before, for a factor on the out-side."""
    task = training()
    schedules = [
        Schedule(task.learning_rate, task.local.weight_decay, 1, r, task.rounds) for r in range(1, n_rounds + 1)
    ]
    assert np.abs(hospital.start[name]).max() == 0
    return 1.02 * sum(schedule.most_moved() for schedule in schedules)


def test_a_start_may_move_as_far_as_training_and_no_farther(hospital):
    up = next(name for name in hospital.start if name.endswith("factor_out"))
    most = largest(hospital, up)
    trained = read_state(hospital.send(TRAIN, hospital.request(training(), hospital.start)), like=hospital.start)
    assert 0 < np.abs(trained[up]).max() <= most
    hospital.send(TRAIN, second(hospital, moved_by(hospital.start, 0.99 * most, up)))
    error, line = hospital.refuses(TRAIN, second(hospital, moved_by(hospital.start, 1.05 * most, up)))
    assert error == "StartTooFar"
    assert f"moved {up} by {1.05 * most:.3g} since round 1, expected at most {most:.3g}" in line["details"]["reason"]


def test_every_tensor_has_the_bound_and_numbers_that_are_none_do_not_pass(hospital):
    hospital.send(TRAIN, hospital.request(training(), hospital.start))
    for name in hospital.start:
        assert hospital.refuses(TRAIN, second(hospital, moved_by(hospital.start, 1.0, name)))[0] == "StartTooFar"
    for bad in (math.nan, math.inf):
        error, _ = hospital.refuses(TRAIN, second(hospital, moved_by(hospital.start, bad, next(iter(hospital.start)))))
        assert error in ("StartTooFar", "PayloadError")


def test_a_site_that_missed_rounds_counts_them_and_one_that_kept_nothing_begins_at_its_own_start(hospital):
    up = next(name for name in hospital.start if name.endswith("factor_out"))
    both = largest(hospital, up, 2)
    later = training(round=3, rounds=3)
    far = moved_by(hospital.start, 0.9 * both, up)
    hospital.send(TRAIN, hospital.request(later, far))  # it never saw an earlier round
    assert len(list((hospital.config.folder / FOLDER).glob("*.safetensors"))) == 1
    farther = moved_by(hospital.start, 3 * both, up)
    assert hospital.refuses(TRAIN, hospital.request(training(round=2, rounds=3), farther))[0] == "StartTooFar"


def test_a_damaged_kept_start_opens_nothing(hospital):
    up = next(name for name in hospital.start if name.endswith("factor_out"))
    hospital.send(TRAIN, hospital.request(training(), hospital.start))
    (path,) = (hospital.config.folder / FOLDER).glob("*.safetensors")
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(b"damaged")
    far = moved_by(hospital.start, 2 * largest(hospital, up), up)
    assert hospital.refuses(TRAIN, second(hospital, far))[0] == "StartTooFar"


HONEST = {
    "factors": {"method": "cp_lora", "rank": 2},
    "alternate": {"method": "conv_lora", "rank": 2, "aggregation": "alternate"},
    "median": {"method": "conv_lora", "rank": 2, "aggregation": "median"},
    "magnitudes": {"method": "dora_c", "rank": 2},
    "norms": {"method": "cp_lora", "rank": 2, "also_train": ["norm"]},
    "private": {"method": "cp_lora", "rank": 2, "private_rank": 1},
    "large-steps": {"method": "lora_c", "rank": 2, "learning_rate": 0.05},
    "full": {"method": "full"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("payload", "names"),
    [
        ("int8", ["factors", "magnitudes"]),
        pytest.param("int8", list(HONEST), marks=pytest.mark.slow),
        pytest.param("float32", list(HONEST), marks=pytest.mark.slow),
    ],
    ids=["int8", "int8-all", "float32-all"],
)
def test_no_honest_round_is_refused_in_any_method(federate, payload, names):
    methods = [HONEST[name] for name in names]
    study = changed(TINY, finetune__methods=methods, finetune__rounds=4, rounds__payload=payload)
    study = changed(study, finetune__local={"steps": 3, "batch_size": 2})
    folder, grid = federate(study, policy={"bounded_starts": True})
    rounds = [line for line in folder.journal() if line["event"] == "round" and line["stage"] == "finetune"]
    assert len(rounds) == 4 * 2 * len(names)
    assert not [line for line in rounds if line["refused"] or line["missing"]]
    assert list((next(iter(grid.nodes.values())).folder / FOLDER).glob("*.safetensors"))


def test_a_rule_that_makes_factors_anew_is_refused_before_the_first_round(hospital):
    method = AdapterTuning(method="cp_lora", rank=2, aggregation="project")
    error, line = hospital.refuses(TRAIN, hospital.request(training(method=method), hospital.start))
    assert error == "PolicyRefused"
    assert "policy.bounded_starts: got aggregation project, which makes factors anew" in line["details"]["reason"]
    hospital.send(TRAIN, hospital.request(training(method=method, rounds=1), hospital.start))  # no later start


# --- confirmations ---------------------------------------------------------------------------------------------------


def in_consortium(hospital, consortium, **policy):
    hospital.allow(confirmations=2, **policy)
    hospital.config = hospital.config.model_copy(update={"kit": consortium.sites["sah_a"]})
    return hospital


def confirmed_by(consortium, content, *sites, **other):
    header = header_of(training(round=2), **{"base": protocol.read_header(content)["base"], **other})
    document = confirmations.document(header, hash_of_tensors(content))
    return confirmations.attach(content, [attest(consortium.sites[site], document) for site in sites])


def test_a_later_start_needs_the_signatures_of_two_other_sites(hospital, consortium):
    hospital = in_consortium(hospital, consortium)
    hospital.send(TRAIN, hospital.request(training(), hospital.start))  # the first start is the site's own
    content = second(hospital, hospital.start)
    for sites, n in (((), 0), (("sah_b",), 1), (("sah_b", "sah_b"), 1), (("sah_a", "sah_b"), 1)):
        error, line = hospital.refuses(TRAIN, confirmed_by(consortium, content, *sites))
        assert error == "StartNotConfirmed"
        assert f"is confirmed by {n} other sites, expected 2 (policy.confirmations)" in line["details"]["reason"]
    hospital.send(TRAIN, confirmed_by(consortium, content, "sah_b", "tbi_a"))


WRONG = {
    "base": {"base": "f" * 64},
    "study": {"study": "f" * 64},
    "round": {"round": 3},
    "fold": {"fold": 1},
    "method": {"method": "cp_lora-r4"},
}


@pytest.mark.parametrize("other", WRONG.values(), ids=WRONG.keys())
def test_a_signature_on_another_study_round_fold_or_method_is_none(hospital, consortium, other):
    hospital = in_consortium(hospital, consortium)
    content = second(hospital, hospital.start)
    error, _ = hospital.refuses(TRAIN, confirmed_by(consortium, content, "sah_b", "sah_c", **other))
    assert error == "StartNotConfirmed"


def test_a_signature_on_another_start_is_none(hospital, consortium):
    hospital = in_consortium(hospital, consortium, bounded_starts=False)
    content = second(hospital, hospital.start)
    crafted = second(hospital, {name: value + 1 for name, value in hospital.start.items()})
    crafted[confirmations.RECORD] = confirmed_by(consortium, content, "sah_b", "sah_c")[confirmations.RECORD]
    assert hospital.refuses(TRAIN, crafted)[0] == "StartNotConfirmed"


def test_other_signatures_on_the_same_request_are_the_same_request(hospital, consortium):
    hospital = in_consortium(hospital, consortium)
    hospital.config = hospital.config.model_copy(update={"simulated": False})
    content = second(hospital, hospital.start)
    first = hospital.send(TRAIN, confirmed_by(consortium, content, "sah_b", "sah_c"))
    again = hospital.send(TRAIN, confirmed_by(consortium, content, "tbi_a", "sah_c", "tbi_b"))
    assert first["state"]["flat"].data == again["state"]["flat"].data
    assert [line["words"].startswith("Once more") for line in hospital.audit()[-2:]] == [False, True]


@pytest.mark.parametrize(
    "spoil",
    [
        {"certificates": [b"x"] * 101, "signatures": [b"x"] * 101},
        {"certificates": [b"x"], "signatures": []},
        {"certificates": [b"x" * 5000], "signatures": [b"x"]},
        {"certificates": ["x"], "signatures": ["x"]},
        {"certificates": "x", "signatures": "x"},
    ],
)
def test_confirmations_have_a_form_and_a_limit(hospital, consortium, spoil):
    hospital = in_consortium(hospital, consortium)
    content = second(hospital, hospital.start)
    content[confirmations.RECORD] = ConfigRecord(spoil)
    assert hospital.refuses(TRAIN, content)[0] == "PayloadError"


def test_a_site_confirms_one_start_for_each_round_and_trains_from_no_other(hospital, consortium):
    hospital = in_consortium(hospital, consortium)
    task, kind = training(round=2), protocol.CONFIRM_START  # the header names the base, as the server's does
    content = second(hospital, hospital.start)
    header = header_of(task, base=hospital.base)
    ask = confirmations.ask(task, header, hash_of_tensors(content))
    error, line = hospital.refuses(kind, ask)
    assert error == "PolicyRefused"
    assert "has not trained cp_lora-r2, fold 0, in an earlier round" in line["details"]["reason"]
    hospital.send(TRAIN, hospital.request(training(), hospital.start))
    for _ in range(2):  # a second question gets a signature too
        assert set(hospital.send(kind, ask)) == {"header", "confirmation"}
    error, line = hospital.refuses(kind, confirmations.ask(task, header, "d" * 64))
    assert error == "RoundAlreadyAnswered"
    assert f"forget-round SITE_FILE {header.training} 2" in line["details"]["reason"]
    near = {name: value * np.float32(1.0001) for name, value in hospital.start.items()}
    other = confirmed_by(consortium, second(hospital, near), "sah_b", "sah_c")
    assert hospital.refuses(TRAIN, other)[0] == "RoundAlreadyAnswered"
    assert forget_round(hospital.config, header.training, 2) == 1
    hospital.send(TRAIN, other)
    with pytest.raises(RoundAlreadyAnswered):
        Confirmed(hospital.config, header.study).confirm(header, hash_of_tensors(content))


def test_a_rank_of_one_s_own_needs_a_policy_without_confirmations(hospital, consortium):
    method = AdapterTuning(method="cp_lora", rank=2, aggregation="project")
    hospital = in_consortium(hospital, consortium, bounded_starts=False)
    error, line = hospital.refuses(TRAIN, hospital.request(training(method=method, rank=1), hospital.start))
    assert error == "PolicyRefused"
    assert "policy.confirmations: got rank 1 for this site alone" in line["details"]["reason"]


# --- the run ---------------------------------------------------------------------------------------------------------

RUN = changed(TINY, finetune__rounds=2, finetune__methods=[{"method": "cp_lora", "rank": 2}], pretrain__rounds=1)


def with_kits(federate, consortium, study=RUN, *, least=2, **more):
    return federate(
        study,
        policy={"confirmations": least, "bounded_starts": True},
        site=lambda config: {"kit": consortium.sites[config.name]},
        **more,
    )


@pytest.mark.parametrize("lanes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_study_whose_sites_want_confirmations_has_the_results_of_one_without(federate, consortium, lanes):
    folder, grid = with_kits(federate, consortium, lanes=lanes)
    asked = [site for site, request, _ in grid.seen if request.metadata.message_type == protocol.CONFIRM_START]
    assert {site: asked.count(site) for site in asked} == dict.fromkeys(
        ("sah_a", "sah_b", "sah_c"), 2
    )  # each fold, once
    plain, _ = federate(RUN)
    for cell in ("pretrain", "cp_lora-r2/fold-0", "cp_lora-r2/fold-1"):
        one, other = folder.last_checkpoint(cell), plain.last_checkpoint(cell)
        assert one.round == other.round == (1 if cell == "pretrain" else 2)
        assert all(np.array_equal(one.state[name], other.state[name]) for name in one.state)
    (signer,) = [config for config in grid.nodes.values() if config.name == "sah_b"]
    lines = list(read_lines(signer.folder / FILE))
    words = [line["words"] for line in lines if line["details"].get("asked") == protocol.CONFIRM_START]
    assert words[0].startswith("Sent to the server: this site's signature on the hash of a round's start")


def test_one_start_for_one_hospital_alone_trains_nothing(federate, consortium):
    """The server shows sah_a a start of its own in round 2; the other sites sign the true one."""
    from sahfl.federation.server import rounds

    honest = rounds._requests

    def crafted(cell, sent, round_, run, own_rounds):
        header, members, contents = honest(cell, sent, round_, run, own_rounds)
        if round_ == 2 and cell.task.method:
            other = {name: value * np.float32(1.0001) for name, value in sent["sah_a"].items()}
            contents["sah_a"] = protocol.request(cell.task.model_copy(update={"round": 2}), header, other)
        return header, members, contents

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "_requests", crafted)
        with pytest.raises(RunFailed, match="StartNotConfirmed"):
            with_kits(federate, consortium, changed(RUN, rounds=TINY["rounds"] | {"quorum": 1.0, "attempts": 1}))


def test_with_too_few_sites_the_run_warns_at_its_start_and_fails_in_words(federate, consortium):
    seen = []
    study, words = changed(RUN, rounds=TINY["rounds"] | {"attempts": 1}), r"too few other sites confirmed the start"
    kits = {"site": lambda config: {"kit": consortium.sites[config.name]}}
    with pytest.raises(RunFailed, match=words), listening(seen.append):
        federate(study, policy={"confirmations": 5}, **kits)
    warned = [event.text for event in seen if isinstance(event, Warned)]
    wanted = "5 other sites must confirm each later start there (policy.confirmations)"
    assert f"sah_a: {wanted}; finetune has 2" in warned
    assert f"tbi_a: {wanted}; pretrain has 1" in warned


@pytest.mark.slow
def test_a_site_that_is_away_is_not_waited_for_where_enough_others_confirm(federate, consortium):
    """The confirmations of sah_c never come; every site still has one of another."""

    def lose(site, request, reply):
        away = site == "sah_c" and request.metadata.message_type == protocol.CONFIRM_START
        return None if away else reply

    began = time.monotonic()
    study = changed(RUN, rounds=TINY["rounds"] | {"deadline_s": 300.0, "quorum": 1.0})
    folder, _ = with_kits(federate, consortium, study, least=1, change=lose)
    assert time.monotonic() - began < 250
    rounds = [line for line in folder.journal() if line["event"] == "round"]
    assert all(line["committed"] and not line["missing"] for line in rounds)


@pytest.mark.slow
def test_a_late_confirmation_that_nobody_needs_is_no_oddity(federate, consortium):
    """Nobody reads sah_c's confirmations; the journal has no stale or second reply."""
    kept = []

    def delay(site, request, reply):
        if site == "sah_c" and request.metadata.message_type == protocol.CONFIRM_START:
            kept.append(reply)
            return None
        return reply

    folder, _ = with_kits(federate, consortium, least=1, change=delay)
    assert kept
    lines = [line for line in folder.journal() if line["event"] in ("round", "replies")]
    assert not [line for line in lines if line["stale"] or line["duplicate"]]


# --- what an attack found -------------------------------------------------------------------------------------------


def test_one_bad_signature_does_not_undo_the_good_ones(hospital, consortium):
    hospital = in_consortium(hospital, consortium)
    content = second(hospital, hospital.start)
    good = confirmed_by(consortium, content, "sah_b", "sah_c")[confirmations.RECORD]
    bad = confirmed_by(consortium, content, "tbi_a", round=5)[confirmations.RECORD]
    content[confirmations.RECORD] = ConfigRecord({key: [*bad[key], *good[key]] for key in good})
    hospital.send(TRAIN, content)


def test_the_settings_of_a_training_are_those_of_its_first_round(hospital):
    hospital.config = hospital.config.model_copy(update={"simulated": False})
    hospital.send(TRAIN, hospital.request(training(rounds=3), hospital.start))
    for other in ({"learning_rate": 0.05}, {"local": LocalTraining(steps=9, batch_size=2)}, {"rounds": 9}):
        error, line = hospital.refuses(TRAIN, second(hospital, hospital.start, **{"rounds": 3, **other}))
        assert error == "PolicyRefused"
        assert "got other settings than this training began with here" in line["details"]["reason"]
    hospital.send(TRAIN, second(hospital, hospital.start, rounds=3))
    assert forget_round(hospital.config, header_of(training()).training, 1) == 2
    hospital.send(TRAIN, hospital.request(training(rounds=9), hospital.start))


def test_a_site_that_missed_many_rounds_takes_no_part(hospital):
    late = training(round=MOST_MISSED + 2, rounds=20)
    hospital.send(TRAIN, hospital.request(late, hospital.start))
    error, line = hospital.refuses(
        TRAIN, hospital.request(training(fold=1, round=MOST_MISSED + 3, rounds=20), hospital.start)
    )
    assert error == "StartTooFar"
    assert "comes 7 rounds after the last one here, expected at most 6" in line["details"]["reason"]


def test_a_large_alpha_and_the_sum_of_two_ranks_have_limits(hospital):
    for method, reason in (
        (
            AdapterTuning(method="conv_lora", rank=2, alpha=65.0),
            "policy.adapters.most_alpha: got 65, expected at most 64",
        ),
        (
            AdapterTuning(method="conv_lora", rank=20, private_rank=20, share_private_at_end=True),
            "policy.adapters.most_rank.conv_lora: got 40, expected at most 32",
        ),
    ):
        hospital.allow(private_mean=True)
        error, line = hospital.refuses(TRAIN, hospital.request(training(method=method), hospital.start))
        assert error == "PolicyRefused"
        assert reason in line["details"]["reason"]
