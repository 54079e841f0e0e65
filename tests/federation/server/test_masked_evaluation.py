"""A masked evaluation: one sum over the sites, whoever drops out, and nothing of a single site."""

import json
from functools import reduce
from operator import add

import numpy as np
import pytest
from harness.masked_training import SITES, MaskedTraining
from harness.tiny_study import TINY, changed

from sahfl.errors import MaskingFailed, NoGain
from sahfl.federation import protocol
from sahfl.federation.server.evaluation import STAYS
from sahfl.federation.server.masked_evaluation import ONE_SET
from sahfl.federation.server.masked_progress import file_of, write_sites_of_fold
from sahfl.federation.server.rounds import run_cell
from sahfl.federation.server.schedule import run_alone
from sahfl.results.method_results import MASKED
from sahfl.statistics.sums import EvaluationSums

ZERO = {"method": {"method": "zero_shot"}}
SHARES, WORK, REVEAL = "query.masking_shares", protocol.EVALUATE_MASKED, "query.masking_reveal"
STEPS = ("query.masking_keys", SHARES, WORK, "query.masking_survivors", REVEAL)
QUICK = {"deadline_s": 0.3, "attempts": 1}


@pytest.fixture
def training(masked_training):
    return lambda **more: masked_training(**ZERO | more)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, five):
    """The sums of each site in the clear; tests only read them."""
    there = MaskedTraining(tmp_path_factory.mktemp("plain") / "run", five, masked=False, **ZERO)
    return there, there.evaluate()["sums"]


def added(plain, sites):
    there, sums = plain
    parts = [EvaluationSums.from_array(np.array(sums[site]), there.study.evaluation) for site in sites]
    return reduce(add, parts).to_array()


def away(leaves):
    """Sites that answer nothing from a step on, by site."""

    def change(site, request, reply):
        step = STEPS.index(request.metadata.message_type)
        return None if site in leaves and step >= STEPS.index(leaves[site]) else reply

    return change


def test_the_sum_is_that_of_the_sites_in_the_clear(training, plain):
    found = training().evaluate()
    assert (found["sums"], found["missing"], found["masked"]["sites"]) == ({}, {}, list(SITES))
    assert np.allclose(found["masked"]["sums"], added(plain, SITES), rtol=1e-6, atol=1e-4)  # volumes are rounded


def test_sites_of_a_deployment_come_to_the_sum_of_simulated_ones_bit_for_bit(training, kits):
    few = {"smallest_group": 1, "smallest_bootstrap": 1}
    found = training(kits=kits, policy=few).evaluate()
    assert found == training().evaluate()


@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=[pytest.mark.slow] * (step not in (WORK, REVEAL))) for step in STEPS]
)
def test_two_of_five_sites_may_leave_at_any_step(training, plain, step):
    there = training(**QUICK)
    found = there.evaluate(away({"graz": step, "wels": step}))
    stay = [site for site in SITES if STEPS.index(step) > 2 or site not in ("graz", "wels")]
    assert found["masked"]["sites"] == stay
    assert np.allclose(found["masked"]["sums"], added(plain, stay), rtol=1e-6, atol=1e-4)  # volumes are rounded
    assert sorted(found["missing"]) == sorted(set(SITES) - set(stay))
    lines = [line for line in there.folder.journal() if line["event"] == "masked_evaluation"]
    assert [line["used"] for line in lines] == [stay]


@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=[pytest.mark.slow] * (step not in (SHARES, WORK))) for step in STEPS]
)
def test_with_three_sites_gone_there_is_no_sum_and_a_later_session_may_get_it(training, step):
    there = training(**QUICK)
    found = there.evaluate(away(dict.fromkeys(("graz", "linz", "wels"), step)))
    assert (found["masked"], sorted(found["missing"])) == (None, list(SITES))
    assert all(found["missing"].values())
    again = there.evaluate()
    assert again["masked"] is not None
    assert again["masked"]["sites"][:1] == ["bern"]


def test_an_evaluation_is_masked_once_for_one_list_of_sites(training, kits):
    there = training(kits=kits, attempts=1)
    assert there.evaluate()["masked"] is not None
    assert there.evaluate()["masked"] is not None  # it is not asked for again
    n_asked = len(there.seen)
    path = file_of(there.folder.path, "zero_shot/fold-0", "evaluation")
    path.unlink()
    there.folder.write_evaluation("zero_shot/fold-0", {"sums": {}, "missing": {}})
    (there.folder.path / "state" / "masked-fold-0.json").unlink()  # a server that does not keep to its own rule
    found = there.evaluate(sites=SITES[:4])  # another list, under keys of the same attempt
    assert (found["masked"], len(there.seen) > n_asked) == (None, True)
    assert "MaskingRefused" in found["missing"]["bern"]
    found = there.evaluate(sites=SITES[:4])  # and with new keys
    assert found["masked"] is None
    assert "MaskingRefused" in found["missing"]["bern"]


