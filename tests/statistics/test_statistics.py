"""The sums of all sites give what the pooled cases would give, and only sums that cases can have are accepted."""

import dataclasses
import math
from functools import reduce
from itertools import permutations
from operator import add

import numpy as np
import pytest
from harness.made_cases import Split, a_case, gap_of, made_cases, mean_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sahfl.errors import PayloadError
from sahfl.statistics.cases import CaseResult, extent_labels, stratum_labels
from sahfl.statistics.estimates import holm
from sahfl.statistics.groups import FURTHEST, GRAIN, GroupSums, normal_weights, row_length
from sahfl.statistics.metrics import METRICS, VOLUME_EDGES_ML, count_volumes
from sahfl.statistics.sums import HEAD, N_VOLUME_BINS, EvaluationSums, array_length, average

SPLIT = Split()
REPLICATES = SPLIT.replicates
NAMES = [metric.name for metric in METRICS]
SITES = [made_cases("bern", 20, 1), made_cases("graz", 9, 2), made_cases("lyon", 31, 3)]
POOLED = [case for site in SITES for case in site]
DICE = np.array([case.dice for case in POOLED])
every_metric = pytest.mark.parametrize("metric", METRICS, ids=NAMES)


def sums(of, split=SPLIT):
    return EvaluationSums.of(of, split, seed=7)


def group_sums(of, replicates=REPLICATES):
    return GroupSums.of(of, replicates=replicates, seed=7)


def values_of(metric, cases=POOLED):
    return np.array([getattr(case, metric.name) for case in cases])


def in_groups(metric):
    """Every group of the pooled cases: its sums from the sites, and its values."""
    total = reduce(add, map(sums, SITES))
    by_volume = np.digitize([case.volume_ml for case in POOLED], SPLIT.volume_edges_ml)
    by_extent = np.digitize([case.extent_mm for case in POOLED], SPLIT.extent_edges_mm)
    yield total.overall, np.ones(len(POOLED), bool)
    for groups, places in ((total.by_volume, by_volume), (total.by_extent, by_extent)):
        for index, group in enumerate(groups):
            assert (places == index).sum() >= 5
            yield group, places == index


WEIGHTS_OF = np.stack([normal_weights(case.key, replicates=REPLICATES, seed=7) for case in POOLED])


def interval_of(values, weights, extremes=(None, None)):
    """The interval and p of a mean from the cases themselves, by its definition.

    ``extremes`` are the values of the half patient more at each end.
    """
    n, mean = len(values), values.mean()
    around = (weights - 1).T @ (values - mean) / n
    patients = min(n, n**2 / ((weights - 1).sum(0) ** 2).mean())
    error = math.sqrt((around**2).mean() * patients / (patients - 1))
    errors = []
    for extreme in extremes:
        more = 0.0
        if extreme is not None:  # squares around the mean of the patients and half a patient at the extreme
            middle = (patients * mean + 0.5 * extreme) / (patients + 0.5)
            squares = error**2 * patients * (patients - 1) + patients * (mean - middle) ** 2
            squares += 0.5 * (extreme - middle) ** 2
            more = math.sqrt(squares / ((patients + 0.5) * (patients - 0.5)))
        errors.append(max(error, more))
    quantile = stats.t.ppf(0.975, patients - 1)
    p = 2 * stats.t.sf(abs(mean) / errors[int(mean < 0)], patients - 1)
    return mean - quantile * errors[0], mean + quantile * errors[1], p


def extremes_of(metric, values):
    if metric.most == 1:
        return 0.0, 1.0
    return None, 2 * min(edge for edge in metric.edges if edge > values.max())


@every_metric
def test_mean_sd_and_interval_of_every_group_equal_those_of_the_pooled_cases(metric):
    for group, chosen in in_groups(metric):
        found, values = mean_of(group, metric.name), values_of(metric)[chosen]
        assert found.n == len(values)
        assert found.value == pytest.approx(values.mean(), abs=1e-10)
        assert found.sd == pytest.approx(values.std(ddof=1), abs=1e-8)
        low, high, _ = interval_of(values, WEIGHTS_OF[chosen], extremes_of(metric, values))
        assert (found.low, found.high) == pytest.approx((max(low, 0), min(high, metric.most)), abs=1e-9)


