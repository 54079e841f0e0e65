"""A method with several learning rates: each fold takes the best on patients whom it does not test."""

import json

import pytest
from harness.commands import tensors
from harness.in_process import Stop
from harness.tiny_study import TINY, changed

from sahfl.config import Study, parse
from sahfl.errors import ConfigError
from sahfl.events import listening
from sahfl.federation import protocol
from sahfl.federation.requests import Requests
from sahfl.progress import PREPARE_STEPS, RunProgress
from sahfl.results.collect import fold_metrics

RATES = (0.002, 0.05)
LORA = {"method": "cp_lora", "rank": 2}
SEVERAL = LORA | {"learning_rate": list(RATES)}
THREE = changed(TINY, finetune__folds=3, finetune__rounds=1)


def study_of(*methods, **changes):
    return changed(THREE, finetune__methods=list(methods), **changes)


def choices(folder):
    return {(line["method"], line["fold"]): line for line in folder.journal() if line["event"] == "rate_chosen"}


@pytest.fixture(scope="module")
def chosen(federate_once, tmp_path_factory):
    """The run of a study with a federated method and one at a single site, its messages, and its cells."""
    cells = tmp_path_factory.mktemp("rates") / "cells"
    folder, grid = federate_once(study_of(SEVERAL, SEVERAL | {"trained_at": "sah_a"}), cells=cells)
    return folder, grid, cells


@pytest.mark.slow
def test_each_fold_takes_the_rate_that_is_best_on_the_patients_of_the_fold_after_it(chosen):
    folder, _, _ = chosen
    study, found = folder.study(), choices(folder)
    assert set(found) == {(method, fold) for method in ("cp_lora-r2", "cp_lora-r2-at-sah_a") for fold in range(3)}
    for method in study.finetune.methods:
        part = "personal" if method.trained_at else None
        for fold in range(3):
            trials = [fold_metrics(folder, study, trial, fold, part)["dice"] for trial in method.trials]
            line = found[method.id, fold]
            assert line["trials"] == [[rate, dice] for rate, dice in zip(RATES, trials, strict=True)]
            assert line["rate"] == max(zip(trials, (-rate for rate in RATES), strict=True))[1] * -1


@pytest.mark.slow
def test_no_trial_sees_a_patient_of_the_tested_fold(chosen):
    _, grid, _ = chosen
    seen = {}
    for site, message, reply in grid.seen:
        if message.metadata.message_type in (protocol.TRAIN, protocol.EVALUATE):
            task = protocol.read_task(message.content)
            if task.stage == "finetune" and site == "sah_a":
                seen.setdefault((task.method.inner, message.metadata.message_type, task.fold), (task, reply))
    assert {inner for inner, _, _ in seen} == {True, False}
    sizes = {fold: seen[False, protocol.TRAIN, fold][1].content["metrics"]["n_volumes"] for fold in range(3)}
    held_out = {fold: 3 - n for fold, n in sizes.items()}
    for fold in range(3):
        task, reply = seen[True, protocol.TRAIN, fold]
        assert task.evaluated_fold == (fold + 1) % 3
        assert reply.content["metrics"]["n_volumes"] == 3 - held_out[fold] - held_out[(fold + 1) % 3]


@pytest.mark.slow
def test_the_training_at_the_chosen_rate_is_that_of_a_study_which_gives_this_rate(chosen, federate):
    folder, _, _ = chosen
    rates = {fold: folder.rates("cp_lora-r2")[fold] for fold in range(3)}
    ours = tensors(folder.path)
    assert len(ours) == 1 + 3  # the base and an adapter for each fold; none of a trial
    for rate in set(rates.values()):
        given, _ = federate(study_of(LORA | {"learning_rate": rate}), name=f"at {rate:g}")
        theirs = tensors(given.path)
        for fold in [fold for fold, taken in rates.items() if taken == rate]:
            name = f"adapters/cp_lora-r2/fold-{fold}/adapter_model.safetensors"
            assert ours[name] == theirs[name]