def test_a_session_in_which_no_site_is_there_leaves_what_was_closed(training, kits):
    there = training(kits=kits, **QUICK)
    assert there.evaluate(away(dict.fromkeys(SITES, REVEAL)))["masked"] is None
    assert there.evaluate(sites=())["masked"] is None
    assert there.evaluate()["masked"]["sites"] == list(SITES)


def test_all_sums_over_a_fold_have_the_sites_of_the_first_one(training):
    there = training(**QUICK)
    write_sites_of_fold(there.folder.path, 0, SITES[:4])
    found = there.evaluate(sites=SITES[1:])
    assert (found["masked"], there.seen) == (None, [])
    assert "bern is not there; all masked evaluations of a fold are over the same sites" in found["missing"]["graz"]
    found = there.evaluate()  # a later session
    assert found["masked"]["sites"] == list(SITES[:4])
    assert "wels" not in {site for site, _, _ in there.seen}
    assert ONE_SET in found["missing"]["wels"]


def test_an_evaluation_that_began_before_the_first_sum_of_its_fold_ends_with_the_same_sites(training):
    there = training(deadline_s=0.3, attempts=2)

    def meanwhile(site, request, reply):  # another evaluation of the fold ends while this one works
        if request.metadata.message_type == WORK:
            write_sites_of_fold(there.folder.path, 0, SITES[1:])
        return reply

    found = there.evaluate(meanwhile)
    assert found["masked"]["sites"] == list(SITES[1:])


def test_only_the_last_attempt_begins_without_a_site_that_is_there(training):
    there = training(deadline_s=0.3, attempts=2)
    n_asked = []

    def slow(site, request, reply):
        if (site, request.metadata.message_type) == ("wels", STEPS[0]):
            n_asked.append(site)
            return reply if len(n_asked) > 1 else None
        return reply

    assert there.evaluate(slow)["masked"]["sites"] == list(SITES)
    assert len(n_asked) == 2


def test_a_fold_in_which_two_sites_have_patients_has_no_masked_evaluation(training):
    there = training(**QUICK)
    there.held_out = {"bern": 1, "graz": 1}
    found = there.evaluate()
    assert found["masked"] is None
    assert "2 of the sites in the sum have patients in it, expected at least 3" in found["missing"]["bern"]


def test_a_damaged_list_of_a_fold_s_sites_ends_the_study_with_its_name(training):
    there = training(**QUICK)
    write_sites_of_fold(there.folder.path, 0, SITES)
    path = there.folder.path / "state" / "masked-fold-0.json"
    path.write_text("[3]")
    with pytest.raises(MaskingFailed, match=r"masked-fold-0\.json: is damaged"):
        there.evaluate()
    path.write_text(json.dumps(SITES))
    assert there.evaluate()["masked"]["sites"] == list(SITES)


def test_an_evaluation_goes_on_at_a_site_that_refuses_trainings_by_which_it_loses(training, monkeypatch):
    def loses(config, task):
        raise NoGain("loses")

    monkeypatch.setattr("sahfl.federation.site.policy.refuse_loss", loses)
    assert training().evaluate()["masked"]["sites"] == list(SITES)


