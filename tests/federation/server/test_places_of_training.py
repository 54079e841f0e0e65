"""Trainings to compare a federation with: all patients in one place, one site alone; and repeats."""

import json
from pathlib import Path

import pytest
from harness.commands import tensors
from harness.tiny_study import TINY, changed

from sahfl.config import POOLED, Study, parse
from sahfl.errors import DataError
from sahfl.federation import protocol
from sahfl.federation.server.roster import cell_sites, contributors, describe_pool, untested_text
from sahfl.federation.site.dry_run import dry_run
from sahfl.federation.site.site import Site
from sahfl.simulation.pooled import PooledSite
from sahfl.simulation.simulate import site_configs
from sahfl.task import SiteDescription

SITES = ("sah_a", "sah_b", "sah_c")
LORA = {"method": "cp_lora", "rank": 2}
PLACES = [LORA, *(LORA | {"trained_at": place} for place in ("sah_a", "pooled", "pooled_steps")), LORA | {"repeat": 2}]
STUDY = changed(TINY, finetune__methods=PLACES)


def study_of(*methods, **changes):
    return parse(Study, changed(TINY, finetune__methods=list(methods), **changes), where="test")


def asked(grid, kind):
    """(method, fold) -> the sites that were sent requests of a kind, and the first of these tasks."""
    found = {}
    for site, message, _ in grid.seen:
        if message.metadata.message_type == kind:
            task = protocol.read_task(message.content)
            if task.stage == "finetune":
                sites, _ = found.setdefault((task.method.id, task.fold), ([], task))
                sites.append(site)
    return {key: (sorted(set(sites)), task) for key, (sites, task) in found.items()}


# --- whole studies ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_method_is_trained_at_its_place_and_the_federated_one_stays_as_it_was(federate):
    folder, grid = federate(STUDY, name="places")
    trained, evaluated = asked(grid, protocol.TRAIN), asked(grid, protocol.EVALUATE)
    places = {
        "cp_lora-r2": list(SITES), "cp_lora-r2-at-sah_a": ["sah_a"],
        "cp_lora-r2-pooled": [POOLED], "cp_lora-r2-pooled_steps": [POOLED], "cp_lora-r2-repeat2": list(SITES),
    }  # fmt: skip
    assert {key: sites for key, (sites, _) in trained.items()} == {
        (method, fold): sites for method, sites in places.items() for fold in (0, 1)
    }
    assert {key: tuple(sites) for key, (sites, _) in evaluated.items()} == {
        (method, fold): ("sah_a",) if method == "cp_lora-r2-at-sah_a" else SITES for method in places for fold in (0, 1)
    }
    assert {method: trained[method, 0][1].local.steps for method in places} == dict.fromkeys(places, 2) | {
        "cp_lora-r2-pooled": 6
    }
    results = json.loads((folder.path / "results.json").read_text())
    assert [site["site"] for site in results["sites"]] == ["tbi_a", "tbi_b", *SITES]

    alone, _ = federate(changed(TINY, finetune__methods=[LORA]), name="alone")
    ours, theirs = tensors(folder.path), tensors(alone.path)
    assert len(ours) == 1 + 2 * 4  # nothing of the training at one site
    assert len(theirs) == 1 + 2
    assert {name: ours[name] for name in theirs} == theirs
    assert ours["adapters/cp_lora-r2-repeat2/fold-0/adapter_model.safetensors"] not in theirs.values()
    notes = {
        method: json.loads((folder.path / f"adapters/{method}/fold-0/adapter_config.json").read_text())["sahfl"]
        for method in places
        if method != "cp_lora-r2-at-sah_a"
    }
    assert {method: tuple(note["sites"]) for method, note in notes.items()} == {
        "cp_lora-r2": SITES, "cp_lora-r2-pooled": SITES, "cp_lora-r2-pooled_steps": SITES, "cp_lora-r2-repeat2": SITES,
    }  # fmt: skip


