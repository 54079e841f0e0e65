"""What a site tells of few patients: nothing, and it says so."""

import dataclasses
import math
from functools import reduce
from itertools import product
from operator import add

import numpy as np
import pytest
from harness.made_cases import Split, a_case, gap_of, mean_of
from hypothesis import given, settings
from hypothesis import strategies as st

from sahfl.errors import PayloadError
from sahfl.statistics.disclosure import Groups, describe_withheld, smallest_cut, withhold
from sahfl.statistics.groups import STEPS, normal_weights, row_length
from sahfl.statistics.metrics import METRICS, histogram_of
from sahfl.statistics.sums import HEAD, N_VOLUME_BINS, EvaluationSums, Withheld

SPLIT = Split(50)
SMALL, MIDDLE, LARGE = 5.0, 20.0, 50.0
LOW, BETWEEN, HIGH = 20.0, 45.0, 90.0
NAMES = [metric.name for metric in METRICS]


def patients(n, volume_ml, extent_mm=HIGH, *, dice=0.7, name="p"):
    return [
        a_case(
            f"{name}{volume_ml}-{extent_mm}-{i}",
            volume_ml,
            volume_ml * 0.9,
            dice + 0.01 * (i % 10),
            extent_mm=extent_mm,
        )
        for i in range(n)
    ]


def healthy(n, *, wrong=0):
    return [a_case(f"h{i}", 0.0, 2.0 if i < wrong else 0.0, 0.0 if i < wrong else None) for i in range(n)]


def sums_of(cases):
    return EvaluationSums.of(cases, SPLIT, seed=3)


def told(cases, *, group=5, bootstrap=20):
    """What arrives of some cases after the site withheld what it must."""
    left = withhold(sums_of(cases), cases, SPLIT, smallest_group=group, smallest_bootstrap=bootstrap)
    return EvaluationSums.from_array(left.to_array(), SPLIT)


def sizes(groups):
    return [group.n for group in groups]


def test_with_thresholds_of_one_every_bit_is_as_it_was():
    cases = [*patients(1, SMALL), *patients(2, LARGE), *healthy(1, wrong=1)]
    assert np.array_equal(told(cases, group=1, bootstrap=1).to_array(), sums_of(cases).to_array())


def test_groups_of_enough_patients_leave_with_replicates_and_histograms():
    got = told([*patients(20, SMALL, LOW), *patients(25, LARGE)])
    assert (sizes(got.by_volume), sizes(got.by_extent)) == ([20, 0, 25], [20, 0, 25])
    assert (got.withheld, got.overall.bare, got.volume_counts.sum()) == (Withheld(), 0, 45)
    for name in NAMES:
        assert None not in (mean_of(got.overall, name).low, mean_of(got.by_extent[0], name).median)
    assert describe_withheld(got) == ""


def test_one_patient_between_two_splits_is_not_found_by_subtraction():
    """All but one of the large hemorrhages are high: the stratum minus the extent would be that one."""
    cases = [*patients(25, SMALL, LOW), *patients(25, LARGE, HIGH), *patients(1, LARGE, LOW)]
    assert Groups.of(cases, SPLIT) == Groups(strata=25, extents=25, both=1, blood=51, no_blood=0)
    got = told(cases)
    assert (sizes(got.by_volume), sizes(got.by_extent)) == ([25, 0, 26], [0, 0, 0])
    assert (got.withheld, got.overall.n) == (Withheld(extents=1), 51)
    assert describe_withheld(got) == "the split by extent"
    assert mean_of(got.overall, "hd95_mm").low is not None


def test_the_split_by_extent_leaves_where_the_one_by_volume_may_not():
    got = told([*patients(25, SMALL), *patients(1, LARGE)])
    assert (sizes(got.by_volume), sizes(got.by_extent)) == ([0, 0, 0], [0, 0, 26])
    assert (got.withheld, describe_withheld(got)) == (Withheld(strata=1), "the split by volume")


