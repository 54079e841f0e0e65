"""A sum over the sites' arrays shows what the pooled cases would, and withholds what covers few patients of all."""

import dataclasses

import numpy as np
import pytest
from harness.made_cases import Split, a_case
from hypothesis import given, settings
from hypothesis import strategies as st

from sahfl.config import SitePolicy
from sahfl.errors import PayloadError
from sahfl.masking.ring import decode_exact, encode_exact
from sahfl.statistics.consortium import Thresholds, site_part, total_length, withheld_total
from sahfl.statistics.disclosure import Groups, withhold
from sahfl.statistics.sums import EvaluationSums

SPLIT = Split(20)
OPEN = Thresholds(1, 1)
VOLUMES, EXTENTS = (5.0, 20.0, 50.0), (20.0, 45.0, 90.0)


def case(name, stratum=0, extent=0, *, dice=0.7, missed=False):
    volume = VOLUMES[stratum]
    predicted, dice = (0.0, 0.0) if missed else (volume * 0.9, dice)
    return a_case(name, volume, predicted, dice, extent_mm=EXTENTS[extent])


def healthy(name, *, wrong=False):
    return a_case(name, 0.0, 2.0 if wrong else 0.0, 0.0 if wrong else None)


def total_of(sites):
    parts = [encode_exact(site_part(cases, SPLIT, seed=3), n_sites=len(sites)) for cases in sites]
    return decode_exact(sum(parts[1:], parts[0]), n_sites=len(sites))


def sums_of(cases):
    return EvaluationSums.of(cases, SPLIT, seed=3)


def arrays_agree(ours, theirs):
    return np.allclose(ours.to_array(), theirs.to_array(), rtol=0, atol=1e-6)


SITES = [
    [case("a0"), case("a1", 1, 1, dice=0.31), case("a2", 2, 2, missed=True), healthy("a3", wrong=True)],
    [case(f"b{n}", n % 3, n % 3, dice=0.05 * n) for n in range(12)],
    [healthy(f"c{n}") for n in range(3)],
    [],
]


def test_the_total_is_that_of_the_pooled_cases():
    found = withheld_total(total_of(SITES), SPLIT, OPEN)
    assert arrays_agree(found, sums_of([one for cases in SITES for one in cases]))


def test_the_total_does_not_depend_on_the_order_of_the_sites():
    assert np.array_equal(total_of(SITES), total_of(SITES[::-1]))


@pytest.mark.parametrize("thresholds", [Thresholds(5, 20), Thresholds(3, 3), Thresholds(2, 40)])
@pytest.mark.parametrize("spread", [1, 2, 4])
def test_groups_that_are_small_at_each_site_are_shown_where_all_together_are_not(thresholds, spread):
    cases = [case(f"p{n}", n % 3, (n // 3) % 3, dice=0.02 * n, missed=n % 7 == 0) for n in range(45)]
    found = withheld_total(total_of([cases[n::spread] for n in range(spread)]), SPLIT, thresholds)
    pooled = withhold(sums_of(cases), cases, SPLIT, **vars(thresholds))
    assert found.withheld == pooled.withheld
    assert np.allclose(found.to_array(), pooled.to_array(), rtol=0, atol=0.13)  # a step of HD95, of two roundings


@pytest.mark.parametrize("voxel_ml", [0.00125, 1e-4, 0.019, 1e-9, 0.1])
@pytest.mark.parametrize("n_sites", [1, 3, 40])
def test_one_case_with_a_tiny_prediction_gives_a_total_that_can_be_read(voxel_ml, n_sites):
    tiny = a_case("tiny", 0.3 + voxel_ml, voxel_ml, 0.001)
    found = withheld_total(total_of([[tiny], *([] for _ in range(n_sites - 1))]), SPLIT, OPEN)
    assert (found.overall.n, found.overall.missed) == (1, 0)
    assert found.volume.y == pytest.approx(voxel_ml, abs=1e-6)


def test_what_is_small_in_all_together_is_withheld():
    sites = [[case(f"{site}{n}") for n in range(3)] for site in "abc"] + [[case("one", 2, 2)]]
    found = withheld_total(total_of(sites), SPLIT, Thresholds(5, 8))
    assert (found.withheld.strata, found.withheld.extents, found.overall.n) == (1, 1, 10)
    assert not any(group.n for group in found.groups[1:])


CELLS = st.tuples(st.integers(0, 2), st.integers(0, 2))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), CELLS, st.booleans()), max_size=25), st.integers(2, 6), st.integers(2, 9))
def test_no_number_covers_fewer_patients_whoever_has_scans_in_several_groups(drawn, group, bootstrap):
    cases = [case(f"p{key}", *cell, missed=missed) for key, cell, missed in drawn]
    thresholds = Thresholds(group, max(group, bootstrap))
    sites = [[one for one in cases if int(one.key[1:]) % 3 == site] for site in range(3)]
    found = withheld_total(total_of(sites), SPLIT, thresholds)
    if found.overall.n == 0:
        return
    least = thresholds.smallest_group if found.overall.bare else thresholds.smallest_bootstrap
    assert Groups.of(cases, SPLIT).fewest(found.withheld) >= least
    detected = Groups.of([one for one in cases if not one.missed], SPLIT)
    if not found.hides_groups and not found.overall.hidden:
        assert not 0 < detected.fewest(found.withheld) < least
    if not found.overall.hidden:
        assert not 0 < detected.blood < least


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: a[:-1], "numbers, expected"),
        (lambda a: np.append(a[:-1], 7.0), "more than scans"),
        (lambda a: np.append(a[:-1], 0.5), "whole number"),
        (lambda a: a - 100 * np.eye(1, a.size, 0)[0], "n_no_blood"),
        (lambda a: a + 1000 * np.eye(1, a.size, a.size - 10)[0], "more than scans, or more were detected"),
    ],
    ids=["short", "healthy", "half", "negative", "detected"],
)
def test_a_total_that_no_cases_give_is_refused(change, reason):
    with pytest.raises(PayloadError, match=reason):
        withheld_total(change(total_of(SITES)), SPLIT, OPEN)


def test_the_strictest_of_the_sites_thresholds_count():
    assert Thresholds.strictest([Thresholds(5, 20), Thresholds(7, 10)]) == Thresholds(7, 20)


def test_a_site_s_array_has_the_declared_length():
    assert site_part(SITES[0], SPLIT, seed=3).shape == (total_length(SPLIT),)


def test_withholding_needs_the_same_two_numbers_as_the_policy():
    assert {field.name for field in dataclasses.fields(Thresholds)} <= set(SitePolicy.model_fields)
