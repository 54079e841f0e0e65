"""The audit log says which policy held, and what each training was."""

import json

import pytest
from harness import asking
from harness.asking import training

from sahfl.config import AdapterTuning, LocalTraining
from sahfl.federation import protocol
from sahfl.federation.site.known_policy import FILE, policy_hash

hospital = asking.hospital
TRAIN = protocol.TRAIN


def events(hospital):
    return [line["event"] for line in hospital.audit()]


def test_the_first_policy_and_each_change_is_a_line_that_names_the_settings(hospital):
    hospital.send(TRAIN, hospital.request(training(), hospital.start))
    hospital.send(TRAIN, hospital.request(training(fold=1), hospital.start))
    assert events(hospital) == ["policy", "study", "answered", "answered"]
    first = hospital.audit()[0]
    assert first["details"] == {"policy": policy_hash(hospital.config.policy), "changed": []}

    limits = hospital.config.policy.adapters
    ranks = limits.most_rank | {"cp_lora": 64}
    hospital.allow(most_rounds=500, adapters=limits.model_copy(update={"most_rank": ranks}), also_train=("norm",))
    hospital.refuses(TRAIN, hospital.request(training(rounds=501), hospital.start))
    line = hospital.audit()[-2]
    assert line["event"] == "policy"
    assert line["details"]["changed"] == [
        "policy.adapters.most_rank.cp_lora from 32 to 64",
        'policy.also_train from [] to ["norm"]',
        "policy.most_rounds from 200 to 500",
    ]
    assert line["words"].startswith("The policy changed: policy.adapters.most_rank.cp_lora from 32 to 64;")
    assert (hospital.config.folder / FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_record_of_the_policy_is_noted_anew(hospital, damage):
    hospital.send(TRAIN, hospital.request(training(), hospital.start))
    (hospital.config.folder / FILE).write_bytes(damage)
    hospital.send(TRAIN, hospital.request(training(fold=1), hospital.start))
    assert events(hospital).count("policy") == 2
    json.loads((hospital.config.folder / FILE).read_text())


def test_a_line_of_a_training_holds_its_steps_slices_rate_rank_views_and_the_hashes_of_what_came_in(hospital):
    usual = training(local=LocalTraining(steps=2, batch_size=3))
    hospital.send(TRAIN, hospital.request(usual, hospital.start))
    line = hospital.audit()[-1]
    details = line["details"]
    assert (details["steps"], details["batch_size"], details["learning_rate"], details["rank"]) == (2, 3, 0.005, 2)
    assert (details["n_volumes"], details["views"], details["spacing_mm"]) == (1, ["axial"], 4.0)
    assert (details["base"], details["policy"]) == (hospital.base, policy_hash(hospital.config.policy))
    assert len(details["start"]) == 64
    assert "after 2 steps of 3 slices at the rate 0.005" in line["words"]
    hospital.send(TRAIN, hospital.request(training(fold=1), hospital.start))
    assert hospital.audit()[-1]["details"]["start"] == details["start"]


def test_a_refusal_names_what_an_attack_asks_for(hospital):
    """One step on one slice, at rank 31 on one layer: the settings from which a slice was rebuilt."""
    hospital.allow(**{name: getattr(type(hospital.config.policy)(), name) for name in ("adapters", "weights")})
    method = AdapterTuning(method="conv_lora", rank=31, alpha=31.0, layers=("decoder.1",), learning_rate=0.05)
    task = training(method=method, local=LocalTraining(steps=1, batch_size=1, foreground_share=0.0), learning_rate=0.05)
    error, line = hospital.refuses(TRAIN, hospital.request(task, hospital.start))
    assert error == "PolicyRefused"
    for door in ("least_steps: got 1, expected at least 8", "least_batch: got 1, expected at least 8"):
        assert f"policy.adapters.{door}" in line["details"]["reason"]


def test_a_study_has_one_base_at_a_hospital(hospital):
    hospital.config = hospital.config.model_copy(update={"simulated": False})
    hospital.send(TRAIN, hospital.request(training(), hospital.start))
    error, line = hospital.refuses(TRAIN, hospital.request(training(fold=1), hospital.start, base="f" * 64))
    assert error == "PolicyRefused"
    assert "got another base network than it began with" in line["details"]["reason"]
