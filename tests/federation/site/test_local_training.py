"""Options of local training over whole rounds: FedProx, and norms that stay at the sites (FedBN)."""

import json
from dataclasses import replace

import numpy as np
import pytest
from harness.in_process import Stop, stop_at
from harness.tiny_study import TINY, changed

from sahfl.adapters import exchanged
from sahfl.adapters.attach import norm_tensors
from sahfl.adapters.files import load_tensors, save_tensors
from sahfl.config import LocalTraining, Study, parse
from sahfl.federation.site.kept import KEPT
from sahfl.federation.site.local_norms import keep_own, put_own
from sahfl.networks import staying, whole_network
from sahfl.payload import Header
from sahfl.task import Task

STUDY = parse(Study, TINY, where="test")
HEADER = Header("study", stage="finetune", method="full", fold=0, round=0, base="b")
LOCAL = changed(
    TINY,
    pretrain__local__local_norms=True,
    finetune__local__local_norms=True,
    finetune__methods=[{"method": "full"}],
    finetune__folds=2,
)


def a_net():
    return whole_network(STUDY.views, STUDY.model, STUDY.seed)


def a_task(**options):
    local = LocalTraining(steps=1, **{"local_norms": True} | options)
    return Task(stage="finetune", seed=3, views=STUDY.views, model=STUDY.model, folds=2, local=local)


NORMS = norm_tensors(a_net())


def norms_of(value):
    return {name: tensor + np.float32(value) for name, tensor in exchanged.read(a_net()).items() if name in NORMS}


def put(folder, *, after_round):
    net = a_net()
    put_own(net, a_task(), folder, HEADER, after_round=after_round)
    return exchanged.read(net)


def assert_norms(found, value):
    start = exchanged.read(a_net())
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, start[name] + np.float32(value) if name in NORMS else start[name])


# --- FedProx --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_with_a_proximal_term_every_site_s_change_is_shorter(federate):
    lengths = []
    for index, proximal in enumerate((0.0, 100.0)):
        local = {"steps": 4, "batch_size": 2, "proximal": proximal}
        settings = changed(TINY, finetune__rounds=1, finetune__local=local)
        folder, _ = federate(settings, name=f"run-{index}")
        (line,) = [n for n in folder.journal() if n["event"] == "round" and n.get("fold") == 0]
        lengths.append(line["norms"])
    free, pulled = lengths
    assert free.keys() == pulled.keys() == {"sah_a", "sah_b", "sah_c"}
    assert all(pulled[site] < free[site] for site in free)


# --- local norms: the files of a site -------------------------------------------------------------------------------


def test_weights_and_biases_of_all_norms_stay_and_nothing_else():
    assert len(NORMS) == 2 * 18  # two norms in each of four depths down, the bottleneck, and four depths up
    assert all(".adn.N." in name for name in NORMS)
    assert staying(a_net(), a_task()) == NORMS
    assert staying(a_net(), a_task(local_norms=False)) == ()


def test_a_site_without_norms_of_its_own_uses_those_it_received(tmp_path):
    assert_norms(put(tmp_path, after_round=4), 0)


def test_a_round_that_is_asked_again_starts_from_the_norms_of_the_round_before(tmp_path):
    for round_ in (1, 2):
        keep_own(tmp_path, replace(HEADER, round=round_), norms_of(round_))
    assert_norms(put(tmp_path, after_round=1), 1)  # round 2, again
    assert_norms(put(tmp_path, after_round=2), 2)


def test_a_site_that_missed_rounds_uses_the_last_norms_it_has(tmp_path):
    keep_own(tmp_path, replace(HEADER, round=2), norms_of(2))
    assert_norms(put(tmp_path, after_round=50), 2)
    keep_own(tmp_path, replace(HEADER, round=51), norms_of(51))
    assert_norms(put(tmp_path, after_round=50), 2)


def test_the_last_rounds_are_kept_and_those_that_the_server_went_back_behind_are_not(tmp_path):
    for round_ in range(1, 7):
        keep_own(tmp_path, replace(HEADER, round=round_), norms_of(round_))
    assert len(list((tmp_path / "norms").iterdir())) == KEPT
    keep_own(tmp_path, replace(HEADER, round=4), norms_of(40))
    assert [path.name[-17:-12] for path in (tmp_path / "norms").iterdir()] == ["00004"]
    assert_norms(put(tmp_path, after_round=9), 40)