def test_one_small_group_in_each_split_leaves_the_whole_alone():
    got = told([*patients(1, SMALL, LOW), *patients(25, LARGE)])
    assert sizes([*got.by_volume, *got.by_extent]) == [0] * 6
    assert (got.overall.n, got.withheld, got.volume.n) == (26, Withheld(strata=1, extents=1), 26)
    assert mean_of(got.overall, "dice").low is not None
    assert describe_withheld(got) == "the split by volume, the split by extent"


def test_groups_too_small_for_the_bootstrap_leave_their_sums_without_it_and_without_histograms():
    cases = [*patients(6, SMALL, LOW), *patients(5, LARGE)]
    got = told(cases)
    assert sizes(got.by_volume) == sizes(got.by_extent) == [6, 0, 5]
    for name in NAMES:
        found = mean_of(got.overall, name)
        assert (found.n, found.low, found.high, found.median) == (11, None, None, None)
        assert found.value == pytest.approx(mean_of(sums_of(cases).overall, name).value, abs=1 / 16)
    rows = got.to_array()[HEAD + N_VOLUME_BINS**2 :].reshape(7, -1)
    assert not rows[:, 12:].any()
    assert not got.volume_counts.any()
    assert describe_withheld(got) == "the bootstrap sums and histograms"


def test_of_a_group_below_the_smallest_nothing_leaves_but_the_fact():
    cases = patients(4, LARGE)
    left = withhold(sums_of(cases), cases, SPLIT, smallest_group=5, smallest_bootstrap=20)
    assert np.flatnonzero(left.to_array()).tolist() == [10]  # the flag for cases with blood
    assert told(cases).withheld == Withheld(blood=1)


def test_withheld_is_never_taken_for_empty():
    assert told([]).withheld == Withheld()
    assert told(patients(4, LARGE)).withheld != told([]).withheld
    assert told([*patients(30, LARGE), *healthy(2, wrong=1)]).withheld == Withheld(no_blood=1)
    assert told([*patients(30, LARGE), *healthy(2, wrong=1)]).n_false_positive == 0
    assert told([*patients(30, LARGE), *healthy(5, wrong=1)]).n_false_positive == 1


def test_scans_of_one_patient_are_a_group_of_one():
    scans = [dataclasses.replace(case, key="one") for case in patients(30, LARGE)]
    assert Groups.of(scans, SPLIT) == Groups(1, 1, 1, 1, 0)
    assert told(scans).withheld.blood == 1


def test_a_patient_with_scans_in_two_groups_counts_once_in_what_is_between_them():
    twice = [*patients(1, SMALL, LOW), *patients(1, LARGE, HIGH)]
    twice = [dataclasses.replace(case, key="one") for case in twice]
    assert Groups.of([*twice, *patients(9, MIDDLE, HIGH)], SPLIT).both == 1


def test_sums_leave_in_whole_steps_and_are_still_sums_that_cases_can_have():
    exact, got = sums_of(patients(30, LARGE)).overall, told(patients(30, LARGE)).overall
    for name in ("totals", "squares", "weighted"):
        left, there = getattr(got, name).T, getattr(exact, name).T
        assert (left / STEPS == np.round(left / STEPS)).all()
        assert (np.abs(left - there) <= STEPS).all()
    assert got.weights.tolist() == exact.weights.tolist()
    assert got.counts.tolist() == exact.counts.tolist()


def test_methods_stay_comparable_because_the_same_is_withheld_of_both():
    cases = patients(25, LARGE)
    better = [dataclasses.replace(case, dice=case.dice + 0.1) for case in cases]
    gain = gap_of(told(better).overall, told(cases).overall, "dice")
    assert gain.value == pytest.approx(0.1, abs=1e-3)
    assert None not in (gain.low, gain.p)
    few = patients(6, LARGE)
    found = gap_of(told(few).overall, told(few).overall, "dice")
    assert (found.low, found.p) == (None, None)


def test_sites_that_withhold_add_up_with_sites_that_do_not():
    sites = [
        patients(25, LARGE, name="a"),
        patients(6, SMALL, name="b"),
        patients(2, SMALL, name="c"),
        patients(3, SMALL),
    ]
    total = reduce(add, [told(cases) for cases in sites])
    assert (total.overall.n, total.overall.bare, total.volume.n) == (31, 6, 31)
    assert total.withheld == Withheld(blood=2)
    assert mean_of(total.by_volume[2], "dice").low is not None
    assert (mean_of(total.overall, "dice").low, mean_of(total.overall, "dice").median) == (None, None)
    with pytest.raises(ValueError, match="hold several sites that withheld different parts, expected one site"):
        total.to_array()


