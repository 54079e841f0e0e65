"""A whole masked round: the sum is the plain sum, whoever drops out, at any step, as long as t sites stay."""

from itertools import combinations, product

import numpy as np
import pytest
from harness.masked_round import CONTEXT, NAMES, STEPS, Round, numbers, party, plain_sum, secret_of, verify
from hypothesis import given, settings
from hypothesis import strategies as st

from sahfl.errors import MaskingFailed
from sahfl.masking.party import Party
from sahfl.masking.ring import FixedPoint

COMBINATIONS = [
    dict(zip(leaving, steps, strict=True))
    for n_leaving in range(3)
    for leaving in combinations(NAMES, n_leaving)
    for steps in product(STEPS, repeat=n_leaving)
]
"""Every way in which up to two of five sites leave: 1 + 5 x 5 + 10 x 25."""


def in_sum(leaves):
    """Sites whose vector came before they left."""
    return tuple(site for site in NAMES if leaves.get(site, "reveal") in ("confirm", "reveal"))


def test_the_sum_is_the_plain_sum_whoever_of_five_sites_leaves_at_any_step_while_three_stay():
    assert len(COMBINATIONS) == 276
    for leaves in COMBINATIONS:
        total = Round(leaves=leaves, restarts=False).total()
        assert total.sites == in_sum(leaves), leaves
        np.testing.assert_array_equal(total.numbers, plain_sum(total.sites), err_msg=str(leaves))
        assert total.wrong == {}


@given(st.data())
@settings(max_examples=12, deadline=None)
def test_the_sum_is_right_for_any_number_of_sites_any_threshold_and_any_drop_outs_that_it_bears(data):
    n = data.draw(st.integers(3, 8))
    threshold = data.draw(st.integers(max(3, n // 2 + 1), n))
    names = [f"site{index}" for index in range(n)]
    leaving = data.draw(st.permutations(names))[: data.draw(st.integers(0, n - threshold))]
    leaves = {site: data.draw(st.sampled_from(STEPS[1:])) for site in leaving}  # who never came makes n smaller
    total = Round(names, leaves=leaves, threshold=threshold, restarts=False).total()
    np.testing.assert_array_equal(total.numbers, plain_sum(total.sites))
    assert set(names) - set(total.sites) == {site for site, step in leaves.items() if step in ("share", "mask")}


@pytest.mark.parametrize("leaves", [{}, {"bern": "mask", "wels": "reveal"}, {"graz": "share", "linz": "confirm"}])
def test_sites_that_start_anew_after_every_step_come_to_the_same_sum(leaves):
    total = Round(leaves=leaves, restarts=True).total()
    np.testing.assert_array_equal(total.numbers, plain_sum(in_sum(leaves)))


@pytest.mark.parametrize("step", STEPS)
def test_a_round_fails_when_fewer_than_t_sites_are_left_at_any_step(step):
    leaves = dict.fromkeys(NAMES[:3], step)
    with pytest.raises(MaskingFailed, match=r"at least 3|expected 3 to"):
        Round(leaves=leaves).total()


@pytest.mark.parametrize(("bits", "dtype"), [(16, np.uint16), (32, np.uint32), (64, np.uint64)])
def test_a_round_sums_in_every_ring(bits, dtype):
    total = Round(leaves={"graz": "mask"}, bits=bits, length=40_000).total()
    assert total.numbers.dtype == dtype
    np.testing.assert_array_equal(total.numbers, plain_sum(in_sum({"graz": "mask"}), 40_000, dtype))


def test_the_sum_of_encoded_updates_is_the_weighted_sum_up_to_half_a_step_for_each_site():
    volumes = dict(zip(NAMES, (10, 33, 7, 21, 29), strict=True))
    form, rng = FixedPoint(32, bound=0.5, n_sites=5), np.random.default_rng(1)
    updates = {site: rng.uniform(-0.5, 0.5, 1000).astype(np.float32) for site in NAMES}
    there = Round(leaves={"linz": "mask"}, length=1000)
    there.vector = lambda site: form.encode(updates[site], weight=volumes[site] / 100)
    total = there.total()
    expected = sum(updates[site].astype(float) * volumes[site] / 100 for site in total.sites)
    assert np.abs(form.decode(total.numbers) - expected).max() <= 4 * form.step / 2


def test_a_masked_vector_looks_random_and_the_masks_of_two_sites_have_nothing_in_common():
    there = Round(length=200_000).until("advertise")
    there.share()
    masked = [
        there.parties[site].mask(np.zeros(200_000, np.uint32), delivery.received, delivery.sharers)
        for site, delivery in there.deliveries.items()
    ]
    for vector in masked:
        bits = np.unpackbits(vector.view(np.uint8)).mean()
        assert abs(bits - 0.5) < 5 * 0.5 / np.sqrt(32 * 200_000)
    assert abs(np.corrcoef(masked[0], masked[1])[0, 1]) < 5 / np.sqrt(200_000)


def test_a_repeated_step_gets_the_same_bytes_also_after_a_restart():
    there = Round(restarts=False).until("reveal")
    site = "linz"
    again = Party.from_bytes(there.parties[site].to_bytes(), secret=secret_of(site))
    delivery = there.deliveries[site]
    for one in (there.parties[site], again):
        assert one.advertise() == there.listed[2].advert
        assert one.share(there.listed, verify) == there.shares[site]
        masked = one.mask(numbers(site), delivery.received, delivery.sharers)
        np.testing.assert_array_equal(masked, again.mask(numbers(site), delivery.received, delivery.sharers))
        assert one.confirm(there.survivors) == again.confirm(there.survivors)
        assert one.reveal(there.survivors, there.confirmations, verify) == there.revealed[site]


def test_a_site_rebuilt_from_its_secret_alone_gives_the_same_bytes_for_the_same_list():
    there = Round(restarts=False).until("share")
    fresh = party("bern", CONTEXT)
    assert fresh.share(there.listed, verify) == there.shares["bern"]


def test_of_every_site_each_other_reveals_one_kind_of_share_and_of_itself_only_the_self_mask():
    there = Round(leaves={"graz": "mask"}).until("reveal")
    for site, shares in there.revealed.items():
        assert set(shares) == set(NAMES)
        of_self, of_key = there.parties[site]._own_shares(there.parties[site]._listed())[site]
        assert shares[site] == of_self != of_key
    dropped = there.parties["graz"]._own_shares(there.parties["graz"]._listed())
    assert all(there.revealed[site]["graz"] == dropped[site][1] for site in there.revealed)


@pytest.mark.slow
def test_hundred_and_four_sites_share_with_some_and_the_sum_is_right():
    names = [f"site{i:03d}" for i in range(104)]
    leaves = {names[i]: STEPS[i % 5] for i in range(0, 104, 12)}
    there = Round(names, leaves=leaves, threshold=None, restarts=False)
    total = there.total()
    terms = there.collector._list().terms
    assert terms.degree < terms.n_sites - 1
    np.testing.assert_array_equal(total.numbers, plain_sum(total.sites))
    assert all(leaves.get(site, "reveal") in ("confirm", "reveal") for site in total.sites)