def test_the_network_of_a_training_at_one_site_never_leaves_it(federate):
    folder, grid = federate(changed(TINY, finetune__methods=[LORA | {"trained_at": "sah_a"}]))
    messages = [
        (site, content)
        for site, request, reply in grid.seen
        for content in (request.content, reply.content)
        if request.metadata.message_type in (protocol.TRAIN, protocol.EVALUATE)
        if protocol.read_header(content)["stage"] == "finetune"
    ]
    assert len(messages) == 2 * 2 * (2 + 1)  # folds, rounds and an evaluation, requests and replies
    assert {site for site, _ in messages} == {"sah_a"}
    for _, content in messages:
        assert "layout" not in content or list(content["layout"]["names"]) == []
    (row,) = json.loads((folder.path / "results.json").read_text())["methods"]
    assert [(part["site"], part["n"]) for part in row["by_site"]] == [("sah_a", 3), ("sah_b", 0), ("sah_c", 0)]
    assert len(list((folder.path / "sites" / "sah_a" / "private").glob("*-final.safetensors"))) == 2
    assert not (folder.path / "adapters").exists()


@pytest.mark.slow
def test_a_pooled_round_counts_every_site_s_training_patients(federate):
    folder, _ = federate(changed(TINY, finetune__methods=[LORA | {"trained_at": "pooled"}]))
    results = json.loads((folder.path / "results.json").read_text())
    held_out = {fold["fold"]: fold["n_patients"] for fold in results["support"]["folds"]}
    rounds = [line for line in results["rounds"] if line["stage"] == "finetune"]
    assert [(line["fold"], [(used["site"], used["n_volumes"]) for used in line["used"]]) for line in rounds] == [
        (fold, [(POOLED, 7 - held_out[fold])]) for fold in (0, 0, 1, 1)
    ]


@pytest.mark.slow
def test_a_training_at_a_site_that_is_not_there_is_left_out_with_the_reason_and_the_others_go_on(federate):
    def absent(site, request, reply):
        return None if site == "sah_b" and request.metadata.message_type == protocol.DESCRIBE else reply

    methods = [LORA | {"trained_at": "sah_b"}, LORA | {"trained_at": "sah_a"}]
    settings = changed(TINY, finetune__methods=methods, rounds__deadline_s=0.2)
    folder, _ = federate(settings, change=absent)
    results = json.loads((folder.path / "results.json").read_text())
    lost, kept = results["methods"]
    assert lost["failed"]
    assert {item["reason"] for item in lost["not_evaluated"]} == {"not trained: sah_b does not take part"}
    assert (lost["trainable"], kept["failed"]) == (kept["trainable"], None)
    assert {(line["method"], line["fold"]) for line in folder.journal() if line["event"] == "not_trained"} == {
        ("cp_lora-r2-at-sah_b", 0), ("cp_lora-r2-at-sah_b", 1),
    }  # fmt: skip


# --- the pool --------------------------------------------------------------------------------------------------------


@pytest.fixture
def pool(scans):
    """The pool over the prepared sites, and the sites themselves."""
    configs = site_configs(study_of(LORA | {"trained_at": "pooled"}), scans)
    members = [Site(config) for config in configs if config.name in SITES]
    assert [config.name for config in configs][-1] == POOLED
    return PooledSite(configs[-1]), members


@pytest.mark.parametrize("fold", [0, 1])
def test_a_pool_trains_on_exactly_the_sites_training_patients_and_on_nobody_held_out(pool, fold):
    site, members = pool
    folds = {"fold": fold, "n_folds": 2, "seed": 3}
    chosen = site.training_cases(**folds)
    expected = [item for member in members for item in member.training_cases(**folds)]
    assert [item.content for item in chosen] == [item.content for item in expected]
    held_out = {item.content for member in members for item in member.held_out_cases(**folds)}
    assert held_out
    assert not held_out & {item.content for item in chosen}
    assert len(held_out) + len(chosen) == 7
    fewer = site.training_cases(**folds, most=1)
    assert [item.case.patient for item in fewer] == [
        item.case.patient for member in members for item in member.training_cases(**folds, most=1)
    ]
    assert len(fewer) == len(members)  # as many at each member