CUTS = {  # patients by volume (rows) and extent (columns) -> the fewest that any combination of sums is over
    "independent": ([[9, 9], [9, 9]], 18),
    "all but one": ([[25, 0], [1, 25]], 1),
    "the same split twice": ([[7, 0], [0, 30]], 7),
    "nothing": ([[0, 0], [0, 0]], 0),
    "one group": ([[8]], 8),
    "by hand": ([[4, 6, 0], [0, 3, 20]], 3),  # stratum 0 + extent 2 - ... leave the 3 of stratum 1, extent 1
}


def cells_of(table):
    return [[frozenset(f"{i}-{j}-{k}" for k in range(n)) for j, n in enumerate(row)] for i, row in enumerate(table)]


@pytest.mark.parametrize(("table", "fewest"), CUTS.values(), ids=CUTS.keys())
def test_the_smallest_cut_by_hand(table, fewest):
    assert smallest_cut(cells_of(table)) == fewest


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=2), min_size=3, max_size=3))
def test_no_combination_of_sums_tells_of_fewer_patients_than_the_smallest_cut(table):
    """Every combination with whole factors up to 2: the patients that do not cancel out are none, or so many."""
    counts, fewest = np.array(table), smallest_cut(cells_of(table))
    for factors in product(range(-2, 3), repeat=5):
        left = np.add.outer(factors[:3], factors[3:]) != 0
        n = int(counts[left].sum())
        assert n == 0 or n >= fewest


group = st.integers(0, 7)


