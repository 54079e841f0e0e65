"""An update that too few steps explain is held back: it costs one round at one site, and the training goes on."""

import numpy as np
import pytest
import torch
from harness import asking
from harness.asking import FEW, training
from harness.tiny_study import TINY, changed
from torch import nn

from sahfl.config import LocalTraining, ModelConfig, ViewsConfig
from sahfl.config.policy import AdapterLimits
from sahfl.errors import UpdateHeldBack
from sahfl.federation import protocol
from sahfl.federation.site import sanity
from sahfl.federation.site.answered import Answered
from sahfl.federation.site.kinds import train
from sahfl.federation.site.sanity import Watch

hospital = asking.hospital
TRAIN = protocol.TRAIN


def watched(steps):
    """A watch over a layer of rows; ``steps`` has, for each step, the norm of each row's gradient, or None."""
    n_rows = len(next(step for step in steps if step is not None))
    net = nn.Linear(3, n_rows, bias=False)
    watch = Watch(net, ["weight"])
    for norms in steps:
        net.weight.grad = None if norms is None else torch.tensor(norms)[:, None] * torch.tensor([[0.6, 0.0, 0.8]])
        watch.note()
    return watch


def test_a_row_counts_the_steps_that_gave_it_its_gradient():
    even = watched([[1.0] * 6] * 8).measure()
    assert (round(even.steps, 4), round(even.share, 4), even.silent) == (8, 1, 0)
    one = watched([[0.0] * 6] * 7 + [[1.0] * 6]).measure()
    assert (round(one.steps, 4), one.silent) == (1, 7 / 8)
    bins = watched((np.eye(8) + 1e-6).astype(np.float32).tolist()).measure()  # every row has a step of its own
    assert bins.steps < 1.01
    assert bins.silent == 7 / 8
    dead = watched([[1.0, 1.0, 1.0, 0.0]] * 8).measure()  # a row that never trains says nothing
    assert (round(dead.steps, 4), dead.silent) == (8, 0)


def test_a_view_that_was_not_drawn_and_tensors_without_rows_do_not_count():
    drawn = watched([[1.0] * 5, None, [1.0] * 5]).measure()
    assert (round(drawn.steps, 4), drawn.silent) == (2, 0)
    assert Watch(nn.Linear(3, 2), ["bias"]).measure() == sanity.Measured(float("inf"), 1.0, 0.0, float("inf"))


SUSPICIOUS = {
    "one-step": ([[0.1] * 20] + [[0.005] * 20] * 7, "1.79 effective steps explain a row, expected at least 2"),
    "a-tenth-of-the-rows": ([[1.0] * 20] + [[0.01] * 3 + [1.0] * 17] * 7, "1.1. effective steps explain a row"),
    "gates": ([[1.0] * 5] * 2 + [[1e-5] * 5] * 6, "rows are silent in 75% of their steps, expected at most 50%"),
    "tiny": ([[1e-7] * 5] * 8, "the gradient of a row is 5.77e-08, expected at least 2e-07"),
}


@pytest.mark.parametrize(("steps", "reason"), SUSPICIOUS.values(), ids=SUSPICIOUS.keys())
def test_what_a_few_slices_explain_is_held_back_and_named(steps, reason):
    with pytest.raises(UpdateHeldBack, match=f"policy.adapters.least_effective_steps: few slices .*{reason}"):
        watched(steps).require(("adapters.least_effective_steps", 2.0), where={"round": 1})
    watched(steps).require(("adapters.least_effective_steps", 0.0), where={"round": 1})  # off
    watched([[0.5, 1.0, 2.0, 1.0]] * 8).require(("adapters.least_effective_steps", 2.0), where={"round": 1})


def closed(hospital, least=1.25):
    few = AdapterLimits(**FEW["adapters"].model_dump() | {"least_effective_steps": least})
    hospital.allow(adapters=few)
    hospital.config = hospital.config.model_copy(update={"simulated": False})
    return hospital


