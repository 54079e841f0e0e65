"""The external check of the phantom: its books, not its result."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sahfl.data.manifest import read_datalist
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
def cases(tmp_path):
    return read_datalist(write_sites(tmp_path, [SPEC]), "bern")


class Constant(torch.nn.Module):
    """Calls every pixel blood, or none."""

    def __init__(self, logit):
        super().__init__()
        self.logit = logit

    def forward(self, slices, view):
        return torch.full_like(slices[:, :1], self.logit)


def test_a_network_that_marks_everything_finds_every_kind(benchmark, cases):
    score = benchmark.evaluate(Constant(9.0), 0.5, cases, seed=0)
    assert score.common == score.annotated == sum(n for _, n in score.by_kind.values())
    assert all(found == n for found, n in score.by_kind.values())
    assert score.predicted > 20 * score.annotated
    assert 0 < score.far < score.predicted - score.annotated
    assert score.dice == pytest.approx(2 * score.common / (score.predicted + score.annotated))


def test_a_network_that_marks_nothing_has_dice_zero(benchmark, cases):
    score = benchmark.evaluate(Constant(-9.0), 0.5, cases, seed=0)
    assert (score.common, score.predicted, score.far, score.dice) == (0, 0, 0, 0.0)


def test_dice_is_pooled_over_scans_and_the_spread_is_over_seeds(benchmark, cases):
    kinds = {kind: (10, 20) for kind in LABELS}
    of_scans = (0.2, 0.6)
    scores = [
        benchmark.Score(0, 0.1, common=30, predicted=50, annotated=100, far=5, by_kind=kinds, dice_per_scan=of_scans),
        benchmark.Score(1, 0.1, common=60, predicted=100, annotated=100, far=5, by_kind=kinds, dice_per_scan=of_scans),
    ]
    result = benchmark.summarise(scores, cases, steps=5, minutes=1.0)
    assert result["pooled_dice"] == pytest.approx({"mean": 0.5, "low": 0.4, "high": 0.6})  # 60/150 and 120/200
    assert result["precision"]["mean"] == pytest.approx(0.6)
    assert result["kinds"]["SAH"] == {"voxels": 20, "scans": 2, "sensitivity": {"mean": 0.5, "low": 0.5, "high": 0.5}}
    assert (result["scans"], result["patients"]) == (2, 2)
    text = benchmark.as_text(result)
    assert "pooled Dice, all blood    0.500 (0.400 to 0.600)" in text
    assert "SAH  0.500 (0.500 to 0.500)   20 voxels in 2 scans" in text


def test_kinds_are_read_on_the_axes_of_the_scan(benchmark, cases):
    classes = benchmark.read_classes(cases[0])
    np.testing.assert_array_equal(classes > 0, benchmark.read_scan(cases[0]).label)


def test_every_seed_trains_on_patients_of_its_own(benchmark):
    seeds = [benchmark.derive_seed(benchmark.PHANTOM_SEED, seed, "standard", "tbi", 0) for seed in range(3)]
    assert len(set(seeds)) == 3


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


def test_no_seeds_and_no_steps_are_refused(benchmark, monkeypatch, capsys):
    assert refused(benchmark, monkeypatch, ".", "--seeds", "0") == 2
    assert "must be 1 or more, got 0 and 2000" in capsys.readouterr().err