@settings(max_examples=80, deadline=None)
@given(st.lists(group, min_size=9, max_size=9), group, st.integers(1, 8), st.integers(0, 12))
def test_no_number_over_fewer_patients_than_allowed_is_left_or_can_be_worked_out(table, none, smallest, more):
    places = list(product((SMALL, MIDDLE, LARGE), (LOW, BETWEEN, HIGH)))
    cases = [case for n, place in zip(table, places, strict=True) for case in patients(n, *place)]
    got = told([*cases, *healthy(none, wrong=none // 2)], group=smallest, bootstrap=smallest + more)
    for part in (*got.by_volume, *got.by_extent, got.overall):
        assert part.n == 0 or part.n >= smallest
        assert part.n - part.bare == 0 or part.n >= smallest + more
    if not got.withheld.strata and not got.withheld.extents:
        counts = np.array(table).reshape(3, 3)
        least = smallest if got.overall.bare else smallest + more
        for factors in product((-1, 0, 1), repeat=6):
            n = int(counts[np.add.outer(factors[:3], factors[3:]) != 0].sum())
            assert n == 0 or n >= least or smallest + more == 1
    assert got.n_no_blood == 0 or got.n_no_blood >= smallest
    assert got.volume.n == got.overall.n
    assert (got.overall.n == sum(table)) != (got.withheld.blood == 1)


LIES = {
    "a flag of two": ({8: 2.0}, "withheld: got"),
    "both flags": ({9: 1.0, 10: 1.0}, "withheld: got a split and all cases with blood"),
    "strata that are said to be withheld": ({8: 1.0}, "strata: got numbers although withheld"),
    "extents that are said to be withheld": ({9: 1.0}, "extents: got numbers although withheld"),
    "blood that is said to be withheld": ({10: 1.0}, "cases with blood: got numbers"),
    "counts that are said to be withheld": ({11: 1.0}, "cases without blood: got numbers"),
    "replicates that are said to be withheld": ({12: 1.0}, "replicates and histograms: got numbers"),
}


@pytest.mark.parametrize(("changes", "message"), LIES.values(), ids=LIES.keys())
def test_what_is_said_to_be_withheld_must_not_be_there(changes, message):
    array = sums_of([*patients(20, SMALL, LOW), *patients(20, LARGE), *healthy(6, wrong=1)]).to_array()
    for index, value in changes.items():
        array[index] = value
    with pytest.raises(PayloadError, match="evaluation sums, " + message):
        EvaluationSums.from_array(array, SPLIT)


def test_a_histogram_of_volumes_beside_withheld_replicates_is_refused():
    array = told([*patients(6, SMALL, LOW), *patients(5, LARGE)]).to_array()
    assert array.size == HEAD + N_VOLUME_BINS**2 + 7 * row_length(50)
    array[HEAD] = 1.0
    with pytest.raises(PayloadError, match="histogram of volumes: got numbers although withheld"):
        EvaluationSums.from_array(array, SPLIT)


def a_hospital(n, n_methods, random, *, alike=False):
    """Metrics of patients and methods, (methods, metrics, patients), and the sums of each method that leave.

    If ``alike``, what is hard for one method is hard for all, and for all metrics.
    """
    split, everything, left = Split(1000, (), ()), [], []
    ease = random.uniform(0.1, 0.9, n)
    for _ in range(n_methods):
        columns = [random.uniform(0.05, 0.95, n), random.uniform(0, 1, n), random.uniform(1, 90, n)]
        columns += [random.uniform(0, 30, n), random.uniform(0, 1, n)]
        if alike:
            dice = (ease + random.normal(0, 0.06, n)).clip(0.01, 1)
            columns = [dice, dice + random.normal(0, 0.1, n), 90 * (1 - dice) + random.normal(0, 5, n)]
            columns += [30 * (1 - dice) + random.normal(0, 3, n), dice + random.normal(0, 0.15, n)]
            columns = [column.clip(0.01, most) for column, most in zip(columns, (1, 1, 90, 30, 1), strict=True)]
        cases = [
            a_case(f"secret {i}", 40.0, 40.0 + error, dice, surface_dice=surface, hd95_mm=hd95, lesion_f1=f1)
            for i, (dice, surface, hd95, error, f1) in enumerate(zip(*(map(float, c) for c in columns), strict=True))
        ]
        sums = EvaluationSums.of(cases, split, seed=3)
        left.append(withhold(sums, cases, split, smallest_group=5, smallest_bootstrap=min(n, 20)).overall)
        everything.append(columns)
    return np.array(everything), left


SCALE = np.array([[1], [1], [90], [30], [1]])


def separated(left, n, random):
    """Independent component analysis: weights that are not normal are found by the rotation that makes them skewest."""
    mixed = np.vstack([sums.weighted / SCALE for sums in left])
    replicates = mixed.shape[1]
    sources = np.linalg.svd(mixed - mixed.mean(1, keepdims=True), full_matrices=False)[2][:n] * math.sqrt(replicates)
    turn = np.linalg.qr(random.normal(size=(n, n)))[0]
    for _ in range(100):
        rows = turn @ sources
        u, _, v = np.linalg.svd(rows**2 @ sources.T / replicates - np.diag(2 * rows.mean(1)) @ turn)
        turn = u @ v
    rows = turn @ sources
    weights = np.rint(rows * np.sign((rows**3).mean(1, keepdims=True)) + 1)
    for _ in range(20):  # values from weights, and from them whole numbers as weights
        values = np.linalg.lstsq(weights.T, mixed.T)[0].T
        weights = np.rint(np.linalg.lstsq(values, mixed)[0])
    return values.reshape(len(left), -1, n)


def patients_found(values, dice):
    """How many patients' Dice, in all methods, are those of somebody whom an attack made out."""
    gaps = np.abs(values[:, 0, :, None] - dice[:, None, :]).max(0)
    return int((gaps.min(0) < 0.05).sum())


def poisson_weights(key, *, replicates, seed):
    return np.random.default_rng([seed, *key.encode()]).poisson(1.0, replicates).astype(float)


@pytest.mark.parametrize(("weights", "found"), [(poisson_weights, 20), (normal_weights, 0)], ids=["poisson", "normal"])
def test_replicates_of_several_methods_cannot_be_separated_into_patients(weights, found, monkeypatch):
    """With Poisson weights, which a bootstrap mostly has, the same attack finds everybody."""
    monkeypatch.setattr("sahfl.statistics.groups.normal_weights", weights)
    random = np.random.default_rng(0)
    metrics, left = a_hospital(20, 8, random)
    assert patients_found(separated(left, 20, random), metrics[:, 0]) == found


def test_patients_and_mixtures_of_them_have_the_same_replicates():
    """Mixed so that sums and products stay, other patients give the same replicates, from weights mixed likewise.

    Normal weights are as likely before as after a rotation, so nobody can tell which of the two it was.
    """
    random, n = np.random.default_rng(0), 12
    values = random.uniform(0, 1, (5, n))
    weights = np.array([normal_weights(str(i), replicates=9, seed=3) for i in range(n)])
    basis = np.linalg.qr(np.column_stack([np.ones(n), random.normal(size=(n, n - 1))]))[0]
    inner = np.eye(n)
    inner[1:, 1:] = np.linalg.qr(random.normal(size=(n - 1, n - 1)))[0]
    rotation = basis @ inner @ basis.T
    mixtures = values @ rotation
    assert np.abs(np.sort(mixtures, 1) - np.sort(values, 1)).max() > 0.2
    np.testing.assert_allclose(mixtures.sum(1), values.sum(1))
    np.testing.assert_allclose(mixtures @ mixtures.T, values @ values.T)
    np.testing.assert_allclose(mixtures @ (rotation.T @ weights), values @ weights)


def fitted(left, n, random, *, starts):
    """Values that agree with the products, as replicates tell them, and with every histogram: the best of some starts.

    In turns the rotation that is nearest to what the histograms allow, and what they allow that is nearest to it.
    """
    spread = np.vstack([left[0].weights - n, *((sums.weighted - sums.totals[:, None]) / SCALE for sums in left)])
    size, axes = np.linalg.eigh(spread @ spread.T / spread.shape[1])
    mixed = axes[:, -n:] * np.sqrt(np.maximum(size[-n:], 0))
    low, high = [], []
    for sums in left:
        for index, metric in enumerate(METRICS):
            bins = np.repeat(np.arange(metric.n_bins), histogram_of(index, sums.counts).astype(int))
            low.append(np.asarray(metric.edges)[bins] / SCALE[index])
            high.append(np.asarray(metric.edges)[bins + 1] / SCALE[index])
    low, high = np.array(low), np.array(high)

    def allowed(values):
        places = np.argsort(np.argsort(values, 1), 1)
        return np.clip(values, np.take_along_axis(low, places, 1), np.take_along_axis(high, places, 1))

    best, least = mixed[1:], math.inf
    for _ in range(starts):
        turn = np.linalg.qr(random.normal(size=(n, n)))[0]
        for _ in range(300):
            target = np.vstack([np.ones(n), allowed((mixed @ turn)[1:])])
            u, _, v = np.linalg.svd(mixed.T @ target)
            turn = u @ v
        values = (mixed @ turn)[1:]
        gap = float(np.linalg.norm(values - allowed(values)))
        if gap < least:
            best, least = values, gap
    return best.reshape(len(left), -1, n)


@pytest.mark.parametrize(("n", "n_methods", "found"), [(5, 8, {5}), (10, 24, {7, 8, 9, 10}), (20, 24, {0})])
def test_histograms_and_products_tell_ten_patients_apart_but_not_twenty(n, n_methods, found):
    """Why histograms and replicates of few patients stay: together they are enough to find them."""
    random = np.random.default_rng(1)
    metrics, left = a_hospital(n, n_methods, random)
    assert patients_found(fitted(left, n, random, starts=30), metrics[:, 0]) in found


@pytest.mark.slow
def test_a_large_study_of_methods_that_are_alike_tells_some_of_twenty_patients():
    """Those at the ends: who has the best and the worst results in all histograms is found in each of them."""
    random = np.random.default_rng(1)
    metrics, left = a_hospital(20, 73, random, alike=True)
    found = patients_found(fitted(left, 20, random, starts=30), metrics[:, 0])
    print(f"{found} of 20 patients found")
    assert 1 <= found <= 8
