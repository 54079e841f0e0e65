"""Evaluations after earlier rounds of a training (``finetune.evaluated_rounds``)."""

import json

import pytest
from harness.in_process import Stop, stop_at
from harness.tiny_study import TINY, changed

from sahfl.config import Study, parse
from sahfl.errors import ConfigError
from sahfl.federation import protocol
from sahfl.federation.requests import Requests
from sahfl.federation.site.case_results import read_results
from sahfl.federation.site.kinds.evaluate import named
from sahfl.federation.site.ledger import Ledger
from sahfl.report.training_figures import draw_dice_by_round

PRIVATE = {"method": "cp_lora", "rank": 2, "private_rank": 1}
METHODS = [{"method": "zero_shot"}, {"method": "cp_lora", "rank": 2}, PRIVATE]
PLAIN = changed(TINY, finetune__rounds=3, finetune__methods=METHODS, evaluation__threshold=0.02)
SETTINGS = changed(PLAIN, finetune__evaluated_rounds=[1, 2])
SITES = ["sah_a", "sah_b", "sah_c"]


@pytest.fixture(scope="module")
def finished(federate_once):
    return federate_once(SETTINGS)


@pytest.fixture(scope="module")
def without(federate_once):
    """The same study without evaluations after earlier rounds."""
    return federate_once(PLAIN, name="without")


def results_of(folder):
    return json.loads((folder.path / "results.json").read_text())


def evaluations(grid):
    """Method, fold, round and part of each request of an evaluation to the first site."""
    found = []
    for site, request, _ in grid.seen:
        if request.metadata.message_type == protocol.EVALUATE and site == SITES[0]:
            task, header = protocol.read_request(request.content)
            assert header.round == task.round
            found.append((header.method, header.fold, task.round, task.part))
    return found


def test_each_training_is_evaluated_after_the_named_rounds_and_after_the_last(finished):
    _, grid = finished
    asked = evaluations(grid)
    assert [(round_, part) for method, fold, round_, part in asked if (method, fold) == ("cp_lora-r2", 0)] == [
        (1, None),
        (2, None),
        (0, None),
    ]
    personal = [(round_, part) for method, fold, round_, part in asked if (method, fold) == ("cp_lora-r2-private1", 1)]
    assert personal == [(1, "personal"), (2, "personal"), (0, "personal"), (0, "shared")]
    assert [round_ for method, _, round_, _ in asked if method == "zero_shot"] == [0, 0]


def test_the_results_have_dice_and_differences_by_round_over_the_same_patients(finished):
    results = results_of(finished[0])
    assert [entry["round"] for entry in results["by_round"]] == [1, 2]
    last = {row["id"]: row["metrics"]["dice"]["overall"] for row in results["methods"]}
    for entry in results["by_round"]:
        assert [row["id"] for row in entry["methods"]] == ["cp_lora-r2", "cp_lora-r2-private1"]
        assert all(row["n"] == last[row["id"]]["n"] == 7 for row in entry["methods"])
        means = {row["id"]: row["mean"] for row in entry["methods"]}
        (gap,) = entry["comparisons"]
        assert (gap["method"], gap["reference"]) == ("cp_lora-r2-private1", "cp_lora-r2")
        assert gap["difference"] == pytest.approx(means["cp_lora-r2-private1"] - means["cp_lora-r2"])
    means = [[row["mean"] for row in entry["methods"]] for entry in results["by_round"]]
    assert means[0] != means[1]


def test_the_evaluations_change_nothing_of_the_training_nor_of_what_the_sites_keep(finished, without):
    (folder, _), (plain, _) = finished, without
    ours, theirs = results_of(folder), results_of(plain)
    assert ours["methods"] == theirs["methods"]
    assert "by_round" in theirs
    assert theirs["by_round"] == []
    for site in SITES:
        rows, others = (list(read_results(run.path / "sites" / site)) for run in (folder, plain))
        assert [(row.method, row.part, row.fold, row.result) for row in rows] == [
            (row.method, row.part, row.fold, row.result) for row in others
        ]


def test_a_study_without_them_has_the_fingerprint_of_before():
    study = parse(Study, PLAIN, where="test")
    assert "evaluated_rounds" not in study.model_dump(mode="json")["finetune"]
    assert parse(Study, SETTINGS, where="test").fingerprint() != study.fingerprint()
    assert (
        parse(Study, changed(PLAIN, finetune__evaluated_rounds=[]), where="test").fingerprint() == study.fingerprint()
    )


@pytest.mark.parametrize("nth", [23, 30, 37])
def test_a_run_that_was_stopped_anywhere_ends_with_the_same_results(federate, finished, nth):
    one = changed(SETTINGS, finetune__methods=METHODS[2:])
    with pytest.raises(Stop):
        federate(one, change=stop_at(nth))
    folder, _ = federate(one)
    rows = {row["id"]: row for entry in results_of(finished[0])["by_round"][1:] for row in entry["methods"]}
    (entry,) = results_of(folder)["by_round"][1:]
    assert entry["methods"] == [rows["cp_lora-r2-private1"]]


