"""Missed cases: HD95 without them, their rate with its interval, and what of both a site withholds."""

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
from scipy import stats

from sahfl.errors import PayloadError
from sahfl.statistics.disclosure import describe_withheld, withhold
from sahfl.statistics.estimates import difference, estimate
from sahfl.statistics.groups import GroupSums, normal_weights
from sahfl.statistics.metrics import METRICS, NAMES
from sahfl.statistics.misses import miss_difference, miss_rate
from sahfl.statistics.sums import HEAD, N_VOLUME_BINS, EvaluationSums, average
from sahfl.statistics.variances import Sample

SPLIT = Split(200)
HD95 = NAMES.index("hd95_mm")
START = HEAD + N_VOLUME_BINS**2


def cases(found, missed, *, name="p", volume_ml=20.0, extent_mm=45.0, seed=0):
    """Detected and missed cases of one volume; Dice and HD95 of the detected ones are random."""
    random = np.random.default_rng(seed)
    seen = [
        a_case(f"{name}{i}", volume_ml, 18.0, dice, hd95_mm=hd95, extent_mm=extent_mm)
        for i, (dice, hd95) in enumerate(
            zip(random.uniform(0.2, 0.9, found), random.uniform(2, 60, found), strict=True)
        )
    ]
    lost = [a_case(f"{name}x{i}", volume_ml, 0.0, 0.0, extent_mm=extent_mm) for i in range(missed)]
    return [*seen, *lost]


def sums_of(of, replicates=200):
    return GroupSums.of(of, replicates=replicates, seed=1)


def untrained(of, replicates=200):
    return Sample(sums_of(of, replicates), trained=False)


def test_hd95_is_over_the_detected_cases_and_all_other_metrics_over_all():
    some = cases(20, 5)
    hd95 = np.array([case.hd95_mm for case in some if case.hd95_mm is not None])
    found = mean_of(sums_of(some, 4000), "hd95_mm")
    assert (found.n, found.value, found.sd) == (20, pytest.approx(hd95.mean()), pytest.approx(hd95.std(ddof=1)))
    low, _ = stats.ttest_1samp(hd95, 0).confidence_interval()
    assert (found.value - found.low) / (hd95.mean() - low) == pytest.approx(1, abs=0.05)  # replicates count patients
    assert found.high - found.value > found.value - found.low
    assert abs(found.median - np.median(hd95)) < 2  # bins of 1 and 2 mm
    dice = mean_of(sums_of(some), "dice")
    assert (dice.n, dice.value) == (25, pytest.approx(np.mean([case.dice for case in some])))


def test_the_mean_of_hd95_does_not_depend_on_how_many_cases_were_missed():
    ours, theirs = sums_of(cases(20, 0)), sums_of(cases(20, 12))
    assert mean_of(ours, "hd95_mm").value == pytest.approx(mean_of(theirs, "hd95_mm").value)


def test_scans_of_one_patient_count_as_one_in_the_interval_of_hd95():
    some = cases(24, 8)
    twice = [dataclasses.replace(case, key=f"patient {i // 2}") for i, case in enumerate(some)]
    alone, shared = (mean_of(sums_of(of, 4000), "hd95_mm") for of in (some, twice))
    ratio = (shared.value - shared.low) / (alone.value - alone.low)
    assert ratio == pytest.approx(math.sqrt(2), rel=0.15)


@pytest.mark.parametrize(("found", "missed", "told"), [(4, 20, False), (5, 20, True), (0, 20, False), (1, 0, False)])
def test_few_detected_cases_have_no_interval_of_hd95(found, missed, told):
    estimate_ = mean_of(sums_of(cases(found, missed)), "hd95_mm")
    assert (estimate_.n, estimate_.value is None, estimate_.low is not None) == (found, found == 0, told)


def test_hd95_of_several_trainings_is_over_patients_and_trainings():
    some = cases(20, 1)
    sample = Sample(sums_of(some), {1: sums_of(some), 2: sums_of(worse(some, 30.0))})
    alone, found = mean_of(sample.sums, "hd95_mm"), estimate(sample, "hd95_mm")
    assert found.trainings == 2
    assert found.high - found.low > 3 * (alone.high - alone.low)
    lost = Sample(sample.sums, {1: sample.sums, 2: sums_of(cases(0, 21))})
    assert estimate(lost, "hd95_mm").trainings == 1  # the second training detected nothing


