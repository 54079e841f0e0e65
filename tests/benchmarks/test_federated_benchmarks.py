"""The benchmarks of aggregation, attacks and steps: their books, not their results."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sahfl.adapters import FactoredLayer
from sahfl.aggregation.forms import CP
from sahfl.simulation.hostile import ATTACKS, as_trained

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = ("machine", "small_study", "aggregation", "attacks", "adapter_steps")


@pytest.fixture(scope="module")
def modules():
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in NAMES}
    sys.path.remove(str(FOLDER))
    for name in NAMES:
        del sys.modules[name]


RECEIVED = {"up": np.array([1.0, 2.0], np.float32), "down": np.array([[3.0]], np.float32)}
TRAINED = {"up": np.array([1.5, 2.0], np.float32), "down": np.array([[2.0]], np.float32)}


def test_the_attacks_are_those_of_a_simulation_beside_no_attacker(modules):
    assert dict(modules["attacks"].ACTS) == {"no attacker": as_trained, **ATTACKS}


def test_the_interval_is_student_s_by_hand(modules):
    """Mean 2, SD 1, n 3: half width 4.303 / sqrt(3)."""
    assert modules["aggregation"].interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, -0.484, 4.484), abs=1e-3)
    assert modules["aggregation"].interval([0.5]) == (0.5, -np.inf, np.inf)


class Sizes:
    """Stands for a federation: one CP layer with factors of 40, 20, 6 and 6 numbers, and 8 numbers beside it."""

    def __init__(self):
        sizes = {"beside": 8, "h": 6, "in": 20, "up": 40, "w": 6}
        self.start = {name: np.zeros(size, np.float32) for name, size in sizes.items()}
        self.layers = (FactoredLayer(CP, (5, 5, 3, 3), "up", ("in", "h", "w"), alpha=1.0, scaling="rank"),)


def test_alternating_rounds_send_at_most_the_bytes_of_the_mean_by_hand(modules):
    """Of 3 * 80 numbers: 48 and 28 (in), 48 and 14 (h), 48 and 14 (w) are 200, and another 48 would be 248."""
    assert modules["aggregation"].n_rounds(Sizes(), "alternate") == 6
    assert modules["aggregation"].n_rounds(Sizes(), "mean") == 3


@pytest.mark.parametrize(("encoding", "n_bytes"), [("float32", 12), ("float16", 6), ("int8", 3)])
def test_what_arrives_is_rounded_as_on_the_wire_and_its_bytes_are_counted(modules, tmp_path, encoding, n_bytes):
    arrived, found = modules["aggregation"].send(TRAINED, RECEIVED, encoding, tmp_path, 1)
    assert found == n_bytes
    for name, value in arrived.items():
        np.testing.assert_allclose(value, TRAINED[name], rtol=1e-2)


def test_the_recipes_are_lora_s_and_sahfl_s_at_each_learning_rate(modules):
    found = modules["adapter_steps"].recipes([0.1, 0.01])
    assert [(name, recipe.scaling, recipe.learning_rate) for name, recipe in found.items()] == [
        ("rank", "rank", 5e-3),
        ("steps, 0.1", "steps", 0.1),
        ("steps, 0.01", "steps", 0.01),
    ]
    assert [recipe.relative for recipe in found.values()] == [False, True, True]


def test_a_row_has_the_paired_difference_to_the_first_recipe_by_hand(modules):
    """Differences 1, 2 and 3 hundredths: mean 0.02, half width 4.303 * 0.01 / sqrt(3)."""
    result = modules["adapter_steps"].Result
    rows = {"rank": result(0.1, [0.3, 0.4, 0.5], []), "steps": result(0.066, [0.31, 0.42, 0.53], [])}
    *_, first, second = modules["adapter_steps"].as_table({"cp_lora-r1": rows}).splitlines()
    assert first == "| cp_lora-r1 | rank | 10 % | 0.400 |  |  |  |"
    assert second == "| cp_lora-r1 | steps | 6.6 % | 0.420 | +0.020 (-0.005 to +0.045) |  |  |"


@pytest.mark.slow
def test_the_benchmarks_run_and_print_json():
    def result(*command):
        command = [sys.executable, "-W", "ignore", FOLDER / command[0], *command[1:], "--seeds", "1", "--json"]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    rules = result("aggregation.py", "--methods", "cp_lora-r8", "--rules", "mean, int8", "--steps", "1")["methods"]
    assert list(rules["cp_lora-r8"]) == ["base alone", "mean", "mean, int8"]
    mean, int8 = (rules["cp_lora-r8"][name][0] for name in ("mean", "mean, int8"))
    assert mean["bytes_up"] == 4 * int8["bytes_up"] > 0
    steps = result("adapter_steps.py", "--methods", "conv_lora-r1", "conv_lora-r128")["methods"]
    first = {(method, name): row["first_step"] for method, rows in steps.items() for name, row in rows.items()}
    assert first["conv_lora-r1", "rank"] > 8 * first["conv_lora-r128", "rank"]
    assert first["conv_lora-r1", "steps, 0.005"] == pytest.approx(first["conv_lora-r128", "steps, 0.005"], rel=0.3)
    attacks = result("attacks.py", "--attacks", "nan")
    assert list(attacks["attacks"]) == ["base alone", "no attacker", "nan"]
    assert {runs[0]["refused"] for runs in attacks["attacks"]["nan"].values()} == {attacks["rounds"]}