@pytest.mark.slow
def test_the_results_have_the_rates_and_no_rows_of_trials(chosen):
    folder, _, _ = chosen
    results = json.loads((folder.path / "results.json").read_text())
    assert [row["id"] for row in results["methods"]] == ["cp_lora-r2", "cp_lora-r2-at-sah_a"]
    for row in results["methods"]:
        taken = list(folder.rates(row["id"]).values())
        assert row["learning_rates"] == [{"rate": rate, "n": taken.count(rate)} for rate in RATES]
    assert {line["method"] for line in results["rounds"]} == {None, "cp_lora-r2", "cp_lora-r2-at-sah_a"}
    assert results["cells"] == {"total": 1 + 2 * 3 * 3, "reused": 0}
    page = (folder.path / "report.html").read_text()
    assert "Learning rates that were chosen in each fold and training" in page


@pytest.mark.slow
def test_another_run_takes_the_cells_of_the_first_trials_included_and_chooses_alike(chosen, federate):
    folder, _, cells = chosen
    again, grid = federate(folder.study().model_dump(mode="json"), name="again", cells=cells)
    messages = [message for _, message, _ in grid.seen if message.metadata.message_type == protocol.TRAIN]
    trained = {protocol.read_header(message.content)["method"] for message in messages}
    assert all("-at-sah_a" in method for method in trained)  # whose networks stayed in the folder of the first run
    assert choices(again) == choices(folder)
    assert tensors(again.path) == tensors(folder.path)


@pytest.mark.slow
def test_an_interrupted_run_keeps_its_choices(chosen, federate):
    def stop_in_fold_1(site, request, reply):
        if request.metadata.message_type == protocol.TRAIN:
            header = protocol.read_header(request.content)
            if (header["method"], header["fold"]) == ("cp_lora-r2", 1):
                raise Stop
        return reply

    folder, _, _ = chosen
    settings = study_of(SEVERAL)
    with pytest.raises(Stop):
        federate(settings, name="stopped", change=stop_in_fold_1)
    went_on, _ = federate(settings, name="stopped")
    assert choices(went_on) == {key: line for key, line in choices(folder).items() if key[0] == "cp_lora-r2"}
    ours = tensors(went_on.path)
    assert ours == {name: value for name, value in tensors(folder.path).items() if name in ours}


@pytest.mark.slow
def test_trials_of_a_method_with_a_part_at_each_site_are_judged_with_that_part(federate):
    method = SEVERAL | {"private_rank": 1, "share_private_at_end": True}
    progress = RunProgress(parse(Study, study_of(method), where="test"))
    with listening(progress.update):
        folder, _ = federate(study_of(method), name="private")
    prepared = PREPARE_STEPS * len(progress.sites)  # no events of it in one process
    assert progress.done + progress.skipped + prepared == progress.total  # each part's evaluation counts
    (found,) = folder.study().finetune.methods
    for fold in range(3):
        for trial in found.trials:
            names = sorted(path.name for path in (folder.path / "evaluation" / trial.id).glob(f"fold-{fold}*"))
            assert names == [f"fold-{fold}-personal.json"]
    assert len(choices(folder)) == 3


@pytest.mark.slow
def test_a_site_that_is_left_out_has_no_say_in_the_rate(federate):
    folder, _ = federate(study_of(SEVERAL | {"left_out": "sah_a"}), name="left out")
    (method,) = folder.study().finetune.methods
    for trial in method.trials:
        sums = folder.evaluation(f"{trial.id}/fold-0")["sums"]
        assert sorted(sums) == ["sah_b", "sah_c"]


@pytest.mark.slow
def test_a_trial_that_a_site_did_not_evaluate_leaves_the_fold_unchosen_until_it_is_evaluated(chosen, federate):
    def fail_once(site, request, reply):
        if request.metadata.message_type == protocol.EVALUATE and site == "sah_b":
            header = protocol.read_header(request.content)
            if (header["method"], header["fold"]) == ("cp_lora-r2@0.05", 1):
                return None
        return reply

    folder, _, _ = chosen
    settings = study_of(SEVERAL, rounds__deadline_s=0.5)
    first, _ = federate(settings, name="one fails", change=fail_once)
    assert {fold for _, fold in choices(first)} == {0, 2}
    (row,) = first.read_json("results.json")["methods"]
    why = "not trained: the choice of learning_rate lacks the evaluation of a trial at sah_b; resume the run"
    assert {(lost["fold"], lost["reason"]) for lost in row["not_evaluated"]} == {(1, why)}
    assert sum(one["n"] for one in row["learning_rates"]) == 2
    again, _ = federate(settings, name="one fails")
    expected = {key: line for key, line in choices(folder).items() if key[0] == "cp_lora-r2"}
    assert choices(again) == expected
    ours = tensors(again.path)
    assert ours == {name: value for name, value in tensors(folder.path).items() if name in ours}