def worse(of, more_mm):
    return [case if case.missed else dataclasses.replace(case, hd95_mm=case.hd95_mm + more_mm) for case in of]


def test_hd95_of_two_methods_is_paired_only_where_neither_missed_a_case():
    some = cases(20, 0)
    found = gap_of(sums_of(worse(some, 3.0)), sums_of(some), "hd95_mm")
    assert (found.value, found.n) == (pytest.approx(3.0), 20)
    missed = gap_of(sums_of(cases(19, 1)), sums_of(some[:19] + cases(0, 1)), "hd95_mm")
    assert (missed.value, missed.low, missed.p, missed.n) == (None, None, None, 0)
    assert gap_of(sums_of(cases(19, 1)), sums_of(some[:19] + cases(0, 1)), "dice").n == 20


def test_the_miss_rate_has_the_interval_of_agresti_and_coull():
    found = miss_rate(untrained(cases(25, 5), 4000))
    assert (found.value, found.n, found.trainings) == (5 / 30, 30, 0)
    middle = 7 / 34
    half = stats.t.ppf(0.975, 29) * math.sqrt(middle * (1 - middle) / 34)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=0.01)


def test_no_miss_among_a_few_patients_does_not_mean_that_there_are_none():
    found = miss_rate(untrained(cases(15, 0)))
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high > 0.2  # the exact interval of Clopper and Pearson ends at 0.218
    everything = miss_rate(untrained(cases(0, 15)))
    assert (everything.value, everything.high) == (1.0, 1.0)
    assert everything.low < 0.8
    assert miss_rate(untrained(cases(2, 2))).low is None
    assert miss_rate(untrained([])).value is None


def test_the_spread_of_trainings_widens_the_interval_of_a_miss_rate():
    each = {1: sums_of(cases(30, 0)), 2: sums_of(cases(20, 10))}
    sample = Sample(sums_of(cases(25, 5)), each)
    found, alone = miss_rate(sample), miss_rate(untrained(cases(25, 5)))
    assert found.trainings == 2
    assert found.high - found.low > 2 * (alone.high - alone.low)
    assert miss_rate(Sample(sample.sums)).trainings == 1


def test_a_difference_of_miss_rates_has_the_cautious_interval_of_agresti_and_caffo_and_no_p():
    ours, theirs = untrained(cases(25, 5), 4000), untrained(cases(29, 1), 4000)
    found = miss_difference(ours, theirs)
    rates = 6 / 32, 2 / 32
    variances = [rate * (1 - rate) / 32 for rate in rates]
    freedom = sum(variances) ** 2 / sum(v**2 / 29 for v in variances)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(variances))
    assert (found.value, found.n, found.p) == (pytest.approx(4 / 30), 30, None)
    middle = rates[0] - rates[1]
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=0.01)
    assert miss_difference(untrained([]), untrained([])).value is None
    assert miss_difference(untrained(cases(2, 1)), untrained(cases(3, 0))).low is None


def test_trainings_of_equal_numbers_are_paired_in_a_difference_of_miss_rates():
    each = {1: sums_of(cases(30, 0)), 2: sums_of(cases(20, 10))}
    ours = Sample(sums_of(cases(25, 5)), each)
    paired = miss_difference(ours, ours)
    apart = miss_difference(ours, Sample(ours.sums, {number + 2: part for number, part in each.items()}))
    alone = miss_difference(untrained(cases(25, 5)), untrained(cases(25, 5)))
    assert paired.high - paired.low == pytest.approx(alone.high - alone.low)
    assert apart.high - apart.low > 2 * (paired.high - paired.low)


# --- sums of sites ---------------------------------------------------------------------------------------------------


def sums_over(of, split=SPLIT):
    return EvaluationSums.of(of, split, seed=3)


