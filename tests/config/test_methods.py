"""The settings of the methods: their names in folders, and what is refused."""

import itertools
import re

import pytest
from pydantic import TypeAdapter, ValidationError

from sahfl.config import AdapterTuning, WeightTuning
from sahfl.config.methods import Method

READ = TypeAdapter(Method).validate_python
ADAPTERS = ("lora_c", "conv_lora", "cp_lora", "dora_c", "conv_dora", "cp_dora")
WEIGHTS = ("full", "encoder", "bottleneck", "decoder", "last_layer", "norm_bias")


def every_kind_of_method():
    yield READ({"method": "zero_shot"})
    for method, label in itertools.product(WEIGHTS, (None, "slow")):
        yield READ({"method": method, "label": label})
    layers = (("all",), ("encoder",), ("encoder.1",), ("encoder.1", "head"), ("decoder", "bottleneck"))
    also = ((), ("norm",), ("norm", "bias"), ("head",), ("encoder.1",))
    for method, rank, where, train, label in itertools.product(ADAPTERS, (1, 11), layers, also, (None, "slow")):
        for joint in (False, True) if method.startswith("cp_") else (False,):
            yield AdapterTuning(
                method=method, rank=rank, joint_kernel=joint, layers=where, also_train=train, label=label
            )


def test_the_names_of_methods_are_distinct_and_safe_in_folders():
    names = [method.id for method in every_kind_of_method()]
    assert len(set(names)) == len(names) > 500
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) for name in names)
    assert max(map(len, names)) < 100


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"method": "zero_shot"}, "zero_shot"),
        ({"method": "full"}, "full"),
        ({"method": "last_layer", "label": "slow"}, "last_layer-slow"),
        ({"method": "cp_lora"}, "cp_lora-r8"),
        ({"method": "cp_dora", "rank": 64, "joint_kernel": True}, "cp_dora-r64-joint"),
        ({"method": "dora_c", "matrix": "rows"}, "dora_c-r8-rows"),
        ({"method": "lora_c", "layers": ("encoder.2", "head")}, "lora_c-r8-encoder2-head"),
        ({"method": "conv_dora", "also_train": ("head", "norm")}, "conv_dora-r8-with-head-norm"),
    ],
)
def test_a_name_tells_method_rank_and_layers(settings, name):
    assert READ(settings).id == name


def test_the_ranks_of_sites_are_not_in_the_name_and_one_site_is_told_its_own_only():
    method = AdapterTuning(method="cp_lora", rank=8, aggregation="project", site_ranks={"bern": 2, "linz": 16})
    assert method.id == "cp_lora-r8-project"
    assert (method.at_rank(2).rank, method.at_rank(2).site_ranks) == (2, {})
    assert method.rank == 8


def test_the_dora_forms_and_no_others_have_magnitudes():
    assert {name for name in ADAPTERS if AdapterTuning(method=name).has_magnitudes} == {
        "dora_c",
        "conv_dora",
        "cp_dora",
    }


REFUSED = {
    "unknown": ({"method": "cp_lorra"}, "'cp_lora'"),
    "rank-zero": ({"method": "cp_lora", "rank": 0}, "rank\n.*greater than or equal to 1"),
    "rank-too-high": ({"method": "cp_lora", "rank": 513}, "rank\n.*less than or equal to 512"),
    "alpha-zero": ({"method": "lora_c", "alpha": 0.0}, "alpha\n.*greater than 0"),
    "dropout-one": ({"method": "lora_c", "rank_dropout": 1.0}, "rank_dropout\n.*less than 1"),
    "no-layers": ({"method": "lora_c", "layers": ()}, "layers\n.*at least 1"),
    "unknown-layer": ({"method": "lora_c", "layers": ("enc",)}, "'encoder'"),
    "all-and-more": ({"method": "lora_c", "layers": ("all", "head")}, "all and more: all, head; all stands alone"),
    "rows-of-another": (
        {"method": "conv_lora", "matrix": "rows"},
        "matrix: rows is an option of lora_c and dora_c, not of conv_lora",
    ),
    "unnormed-and-more": (
        {"method": "dora_c", "layers": ("head", "unnormed")},
        "unnormed and more: head, unnormed; unnormed stands alone",
    ),
    "layer-twice": ({"method": "lora_c", "layers": ("head", "head")}, "layers names twice: head"),
    "trained-twice": ({"method": "lora_c", "also_train": ("norm", "norm")}, "also_train names twice: norm"),
    "joint-lora": ({"method": "conv_lora", "joint_kernel": True}, "option of cp_lora and cp_dora, not of conv_lora"),
    "joint-dora": ({"method": "dora_c", "joint_kernel": True}, "option of cp_lora and cp_dora, not of dora_c"),
    "magnitudes": ({"method": "cp_lora", "all_magnitudes": True}, "DoRA forms, cp_lora has no magnitudes"),
    "site-ranks": (
        {"method": "cp_lora", "site_ranks": {"bern": 2}},
        "site_ranks needs aggregation: project, mean needs one rank at all sites",
    ),
    "site-ranks-alternate": (
        {"method": "lora_c", "site_ranks": {"bern": 2}, "aggregation": "alternate"},
        "project, alternate needs one rank",
    ),
    "site-ranks-median": (
        {"method": "cp_dora", "site_ranks": {"bern": 2}, "aggregation": "median"},
        "project, median needs one rank",
    ),
    "site-rank-zero": (
        {"method": "cp_lora", "site_ranks": {"bern": 0}, "aggregation": "project"},
        "site_ranks.bern\n.*greater than or equal to 1",
    ),
    "site-rank-name": (
        {"method": "cp_lora", "site_ranks": {"../x": 2}, "aggregation": "project"},
        "site_ranks.*\n.*should match pattern",
    ),
    "site-ranks-of-full": ({"method": "full", "site_ranks": {"bern": 2}}, "site_ranks\n.*Extra inputs"),
    "rank-of-full": ({"method": "full", "rank": 8}, "rank\n.*Extra inputs are not permitted"),
    "label": ({"method": "cp_lora", "label": "../x"}, "label\n.*should match pattern"),
    "nan": ({"method": "cp_lora", "alpha": float("nan")}, "alpha\n"),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_setting_is_refused_in_clear_text(settings, message):
    with pytest.raises(ValidationError, match=message):
        READ(settings)


def test_methods_are_read_as_their_own_kind():
    assert isinstance(READ({"method": "encoder"}), WeightTuning)
    assert isinstance(READ({"method": "dora_c"}), AdapterTuning)
