"""How often intervals contain the truth: over trainings, and of skewed values such as Dice with missed patients.

Each cohort has new patients. Student's t interval, for comparison, lacks the truth in up to a quarter of them.
"""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
COHORTS = 300
"""A coverage of 95 % then has a standard deviation of 1.3 percentage points."""


@pytest.fixture(scope="module")
def intervals():
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("intervals")
    sys.path.remove(str(FOLDER))
    for name in ("intervals", "machine"):
        sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.parametrize("patients", [8, 15, 30])
@pytest.mark.parametrize("kind", [(2, 3, 0.0), (8, 2, 0.05), (8, 2, 0.1), (2, 3, 0.9)], ids=str)
def test_the_interval_of_a_mean_dice_with_missed_patients_covers_the_truth(intervals, kind, patients):
    found = intervals.means(kind, patients, cohorts=COHORTS)
    assert found.ours >= 0.91
    if kind in ((8, 2, 0.1), (2, 3, 0.9)) and patients < 30:
        assert found.student < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("patients", [15, 30])
def test_the_interval_of_a_difference_covers_the_truth_although_methods_miss_other_patients(intervals, patients):
    found = intervals.differences((2, 3, 0.1, 0.03), patients, cohorts=COHORTS)
    assert found.student < 0.9
    assert found.ours >= 0.91
    alike = intervals.differences((2, 3, 0.1, 0.0), patients, cohorts=COHORTS)
    assert alike.ours >= 0.93


def test_a_difference_of_methods_that_missed_nobody_has_the_interval_of_student(intervals):
    found = intervals.differences((8, 2, 0.0, 0.0), 15, cohorts=COHORTS)
    assert found.width == pytest.approx(found.student_width, rel=0.05)
    assert 0.91 <= found.ours <= 0.98


@pytest.mark.parametrize("patients", [8, 15, 30])
def test_the_interval_of_a_mean_distance_covers_the_truth(intervals, patients):
    found = intervals.distances(0.8, patients, cohorts=COHORTS)
    assert found.ours >= 0.9
    assert found.ours > found.student


@pytest.mark.slow
def test_intervals_over_patients_and_trainings_cover_the_truth_and_those_over_patients_only_do_not(intervals):
    for spread, few in (((0.05, 0.03, 0.05), 0.86), ((0.02, 0.03, 0.02), 0.65)):
        found = intervals.trainings(15, 3, spread, cohorts=200)
        assert found.patients_only < few
        assert 0.89 <= found.patients_and_trainings <= 0.99


@pytest.mark.slow
def test_intervals_do_not_count_what_patients_and_trainings_share_twice(intervals):
    """Without a spread between trainings, adding both variances would cover 98 of 100."""
    found = intervals.trainings(15, 3, (0.05, 0.0, 0.1), cohorts=300)
    assert 0.92 <= found.patients_and_trainings <= 0.985