@every_metric
def test_the_median_is_that_of_the_binned_cases_and_off_by_less_than_a_bin(metric):
    edges = np.array(metric.edges)
    for group, chosen in in_groups(metric):
        values = np.sort(values_of(metric)[chosen])
        bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, metric.n_bins - 1)
        ranks = [np.sum(bins[:k] == bins[k]) + 0.5 for k in range(len(values))]
        binned = [
            edges[b] + (edges[b + 1] - edges[b]) * r / np.sum(bins == b) for b, r in zip(bins, ranks, strict=True)
        ]
        found = mean_of(group, metric.name).median
        assert found == pytest.approx(np.median(binned), abs=1e-9)
        middle = bins[(len(bins) - 1) // 2 : len(bins) // 2 + 1]
        assert abs(found - np.median(values)) < np.diff(edges)[middle].max()


@pytest.mark.parametrize("n", [1, 2, 7, 12])
def test_the_median_of_several_equal_repeats_is_that_of_one(n):
    one = METRICS[0].count(DICE[:n])
    thirds = sum(one / 3 for _ in range(3))
    assert METRICS[0].median(thirds) == pytest.approx(METRICS[0].median(one))


def test_a_median_beyond_the_last_bin_is_not_told():
    metric = METRICS[2]
    assert (metric.name, metric.open_end) == ("hd95_mm", True)
    assert metric.median(metric.count([1.5, 700.0, 900.0])) is None
    assert metric.median(metric.count([1.5, 2.5, 900.0])) == pytest.approx(2.5)
    assert metric.median(metric.count([])) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_a_median_of_any_values_is_off_by_less_than_a_bin(values):
    assert abs(METRICS[0].median(METRICS[0].count(values)) - np.median(values)) <= 0.02 + 1e-12


def test_bins_hold_their_lower_edge_and_the_last_its_upper_too():
    metric = METRICS[0]
    counts = metric.count([0.0, metric.edges[1], 1.0])
    assert np.flatnonzero(counts).tolist() == [0, 1, metric.n_bins - 1]


def test_cases_are_counted_by_annotated_and_predicted_volume():
    counts = count_volumes([(0.4, 0.0), (0.5, 0.0), (25.0, 12.0), (500.0, 299.0)])
    places = {(int(i), int(j)) for i, j in np.argwhere(counts)}
    edges = list(VOLUME_EDGES_ML)
    assert places == {(0, 0), (1, 0), (edges.index(20), edges.index(10)), (len(edges) - 2, len(edges) - 2)}
    assert reduce(add, map(sums, SITES)).volume_counts.sum() == 60


@every_metric
def test_the_interval_of_a_difference_is_that_of_student_s_t_but_for_the_chance_in_replicates(metric):
    others = changed(POOLED, metric.name, lambda value: 0.8 * value)
    values, found = values_of(metric), gap_of(group_sums(others, 4000), group_sums(POOLED, 4000), metric.name)
    low, high = stats.ttest_1samp(-0.2 * values, 0).confidence_interval()
    assert (found.high - found.low) / (high - low) == pytest.approx(1, abs=0.04)  # 4000 replicates: SD 0.011
    assert (found.low + found.high) / 2 == pytest.approx(-0.2 * values.mean())


def test_half_a_patient_more_at_each_end_by_hand():
    """Ten patients of Dice 0.8: no spread, and still nobody knows that none is ever missed."""
    found = mean_of(group_sums([a_case(str(i), 9.0, 9.0, 0.8) for i in range(10)], 20_000), "dice")
    low = math.sqrt(0.8**2 * 10 * 0.5 / 10.5 / (10.5 * 9.5)) * stats.t.ppf(0.975, 9)  # 0.125
    high = math.sqrt(0.2**2 * 10 * 0.5 / 10.5 / (10.5 * 9.5)) * stats.t.ppf(0.975, 9)
    assert (found.low, found.high) == pytest.approx((0.8 - low, 0.8 + high), abs=0.01)


def test_the_largest_value_is_the_edge_of_its_bin():
    metric = METRICS[2]
    assert [metric.largest(metric.count(values)) for values in ([], [0.5], [3.0, 17.5], [9.0, 700.0])] == [
        0,
        1,
        18,
        600,
    ]


def test_the_interval_is_close_to_the_percentile_bootstrap_of_scipy():
    reference = stats.bootstrap(
        (DICE,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(0)
    ).confidence_interval
    found = mean_of(group_sums(POOLED, 4000), "dice")
    # Both intervals are about 0.11 wide; two runs of scipy differ by up to 0.004, half a patient more are 0.001.
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=0.012)


def test_the_interval_covers_the_true_mean_in_about_95_of_100_cohorts():
    for n, cohorts in ((8, 400), (40, 200)):
        all_sums = (GroupSums.of(made_cases(f"s{i}", n, i), replicates=300, seed=i) for i in range(cohorts))
        found = [mean_of(one, "dice") for one in all_sums]
        assert 0.91 <= np.mean([one.low <= 0.5 <= one.high for one in found]) <= 0.99


def changed(cases, metric, change):
    """The same cases, one metric changed; the volume error by another prediction."""
    if metric == "volume_error_ml":
        return [dataclasses.replace(c, predicted_ml=c.volume_ml + change(c.volume_error_ml)) for c in cases]
    return [dataclasses.replace(case, **{metric: change(getattr(case, metric))}) for case in cases]


@every_metric
def test_a_paired_difference_equals_that_of_the_pooled_cases_with_its_p(metric):
    others = [changed(site, metric.name, lambda value: 0.8 * value) for site in SITES]
    ours, theirs = (reduce(add, map(sums, sites)) for sites in (others, SITES))
    found = gap_of(ours.overall, theirs.overall, metric.name)
    gaps = -0.2 * values_of(metric)
    assert found.value == pytest.approx(gaps.mean(), abs=1e-10)
    assert (found.low, found.high, found.p) == pytest.approx(interval_of(gaps, WEIGHTS_OF), abs=1e-9)


def noisy(cases, random):
    return [dataclasses.replace(c, dice=float(np.clip(c.dice + random.normal(0, 0.1), 0, 1))) for c in cases]


def test_p_of_no_difference_is_even_over_cohorts_and_agrees_with_the_interval():
    ps = []
    for seed in range(200):
        random, cases = np.random.default_rng(seed), made_cases(f"s{seed}", 40, seed)
        found = gap_of(group_sums(noisy(cases, random)), group_sums(noisy(cases, random)), "dice")
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
        ps.append(found.p)
    assert 0.01 <= np.mean(np.array(ps) < 0.05) <= 0.11
    assert 0.4 <= np.mean(ps) <= 0.6


def test_p_is_that_of_the_paired_t_test_also_where_it_is_tiny():
    random = np.random.default_rng(0)
    for shift in (0.0, 0.03, 0.1):
        other = noisy(changed(POOLED, "dice", lambda value, shift=shift: value * (1 - shift)), random)
        found = gap_of(group_sums(other, 20_000), group_sums(POOLED, 20_000), "dice")
        reference = stats.ttest_rel([case.dice for case in other], DICE).pvalue
        assert math.log(found.p) == pytest.approx(math.log(reference), rel=0.05, abs=0.02)


def test_holm_is_that_of_published_numbers():
    # Holm's correction of 0.01, 0.04, 0.03, 0.005: R's p.adjust(p, "holm") gives 0.03, 0.06, 0.06, 0.02.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.01, None, 0.02]) == [pytest.approx(0.02), None, pytest.approx(0.02)]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_stands_between_no_correction_and_bonferroni_and_keeps_the_order(ps):
    found = holm(ps)
    for p, corrected in zip(ps, found, strict=True):
        assert p <= corrected <= min(1.0, len(ps) * p) or corrected == pytest.approx(max(p, min(1.0, corrected)))
    assert all(found[i] <= found[j] for i in range(len(ps)) for j in range(len(ps)) if ps[i] < ps[j])


def test_a_paired_difference_is_narrower_than_an_unpaired_one():
    better = [dataclasses.replace(case, dice=min(1.0, case.dice + 0.05)) for case in POOLED]
    elsewhere = [dataclasses.replace(case, key="other-" + case.key) for case in POOLED]
    paired = gap_of(group_sums(better, 1000), group_sums(POOLED, 1000), "dice")
    replicates = group_sums(better, 1000).replicate_means("dice") - group_sums(elsewhere, 1000).replicate_means("dice")
    unpaired = 4 * replicates.std()
    assert paired.value == pytest.approx(DICE.clip(max=0.95).mean() + 0.05 - DICE.mean(), abs=1e-12)
    assert paired.high - paired.low < 0.2 * unpaired


def test_a_method_compared_with_itself_differs_by_nothing():
    found = gap_of(group_sums(POOLED), group_sums(POOLED), "dice")
    assert dataclasses.astuple(found) == (0.0, 0.0, 0.0, 60, 0, None, None, 1.0, 0.5)


OTHER_CASES = {"fewer": SITES[0][:-1], "others": made_cases("wien", 20, 1)}


@pytest.mark.parametrize("other", OTHER_CASES.values(), ids=OTHER_CASES.keys())
def test_a_difference_over_other_cases_is_refused(other):
    with pytest.raises(ValueError, match="expected the same cases in both"):
        gap_of(group_sums(SITES[0]), group_sums(other), "dice")


def test_the_order_of_cases_and_of_two_sites_does_not_change_a_bit():
    assert np.array_equal(sums(SITES[0]).to_array(), sums(SITES[0][::-1]).to_array())
    a, b = sums(SITES[0]), sums(SITES[1])
    assert np.array_equal((a + b).to_array(), (b + a).to_array())


def test_the_order_of_many_sites_changes_rounding_only():
    arrays = [reduce(add, map(sums, order)).to_array() for order in permutations(SITES)]
    for array in arrays[1:]:
        np.testing.assert_allclose(array, arrays[0], rtol=1e-12)


def test_the_weights_of_a_case_are_normal_and_depend_on_key_and_seed_only():
    weights = normal_weights("bern-1", replicates=20_000, seed=7)
    assert np.array_equal(weights, normal_weights("bern-1", replicates=20_000, seed=7))
    assert stats.kstest(weights - 1, "norm").pvalue > 0.01
    assert np.array_equal(weights / GRAIN, np.floor(weights / GRAIN))
    assert not np.array_equal(weights, normal_weights("bern-1", replicates=20_000, seed=8))
    assert not np.array_equal(weights, normal_weights("bern-2", replicates=20_000, seed=7))


def test_scans_that_share_a_key_are_resampled_together():
    twins = group_sums([a_case("one", 5.0, 5.0, 0.2), a_case("one", 6.0, 6.0, 0.6)])
    assert np.array_equal(twins.weights, 2 * normal_weights("one", replicates=REPLICATES, seed=7))


def test_a_volume_on_an_edge_belongs_to_the_larger_stratum():
    on_edges = [a_case(str(v), v, v, 0.5, extent_mm=3 * v) for v in (9.99, 10.0, 29.99, 30.0, 31.0)]
    assert [group.n for group in sums(on_edges).by_volume] == [1, 2, 2]
    assert [group.n for group in sums(on_edges).by_extent] == [1, 1, 3]


def test_cases_without_blood_are_counted_apart():
    evaluation = sums([a_case("a", 0, 0, None), a_case("b", 0, 3.0, 0.0), a_case("c", 5.0, 0.0, 0.0)])
    assert (evaluation.n_no_blood, evaluation.n_false_positive, evaluation.volume.n) == (2, 1, 1)
    assert {name: mean_of(evaluation.overall, name).n for name in NAMES} == dict.fromkeys(NAMES, 1) | {"hd95_mm": 0}
    assert mean_of(evaluation.overall, "dice").value == 0.0


LABELS = {
    (): ("any volume",),
    (10.0,): ("< 10 mL", ">= 10 mL"),
    (10.0, 30.0): ("< 10 mL", "10 to 30 mL", ">= 30 mL"),
    (2.5, 10, 30): ("< 2.5 mL", "2.5 to 10 mL", "10 to 30 mL", ">= 30 mL"),
}


@pytest.mark.parametrize(("edges", "labels"), LABELS.items(), ids=map(str, LABELS))
def test_strata_are_named_by_their_edges(edges, labels):
    assert stratum_labels(edges) == labels
    assert len(EvaluationSums.zero(Split(3, volume_edges_ml=edges)).by_volume) == len(labels)
    assert extent_labels(edges) == tuple(label.replace("mL", "mm").replace("volume", "extent") for label in labels)


@pytest.mark.parametrize("edges", [(30, 10), (10, 10), (0, 10), (-1,), (math.inf,), (math.nan,)], ids=str)
def test_edges_that_are_not_positive_and_increasing_are_refused(edges):
    with pytest.raises(ValueError, match="expected positive, increasing numbers of mL"):
        stratum_labels(edges)


def test_no_case_gives_none_and_never_nan():
    nothing = sums([])
    for group in (nothing.overall, *nothing.by_volume, *nothing.by_extent):
        for name in NAMES:
            assert mean_of(group, name) == gap_of(group, group, name)
            assert dataclasses.astuple(mean_of(group, name)) == (None, None, None, 0, 0, None, None, None, None)
    assert dataclasses.astuple(nothing.volume.agreement()) == (0, None, None, None, None, None)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_few_cases_have_a_mean_but_no_interval_and_no_p(n):
    found = mean_of(group_sums(POOLED[:n]), "dice")
    assert found.value == pytest.approx(DICE[:n].mean())
    assert (found.low, found.high) == (None, None)
    assert (found.sd is None) == (n == 1)
    assert gap_of(group_sums(POOLED[:n]), group_sums(POOLED[:n]), "dice").p is None


@pytest.mark.parametrize(("patients", "told"), [(1, False), (2, False), (3, True), (6, True)])
def test_many_scans_of_one_or_two_patients_have_no_interval_and_no_p(patients, told):
    scans = [dataclasses.replace(case, key=f"patient {i % patients}") for i, case in enumerate(POOLED[:6])]
    ours, theirs = group_sums(scans), group_sums(changed(scans, "dice", lambda value: 0.9 * value))
    found, gain = mean_of(ours, "dice"), gap_of(ours, theirs, "dice")
    assert found.value == pytest.approx(DICE[:6].mean())
    assert [number is not None for number in (found.low, found.high, gain.low, gain.high, gain.p)] == [told] * 5


def test_five_cases_have_an_interval_although_the_weights_of_some_replicates_add_up_to_less_than_nothing():
    five = group_sums(POOLED[:5], 2000)
    assert (five.weights < 0).any()
    found = mean_of(five, "dice")
    assert 0 <= found.low < found.value < found.high <= 1


def test_an_interval_of_a_mean_ends_where_the_metric_does():
    found = mean_of(group_sums([a_case(str(i), 9.0, 9.0, dice) for i, dice in enumerate((1, 1, 1, 1, 0.2))]), "dice")
    assert (found.value, found.high) == (pytest.approx(0.84), 1.0)
    assert 0 < found.low < 0.5


def test_no_replicates_leave_the_mean_without_an_interval():
    assert dataclasses.astuple(mean_of(group_sums(POOLED, 0), "dice"))[1:4] == (None, None, 60)


def test_the_average_of_repeats_is_the_mean_over_repeats_with_one_repeat_s_n():
    better = [changed(site, "hd95_mm", lambda value: 0.5 * value) for site in SITES]
    one, two = (reduce(add, map(sums, sites)) for sites in (SITES, better))
    both, values = average([one, two]), values_of(METRICS[2])
    found = mean_of(both.overall, "hd95_mm")
    assert (found.n, both.volume.n, both.n_no_blood) == (60, 60, 0)
    assert found.value == pytest.approx(0.75 * values.mean())
    stacked = np.concatenate([values, 0.5 * values])
    assert found.sd == pytest.approx(stacked.std() * math.sqrt(60 / 59))
    assert abs(found.median - np.median(stacked)) < 2  # bins of 1 and 2 mm
    gain = gap_of(both.overall, one.overall, "hd95_mm")
    assert gain.value == pytest.approx(-0.25 * values.mean())
    assert both.volume.agreement() == one.volume.agreement()
    assert average([one]) is one


def test_repeats_on_other_cases_are_refused():
    with pytest.raises(ValueError, match="average of repeats: got 20 and 9 cases, expected the same cases in all"):
        average([sums(SITES[0]), sums(SITES[1])])


def test_sums_of_sites_that_ran_different_methods_are_compared_with_one_method_at_all_of_them():
    alone = [changed(site, "dice", lambda value: 0.9 * value) for site in SITES]
    each, federated = (reduce(add, map(sums, sites)) for sites in (alone, SITES))
    assert gap_of(each.overall, federated.overall, "dice").value == pytest.approx(-0.1 * DICE.mean())


FINE = {"key": "a", "volume_ml": 5.0, "predicted_ml": 4.0, "dice": 0.5, "surface_dice": 0.5, "hd95_mm": 3.0}
FINE |= {"lesion_f1": 1.0, "extent_mm": 20.0}
NO_BLOOD = {"volume_ml": 0.0, "surface_dice": None, "hd95_mm": None, "lesion_f1": None, "extent_mm": 0.0}
BAD_CASES = {
    "negative volume": ({"volume_ml": -1.0}, "volumes"),
    "nan volume": ({"predicted_ml": math.nan}, "volumes"),
    "dice above 1": ({"dice": 1.5}, "dice=1.5"),
    "nan dice": ({"dice": math.nan}, "dice=nan"),
    "no dice although blood": ({"dice": None}, "dice=None"),
    "dice although both empty": (NO_BLOOD | {"predicted_ml": 0.0, "dice": 1.0}, "dice=1.0"),
    "no surface dice although blood": ({"surface_dice": None}, "surface_dice=None"),
    "infinite distance": ({"hd95_mm": math.inf}, "hd95_mm=inf"),
    "nan distance": ({"hd95_mm": math.nan}, "hd95_mm=nan"),
    "distance without blood": (NO_BLOOD | {"dice": 0.0, "hd95_mm": 3.0}, "hd95_mm=3.0"),
    "blood without extent": ({"extent_mm": 0.0}, "extent_mm=0.0"),
    "extent without blood": (NO_BLOOD | {"dice": 0.0, "extent_mm": 5.0}, "extent_mm=5.0"),
}


@pytest.mark.parametrize(("change", "message"), BAD_CASES.values(), ids=BAD_CASES.keys())
def test_a_case_that_cannot_be_is_refused(change, message):
    CaseResult(**FINE)
    with pytest.raises(ValueError, match="case result: got " + message):
        CaseResult(**(FINE | change))


def test_the_array_comes_back_bit_for_bit_and_has_the_stated_length():
    array = sums(POOLED).to_array()
    assert (array.dtype, array.shape) == (np.float64, (array_length(SPLIT),))
    back = EvaluationSums.from_array(array, SPLIT)
    assert np.array_equal(back.to_array(), array)
    assert mean_of(back.overall, "hd95_mm") == mean_of(sums(POOLED).overall, "hd95_mm")
    assert isinstance(back.n_no_blood, int)
    assert back.volume_counts.base is None  # nothing else of the array is kept


volumes = st.one_of(st.just(0.0), st.floats(1e-3, 2000))
any_case = st.builds(
    lambda key, volume, predicted, dice: a_case(
        key, volume, predicted, None if volume == predicted == 0 else dice * (volume > 0 and predicted > 0)
    ),
    st.text(max_size=4),
    volumes,
    volumes,
    st.floats(0, 1),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(any_case, max_size=8), min_size=1, max_size=4))