def test_misses_of_all_sites_add_up_and_the_average_of_repeats_is_that_of_their_numbers():
    total = reduce(add, [sums_over(cases(9, 2, name="a")), sums_over(cases(7, 3, name="b"))])
    assert (total.overall.missed, total.overall.detected, total.by_volume[1].missed) == (5, 16, 5)
    same = [a_case(f"p{i}", 20.0, 0.0 if i < n else 18.0, 0.0 if i < n else 0.5) for n in (1, 4) for i in range(10)]
    both = average([sums_over(same[:10]), sums_over(same[10:])])
    assert (both.overall.missed, both.overall.detected, both.overall.n) == (2.5, 7.5, 10)
    assert mean_of(both.overall, "hd95_mm").value == pytest.approx(300 * 0.25)
    assert mean_of(both.overall, "hd95_mm").n == 8


def told(of, *, group=5, bootstrap=20):
    left = withhold(sums_over(of), of, SPLIT, smallest_group=group, smallest_bootstrap=bootstrap)
    return EvaluationSums.from_array(left.to_array(), SPLIT)


def test_a_group_with_enough_detected_patients_tells_its_misses_and_hd95():
    got = told([*cases(20, 3), *cases(21, 1, name="q", volume_ml=50.0, extent_mm=90.0)])
    assert [group.missed for group in got.by_volume] == [0, 3, 1]
    assert [group.detected for group in got.groups] == [41, 0, 20, 21, 0, 20, 21]
    assert describe_withheld(got) == ""


def test_hd95_of_one_detected_patient_among_twenty_missed_ones_stays():
    got = told(cases(1, 24))
    assert (got.overall.n, got.overall.missed, got.overall.hidden) == (25, 0, 25)
    assert not got.overall.totals[HD95]
    assert not got.overall.weighted[HD95].any()
    assert describe_withheld(got) == "misses and HD95"
    rate, hd95 = miss_rate(Sample(got.overall)), mean_of(got.overall, "hd95_mm")
    assert (rate.value, rate.n, hd95.value, hd95.n, hd95.median) == (None, 0, None, 0, None)
    assert mean_of(got.overall, "dice").n == 25


def test_hd95_of_few_detected_patients_of_one_stratum_stays_also_by_subtraction():
    got = told([*cases(25, 0), *cases(3, 20, name="q", volume_ml=50.0, extent_mm=90.0)])
    assert [group.detected for group in got.groups] == [28, 0, 0, 0, 0, 0, 0]
    assert [group.hidden for group in got.groups] == [0, 0, 25, 23, 0, 25, 23]
    assert describe_withheld(got) == "misses and HD95 of groups"
    assert mean_of(got.overall, "hd95_mm").n == 28
    assert mean_of(got.by_volume[1], "dice").low is not None


def test_a_group_in_which_nothing_was_detected_tells_so():
    got = told([*cases(25, 0), *cases(0, 20, name="q", volume_ml=50.0, extent_mm=90.0)])
    assert [group.missed for group in got.by_volume] == [0, 0, 20]
    assert describe_withheld(got) == ""


@pytest.mark.parametrize(("found", "hidden"), [(5, 0), (4, 8), (0, 0)])
def test_without_replicates_the_smaller_threshold_counts_for_detected_patients_too(found, hidden):
    got = told(cases(found, 8 - found))
    assert (got.overall.bare, got.overall.hidden) == (8, hidden)
    assert got.overall.missed == (0 if hidden else 8 - found)


def test_what_hides_misses_at_one_site_leaves_those_of_the_others():
    total = told(cases(22, 3, name="a")) + told(cases(1, 24, name="b"))
    assert (total.overall.n, total.overall.hidden, total.overall.missed) == (50, 25, 3)
    rate = miss_rate(Sample(total.overall, trained=False))
    assert (rate.value, rate.n) == (3 / 25, 25)
    assert mean_of(total.overall, "hd95_mm").n == 22
    assert gap_of(total.overall, total.overall, "hd95_mm").value is None
    assert gap_of(total.overall, total.overall, "dice").value == 0


def test_a_repeat_that_hides_its_misses_hides_those_of_the_average_and_of_nothing_else():
    keys = [f"p{i}" for i in range(25)]
    of = {
        n: [a_case(key, 20.0, 18.0 if i < n else 0.0, 0.5 if i < n else 0.0) for i, key in enumerate(keys)]
        for n in (1, 22)
    }
    both = average([told(of[22]), told(of[1])])
    assert (both.overall.hidden, both.overall.missed, both.overall.detected) == (25, 0, 0)
    assert mean_of(both.overall, "hd95_mm").value is None
    assert mean_of(both.overall, "dice").value == pytest.approx(0.5 * 23 / 50, abs=1e-3)


