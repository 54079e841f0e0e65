"""Where methods are trained, how often, and the grid that is multiplied out when a study file is read."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import yaml
from harness.tiny_study import TINY, changed
from pydantic import TypeAdapter, ValidationError

from sahfl.config import Study, load_site, load_study, parse
from sahfl.config.methods import Method
from sahfl.errors import ConfigError

READ = TypeAdapter(Method).validate_python
ROOT = Path(__file__).parents[2]
SITES = ("sah_a", "sah_b", "sah_c")


def study(*grid, methods=({"method": "zero_shot"},), **changes):
    settings = changed(TINY, finetune__methods=list(methods), **changes)
    settings["finetune"]["grid"] = list(grid)
    return parse(Study, settings, where="test")


def ids(*grid, methods=()):
    return [method.id for method in study(*grid, methods=methods).finetune.methods]


def problem(*grid, **settings):
    with pytest.raises(ConfigError) as caught:
        study(*grid, **settings)
    return str(caught.value)


# --- one method -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"method": "full", "trained_at": "sah_a"}, "full-at-sah_a"),
        ({"method": "full", "trained_at": "pooled", "repeat": 3}, "full-pooled-repeat3"),
        ({"method": "full", "trained_at": "pooled_steps", "repeat": 2}, "full-pooled_steps-repeat2"),
        ({"method": "decoder", "aggregation": "median", "label": "slow", "repeat": 2}, "decoder-median-slow-repeat2"),
        ({"method": "cp_lora", "trained_at": "sah_a", "repeat": 2}, "cp_lora-r8-at-sah_a-repeat2"),
        ({"method": "cp_dora", "aggregation": "project", "trained_at": "pooled"}, "cp_dora-r8-project-pooled"),
        ({"method": "cp_lora", "trained_at": None, "repeat": 1}, "cp_lora-r8"),
        ({"method": "full", "start": "scratch", "rounds": 9, "repeat": 2}, "full-scratch-rounds9-repeat2"),
        ({"method": "cp_lora", "rounds": 9}, "cp_lora-r8-rounds9"),
        ({"method": "cp_lora", "left_out": "sah_a", "repeat": 2}, "cp_lora-r8-without-sah_a-repeat2"),
    ],
)
def test_a_name_tells_where_a_method_is_trained_and_which_repeat_it_is(settings, name):
    assert READ(settings).id == name


WRONG = {
    "repeat-zero": ({"method": "full", "repeat": 0}, "repeat\n.*greater than or equal to 1"),
    "repeat-of-nothing": ({"method": "zero_shot", "repeat": 2}, "repeat\n.*Extra inputs"),
    "place-of-nothing": ({"method": "zero_shot", "trained_at": "sah_a"}, "trained_at\n.*Extra inputs"),
    "no-name": ({"method": "full", "trained_at": "../x"}, "trained_at\n.*should match pattern"),
    "part-from-scratch": (
        {"method": "decoder", "start": "scratch"},
        "start: scratch needs method: full, decoder leaves random weights untrained",
    ),
    "adapter-from-scratch": ({"method": "cp_lora", "start": "scratch"}, "start\n.*Extra inputs"),
    "left-out-of-one-place": (
        {"method": "full", "left_out": "sah_a", "trained_at": "pooled"},
        "left_out evaluates what all other sites share; take out trained_at and all that stays",
    ),
    "left-out-with-a-part-of-its-own": (
        {"method": "cp_lora", "left_out": "sah_a", "private_rank": 2},
        "left_out evaluates what all other sites share; take out trained_at and all that stays",
    ),
    "no-rounds": ({"method": "full", "rounds": 0}, "rounds\n.*greater than or equal to 1"),
    "ranks-of-others": (
        {"method": "cp_lora", "aggregation": "project", "site_ranks": {"sah_b": 2}, "trained_at": "sah_a"},
        "site_ranks is for a training at all sites, this one is trained at sah_a",
    ),
}


@pytest.mark.parametrize(("settings", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_place_or_repeat_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        READ(settings)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            "oslo",
            "methods.0: full-at-oslo: trained_at names oslo, expected pooled, pooled_steps or .*, sah_a, sah_b",
        ),
        ("tbi_a", "finetune.methods.0: full-at-tbi_a: trained_at names tbi_a"),
        (
            "each",
            "methods.0: full-at-each: trained_at: each stands for one method per site, .* only in finetune.grid",
        ),
    ],
)
def test_a_place_that_is_no_site_of_fine_tuning_is_named(place, message):
    assert re.search(message, problem(methods=[{"method": "full", "trained_at": place}]))


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("oslo", "full-without-oslo: left_out names oslo, expected one of finetune.sites, sah_a, sah_b, sah_c"),
        ("each", "full-without-each: left_out: each stands for one method per site, and so only in finetune.grid"),
    ],
)
def test_a_left_out_site_that_is_no_site_of_fine_tuning_is_named(site, message):
    assert message in problem(methods=[{"method": "full", "left_out": site}])


def test_the_only_site_cannot_be_left_out():
    text = problem(methods=[{"method": "full", "left_out": "sah_a"}], finetune__sites=["sah_a"])
    assert "full-without-sah_a: left_out names the only fine-tuning site, so that none is left to train" in text


def test_a_study_at_hospitals_leaves_no_site_out():
    text = problem(methods=[{"method": "full", "left_out": "sah_a"}], data={"source": "sites"})
    assert "full-without-sah_a: left_out with data.source: sites; the difference from the training at all sites" in text


def test_a_site_file_cannot_be_that_of_a_simulated_site(tmp_path):
    data = {"source": "folder", "path": "scans"}
    settings = {"name": "sah_a", "folder": "work", "data": data, "simulated": True}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match=r"simulated: .*False"):
        load_site(tmp_path / "site.yaml")


@pytest.mark.parametrize("name", ["pooled", "pooled_steps", "each", "others"])
def test_no_site_may_have_a_name_that_means_something_else(name):
    sites = TINY["data"]["sites"] | {name: {"kind": "sah", "n_cases": 2}}
    assert f"no site can have the name {name}," in problem(data__sites=sites, finetune__sites=["sah_a", name])


def test_a_pooled_training_takes_the_steps_of_all_sites_together_or_of_one():
    places = (None, "sah_a", "pooled", "pooled_steps")
    found = study(methods=[{"method": "full", "trained_at": place} for place in places])
    assert [found.local_training(method).steps for method in found.finetune.methods] == [2, 2, 6, 2]
    text = problem(methods=[{"method": "full", "trained_at": "pooled"}], finetune__local={"steps": 50_000})
    assert "a pooled training takes steps x sites = 150000 steps a round, at most 100000" in text


def test_only_pooled_training_makes_a_study_one_for_simulations():
    places = {None: False, "sah_a": False, "pooled": True, "pooled_steps": True}
    for place, only in places.items():
        found = study(methods=[{"method": "full", "trained_at": place}])
        assert found.pools == only


def test_a_site_file_cannot_ask_for_pooled_data(tmp_path):
    settings = {"name": "sah_a", "folder": "work", "data": {"source": "pooled", "members": []}}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match=r"data.source: expected 'phantom', 'datalist' or 'folder', got 'pooled'$"):
        load_site(tmp_path / "site.yaml")


def test_a_grid_varies_the_number_of_training_patients_in_a_simulation():
    entry = {"method": "cp_lora", "rank": 2, "most_patients": [2, 4], "trained_at": [None, "each"]}
    found = ids(entry)
    assert found[:2] == ["cp_lora-r2-patients2", "cp_lora-r2-patients2-at-sah_a"]
    assert len(found) == 8
    text = problem(methods=[{"method": "full", "most_patients": 3}], data={"source": "sites"})
    assert "full-patients3: most_patients with data.source: sites; the difference of two such trainings" in text


# --- fingerprint ----------------------------------------------------------------------------------------------------


def test_a_study_without_places_and_repeats_keeps_the_fingerprint_that_it_had_before_there_were_any():
    found = parse(Study, TINY, where="test")
    before = found.model_dump(mode="json")
    for name in ("base", "hostile", "common_random_numbers", "require_gain"):
        del before[name]
    del before["rounds"]["masking"], before["rounds"]["unmasked"]
    for method in before["finetune"]["methods"][1:]:
        assert (method.pop("trained_at"), method.pop("repeat"), method.pop("inner")) == (None, 1, False)
    assert found.fingerprint() == hashlib.sha256(json.dumps(before, sort_keys=True).encode()).hexdigest()


def test_the_fingerprint_depends_on_place_and_repeat_but_not_on_how_the_methods_are_written():
    lora = {"method": "cp_lora", "rank": 2}
    prints = {
        study(methods=[lora | more]).fingerprint()
        for more in ({}, {"repeat": 2}, {"trained_at": "sah_a"}, {"trained_at": "pooled"})
    }
    assert len(prints) == 4
    written = study(methods=[lora, lora | {"repeat": 2}])
    expanded = study(lora | {"repeats": 2}, methods=[])
    assert expanded.fingerprint() == written.fingerprint()
    assert expanded == written


# --- grid -----------------------------------------------------------------------------------------------------------


def test_the_lists_of_an_entry_are_multiplied_out():
    found = ids({"method": ["lora_c", "cp_lora"], "rank": [1, 8], "aggregation": ["mean", "project"]})
    assert found == [
        "lora_c-r1", "lora_c-r1-project", "lora_c-r8", "lora_c-r8-project",
        "cp_lora-r1", "cp_lora-r1-project", "cp_lora-r8", "cp_lora-r8-project",
    ]  # fmt: skip


def test_each_stands_for_every_site_and_repeats_for_as_many_trainings():
    assert ids({"method": "full", "trained_at": [None, "each", "pooled"]}) == [
        "full", "full-at-sah_a", "full-at-sah_b", "full-at-sah_c", "full-pooled",
    ]  # fmt: skip
    assert ids({"method": "full", "trained_at": "each", "repeats": 2})[:3] == [
        "full-at-sah_a", "full-at-sah_a-repeat2", "full-at-sah_b",
    ]  # fmt: skip


def test_the_grid_comes_after_the_methods_and_nothing_comes_twice():
    zero, lora = {"method": "zero_shot"}, {"method": "cp_lora", "rank": 8}
    assert ids({"method": "cp_lora", "rank": [8, 1]}, lora, zero, methods=[zero, lora]) == [
        "zero_shot", "cp_lora-r8", "cp_lora-r1",
    ]  # fmt: skip


def test_a_list_of_layers_is_one_value_and_a_list_of_lists_several():
    assert ids({"method": "lora_c", "layers": ["encoder", "head"]}) == ["lora_c-r8-encoder-head"]
    assert ids({"method": "lora_c", "layers": [["encoder"], ["head"]], "also_train": [[], ["norm"]]}) == [
        "lora_c-r8-encoder", "lora_c-r8-encoder-with-norm", "lora_c-r8-head", "lora_c-r8-head-with-norm",
    ]  # fmt: skip


def test_a_run_keeps_the_methods_and_forgets_the_grid():
    found = study({"method": "cp_lora", "rank": [1, 2]})
    text = found.model_dump_json()
    assert '"grid"' not in text
    assert Study.model_validate_json(text) == found


IMPOSSIBLE = {
    "rank-of-full": (
        [{"method": "cp_lora"}, {"method": ["cp_lora", "full"], "rank": [1, 2]}],
        "finetune.grid.1.rank: is not a setting of full, which has learning_rate, ",
    ),
    "option": (
        [{"method": ["cp_lora", "lora_c"], "joint_kernel": True}],
        "joint_kernel is an option of cp_lora and cp_dora, not of lora_c (method: 'lora_c', joint_kernel: true)",
    ),
    "no-method": ([{"rank": [1]}], "finetune.grid.0.method: is missing (rank: 1)"),
    "unknown": ([{"method": "cp_lorra"}], "finetune.grid.0.method: expected 'zero_shot'"),
    "place": ([{"method": "full", "trained_at": ["oslo", None]}], "full-at-oslo: trained_at names oslo"),
    "repeats": ([{"method": "full", "repeats": 0}], "grid.0: got repeats 0, expected repeats, a number from 1 to 100"),
    "repeats-list": ([{"method": "full", "repeats": [1, 2]}], "grid.0: got repeats [1, 2]"),
    "both": ([{"method": "full", "repeat": 2}], "grid.0: got repeats 1, expected repeats"),
    "empty-list": ([{"method": []}], "grid.0: stands for 0 methods"),
    "too-many": ([{"method": "full", "learning_rate": [0.1] * 50, "repeats": 41}], "grid.0: stands for 2050 methods"),
    "same-name": (
        [{"method": "full", "learning_rate": [0.1, 0.2]}],
        "methods must be distinct, got twice: full; label one of them",
    ),
    "same-name-label": ([{"method": "cp_lora", "alpha": [8.0, 16.0]}], "got twice: cp_lora-r8"),
    "no-entry": (["full"], "finetune.grid.0: expected settings (name: value), got 'full'"),
}


@pytest.mark.parametrize(("grid", "message"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_an_impossible_combination_is_an_error_that_names_the_entry(grid, message):
    assert message in problem(*grid)


def test_all_problems_of_a_grid_are_told_in_one_message():
    text = problem({"method": "full", "rank": 2}, {"method": "full", "trained_at": "oslo"}, {"repeats": -1})
    assert text.startswith("test: 3 problems\n")
    assert "finetune.grid.0.rank: is not a setting of full" in text
    assert "finetune.grid.1: full-at-oslo: trained_at names oslo" in text
    assert "finetune.grid.2: got repeats -1" in text


def test_a_problem_of_many_combinations_is_said_once_with_the_line_of_its_entry(tmp_path):
    settings = changed(TINY, finetune__methods=[{"method": "zero_shot"}])
    settings["finetune"]["grid"] = [{"method": ["cp_lora", "full"], "lr": [0.1, 0.2], "repeats": 3}]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings))
    line = (tmp_path / "study.yaml").read_text().splitlines().index("  - lr:") + 1
    with pytest.raises(ConfigError) as caught:
        load_study(tmp_path / "study.yaml")
    where = f"{tmp_path / 'study.yaml'}: 1 problem\n  line {line}, finetune.grid.0.lr: "
    assert str(caught.value) == where + "is called learning_rate here (lr: 0.1, method: 'cp_lora')"


def test_a_grid_of_many_problems_shows_a_hundred_and_counts_the_others():
    text = problem({"method": "cp_lora", "rank": list(range(-150, 0))})
    assert text.startswith("test: 150 problems\n")
    assert text.endswith("\n  and 50 more")


@pytest.mark.parametrize("method", [{"full": 8}, [["full"]]])
def test_a_method_that_is_no_name_is_refused_like_any_wrong_name(method):
    assert "test: 1 problem\n  finetune.grid.0.method: expected 'zero_shot', 'full'," in problem({"method": method})


def test_a_long_list_of_rates_is_cut_in_the_message():
    text = problem({"method": "full", "learning_rate": [number / 1e5 for number in range(1, 100)]}, methods=[])
    assert "learning_rate: [[1e-05, 2e-05, 3e-05" in text
    assert max(map(len, text.splitlines())) < 500


def test_a_study_without_any_method_is_refused():
    assert "methods and grid are empty, expected at least one method" in problem(methods=[])


# --- the paper's studies --------------------------------------------------------------------------------------------

FAMILIES = {"lora_c", "conv_lora", "cp_lora", "dora_c", "conv_dora", "cp_dora"}


@pytest.mark.parametrize(
    ("name", "weights", "rules"),
    [
        ("paper", {"full", "encoder", "decoder", "bottleneck", "last_layer", "norm_bias"}, {"alternate", "project"}),
        ("paper-small", {"full", "decoder", "norm_bias"}, {"project"}),
    ],
)
def test_the_paper_s_studies_hold_what_the_findings_need(name, weights, rules):
    found = load_study(ROOT / "configs" / f"{name}.yaml")
    methods = found.finetune.methods
    trained = [method for method in methods if method.method != "zero_shot"]
    assert methods[0].id == "zero_shot"
    assert {method.method for method in trained} == FAMILIES | weights
    names = {method.id for method in methods}
    assert {"full-repeat2", "cp_lora-r8-repeat2", "conv_lora-r8-repeat2", "cp_lora-r8-pooled"} <= names
    assert {f"cp_lora-r8-at-{site}" for site in found.finetune.sites} <= names
    assert {1, 8, 64} <= {method.rank for method in trained if method.method == "cp_lora"}
    assert rules | {"mean"} <= {method.aggregation for method in trained}
    assert sum(found.data.sites[site].n_cases for site in found.finetune.sites) == 30
    assert (found.finetune.folds, found.pools) == (3, True)


def test_the_paper_s_grid_has_every_family_at_every_rank_and_as_many_patients_as_the_paper():
    found = load_study(ROOT / "configs" / "paper.yaml")
    federated = {(m.method, m.rank) for m in found.finetune.methods if m.method in FAMILIES and m.trained_at is None}
    assert {(family, rank) for family in FAMILIES for rank in (1, 2, 4, 8, 16, 32, 64, 128)} <= federated
    assert sum(found.data.sites[site].n_cases for site in found.pretrain.sites) == 124


@pytest.mark.parametrize("place", [{}, {"trained_at": "pooled"}])
def test_repeats_with_other_settings_are_refused_by_both_names_and_what_differs(place):
    first = {"method": "cp_lora", "rank": 2} | place
    second = first | {"learning_rate": 0.5, "alpha": 64, "repeat": 2}
    end = "-pooled" if place else ""
    with pytest.raises(ConfigError) as caught:
        study(methods=[first, second])
    assert (
        f"cp_lora-r2{end} and cp_lora-r2{end}-repeat2 differ in learning_rate (0.005 and 0.5), alpha (16.0 and 64.0); "
        "they are trainings of one method, expected the same settings in both, or a label for one of them"
    ) in str(caught.value)
    labelled = study(methods=[first, second | {"label": "fast"}])
    assert len(labelled.finetune.methods) == 2
