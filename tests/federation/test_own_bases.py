"""Each pretraining site's own base against that of all, before and after fine-tuning; only a simulation has it."""

import json

import numpy as np
import pytest
from harness.tiny_study import TINY, changed

from sahfl.adapters import digest
from sahfl.adapters.files import load_tensors
from sahfl.config import Study, parse
from sahfl.errors import ConfigError, RunFailed
from sahfl.federation import protocol
from sahfl.federation.server.plan import plan
from sahfl.prediction.networks import adapted_network
from sahfl.progress import RunProgress

CENTRES = ("tbi_a", "tbi_b")
LORA = {"method": "cp_lora", "rank": 2}
GRID = [{"method": "zero_shot", "base_of": [None, "each"]}, LORA | {"base_of": [None, "each"]}]
SETTINGS = changed(TINY, finetune__rounds=1, finetune__methods=[])
SETTINGS["finetune"]["grid"] = GRID


@pytest.fixture(scope="module")
def finished(federate_once):
    return federate_once(SETTINGS)


def trainings(grid):
    """(method in the header, round) -> the sites that trained, and the loss of each."""
    found = {}
    for site, request, reply in grid.seen:
        if request.metadata.message_type == protocol.TRAIN:
            _, header = protocol.read_request(request.content)
            loss = reply.content.metric_records["metrics"]["loss"]
            found.setdefault((header.method, header.round), {})[site] = loss
    return found


def results_of(folder):
    return json.loads((folder.path / "results.json").read_text())


def base(folder, name):
    return load_tensors(folder.path / "base" / f"{name}.safetensors")[0]


@pytest.mark.slow
def test_each_centre_trains_its_own_base_in_its_own_steps_on_the_batches_that_it_has_in_the_federation(finished):
    folder, grid = finished
    found = trainings(grid)
    together = {round_: found["pretrain", round_] for round_ in (1, 2)}
    for site in CENTRES:
        assert [set(found[f"pretrain-at-{site}", round_]) for round_ in (1, 2)] == [{site}] * 2
        assert found[f"pretrain-at-{site}", 1][site] == together[1][site]  # the same start and batches
        assert found[f"pretrain-at-{site}", 2][site] != together[2][site]
    bases = [base(folder, name) for name in ("base", "base-of-tbi_a", "base-of-tbi_b")]
    assert len({digest(state) for state in bases}) == 3


@pytest.mark.slow
def test_fine_tuning_and_evaluation_use_the_base_that_the_method_names(finished):
    folder, grid = finished
    used = {
        header.method: header.base
        for _, request, _ in grid.seen
        if request.metadata.message_type == protocol.EVALUATE
        for _, header in [protocol.read_request(request.content)]
    }
    for end, name in (("", "base"), ("-from-tbi_a", "base-of-tbi_a"), ("-from-tbi_b", "base-of-tbi_b")):
        assert used[f"zero_shot{end}"] == used[f"cp_lora-r2{end}"] == digest(base(folder, name))