def test_nothing_that_the_server_receives_tells_a_site_s_sums_or_its_blood(training, plain):
    there = training(policy={"smallest_group": 5, "smallest_bootstrap": 5})  # a group of one site's patients is its own
    assert there.evaluate()["masked"]["sites"] == list(SITES)
    everything, n_found = there.received(), 0
    for values in plain[1].values():
        numbers = np.array(values)
        odd = numbers[(numbers != np.rint(numbers)) & (np.abs(numbers) > 1e-3)]
        assert odd.size > 100
        for number in odd[:: max(1, odd.size // 300)]:
            n_found += repr(float(number)).encode() in everything or number.tobytes() in everything
        assert numbers[2:8].tobytes() not in everything
    assert n_found == 0
    kept = b"".join(path.read_bytes() for path in there.folder.path.rglob("cases.jsonl"))
    assert b"volume_ml" in kept
    assert b"volume_ml" not in everything


def test_what_a_site_trained_alone_stays_there(training):
    alone = {"method": {"method": "cp_lora", "rank": 2, "trained_at": "bern"}}
    there = training(**alone)
    cell, start = there.cell(("bern",))
    run, mailbox = there.at_work()
    run_alone(run_cell(cell, start, run), mailbox)
    found = there.evaluate(part="personal")
    assert (found["sums"], found["stays"], found["missing"]) == ({}, ["bern"], {"bern": STAYS})
    (reply,) = there.sent("evaluate.own").values()
    assert set(reply.content) == {"header"}
    assert (there.configs["bern"].folder / "cases.jsonl").exists()


def test_a_site_that_demands_masks_sends_no_sums_in_the_clear(training):
    found = training(masked=False, policy={"unmasked": False}).evaluate()
    assert found["sums"] == {}
    assert set(found["missing"]) == set(SITES)


def test_a_reply_of_a_wrong_form_is_refused_and_the_others_go_on(training, plain):
    def shorter(site, request, reply):
        if site == "wels" and request.metadata.message_type == protocol.EVALUATE_MASKED:
            flat = reply.content.array_records["sums"]["flat"]
            flat.data, flat.shape = flat.data[:-8], (flat.shape[0] - 1,)
        return reply

    found = training().evaluate(shorter)
    assert found["masked"]["sites"] == list(SITES[:4])
    assert "masked words, expected" in found["missing"]["wels"]
    assert np.allclose(found["masked"]["sums"], added(plain, SITES[:4]), rtol=1e-6, atol=1e-4)  # volumes are rounded


MASKED_STUDY = changed(
    TINY,
    data__sites=TINY["data"]["sites"] | {"tbi_c": {"kind": "tbi", "n_cases": 2}},
    pretrain__sites=["tbi_a", "tbi_b", "tbi_c"],
    finetune__methods=[
        {"method": "zero_shot"},
        {"method": "cp_lora", "rank": 2},
        {"method": "cp_lora", "rank": 2, "trained_at": "sah_a"},
    ],
    rounds__masking={"clip": 50.0},
)


def test_a_masked_study_ends_with_a_report_and_goes_on_without_asking_again(federate):
    folder, _ = federate(MASKED_STUDY)
    results = json.loads((folder.path / "results.json").read_text())
    methods = {method["id"]: method for method in results["methods"]}
    assert methods["zero_shot"]["metrics"]["dice"]["overall"]["n"] == 7
    assert methods["cp_lora-r2"]["metrics"]["dice"]["overall"]["n"] == 7
    assert {part["n"] for part in methods["zero_shot"]["by_site"]} == {0}
    assert methods["cp_lora-r2-at-sah_a"]["failed"] == STAYS
    assert {site["volume_ml"] for site in results["sites"]} == {None}
    assert {json.dumps(site["findings"]) for site in results["sites"]} == {"{}"}
    compared = {(one["method"], one["reference"]) for one in results["comparisons"]}
    assert ("cp_lora-r2", "zero_shot") in compared
    key = next(iter(folder.evaluation("zero_shot/fold-0")["masked"]["sites"]))
    assert key == "sah_a"
    assert MASKED.startswith("masked")
    page = (folder.path / "report.html").read_text()
    assert "learned the sums over the sites only" in page
    assert "the results were masked, so the server has those of all hospitals together" in page
    assert "Mean Dice by hospital" not in page
    assert "findings, the total volume" not in page
    again, later = federate(MASKED_STUDY)
    asked = {request.metadata.message_type for _, request, _ in later.seen}
    assert asked <= {protocol.DESCRIBE, protocol.INSTALL_BASE}
    assert (again.path / "results.json").exists()


def test_the_journal_names_the_site_for_whose_policy_a_total_is_withheld(training):
    there = training()

    def stricter(site, request, reply):
        if site == "graz" and request.metadata.message_type == WORK:
            reply.content["metrics"]["smallest_bootstrap"] = 1000
        return reply

    assert there.evaluate(stricter)["masked"]["sites"] == list(SITES)
    (line,) = [line for line in there.folder.journal() if line["event"] == "masked_evaluation"]
    assert line["strictest"] == {
        "smallest_group": {"patients": 1, "sites": list(SITES)},
        "smallest_bootstrap": {"patients": 1000, "sites": ["graz"]},
    }


def test_a_threshold_that_no_policy_can_have_is_refused(training):
    def endless(site, request, reply):
        if site == "graz" and request.metadata.message_type == WORK:
            reply.content["metrics"]["smallest_group"] = 1001
        return reply

    found = training(**QUICK).evaluate(endless)
    assert found["masked"]["sites"] == [site for site in SITES if site != "graz"]
    assert "expected thresholds from 1 to 1000" in found["missing"]["graz"]
