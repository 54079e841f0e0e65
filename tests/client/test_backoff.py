"""Pauses between tries: they grow, they are capped, they differ."""

import random

import pytest
from sahfl_client.backoff import EARLY_CAP_S, LATE_CAP_S, Backoff


def pauses(n, *, draw=lambda: 1.0, lasting=False):
    """The pauses of so many failures in a row, on a clock that only they move."""
    time_s, found = 0.0, []
    backoff = Backoff(clock=lambda: time_s, draw=draw)
    for _ in range(n):
        found.append(backoff.next_s(lasting=lasting))
        time_s += found[-1]
    return found


def test_ceilings_grow_from_half_a_second_to_a_few_in_the_first_minute_and_to_twenty_after_it():
    found = pauses(30)
    assert found[:6] == pytest.approx([0.5, 0.8, 1.28, 2.048, EARLY_CAP_S, EARLY_CAP_S])
    early = [pause for index, pause in enumerate(found) if sum(found[:index]) <= 60]
    assert max(early) == EARLY_CAP_S
    assert found[-1] == LATE_CAP_S
    assert max(found) == LATE_CAP_S


def test_a_cause_that_lasts_is_tried_slowly_from_the_start():
    assert pauses(3, lasting=True) == [LATE_CAP_S] * 3


def test_pauses_are_drawn_from_the_whole_range_so_that_sites_do_not_come_back_in_step():
    one, other = (pauses(20, draw=random.Random(seed).random) for seed in (1, 2))
    assert one != other
    assert min(one + other) < 0.5
    assert max(one + other) <= LATE_CAP_S


def test_no_pause_is_so_short_that_a_loop_would_spin():
    assert min(pauses(10, draw=lambda: 0.0)) == 0.1


def test_after_a_success_the_next_failure_is_a_first_one():
    backoff = Backoff(clock=lambda: 0.0, draw=lambda: 1.0)
    assert [backoff.next_s(), backoff.next_s()] == [0.5, 0.8]
    backoff.reset()
    assert backoff.next_s() == 0.5