def test_a_pool_reads_slices_from_its_members_caches(pool):
    site, members = pool
    study = study_of(LORA)
    chosen = site.training_cases(fold=0, n_folds=2, seed=3)
    assert len(site.load_views(chosen, study.views)) == len(chosen)
    assert not (site.config.folder / "cache").exists()
    assert all(any((member.config.folder / "cache").rglob("*.slices")) for member in members)


def test_a_pool_has_no_scans_of_its_own(pool):
    with pytest.raises(DataError, match="site pooled: has no scans of its own"):
        pool[0].check(lambda done, total: None)


def described(name, n, held_out):
    return SiteDescription(
        site=name, source="phantom", n_volumes=n, n_patients=n, n_positive=n, volume_ml=1.5 * n,
        fold_sizes=(held_out, n - held_out), fold_positive=(held_out, n - held_out), data="0" * 15 + name[-1],
        software="0" * 16, batches="0" * 16, confirmations=0, n_refused=1, findings={},
    )  # fmt: skip


FOUND = {"sah_a": described("sah_a", 3, 1), "sah_b": described("sah_b", 2, 2), "tbi_a": described("tbi_a", 9, 4)}


def test_the_counts_of_a_pool_are_the_sums_of_the_members_that_take_part():
    study = study_of(LORA | {"trained_at": "pooled"})
    pool = describe_pool(study, FOUND)
    assert (pool.n_volumes, pool.n_patients, pool.fold_sizes, pool.volume_ml) == (5, 5, (3, 2), 7.5)
    assert pool.data != describe_pool(study, FOUND | {"sah_b": described("sah_a", 2, 2)}).data
    assert describe_pool(study, {}) is None


def test_who_trains_a_fold_where_a_site_is_absent_or_has_nobody_left():
    federated, alone, pooled = LORA, LORA | {"trained_at": "sah_b"}, LORA | {"trained_at": "pooled_steps"}
    study = study_of({"method": "zero_shot"}, federated, alone, pooled)
    assert [study.training_sites(method) for method in study.finetune.methods] == [(), SITES, ("sah_b",), (POOLED,)]
    found = FOUND | {POOLED: describe_pool(study, FOUND)}
    sites = {fold: [cell_sites(study, method, fold, found) for method in study.finetune.methods[1:]] for fold in (0, 1)}
    assert sites == {0: [("sah_a", "sah_c"), (), (POOLED,)], 1: [SITES, ("sah_b",), (POOLED,)]}
    assert [contributors(study, method, found) for method in study.finetune.methods[1:]] == [
        ("sah_a", "sah_b"), ("sah_b",), ("sah_a", "sah_b"),
    ]  # fmt: skip


# --- what a hospital is told -----------------------------------------------------------------------------------------


def test_a_dry_run_names_only_a_site_s_own_trainings_and_what_stays_of_a_training_alone():
    study = study_of(LORA, LORA | {"trained_at": "sah_a"}, LORA | {"trained_at": "sah_b"})
    (site,) = [config for config in site_configs(study, Path("work")) if config.name == "sah_a"]
    said = dry_run(site, study)
    trained = [line for line in said.splitlines() if line.startswith("training ")]
    assert trained == ["training cp_lora-r2, each round:", "training cp_lora-r2-at-sah_a, each round:"]
    federated, alone = said.split("training cp_lora-r2-at-sah_a", 1)
    assert "stays:" not in federated
    assert "no tensor leaves: this site trains alone" in alone
    assert "stays: all that the method trains:" in alone


def test_folds_in_which_a_site_tests_nobody_are_counted():
    text = "nobody is tested there in 1 of 2 folds for 2 patient(s); choose fewer (finetune.folds)"
    assert untested_text(FOUND["sah_b"]) == text
    assert untested_text(FOUND["sah_a"]) == ""