def test_one_step_is_held_back_and_named_and_the_round_stays_without_an_answer(hospital):
    hospital = closed(hospital)
    one = hospital.request(training(), hospital.start)  # one step
    error, line = hospital.refuses(TRAIN, one)
    assert (error, line["event"]) == ("UpdateHeldBack", "refused")
    reason = "policy.adapters.least_effective_steps: few slices explain this update (1.00 effective"
    assert line["details"]["reason"].startswith(reason)
    assert hospital.refuses(TRAIN, one)[0] == "UpdateHeldBack"
    more = training(local=LocalTraining(steps=4, batch_size=2))
    assert hospital.refuses(TRAIN, hospital.request(more, hospital.start))[0] == "RoundAlreadyAnswered"
    assert not list((hospital.config.folder / "private").glob("*"))
    assert Answered(hospital.config, "a" * 64).took_part(asking.header_of(training()))


def test_an_honest_round_passes(hospital):
    hospital = closed(hospital)
    more = training(local=LocalTraining(steps=8, batch_size=8))
    assert hospital.send(TRAIN, hospital.request(more, hospital.start))


def test_a_network_for_each_view_has_its_own_share_of_the_steps(hospital):
    hospital.allow(adapters=AdapterLimits(least_batch=1, least_patients=1))
    views = ViewsConfig(**asking.STUDY.views.model_dump() | {"weights": {"axial": 0.9, "coronal": 0.1}})
    model = ModelConfig(**asking.STUDY.model.model_dump() | {"planes": "per_view"})
    task = training(views=views, model=model, local=LocalTraining(steps=40, batch_size=2))
    error, line = hospital.refuses(TRAIN, hospital.request(task, hospital.start))
    assert error == "PolicyRefused"
    assert "policy.adapters.least_steps: got 4, expected at least 8" in line["details"]["reason"]


# --- the run ---------------------------------------------------------------------------------------------------------

STUDY = changed(TINY, finetune__methods=[{"method": "cp_lora", "rank": 2}], finetune__rounds=3)


def alarms(monkeypatch, held):
    """Hold back the updates of some sites in some rounds: ``held`` is {(site, round)}."""
    reserve = train.reserve
    now = {}

    def note(site, use, kind, content, header, cases):
        now["at"] = (site.config.name, header.round, header.stage)
        return reserve(site, use, kind, content, header, cases)

    def require(watch, least, *, where):
        site, round_, stage = now["at"]
        if stage == "finetune" and (site, round_) in held:
            raise UpdateHeldBack("an alarm")

    monkeypatch.setattr(train, "reserve", note)
    monkeypatch.setattr(Watch, "require", require)


def rounds_of(folder):
    return [line for line in folder.journal() if line["event"] == "round" and line["stage"] == "finetune"]


@pytest.mark.slow
def test_an_alarm_costs_the_site_one_round(federate, monkeypatch):
    alarms(monkeypatch, {("sah_a", 2)})
    study = changed(STUDY, rounds=TINY["rounds"] | {"quorum": 1.0})
    folder, _ = federate(study)
    lines = rounds_of(folder)
    assert [len(line["used"]) for line in lines] == [3, 2, 3] * 2
    (missing,) = lines[1]["missing"]
    assert missing["site"] == "sah_a"
    assert missing["reason"].startswith("error at the site: UpdateHeldBack (the site held back its update")
    assert all(line["attempt"] == 1 for line in lines)


@pytest.mark.slow
def test_where_every_site_holds_back_the_state_stays_as_it_was(federate, monkeypatch):
    alarms(monkeypatch, {(site, 2) for site in ("sah_a", "sah_b", "sah_c")})
    study = changed(STUDY, finetune__methods=[{"method": "cp_lora", "rank": 2, "private_rank": 1}])
    folder, _ = federate(study)
    assert [len(line["used"]) for line in rounds_of(folder)] == [3, 0, 3] * 2
    method = folder.read_json("results.json")["methods"][0]
    assert method["metrics"]["dice"]["overall"]["n"] > 0
    assert (folder.path / "report.html").exists()


@pytest.mark.slow
def test_private_terms_that_all_sites_hold_back_at_the_end_stay_as_they_began(federate, monkeypatch):
    alarms(monkeypatch, {(site, 3) for site in ("sah_a", "sah_b", "sah_c")})
    method = {"method": "cp_lora", "rank": 2, "private_rank": 1, "share_private_at_end": True}
    folder, _ = federate(changed(STUDY, finetune__methods=[method]))
    assert [len(line["used"]) for line in rounds_of(folder)] == [3, 3, 0] * 2