def test_a_site_that_evaluated_a_round_still_trains(finished):
    """Only the evaluation after the training ends it at the site."""
    _, grid = finished
    kinds = [
        (request.metadata.message_type, protocol.read_request(request.content)[1].round)
        for site, request, _ in grid.seen
        if site == SITES[0] and protocol.read_request(request.content)[1].training == _training(grid)
    ]
    assert kinds == [
        (protocol.TRAIN, 1),
        (protocol.EVALUATE, 1),
        (protocol.TRAIN, 2),
        (protocol.EVALUATE, 2),
        (protocol.TRAIN, 3),
        (protocol.EVALUATE, 0),
    ]


def _training(grid):
    headers = (protocol.read_request(request.content)[1] for _, request, _ in grid.seen)
    return next(header.training for header in headers if (header.method, header.fold) == ("cp_lora-r2", 0))


def test_a_site_that_misses_an_evaluation_of_a_round_is_noted_and_trains_on(federate):
    def lose(site, request, reply):
        task, _ = protocol.read_request(request.content)
        asked = request.metadata.message_type, task.round, site
        return None if asked == (protocol.EVALUATE, 1, "sah_b") else reply

    one = changed(SETTINGS, finetune__methods=METHODS[1:2], finetune__evaluated_rounds=[1], rounds__deadline_s=0.2)
    folder, _ = federate(one, change=lose)
    lines = [line for line in folder.journal() if line["event"] == "not_evaluated"]
    assert [(line["site"], line["fold"], line["after_round"]) for line in lines] == [("sah_b", 0, 1), ("sah_b", 1, 1)]
    (entry,) = results_of(folder)["by_round"]
    assert entry["methods"][0]["n"] == 5
    assert results_of(folder)["methods"][0]["metrics"]["dice"]["overall"]["n"] == 7


def test_finished_cells_come_back_with_their_rounds_and_not_for_other_rounds(federate, tmp_path):
    one = changed(SETTINGS, finetune__methods=METHODS[1:2])
    first, _ = federate(one, cells=tmp_path / "cells")
    again, grid = federate(one, cells=tmp_path / "cells", name="again")
    assert results_of(again)["by_round"] == results_of(first)["by_round"]
    assert evaluations(grid) == []
    _, grid = federate(changed(one, finetune__evaluated_rounds=[1]), cells=tmp_path / "cells", name="other")
    assert [round_ for _, _, round_, _ in evaluations(grid)] == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("rounds", "problem"),
    [
        ([2, 1], "finetune.evaluated_rounds: expected each round once and in order, got [2, 1]"),
        ([1, 1], "finetune.evaluated_rounds: expected each round once and in order, got [1, 1]"),
        ([3], "finetune.evaluated_rounds: the last round, 3, is always evaluated; expected earlier ones, got 3"),
        ([0], "finetune.evaluated_rounds"),
    ],
)
def test_rounds_that_cannot_be_evaluated_are_refused(rounds, problem):
    with pytest.raises(ConfigError) as error:
        parse(Study, changed(PLAIN, finetune__evaluated_rounds=rounds), where="study.yaml")
    assert problem in str(error.value)


def test_masked_studies_have_one_evaluation_of_a_training():
    masked = changed(SETTINGS, rounds__masking={"clip": 1.0}, finetune__methods=METHODS[1:2])
    masked = changed(masked, pretrain__sites=["tbi_a", "tbi_b"])
    with pytest.raises(ConfigError, match=r"finetune.evaluated_rounds with rounds.masking; .*, take the setting out"):
        parse(Study, masked, where="test")


def test_the_dry_run_counts_them():
    study = parse(Study, SETTINGS, where="test")
    requests = Requests(study, study.fingerprint())
    tasks = requests.evaluations("sah_a")
    assert len(tasks) == 1 + 3 + 4
    assert named(tasks) == (
        " of zero_shot, cp_lora-r2 (and after 2 earlier rounds),"
        " cp_lora-r2-private1 (and after 2 earlier rounds), cp_lora-r2-private1"
    )


def test_the_figure_has_a_line_per_method_from_the_first_named_round_to_the_last(finished, without):
    figure = draw_dice_by_round(results_of(finished[0]))
    (axes,) = figure.figure.axes
    assert [list(bars.lines[0].get_ydata()) for bars in axes.containers] == [
        [
            *(
                row["mean"]
                for entry in results_of(finished[0])["by_round"]
                for row in entry["methods"]
                if row["id"] == id_
            ),
            next(m["metrics"]["dice"]["overall"]["mean"] for m in results_of(finished[0])["methods"] if m["id"] == id_),
        ]
        for id_ in ("cp_lora-r2", "cp_lora-r2-private1")
    ]
    assert "after round 1" in figure.alt
    assert draw_dice_by_round(results_of(without[0])) is None


def test_hospitals_do_it_too_and_their_ledgers_count_each(federate):
    one = changed(SETTINGS, finetune__methods=METHODS[2:], finetune__evaluated_rounds=[2])
    folder, grid = federate(one, site={"simulated": False})
    (entry,) = results_of(folder)["by_round"]
    assert [(row["id"], row["n"]) for row in entry["methods"]] == [("cp_lora-r2-private1", 7)]
    assert not [line for line in folder.journal() if line["event"] == "not_evaluated"]
    for site in grid.nodes.values():
        if site.name in SITES:
            used = Ledger(site).usage().values()
            assert {use.evaluations for use in used} == {3}  # after round 2, with its own part at the end, without it
            assert len(list(read_results(site.folder))) == 2 * len(used)