@pytest.mark.slow
def test_a_trial_without_a_patient_to_train_on_does_not_end_the_study(federate):
    settings = study_of(SEVERAL | {"left_out": "sah_a"}, finetune__sites=["sah_a", "sah_b"])
    folder, _ = federate(settings, name="two sites")
    untrained = {line["fold"] for line in folder.journal() if line["event"] == "not_trained" and "@" in line["method"]}
    assert untrained  # sah_b has two patients: where both are left out, nobody trains
    assert folder.read_json("results.json")["methods"][0]["id"] == "cp_lora-r2-without-sah_a"


@pytest.mark.slow
def test_the_progress_of_a_resumed_run_counts_its_trials(chosen, federate):
    folder, _, _ = chosen
    progress = RunProgress(folder.study())
    with listening(progress.update):
        federate(folder.study().model_dump(mode="json"), name="run")
    assert progress.count() == "19 of 19 cells done"


# --- what is asked for, and refused ----------------------------------------------------------------------------------


def test_a_list_in_a_grid_stands_for_methods_and_a_list_in_a_list_for_a_choice():
    settings = changed(THREE, finetune__methods=[])
    settings["finetune"]["grid"] = [LORA | {"rank": [1, 2], "learning_rate": [[0.001, 0.01]]}]
    methods = parse(Study, settings, where="test").finetune.methods
    assert [(method.id, method.learning_rate) for method in methods] == [
        ("cp_lora-r1", (0.001, 0.01)), ("cp_lora-r2", (0.001, 0.01)),
    ]  # fmt: skip
    assert [trial.id for trial in methods[0].trials] == ["cp_lora-r1@0.001", "cp_lora-r1@0.01"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (study_of(SEVERAL, finetune__folds=2), "needs a fold to choose on beside the tested one, so folds: 3 or more"),
        (study_of(LORA | {"learning_rate": [0.01, 0.01]}), "the rates must increase, got 0.01, 0.01"),
        (study_of(LORA | {"learning_rate": [0.01]}), "at least 2 entries"),
        (study_of(LORA | {"inner": True}), "inner is set by sahfl, take it out"),
        (study_of(SEVERAL, SEVERAL | {"label": "@0.002"}), "label"),
        (
            study_of(SEVERAL) | {"data": {"source": "sites"}},
            "choose in a simulation and give one rate",
        ),
    ],
)  # fmt: skip
def test_a_choice_that_cannot_be_made_is_an_error_that_names_the_way_out(settings, expected):
    with pytest.raises(ConfigError, match=expected):
        parse(Study, settings, where="test")


def test_a_plain_list_of_rates_in_a_grid_is_an_error_that_says_what_was_meant():
    settings = changed(THREE, finetune__methods=[])
    settings["finetune"]["grid"] = [LORA | {"learning_rate": [0.001, 0.01]}]
    with pytest.raises(ConfigError, match=r"a choice of rates is a list in a list, learning_rate: \[\[0.001, 0.01\]\]"):
        parse(Study, settings, where="test")


def test_a_label_that_takes_the_name_of_another_row_is_refused():
    private = LORA | {"private_rank": 1}
    with pytest.raises(ConfigError, match="cp_lora-r2-private1-shared: the results have a row of this name"):
        parse(Study, study_of(private, private | {"label": "shared"}), where="test")


def test_the_dry_run_lists_the_trials_too():
    requests = Requests(study := parse(Study, study_of(SEVERAL), where="test"), study.fingerprint())
    listed = [task.method.id for task in requests.trainings("sah_a")]
    assert listed == ["cp_lora-r2@0.002", "cp_lora-r2@0.05", "cp_lora-r2"]