def test_whatever_the_cases_sites_add_up_travel_and_never_give_nan(sites):
    split = Split(20)
    parts = [EvaluationSums.of(site, split, seed=0) for site in sites]
    received = [EvaluationSums.from_array(part.to_array(), split) for part in parts]
    total = reduce(add, received, EvaluationSums.zero(split))
    pooled = EvaluationSums.of([c for site in sites for c in site], split, seed=0)
    np.testing.assert_allclose(total.to_array(), pooled.to_array(), rtol=1e-12, atol=1e-9)
    groups = (total.overall, *total.by_volume, *total.by_extent)
    found = [mean_of(group, name) for group in groups for name in NAMES] + [total.volume.agreement()]
    numbers = [n for e in found for n in dataclasses.astuple(e) if n is not None]
    assert all(map(math.isfinite, numbers))


START = HEAD + N_VOLUME_BINS**2
WIDTH = row_length(REPLICATES)
BINS = sum(metric.n_bins for metric in METRICS)
TOTALS, SQUARES, COUNTS = START + 2, START + 7, START + 12
WEIGHTS = COUNTS + BINS
WEIGHTED = WEIGHTS + REPLICATES
REFUSED = {  # index into the array, value, what the message names
    "nan": (2, math.nan, "array: got NaN or inf"),
    "infinite": (-1, math.inf, "array: got NaN or inf"),
    "negative count": (0, -1.0, "n_no_blood: got -1.0, expected a whole number"),
    "half a case": (0, 0.5, "n_no_blood: got 0.5, expected a whole number"),
    "absurd count": (START, 1e12, "all, n: got"),
    "more false positives than empty cases": (1, 3.0, "n_false_positive: got 3, expected <= n_no_blood=0"),
    "mean above 1": (TOTALS, 1e3, "all, dice, total: got 1000.0, expected a sum of"),
    "negative total": (TOTALS + 1, -0.5, "all, surface_dice, total: got -0.5"),
    "distances beyond any scan": (TOTALS + 2, 1e9, "all, hd95_mm, total: got 1000000000.0"),
    "distances beyond their bins": (
        TOTALS + 2,
        2e3,
        "all, hd95_mm, total: got 2000.0, expected in .* as the histogram",
    ),
    "squares above total": (SQUARES, 1e3, "all, dice, squares: got 1000.0"),
    "squares too small": (SQUARES + 4, 0.0, "all, lesion_f1, squares: got 0.0"),
    "squares beyond their bins": (SQUARES + 2, 3e6, "all, hd95_mm, squares: got 3000000.0, expected in .* histogram"),
    "half a case in a bin": (COUNTS, 0.5, "all, dice, histogram: got another"),
    "a case more in a bin": (
        COUNTS + WIDTH,
        40.0,
        "stratum 0, dice, histogram: got another, expected whole numbers of",
    ),
    "a weight that is no multiple": (WEIGHTS, 0.1, "all, weights: got another number"),
    "huge weight": (WEIGHTS + WIDTH, 1e6, "stratum 0, weights: got another number"),
    "a weight far below": (WEIGHTS, -60 * FURTHEST, "all, weights: got another number"),
    "other weights in a stratum": (WEIGHTS + WIDTH, 20.0, "strata: got other cases, expected those of the whole"),
    "weighted far below the total": (WEIGHTED, -60 * FURTHEST, "all, weighted: got another number"),
    "weighted above all weights": (WEIGHTED + WIDTH, 1e6, "stratum 0, weighted: got another number"),
    "another weighted sum in a group": (WEIGHTED + 4 * WIDTH, 0.001, "extents, weighted: got another sum"),
    "another number of cases in a group": (START + 4 * WIDTH, 5.0, "extent 0, (dice|weights|surface).*: got"),
    "a volume bin more": (HEAD, 61.0, "histogram of volumes: got another, expected whole numbers of 60 cases"),
    "volumes below their bins": (3, 100.0, "volume, x+: got"),
}


