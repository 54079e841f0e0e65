"""What a site tells of few patients: nothing, and it says so."""

import dataclasses
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sahfl.disclosure import STEP, Groups, say_withheld, withhold
from sahfl.errors import PayloadError
from sahfl.statistics import CaseResult, EvaluationSums, Withheld, dice_estimate, difference, overall
from sahfl.sums import HEAD

EDGES, REPLICATES = (10.0, 30.0), 50
WIDTH = 3 + 2 * REPLICATES
SMALL, MIDDLE, LARGE = 5.0, 20.0, 50.0


def patients(n, volume_ml, *, dice=0.7, name="p"):
    return [CaseResult(f"{name}{volume_ml}-{i}", volume_ml, volume_ml * 0.9, dice + 0.01 * (i % 10)) for i in range(n)]


def healthy(n, *, wrong=0):
    return [CaseResult(f"h{i}", 0.0, 2.0 if i < wrong else 0.0, 0.0 if i < wrong else None) for i in range(n)]


def sums_of(cases):
    return EvaluationSums.of(cases, edges_ml=EDGES, replicates=REPLICATES, seed=3)


def told(cases, *, group=5, bootstrap=20):
    """What arrives of some cases after the site withheld what it must."""
    groups = Groups.of(cases, edges_ml=EDGES)
    left = withhold(sums_of(cases), groups, smallest_group=group, smallest_bootstrap=bootstrap)
    return EvaluationSums.from_array(left.to_array(), n_strata=3, replicates=REPLICATES)


def test_with_thresholds_of_one_every_bit_is_as_it_was():
    cases = [*patients(1, SMALL), *patients(2, LARGE), *healthy(1, wrong=1)]
    assert np.array_equal(told(cases, group=1, bootstrap=1).to_array(), sums_of(cases).to_array())


def test_strata_of_enough_patients_leave_with_their_replicates():
    got = told([*patients(20, SMALL), *patients(25, LARGE)])
    assert [part.n for part in got.strata] == [20, 0, 25]
    assert (got.withheld, got.merged.n, overall(got).bare) == (Withheld(), 0, 0)
    assert dice_estimate(overall(got)).low is not None
    assert say_withheld(got) == ""


def test_one_small_stratum_merges_all_so_that_none_is_found_by_subtraction():
    got = told([*patients(1, SMALL), *patients(25, LARGE)])
    assert [part.n for part in got.strata] == [0, 0, 0]
    assert (got.merged.n, got.withheld.strata, got.volume.n) == (26, 1, 26)
    assert dice_estimate(overall(got)).low is not None
    assert say_withheld(got) == "the split by volume"


def test_groups_too_small_for_the_bootstrap_leave_their_sums_without_it():
    got = told([*patients(6, SMALL), *patients(5, LARGE)])
    assert [part.n for part in got.strata] == [6, 0, 5]
    estimate = dice_estimate(overall(got))
    assert (estimate.n, estimate.low, estimate.high) == (11, None, None)
    assert estimate.value == pytest.approx(
        overall(sums_of([*patients(6, SMALL), *patients(5, LARGE)])).total / 11, abs=1e-3
    )
    assert not got.to_array()[HEAD:].reshape(3, WIDTH)[:, 3:].any()


def test_small_strata_of_a_group_that_is_large_enough_are_merged_without_replicates():
    got = told([*patients(3, SMALL), *patients(4, LARGE)])
    assert (got.merged.n, got.merged.bare, got.withheld.strata) == (7, 7, 1)
    assert say_withheld(got) == "the split by volume, the bootstrap sums"


def test_of_a_group_below_the_smallest_nothing_leaves_but_the_fact():
    array = withhold(
        sums_of(patients(4, LARGE)), Groups((0, 0, 4), 4, 0), smallest_group=5, smallest_bootstrap=20
    ).to_array()
    assert np.flatnonzero(array).tolist() == [9]  # the flag for cases with blood
    assert told(patients(4, LARGE)).withheld == Withheld(blood=1)


def test_withheld_is_never_taken_for_empty():
    assert told([]).withheld == Withheld()
    assert told(patients(4, LARGE)).withheld != told([]).withheld
    assert told([*patients(30, LARGE), *healthy(2, wrong=1)]).withheld == Withheld(no_blood=1)
    assert told([*patients(30, LARGE), *healthy(2, wrong=1)]).n_false_positive == 0
    assert told([*patients(30, LARGE), *healthy(5, wrong=1)]).n_false_positive == 1