numbers = st.lists(st.integers(0, 6), min_size=9, max_size=9)


@settings(max_examples=60, deadline=None)
@given(numbers, numbers, st.integers(1, 8), st.integers(0, 12))
def test_no_combination_of_hd95_sums_is_over_fewer_detected_patients_than_allowed(found, missed, smallest, more):
    places = list(product((5.0, 20.0, 50.0), (20.0, 45.0, 90.0)))
    of = [
        case
        for place, (a, b, (volume, extent)) in enumerate(zip(found, missed, places, strict=True))
        for case in cases(a, b, name=f"{place}-", volume_ml=volume, extent_mm=extent)
    ]
    got = told(of, group=smallest, bootstrap=smallest + more)
    least = smallest if got.overall.bare else smallest + more
    detected = np.array(found).reshape(3, 3)
    if got.overall.n and not got.overall.hidden:
        assert detected.sum() == 0 or detected.sum() >= least or smallest + more == 1
    if got.overall.n and not got.hides_groups and smallest + more > 1:
        kept = [(-1, 0, 1) if not absent else (0,) for absent in (got.withheld.strata, got.withheld.extents)]
        for rows, columns in product(product(kept[0], repeat=3), product(kept[1], repeat=3)):
            n = int(detected[np.add.outer(rows, columns) != 0].sum())
            assert n == 0 or n >= least


def test_replicates_of_misses_would_tell_another_method_s_dice_of_the_one_missed_patient():
    """Why there are none: the weights of the one missed patient, times another method's replicates, give that Dice."""
    missed, everybody = cases(0, 1)[0], [*cases(19, 0), a_case("px0", 20.0, 18.0, 0.83)]
    other = sums_of(everybody, 20_000)
    weights = normal_weights(missed.key, replicates=20_000, seed=1)
    apart = other.weighted[0] - other.totals[0]
    assert ((weights - 1) * apart).mean() == pytest.approx(0.83, abs=0.1)
    left = sums_over([*cases(24, 0), missed]).overall
    assert left.to_row().size == 2 + 2 * len(METRICS) + left.counts.size + (1 + len(METRICS)) * SPLIT.replicates


WRONG = {
    "more misses than cases": ({START + 1: 26.0}, "all, missed: got 26"),
    "half a miss": ({START + 1: 2.5}, "all, missed: got 2.5"),
    "more misses than Dice near 0": (
        {START + 1: 6.0, START + 2 + HD95: 0.0},
        "all, dice, histogram: got 5 cases near 0",
    ),
    "fewer misses than the histogram has": ({START + 1: 3.0}, "all, hd95_mm, histogram: got another"),
    "misses that are said to be withheld": ({13: 1.0, 14: 1.0}, "all, missed: got 5, expected <= 0"),
    "misses of groups that are said to be withheld": ({14: 1.0}, "stratum 1, missed: got 5, expected <= 0"),
    "misses withheld in all and not in groups": (
        {13: 1.0, START + 1: 0.0},
        "withheld: got misses in all, not in groups",
    ),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_misses_that_no_cases_can_have_are_refused_by_name(changes, message):
    array = sums_over(cases(20, 5)).to_array()
    for index, value in changes.items():
        array[index] = value
    with pytest.raises(PayloadError, match="evaluation sums, " + message):
        EvaluationSums.from_array(array, SPLIT)


def test_hd95_beside_withheld_misses_is_refused():
    array = told(cases(1, 24)).to_array()
    array[START + 2 + HD95] = 3.0
    with pytest.raises(PayloadError, match=r"all, hd95_mm, total: got 3\.0, expected a sum of 0"):
        EvaluationSums.from_array(array, SPLIT)


def test_differences_of_methods_need_no_equal_misses():
    ours, theirs = told(cases(22, 3)), told([*cases(22, 3, seed=1)])
    assert difference(Sample(ours.overall), Sample(theirs.overall), "dice").value is not None