@pytest.mark.parametrize(("index", "value", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_sums_that_no_cases_can_have_are_refused_by_name(index, value, message):
    array = sums(POOLED).to_array()
    array[index] = value
    with pytest.raises(PayloadError, match="evaluation sums, " + message):
        EvaluationSums.from_array(array, SPLIT)


def test_errors_of_volumes_must_be_those_of_the_volumes():
    other, error = sums(POOLED), NAMES.index("volume_error_ml")
    for group in (other.overall, other.by_volume[2], other.by_extent[2]):
        group.squares[error] += 1.0  # within every bin, and alike in all splits
    with pytest.raises(PayloadError, match=r"volume_error_ml, squares: got .* of the volumes"):
        EvaluationSums.from_array(other.to_array(), SPLIT)


LENGTH = array_length(SPLIT)
SHAPES = {
    "short": (sums(POOLED).to_array()[:-1], rf"shape: got \({LENGTH - 1},\), expected \({LENGTH},\)"),
    "two axes": (sums(POOLED).to_array()[None], rf"shape: got \(1, {LENGTH}\)"),
    "single precision": (sums(POOLED).to_array().astype(np.float32), "dtype: got float32, expected float64"),
    "objects": (sums(POOLED).to_array().astype(object), "dtype: got object"),
}


@pytest.mark.parametrize(("array", "message"), SHAPES.values(), ids=SHAPES.keys())
def test_an_array_of_another_form_is_refused(array, message):
    with pytest.raises(PayloadError, match="evaluation sums, " + message):
        EvaluationSums.from_array(array, SPLIT)


def test_sums_of_other_groups_or_replicates_do_not_add():
    with pytest.raises(ValueError, match="by_volume: got 2 groups, expected 3"):
        sums(POOLED) + EvaluationSums.zero(Split(volume_edges_ml=(10.0,)))
    with pytest.raises(ValueError, match="by_extent: got 1 groups, expected 3"):
        sums(POOLED) + EvaluationSums.zero(Split(extent_edges_mm=()))
    with pytest.raises(ValueError, match="got 10 replicates, expected 200"):
        sums(POOLED) + EvaluationSums.zero(Split(10))
