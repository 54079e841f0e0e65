"""Masked rounds at the server and its sites: the same result as in the clear, whoever drops out, also after a crash."""

from collections import Counter

import numpy as np
import pytest
from harness.in_process import Stop
from harness.masked_training import MASKING, METHOD, SITES, STEPS, MaskedTraining

from sahfl.errors import RunFailed
from sahfl.events import Warned, listening
from sahfl.federation.server.masked_progress import file_of
from sahfl.masking.ring import FixedPoint


@pytest.fixture
def training(masked_training):
    return masked_training


@pytest.fixture(scope="module")
def whole(tmp_path_factory, five):
    """A masked training of two rounds that nobody left, and its final state; tests only read it."""
    there = MaskedTraining(tmp_path_factory.mktemp("whole") / "run", five, rounds=2)
    return there, there.run()


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def away(leaves):
    """Sites that answer nothing from a step on, by site."""

    def change(site, request, reply):
        step = STEPS.index(request.metadata.message_type)
        return None if site in leaves and step >= STEPS.index(leaves[site]) else reply

    return change


QUICK = {"deadline_s": 0.3, "attempts": 1}
KINDS = {
    "mean": {},
    "alternate, private terms": {"method": METHOD | {"aggregation": "alternate", "private_rank": 1}},
    "norms stay": {"method": METHOD | {"also_train": ["norm"], "stays": ["norm"]}},
    "all weights": {"method": {"method": "full"}},
    "pretraining": {"pretrain": True},
}
ALIKE = ("alternate, private terms", "norms stay", "all weights")
"""Kinds that mask other tensors in the way of the first."""


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, id=name, marks=[pytest.mark.slow] * (name in ALIKE)) for name, kind in KINDS.items()]
)
def test_a_masked_round_ends_where_one_in_the_clear_does_up_to_the_stated_quantisation(training, kind):
    masked, plain = training(**kind), training(masked=False, **kind)
    ours, theirs = masked.run(), plain.run()
    step = FixedPoint(32, MASKING["clip"], 5).step
    weights = sum(line["n_volumes"] for line in masked.rounds()[0]["used"])
    volumes = 11
    for name, value in theirs.items():
        allowed = 5 * step / 2 * volumes / weights + 2**-23 * np.abs(value).max()
        assert np.abs(ours[name] - value).max() <= allowed, name
    assert any(np.any(theirs[name] != plain.cell()[1][name]) for name in theirs)
    (line,), (clear,) = masked.rounds(), plain.rounds()
    losses = [(used["loss"], used["n_volumes"]) for used in clear["used"]]
    assert line["loss"] == pytest.approx(sum(loss * n for loss, n in losses) / weights, abs=1e-5)
    assert [used["n_volumes"] for used in line["used"]] == [used["n_volumes"] for used in clear["used"]]


def test_the_journal_says_who_is_in_the_sum_and_nothing_of_a_single_site(whole):
    there, _ = whole
    line = there.rounds()[0]
    assert line["masked"] == {"attempt": 1, "clip": 50.0, "listed": list(SITES), "shared": list(SITES), "silent": {}}
    assert [used["site"] for used in line["used"]] == list(SITES)
    assert {used["loss"] for used in line["used"]} == {None}
    assert (line["norms"], line["shortened"], line["aggregation_error"]) == ({}, {}, None)


def test_sites_of_a_deployment_come_to_the_state_of_simulated_ones_bit_for_bit(training, kits, whole):
    assert same(training(kits=kits, rounds=2).run(), whole[1])


@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=[pytest.mark.slow] * (step not in (STEPS[2], STEPS[4]))) for step in STEPS]
)
def test_two_of_five_sites_may_leave_at_any_step(training, step):
    there = training(**QUICK)
    state = there.run(away({"graz": step, "wels": step}))
    (line,) = there.rounds()
    stay = [site for site in SITES if STEPS.index(step) > 2 or site not in ("graz", "wels")]
    assert [used["site"] for used in line["used"]] == stay
    name = {"train": "training"}.get(step, step.removeprefix("query.masking_"))
    if STEPS.index(step) <= 2:
        assert line["missing"] == [
            {"site": site, "reason": f"masked round, {name}: no reply within 0.3 s"} for site in ("graz", "wels")
        ]
    else:
        assert line["masked"]["silent"][name] == ["graz", "wels"]
    plain = training(masked=False, **QUICK)
    clear = plain.run(lambda site, request, reply: reply if site in stay else None)
    assert max(np.abs(state[name] - clear[name]).max() for name in clear) < 1e-6


@pytest.mark.parametrize("step", [pytest.param(step, marks=[pytest.mark.slow] * (step != STEPS[2])) for step in STEPS])
def test_with_three_sites_gone_there_is_no_sum(training, step):
    there = training(deadline_s=0.3, attempts=2)
    start = there.cell()[1]
    if STEPS.index(step) < 2:  # nobody was asked for a vector: the run stops, and a later session tries again
        with pytest.raises(RunFailed, match="masked round"):
            there.run(away(dict.fromkeys(SITES[:3], step)))
        assert [line["masked"]["attempt"] for line in there.rounds()] == [2, 3]
        assert same(there.run(), training().run())
        return
    events = []
    with listening(events.append):
        state = there.run(away(dict.fromkeys(SITES[:3], step)))
    assert same(state, start)  # the round is lost, and the training goes on from its start
    assert there.rounds()[-1]["used"] == []
    assert there.rounds()[-1]["committed"]
    assert any(
        "too few sites" in event.text or "expected at least" in event.text
        for event in events
        if isinstance(event, Warned)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "nth", [5, 13, 18, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 8, 10, 15, 20, 23, 25))]
)
def test_a_server_that_was_killed_at_any_message_goes_on_to_the_same_state(training, whole, kits, nth):
    """Two messages of each step of the first round: within it, and at its end."""
    there = training(rounds=2, kits=kits)
    seen = Counter()

    def stop(site, request, reply):
        seen["n"] += 1
        if seen["n"] == nth:
            raise Stop
        return reply

    with pytest.raises(Stop):
        there.run(stop)
    assert same(there.run(), whole[1])
    assert not any(line["event"] == "refused" for site in SITES for line in there.audit(site))


def test_a_damaged_file_of_a_round_costs_an_attempt_and_no_result(training, kits):
    there = training(kits=kits, deadline_s=5.0, attempts=3)
    counted = Counter()

    def stop(site, request, reply):
        counted[request.metadata.message_type] += 1
        if counted["query.masking_shares"] == 5:
            raise Stop
        return reply

    with pytest.raises(Stop):
        there.run(stop)
    path = file_of(there.folder.path, there.cell()[0].key)
    path.write_bytes(path.read_bytes()[:-40])
    there.run(sites=SITES[:4])  # another list than was answered
    assert there.rounds()[-1]["masked"]["attempt"] > 1
    assert [used["site"] for used in there.rounds()[-1]["used"]] == list(SITES[:4])
