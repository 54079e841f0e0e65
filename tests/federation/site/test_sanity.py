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
    watch = Watch(net)
    for norms in steps:
        net.weight.grad = None if norms is None else torch.tensor(norms)[:, None] * torch.tensor([[0.6, 0.0, 0.8]])
        watch.note()
    return watch


def test_a_row_counts_the_steps_that_gave_it_its_gradient():
    even = watched([[1.0] * 6] * 8).measure(least=2)
    assert (round(even.steps, 4), even.few, even.silent) == (8, 0, 0)
    one = watched([[0.0] * 6] * 7 + [[1.0] * 6]).measure(least=2)
    assert (round(one.steps, 4), one.few, one.silent) == (1, 1, 0)
    bins = watched((np.eye(8) + 1e-6).astype(np.float32).tolist()).measure(least=2)  # every row has a step of its own
    assert bins.steps < 1.01
    assert bins.few == 1
    mixed = watched([[1.0, 1.0, 1.0, 0.0]] * 8).measure(least=2)
    assert (round(mixed.steps, 4), mixed.silent) == (8, 0.25)


def test_a_view_that_was_not_drawn_and_small_tensors_do_not_count():
    assert round(watched([[1.0] * 5, None, [1.0] * 5]).measure(least=2).steps, 4) == 2
    net = nn.Linear(3, 2)
    assert Watch(net).measure(least=2) == sanity.Measured(float("inf"), 0.0, 0.0)


def test_no_gradient_at_all_is_held_back():
    with pytest.raises(UpdateHeldBack, match=r"adapters.least_effective_steps: .* by 0.00 steps, expected at least 2"):
        watched([[0.0] * 5] * 8).require(("adapters.least_effective_steps", 2.0), where="here")


def closed(hospital, least=2.0):
    few = AdapterLimits(**FEW["adapters"].model_dump() | {"least_effective_steps": least})
    hospital.allow(adapters=few)
    hospital.config = hospital.config.model_copy(update={"simulated": False})
    return hospital


def test_one_step_is_held_back_and_named_and_the_round_stays_without_an_answer(hospital):
    hospital = closed(hospital)
    one = hospital.request(training(), hospital.start)  # one step
    error, line = hospital.refuses(TRAIN, one)
    assert (error, line["event"]) == ("UpdateHeldBack", "refused")
    assert line["details"]["reason"].startswith("policy.adapters.least_effective_steps: the middle row of this update")
    assert hospital.refuses(TRAIN, one)[0] == "UpdateHeldBack"
    more = training(local=LocalTraining(steps=4, batch_size=2))
    assert hospital.refuses(TRAIN, hospital.request(more, hospital.start))[0] == "RoundAlreadyAnswered"
    assert not list((hospital.config.folder / "private").glob("*"))
    assert Answered(hospital.config, "a" * 64).took_part(asking.header_of(training()))


def test_an_honest_round_passes(hospital):
    hospital = closed(hospital)
    more = training(local=LocalTraining(steps=4, batch_size=2))
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


def test_where_every_site_holds_back_the_state_stays_as_it_was(federate, monkeypatch):
    alarms(monkeypatch, {(site, 2) for site in ("sah_a", "sah_b", "sah_c")})
    study = changed(STUDY, finetune__methods=[{"method": "cp_lora", "rank": 2, "private_rank": 1}])
    folder, _ = federate(study)
    assert [len(line["used"]) for line in rounds_of(folder)] == [3, 0, 3] * 2
    method = folder.read_json("results.json")["methods"][0]
    assert method["metrics"]["dice"]["overall"]["n"] > 0
    assert (folder.path / "report.html").exists()


def test_private_terms_that_all_sites_hold_back_at_the_end_stay_as_they_began(federate, monkeypatch):
    alarms(monkeypatch, {(site, 3) for site in ("sah_a", "sah_b", "sah_c")})
    method = {"method": "cp_lora", "rank": 2, "private_rank": 1, "share_private_at_end": True}
    folder, _ = federate(changed(STUDY, finetune__methods=[method]))
    assert [len(line["used"]) for line in rounds_of(folder)] == [3, 3, 0] * 2
