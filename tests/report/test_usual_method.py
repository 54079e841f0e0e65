"""Which method ``sahfl predict`` and Python take if none is named."""

import json

import pytest
from harness.tiny_study import TINY, changed
from test_report_choice import CASES, CP, FULL, LORA, results_of

from sahfl.config import Study, parse
from sahfl.errors import DataError, RunError
from sahfl.prediction.networks import usual_method

METHODS = [{"method": "zero_shot"}, {"method": "lora_c"}, {"method": "cp_lora"}, {"method": "full"}]


def usual(folder, results=None, methods=METHODS):
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))
    return usual_method(parse(Study, changed(TINY, finetune__methods=methods), where="test"), folder)


@pytest.mark.parametrize(("verdicts", "recommended"), CASES.values(), ids=CASES.keys())
def test_it_is_the_one_that_the_report_recommends_or_else_the_first_adapter(tmp_path, verdicts, recommended):
    assert usual(tmp_path, results_of(FULL, LORA, CP, **verdicts)) == (recommended[0] or "lora_c-r8")


def test_a_run_without_results_takes_the_first_adapter(tmp_path):
    assert usual(tmp_path) == "lora_c-r8"


def test_damaged_results_are_no_reason_to_take_another_method(tmp_path):
    with pytest.raises(DataError, match="results"):
        usual(tmp_path, {"schema": 3})
    with pytest.raises(RunError, match=r"results\.json is not a mapping"):
        usual(tmp_path, [])


def test_a_method_of_which_the_study_has_only_later_repeats_is_taken_in_the_first_of_these(tmp_path):
    methods = [{"method": "zero_shot"}, {"method": "cp_lora", "repeat": 2}, {"method": "cp_lora", "repeat": 3}]
    results = results_of(CP, cp_lora_r8__zero_shot="better")
    assert usual(tmp_path, results, methods) == "cp_lora-r8-repeat2"


def test_the_first_adapter_is_one_of_all_sites_if_there_is_one(tmp_path):
    parts = [{"left_out": "sah_a"}, {"trained_at": "pooled"}, {"base_of": "tbi_a"}]
    methods = [{"method": "cp_lora"} | part for part in parts]
    assert usual(tmp_path, methods=[*methods, {"method": "lora_c"}]) == "lora_c-r8"
    assert usual(tmp_path, methods=methods) == "cp_lora-r8-without-sah_a"
