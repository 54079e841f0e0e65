"""The setting ``rounds.masking``: what cannot stand beside it is refused by name, with a remedy."""

import pytest
from harness.masked_training import SITES
from harness.tiny_study import TINY, changed

from sahfl.config import Study, masking_of, parse
from sahfl.errors import ConfigError
from sahfl.federation.requests import Requests
from sahfl.simulation.simulate import site_configs

FIVE = changed(
    TINY,
    data__sites={site: {"kind": "sah", "n_cases": 3} for site in (*SITES, "tbi_a", "tbi_b", "tbi_c")},
    finetune__sites=list(SITES),
    finetune__methods=[{"method": "zero_shot"}, {"method": "cp_lora", "rank": 2}],
    pretrain__sites=["tbi_a", "tbi_b", "tbi_c"],
    rounds={"masking": {"clip": 5.0}},
)


def method(**settings):
    return {"finetune__methods": [{"method": "cp_lora", "rank": 2, **settings}]}


REFUSED = {
    "payload": ({"rounds__payload": "int8"}, "rounds.masking needs payload: float32, got int8"),
    "most_norm": (
        {"rounds__most_norm": 2.0},
        "rounds.most_norm with rounds.masking: .* take most_norm out, clip takes",
    ),
    "most_share": ({"rounds__most_share": 0.5}, "rounds.most_share with rounds.masking"),
    "shared batches": ({"common_random_numbers": True}, "common_random_numbers: true with rounds.masking"),
    "hostile": ({"hostile": {"bern": "nan"}}, "hostile with rounds.masking"),
    "project": (
        method(aggregation="project"),
        "aggregation: project needs each site's update, expected mean or alternate",
    ),
    "median": (method(aggregation="median"), "aggregation: median needs"),
    "trimmed mean": (method(aggregation="trimmed_mean"), "aggregation: trimmed_mean needs"),
    "own ranks": (
        method(aggregation="project", site_ranks={"bern": 1}),
        "site_ranks gives sites tensors of other shapes",
    ),
    "private mean": (
        method(stays=["out"], share_private_at_end=True),
        "share_private_at_end shows each site's own part",
    ),
    "magnitudes": (method(method="cp_dora"), "cp_dora averages magnitudes .* take cp_lora"),
    "trials": (method(learning_rate=[0.001, 0.01]), "one more sum over the same patients; give one rate"),
    "left out": (method(left_out="bern"), "left_out: the difference from the sum over all sites is one site's update"),
    "own base": (method(base_of="tbi_a"), "base_of: one site's own base"),
    "pooled": (method(trained_at="pooled"), "trained_at: pooled sends in the clear"),
    "two sites": ({"finetune__sites": ["bern", "graz"]}, "with 2 finetune.sites: .* take rounds.masking out"),
    "two pretraining sites": ({"pretrain__sites": ["tbi_a", "tbi_b"]}, "rounds.masking with 2 pretrain.sites"),
    "too small a threshold": ({"rounds__masking": {"clip": 5.0, "threshold": 6}}, "threshold: got 6, expected 3 to 5"),
    "no clip": ({"rounds__masking": {}}, "clip"),
}


@pytest.mark.parametrize(("changes", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_masked_is_refused_with_a_remedy(changes, reason):
    settings = changed(FIVE, **changes)
    if "learning_rate" in str(changes):
        settings["finetune"]["folds"] = 3
    with pytest.raises(ConfigError, match=f"(?s){reason}"):
        parse(Study, settings, where="test")


def test_defaults_that_a_run_s_folder_writes_down_are_no_settings_beside_masking():
    study = parse(Study, FIVE, where="test")
    assert parse(Study, study.model_dump(mode="json"), where="test").rounds.masking == study.rounds.masking


def test_a_training_at_one_site_is_not_masked_and_sends_no_tensor(tmp_path):
    study = parse(Study, changed(FIVE, **method(trained_at="bern")), where="test")
    (alone,) = study.finetune.methods
    assert masking_of(study, alone) is None
    assert masking_of(study, None) == study.rounds.masking
    (config,) = [config for config in site_configs(study, tmp_path) if config.name == "bern"]
    (task,) = Requests(study, study.fingerprint()).trainings(config.name)
    assert task.masking is None


def test_a_study_without_masking_has_the_fingerprint_of_before_the_setting_existed_and_masks_change_it():
    plain = changed(FIVE, rounds={})
    assert "masking" not in plain["rounds"]
    prints = {
        parse(Study, one, where="test").fingerprint() for one in (plain, FIVE, changed(FIVE, rounds__masking__clip=6.0))
    }
    assert len(prints) == 3


def test_batches_are_of_each_method_s_own_beside_masks():
    assert not parse(Study, FIVE, where="test").shares_batches
    assert parse(Study, changed(FIVE, rounds={}), where="test").shares_batches


HOSPITALS = {"data": {"source": "sites"}, "rounds": {}}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"finetune__sites": ["bern", "graz"]}, "2 finetune.sites"),
        ({"pretrain__sites": ["tbi_a", "tbi_b"]}, "2 pretrain.sites"),
        ({"finetune__sites": ["bern"], "pretrain__sites": ["tbi_a"]}, "1 finetune.sites and 1 pretrain.sites"),
    ],
)
def test_hospitals_too_few_to_mask_must_say_that_the_server_sees_what_they_send(settings, named):
    with pytest.raises(ConfigError, match=f"with {named} the server sees .* rounds: {{unmasked: true}}"):
        parse(Study, changed(FIVE, **HOSPITALS | settings), where="test")
    agreed = parse(Study, changed(FIVE, **HOSPITALS | settings | {"rounds": {"unmasked": True}}), where="test")
    assert agreed.rounds.masking is None
    simulated = parse(Study, changed(FIVE, **settings | {"rounds": {}}), where="test")
    assert not simulated.rounds.unmasked


def test_three_hospitals_or_more_need_not_say_it_and_nobody_says_it_of_masks():
    parse(Study, changed(FIVE, **HOSPITALS), where="test")
    with pytest.raises(ConfigError, match=r"unmasked: true with rounds.masking; take one of the two out"):
        parse(Study, changed(FIVE, rounds__unmasked=True), where="test")


def test_what_people_agree_on_changes_no_fingerprint():
    study = changed(FIVE, rounds={})
    agreed = changed(FIVE, rounds={"unmasked": True})
    assert parse(Study, study, where="test").fingerprint() == parse(Study, agreed, where="test").fingerprint()


@pytest.mark.parametrize(
    "methods",
    [[{"method": "zero_shot"}], [{"method": "zero_shot"}, {"method": "cp_lora", "rank": 2, "trained_at": "bern"}]],
)
def test_the_sites_of_an_evaluation_can_be_masked_too(methods):
    few = changed(FIVE, finetune__sites=["bern", "graz"], finetune__methods=methods)
    with pytest.raises(ConfigError, match=r"rounds\.masking with 2 finetune\.sites"):
        parse(Study, few, where="test")