@pytest.mark.slow
def test_a_network_from_a_run_stands_on_its_own_base(finished):
    folder, _ = finished
    study = folder.study()
    by_id = {method.id: method for method in study.finetune.methods}
    _, sha256 = adapted_network(folder.path, study, by_id["zero_shot-from-tbi_b"], 0)
    assert sha256 == digest(base(folder, "base-of-tbi_b"))
    nets = [adapted_network(folder.path, study, by_id[f"cp_lora-r2-from-{site}"], 0)[0] for site in CENTRES]
    first, second = ({name: value.detach().numpy() for name, value in net.named_parameters()} for net in nets)
    assert any(not np.array_equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
def test_the_row_of_each_is_the_mean_over_the_centres_and_is_compared_with_the_federated_base(finished):
    folder, _ = finished
    results = results_of(folder)
    rows = {row["id"]: row for row in results["methods"]}
    for name in ("zero_shot", "cp_lora-r2"):
        own = [rows[f"{name}-from-{site}"] for site in CENTRES]
        each = rows[f"{name}-from-each"]
        assert (each["trained_at"], own[0]["trained_at"]) == ("from-each", "from-tbi_a")
        means = [row["metrics"]["dice"]["overall"]["mean"] for row in own]
        assert each["metrics"]["dice"]["overall"]["mean"] == pytest.approx(sum(means) / 2, abs=1e-9)
        assert (each["metrics"]["dice"]["overall"]["n"], len(each["repeats"])) == (7, 2)
    pairs = {(row["method"], row["reference"]) for row in results["comparisons"]}
    assert {pair for pair in pairs if "from" in pair[0] + pair[1]} == {
        ("zero_shot", "zero_shot-from-each"),
        ("cp_lora-r2", "cp_lora-r2-from-each"),
    }
    (found,) = [finding for finding in results["findings"] if finding["id"] == "federated_base"]
    assert len(found["pairs"]) == 2
    assert results["cells"]["total"] == 1 + 2 + 6 * 2


@pytest.mark.slow
def test_a_second_call_trains_nothing_and_a_second_run_takes_every_cell_from_the_first(federate, tmp_path):
    cells = tmp_path / "cells"
    federate(SETTINGS, name="first", cells=cells)
    _, again = federate(SETTINGS, name="first", cells=cells)
    _, other = federate(SETTINGS, name="second", cells=cells)
    for grid in (again, other):
        assert not {request.metadata.message_type for _, request, _ in grid.seen} & {protocol.TRAIN, protocol.EVALUATE}
    study = parse(Study, SETTINGS, where="test")
    planned = {item.id: item for item in plan(study, cells)}
    assert (planned["pretrain-at-tbi_a"].trained_at, planned["pretrain-at-tbi_a"].n_cells) == ("tbi_a", 1)
    assert planned["pretrain-at-tbi_a"].seconds is not None


def test_the_pretraining_of_a_centre_counts_for_the_progress():
    assert "of 15 cells" in RunProgress(parse(Study, SETTINGS, where="test")).count()
    methods = [[LORA | {"base_of": site} for site in sites] for sites in (["tbi_a", None], ["tbi_a", "tbi_b"])]
    one, two = (RunProgress(parse(Study, changed(TINY, finetune__methods=each), where="test")) for each in methods)
    assert two.total - one.total == 2 * 2  # rounds and steps of tbi_b


def problem(**changes):
    with pytest.raises(ConfigError) as caught:
        parse(Study, changed(TINY, **changes), where="test")
    return str(caught.value)


OWN = [LORA | {"base_of": "tbi_a"}]


def test_a_base_that_nobody_can_train_is_refused():
    text = problem(finetune__methods=[LORA | {"base_of": "sah_a"}])
    assert (
        "cp_lora-r2-from-sah_a: base_of names sah_a, expected one of several pretrain.sites, got tbi_a, tbi_b" in text
    )
    assert "expected one of several pretrain.sites, got tbi_a" in problem(
        finetune__methods=OWN, pretrain__sites=["tbi_a"]
    )
    assert "base_of is for a training at all sites" in problem(finetune__methods=[OWN[0] | {"trained_at": "pooled"}])
    scratch = [{"method": "full", "start": "scratch", "base_of": "tbi_a"}]
    assert "start: scratch has no base, but base_of names tbi_a" in problem(finetune__methods=scratch)


def test_a_study_at_hospitals_has_no_base_of_one_site():
    text = problem(finetune__methods=OWN, data={"source": "sites"})
    assert "cp_lora-r2-from-tbi_a: base_of with data.source: sites; one site's network would leave it" in text


def test_a_hospital_with_the_most_open_policy_pretrains_no_base_of_its_own(federate):
    settings = changed(TINY, finetune__methods=OWN)
    with pytest.raises(RunFailed, match=r"pretrain-at-tbi_a, round 1, .*tbi_a: .*PolicyRefused"):
        federate(settings, site={"simulated": False}, name="hospitals")