def test_a_damaged_file_and_one_of_other_tensors_are_passed_over(tmp_path):
    for round_ in (1, 2, 3):
        keep_own(tmp_path, replace(HEADER, round=round_), norms_of(round_))
    *_, second, third = sorted((tmp_path / "norms").iterdir())
    third.write_bytes(third.read_bytes()[:-7])
    save_tensors(second, dict(list(norms_of(2).items())[1:]))
    assert_norms(put(tmp_path, after_round=3), 1)


@pytest.mark.parametrize("other", [{"study": "x"}, {"stage": "pretrain"}, {"method": "decoder"}, {"fold": 1}])
def test_each_study_stage_method_and_fold_has_norms_of_its_own(tmp_path, other):
    keep_own(tmp_path, replace(HEADER, round=1, **other), norms_of(1))
    assert_norms(put(tmp_path, after_round=1), 0)


def test_nothing_that_a_server_sent_becomes_a_path(tmp_path):
    keep_own(tmp_path, replace(HEADER, round=1, method="../../x", study="/etc"), norms_of(1))
    (path,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert path.parent == tmp_path / "norms"


# --- local norms: whole studies -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_own_norms(federate_once):
    """A whole study in which every site keeps norms of its own."""
    return federate_once(LOCAL)


def test_norms_never_leave_a_site_and_the_server_s_stay_as_they_were(with_own_norms):
    folder, grid = with_own_norms
    replies = [reply.content for _, request, reply in grid.seen if request.metadata.message_type == "train"]
    assert len(replies) == 2 * 2 + 2 * 2 * 3  # rounds x sites; folds x rounds x sites
    for content in replies:
        assert not set(content["layout"]["names"]) & set(NORMS)
        assert len(content["layout"]["names"]) == len(exchanged.read(a_net())) - len(NORMS)
    base, _ = load_tensors(folder.path / "base" / "base.safetensors")
    start = exchanged.read(a_net())
    assert all((base[name] == start[name]).all() for name in NORMS)
    assert any((base[name] != start[name]).any() for name in base)
    results = json.loads((folder.path / "results.json").read_text())
    assert [method["method"] for method in results["methods"]] == ["full"]


def test_each_site_trains_norms_of_its_own(with_own_norms):
    folder, _ = with_own_norms
    own = {}
    for site in ("tbi_a", "tbi_b", "sah_a", "sah_b"):
        paths = sorted((folder.path / "sites" / site / "norms").iterdir())
        assert len(paths) == (2 if site.startswith("tbi") else 4)  # rounds; folds x rounds
        own[site], _ = load_tensors(paths[1])
        assert tuple(own[site]) == NORMS
    assert any((own["tbi_a"][name] != own["tbi_b"][name]).any() for name in NORMS)


def predictions(folder, site):
    lines = (folder.path / "sites" / site / "cases.jsonl").read_text().splitlines()
    return {(row["fold"], row["case"]): row["predicted_ml"] for row in map(json.loads, lines)}


def test_a_site_evaluates_with_its_own_norms(federate, tmp_path):
    def without_norms(site, request, reply):
        header = request.content["header"] if request.metadata.message_type == "train" else {}
        if site == "sah_a" and header.get("stage") == "finetune" and header.get("round") == 2:
            for path in (tmp_path / "other" / "sites" / site / "norms").iterdir():
                save_tensors(path, {name: np.zeros_like(value) for name, value in load_tensors(path)[0].items()})
        return reply

    settings = changed(LOCAL, evaluation__threshold=0.03)
    reference, _ = federate(settings, name="reference")
    folder, _ = federate(settings, name="other", change=without_norms)
    assert predictions(folder, "sah_b") == predictions(reference, "sah_b")
    mine, theirs = predictions(folder, "sah_a"), predictions(reference, "sah_a")
    assert len(set(mine.values())) == 1  # a network without norms says the same everywhere
    assert mine != theirs


@pytest.mark.parametrize("at", [12, pytest.param(24, marks=pytest.mark.slow)])
def test_a_run_with_local_norms_that_stopped_anywhere_resumes_to_the_same(federate, with_own_norms, at):
    def contents(folder):
        paths = [*folder.path.glob("adapters/**/*.safetensors"), *folder.path.glob("sites/*/norms/*")]
        return {str(path.relative_to(folder.path)): path.read_bytes() for path in paths}

    reference, _ = with_own_norms
    with pytest.raises(Stop):
        federate(LOCAL, change=stop_at(at))
    resumed, _ = federate(LOCAL)
    assert contents(resumed) == contents(reference)
    assert predictions(resumed, "sah_a") == predictions(reference, "sah_a")
