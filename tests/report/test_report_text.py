"""Numbers read as a person writes them."""

import math

import pytest

from sahfl.report import text

CASES = [
    (text.number(0.4123), "0.412"),
    (text.number(-3.14, 1), "−3.1"),
    (text.number(-0.0001), "0.000"),
    (text.number(None), "–"),
    (text.number(math.nan), "–"),
    (text.signed(0.0823, 2), "+0.08"),
    (text.signed(-0.0823, 2), "−0.08"),
    (text.signed(0.0), "0.000"),
    (text.signed(0.0001), "0.000"),
    (text.signed(None), "–"),
    (text.interval({"low": -0.02, "high": 0.1}, 2, plus=True), "−0.02 to +0.10"),
    (text.interval({"low": None, "high": None}), "–"),
    (text.interval(None), "–"),
    (text.whole(812345), "812,345"),
    (text.whole(None), "–"),
    (text.count(1, "fold"), "1 fold"),
    (text.count(30, "patient"), "30 patients"),
    (text.size(0), "0 B"),
    (text.size(812), "812 B"),
    (text.size(4123), "4.1 kB"),
    (text.size(41_234), "41 kB"),
    (text.size(405_612), "0.41 MB"),
    (text.size(26_400_000), "26.4 MB"),
    (text.size(1_250_000_000), "1.25 GB"),
    (text.size(None), "–"),
    (text.percent(12, 100), "12 %"),
    (text.percent(1.52, 100), "1.5 %"),
    (text.percent(0.0841, 100), "0.084 %"),
    (text.percent(0, 100), "0 %"),
    (text.percent(1, 0), "–"),
    (text.duration(8.23), "8.2 s"),
    (text.duration(59.97), "60.0 s"),
    (text.duration(301.2), "5 min 1 s"),
    (text.duration(8040), "2 h 14 min"),
    (text.duration(None), "–"),
    (text.moment("2026-11-22T14:00:00+00:00"), "22 November 2026, 14:00 UTC"),
    (text.moment("2026-11-02T04:00:00"), "2 November 2026, 04:00"),
    (text.moment(None), "–"),
]


@pytest.mark.parametrize(("shown", "expected"), CASES, ids=[expected for _, expected in CASES])
def test_a_value_is_shown_as(shown, expected):
    assert shown == expected


LATER = [
    (text.p_value(0.0123), "0.012"),
    (text.p_value(0.0002), "< 0.001"),
    (text.p_value(1.0), "1.000"),
    (text.p_value(None), "–"),
    (text.short(10_000), "10 k"),
    (text.short(1e6), "1 M"),
    (text.short(0.3), "0.3"),
    (text.short_size(100), "100 B"),
    (text.short_size(1e4), "10 kB"),
    (text.short_size(1e7), "10 MB"),
    (text.estimate(12.34, {"low": 10.0, "high": 15.0, "trainings": 3}, 1), "12.3 (10.0 to 15.0)"),
    (text.estimate(12.34, {"low": 10.0, "high": 15.0, "trainings": 1}, 1), "12.3 (10.0 to 15.0 ‡)"),
    (text.estimate(12.34, {"low": None, "high": None, "trainings": 1}, 1), "12.3"),
    (text.marked_interval({"low": -1.0, "high": 15.0, "trainings": 0}, 1, plus=True), "−1.0 to +15.0"),
]


@pytest.mark.parametrize(("shown", "expected"), LATER, ids=[expected for _, expected in LATER])
def test_a_probability_or_a_round_number_is_shown_as(shown, expected):
    assert shown == expected