def test_scans_of_one_patient_are_a_group_of_one():
    scans = [dataclasses.replace(case, key="one") for case in patients(30, LARGE)]
    assert Groups.of(scans, edges_ml=EDGES) == Groups((0, 0, 1), 1, 0)
    assert told(scans).withheld.blood == 1


def test_sums_of_dice_leave_in_whole_steps_and_are_still_sums_that_cases_can_have():
    exact, got = sums_of(patients(30, LARGE)), told(patients(30, LARGE))
    for name in ("total", "squares", "weighted"):
        left, there = getattr(overall(got), name), getattr(overall(exact), name)
        assert (np.asarray(left) / STEP == np.round(np.asarray(left) / STEP)).all()
        assert np.abs(np.asarray(left) - np.asarray(there)).max() <= STEP
    assert overall(got).weights.tolist() == overall(exact).weights.tolist()


def test_methods_stay_comparable_because_the_same_is_withheld_of_both():
    cases = patients(25, LARGE)
    better = [dataclasses.replace(case, dice=case.dice + 0.1) for case in cases]
    gain = difference(overall(told(better)), overall(told(cases)))
    assert gain.value == pytest.approx(0.1, abs=1e-3)
    assert gain.low is not None
    few = patients(6, LARGE)
    assert difference(overall(told(few)), overall(told(few))).low is None


def test_sites_that_withhold_add_up_with_sites_that_do_not():
    sites = [
        patients(25, LARGE, name="a"),
        patients(6, SMALL, name="b"),
        patients(2, SMALL, name="c"),
        patients(3, SMALL),
    ]
    total = reduce(add, [told(cases) for cases in sites])
    assert (overall(total).n, overall(total).bare, total.volume.n) == (31, 6, 31)
    assert total.withheld == Withheld(blood=2)
    assert dice_estimate(total.strata[2]).low is not None
    assert dice_estimate(overall(total)).low is None
    with pytest.raises(ValueError, match="hold several sites that withheld different parts, expected one site"):
        total.to_array()


group = st.integers(0, 9)


@settings(max_examples=80, deadline=None)
@given(group, group, group, group, st.integers(1, 8), st.integers(0, 12))
def test_no_number_over_fewer_patients_than_allowed_is_ever_left(small, middle, large, none, smallest, more):
    cases = [
        *patients(small, SMALL),
        *patients(middle, MIDDLE),
        *patients(large, LARGE),
        *healthy(none, wrong=none // 2),
    ]
    got = told(cases, group=smallest, bootstrap=smallest + more)
    for part in (*got.strata, got.merged, overall(got)):
        assert part.n == 0 or part.n >= smallest
        assert part.n - part.bare == 0 or part.n >= smallest + more
    assert got.n_no_blood == 0 or got.n_no_blood >= smallest
    assert got.volume.n == overall(got).n
    assert (overall(got).n == small + middle + large) != (got.withheld.blood == 1)


LIES = {
    "a flag of two": ({8: 2.0}, "withheld: got"),
    "both flags": ({8: 1.0, 9: 1.0}, "withheld: got strata and all cases with blood"),
    "strata that are said to be withheld": ({8: 1.0}, "strata: got numbers that are said to be withheld"),
    "blood that is said to be withheld": ({9: 1.0}, "cases with blood: got numbers"),
    "counts that are said to be withheld": ({10: 1.0}, "cases without blood: got numbers"),
    "replicates that are said to be withheld": ({11: 1.0}, "replicates: got numbers"),
}


@pytest.mark.parametrize(("changes", "message"), LIES.values(), ids=LIES.keys())
def test_what_is_said_to_be_withheld_must_not_be_there(changes, message):
    array = sums_of([*patients(20, SMALL), *patients(20, LARGE), *healthy(6, wrong=1)]).to_array()
    for index, value in changes.items():
        array[index] = value
    with pytest.raises(PayloadError, match="evaluation sums, " + message):
        EvaluationSums.from_array(array, n_strata=3, replicates=REPLICATES)
