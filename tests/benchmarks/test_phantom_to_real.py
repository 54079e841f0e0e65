"""The external check of the phantom: its books, not its result."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sahfl.data.phantom import LABELS, CohortSpec, write_sites

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "phantom_to_real.py"
SPEC = CohortSpec("bern", "sah", "standard", n_cases=2, seed=4, shape=(64, 80, 8), spacing_mm=(3.0, 3.0, 14.0))


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("phantom_to_real", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["phantom_to_real"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["phantom_to_real"]


@pytest.fixture
def datalist(tmp_path):
    return write_sites(tmp_path, [SPEC])


@pytest.fixture
def scans(benchmark, datalist):
    return benchmark.real_scans(datalist)


class Constant(torch.nn.Module):
    """Calls every pixel blood, or none."""

    def __init__(self, logit):
        super().__init__()
        self.logit = logit

    def forward(self, slices, view):
        return torch.full_like(slices[:, :1], self.logit)


def test_a_network_that_marks_everything_finds_every_kind(benchmark, scans):
    score = benchmark.evaluate(Constant(9.0), 0.5, scans, seed=0)
    assert score.common == score.annotated == sum(n for kind, (_, n, _) in score.by_kind.items() if kind in LABELS)
    assert all(found == n for found, n, _ in score.by_kind.values())
    assert score.by_kind["SAH"][2] == 2
    assert score.predicted > 20 * score.annotated
    assert 0 < score.far < score.predicted - score.annotated
    assert score.dice == pytest.approx(2 * score.common / (score.predicted + score.annotated))


def test_a_network_that_marks_nothing_has_dice_zero(benchmark, scans):
    score = benchmark.evaluate(Constant(-9.0), 0.5, scans, seed=0)
    assert (score.common, score.predicted, score.far, score.dice) == (0, 0, 0, 0.0)


def test_subdural_blood_as_dense_as_brain_is_also_a_kind_of_its_own(benchmark):
    classes = np.zeros((4, 4, 2), np.uint8)
    classes[0] = LABELS["SDH"]
    for hounsfield, n in ((49.0, 8), (51.0, 0)):
        scan = benchmark.Scan(np.full(classes.shape, hounsfield, np.float32), classes > 0, np.eye(4))
        kinds = benchmark.Annotated(scan, classes).kinds()
        assert (kinds["SDH"].sum(), kinds[benchmark.ISO_DENSE].sum(), kinds["SAH"].sum()) == (8, n, 0)


def test_dice_is_pooled_over_scans_and_the_spread_is_over_seeds(benchmark):
    kinds = {kind: (10, 20, 2) for kind in LABELS}
    of_scans = (0.2, 0.6)
    scores = [
        benchmark.Score(0, 0.1, common=30, predicted=50, annotated=100, far=5, by_kind=kinds, dice_per_scan=of_scans),
        benchmark.Score(1, 0.1, common=60, predicted=100, annotated=100, far=5, by_kind=kinds, dice_per_scan=of_scans),
    ]
    result = benchmark.summarise(scores)
    assert result["pooled_dice"] == pytest.approx({"mean": 0.5, "low": 0.4, "high": 0.6})  # 60/150 and 120/200
    assert result["precision"]["mean"] == pytest.approx(0.6)
    assert result["kinds"]["SAH"] == {"voxels": 20, "scans": 2, "sensitivity": {"mean": 0.5, "low": 0.5, "high": 0.5}}
    assert result["scans"] == 2
    made = {
        "steps": 5,
        "augmentation": "usual",
        "phantoms_per_seed": 98,
        "threshold": 0.5,
        "machine": "",
        "minutes": 1.0,
    }
    text = benchmark.as_text(made | {"sets": {"real scans": result}})
    assert "2 real scans, 100 annotated voxels, 2 seeds" in text
    assert "pooled Dice, all blood    0.500 (0.400 to 0.600)" in text
    assert "SAH              0.500 (0.500 to 0.500)   20 voxels in 2 scans" in text


def test_kinds_are_read_on_the_axes_of_the_scan(scans):
    for item in scans:
        np.testing.assert_array_equal(item.classes > 0, item.scan.label)


def test_every_seed_trains_on_patients_of_its_own_and_none_on_those_held_out(benchmark, monkeypatch):
    made, make = [], benchmark.make_case

    def note(seed, *, kind, profile, **_):
        made.append(seed)
        return make(seed, kind=kind, profile=profile, shape=(48, 56, 8), spacing_mm=(4.0, 4.0, 16.0))

    monkeypatch.setattr(benchmark, "make_case", note)
    monkeypatch.setattr(benchmark, "make_views", lambda scan, views: scan)
    monkeypatch.setattr(benchmark, "CASES_PER_PROFILE", {"tbi": 2})
    monkeypatch.setattr(benchmark, "HELD_OUT", {"tbi": 2})
    for seed in range(2):
        benchmark.make_phantoms(seed)
    benchmark.held_out_phantoms()
    assert len(made) == len(set(made)) == 3 * 2 * len(benchmark.PROFILES)


def refused(benchmark, monkeypatch, *arguments):
    """What the script ends with when it refuses its arguments: a message for standard error, or an exit code."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(SystemExit) as info:
        benchmark.main()
    return info.value.code


def test_a_wrong_path_is_found_before_the_training(benchmark, monkeypatch, capsys):
    code = refused(benchmark, monkeypatch, "nowhere.json")
    assert code == "error: datalist nowhere.json: No such file or directory"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("arguments", [[], [".", "--phantoms-only"]])
def test_one_of_real_scans_and_phantoms_alone_is_named(benchmark, monkeypatch, capsys, arguments):
    assert refused(benchmark, monkeypatch, *arguments) == 2
    assert "name the list of real scans, or --phantoms-only" in capsys.readouterr().err


def test_no_seeds_and_no_steps_are_refused(benchmark, monkeypatch, capsys):
    assert refused(benchmark, monkeypatch, ".", "--seeds", "0") == 2
    assert "must be 1 or more, got 0 and 2000" in capsys.readouterr().err
