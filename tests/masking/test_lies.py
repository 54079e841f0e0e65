"""A server that lies to a site, or asks again in another way: refused by name, and nothing leaves."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from harness.masked_round import CONTEXT, NAMES, Round, numbers, party, plain_sum, secret_of, sign, signed, verify

from sahfl.errors import MaskingRefused
from sahfl.masking.encoding import digest_of_names
from sahfl.masking.keys import Pair, mask_seed
from sahfl.masking.masks import add_mask, subtracts
from sahfl.masking.party import Party
from sahfl.masking.sharing import combine, read_share
from sahfl.masking.site_list import SignedAdvert

LATER = replace(CONTEXT, round=4)


def adverts(names=NAMES, context=CONTEXT):
    return [signed(party(site, context), context) for site in names]


def resigned(advert, site=None):
    return SignedAdvert(advert, sign(site or advert.site, advert.document(CONTEXT)))


def changed_at(index, entry):
    found = adverts()
    found[index] = entry
    return found


GRAZ = party("graz").advertise()
LISTS = {
    "another site's signature": (changed_at(1, resigned(GRAZ, "linz")), "'graz' did not sign these keys"),
    "keys of another round": (adverts()[:1] + adverts(context=LATER)[1:], "'graz' did not sign these keys"),
    "keys that the site did not sign": (
        changed_at(1, SignedAdvert(replace(GRAZ, mask_key=bytes(31) + b"\x09"), adverts()[1].signature)),
        "'graz' did not sign these keys",
    ),
    "own keys of another round": (
        [resigned(party("bern", LATER).advertise()), *adverts()[1:]],
        "does not have this site with its own keys",
    ),
    "without this site": (adverts()[1:], "does not have this site with its own keys"),
    "two sites": (adverts()[:2], "list of sites: got 2, expected 3 to"),
    "threshold of half the sites": (adverts([*NAMES, "zug"]), "threshold: got 3, expected 4 to 6"),
    "a site twice": ([*adverts()[:2], *adverts()[1:]], "not in order, or a site occurs twice"),
    "out of order": (adverts()[::-1], "not in order, or a site occurs twice"),
    "one key for two sites": (
        changed_at(1, resigned(replace(GRAZ, mask_key=adverts()[2].advert.mask_key))),
        "has not 32 bytes, or occurs twice",
    ),
    "a short key": (changed_at(1, resigned(replace(GRAZ, mask_key=b"\x09"))), "has not 32 bytes"),
    "a long name": (
        [*adverts(), resigned(replace(GRAZ, site="x" * 201, mask_key=b"m" * 32, share_key=b"s" * 32))],
        "a site's name has 201 characters",
    ),
    "a key with which all secrets are zero": (
        changed_at(1, resigned(replace(GRAZ, share_key=bytes(32)))),
        "site 'graz': its public key gives everybody the same secret",
    ),
}


@pytest.mark.parametrize(("listed", "message"), LISTS.values(), ids=LISTS.keys())
def test_a_false_list_is_refused_and_leaves_the_site_where_it_was(listed, message):
    one = party("bern")
    before = one.to_bytes()
    with pytest.raises(MaskingRefused, match=message):
        one.share(listed, verify)
    assert one.to_bytes() == before


def test_another_list_than_the_answered_one_is_refused_also_after_a_restart():
    one = party("bern")
    shares = one.share(adverts(), verify)
    for again in (one, Party.from_bytes(one.to_bytes(), secret=secret_of("bern"))):
        with pytest.raises(MaskingRefused, match="another list of sites than was answered"):
            again.share(adverts(NAMES[:4]), verify)
        assert again.share(adverts(), verify) == shares


def test_steps_out_of_order_are_refused():
    one, vector = party("bern"), numbers("bern")
    for ask in (lambda: one.mask(vector, {}, NAMES), lambda: one.confirm(NAMES), lambda: one.reveal(NAMES, {}, verify)):
        with pytest.raises(MaskingRefused, match=r"before (the list of sites was answered|this site sent its vector)"):
            ask()
    one.share(adverts(), verify)
    for ask in (lambda: one.confirm(NAMES), lambda: one.reveal(NAMES, {}, verify)):
        with pytest.raises(MaskingRefused, match="before this site sent its vector"):
            ask()


@pytest.fixture(scope="module")
def delivered():
    there = Round(restarts=False).until("share")
    return there, there.deliveries["bern"]


@pytest.fixture
def bern(delivered):
    return Party.from_bytes(delivered[0].parties["bern"].to_bytes(), secret=secret_of("bern"))


def swapped(received):
    return received | {"graz": received["linz"], "linz": received["graz"]}


OF_LATER = Round(context=LATER, restarts=False).until("share").deliveries["bern"].received
SHARES = {
    "swapped": (swapped, NAMES, "shares of 'graz': were not sealed by it"),
    "for another site": (
        lambda r: r | {"graz": Round().until("share").deliveries["linz"].received["graz"]},
        NAMES,
        "shares of 'graz': were not sealed by it for this site",
    ),
    "of another round": (lambda r: r | {"wels": OF_LATER["wels"]}, NAMES, "shares of 'wels': were not sealed"),
    "changed": (lambda r: r | {"thun": bytes(82)}, NAMES, "shares of 'thun': were not sealed"),
    "missing": (lambda r: {s: r[s] for s in NAMES[1:4]}, NAMES, "got shares of 3 neighbours, not of all sharers"),
    "too many": (lambda r: r, NAMES[:4], "got shares of 4 neighbours, not of all sharers"),
    "too few sharers": (lambda r: {"graz": r["graz"]}, NAMES[:2], "too few sharers: got 2 sites, expected at least 3"),
    "without this site": (lambda r: r, NAMES[1:], "the sharers are not of the list, occur twice, or are without"),
    "an unknown site": (lambda r: r, [*NAMES, "zug"], "the sharers are not of the list"),
    "a site twice": (lambda r: r, [*NAMES, "wels"], "the sharers are not of the list, occur twice"),
}


@pytest.mark.parametrize(("change", "sharers", "message"), SHARES.values(), ids=SHARES.keys())
def test_false_shares_and_sharers_are_refused_and_leave_the_site_where_it_was(
    delivered, bern, change, sharers, message
):
    before = bern.to_bytes()
    with pytest.raises(MaskingRefused, match=message):
        bern.mask(numbers("bern"), change(delivered[1].received), sharers)
    assert bern.to_bytes() == before


def test_another_vector_other_sharers_and_other_shares_are_refused_once_a_vector_left(delivered, bern):
    received = delivered[1].received
    masked = bern.mask(numbers("bern"), received, NAMES)
    for again in (bern, Party.from_bytes(bern.to_bytes(), secret=secret_of("bern"))):
        with pytest.raises(MaskingRefused, match="another vector"):
            again.mask(numbers("bern") + np.uint32(1), received, NAMES)
        with pytest.raises(MaskingRefused, match="another vector"):
            again.mask(numbers("bern").astype(np.uint64), received, NAMES)
        with pytest.raises(MaskingRefused, match="other sharers"):
            again.mask(numbers("bern"), {s: received[s] for s in NAMES[1:4]}, NAMES[:4])
        with pytest.raises(MaskingRefused, match="other shares"):
            again.mask(numbers("bern"), received | {"graz": bytes(82)}, NAMES)
        np.testing.assert_array_equal(again.mask(numbers("bern"), received, NAMES), masked)


@pytest.mark.parametrize("vector", [np.zeros(3), np.zeros(3, np.int32), np.zeros((3, 1), np.uint32)])
def test_a_vector_that_is_not_of_a_ring_is_refused(delivered, bern, vector):
    with pytest.raises(MaskingRefused, match="expected unsigned numbers"):
        bern.mask(vector, delivered[1].received, NAMES)


@pytest.fixture(scope="module")
def masked():
    return Round(leaves={"wels": "share"}, restarts=False).until("mask")


@pytest.fixture
def graz(masked):
    return Party.from_bytes(masked.parties["graz"].to_bytes(), secret=secret_of("graz"))


SURVIVORS = {
    "two": (NAMES[:2], "too few survivors: got 2 sites, expected at least 3"),
    "without this site": (("bern", "linz", "thun"), "the survivors are not of the list, occur twice, or are without"),
    "one who did not share": (NAMES, "'wels' did not share, and is said to survive"),
    "twice": (("bern", "bern", "graz", "linz"), "occur twice"),
}


@pytest.mark.parametrize(("survivors", "message"), SURVIVORS.values(), ids=SURVIVORS.keys())
def test_false_survivors_are_refused_and_leave_the_site_where_it_was(graz, survivors, message):
    before = graz.to_bytes()
    with pytest.raises(MaskingRefused, match=message):
        graz.confirm(survivors)
    assert graz.to_bytes() == before


def confirmations(names, there, survivors):
    return {s: sign(s, there.collector._list().confirmation(NAMES[:4], survivors)) for s in names}


def test_other_survivors_than_the_confirmed_ones_are_refused_also_after_a_restart(masked, graz):
    four, three = NAMES[:4], NAMES[:3]
    document = graz.confirm(four)
    for again in (graz, Party.from_bytes(graz.to_bytes(), secret=secret_of("graz"))):
        with pytest.raises(MaskingRefused, match="other survivors"):
            again.confirm(three)
        with pytest.raises(MaskingRefused, match="other survivors than this site confirmed"):
            again.reveal(three, confirmations(three, masked, three), verify)
        assert again.confirm(four) == document


def test_nothing_is_revealed_before_the_site_confirmed(masked, graz):
    with pytest.raises(MaskingRefused, match="other survivors than this site confirmed"):
        graz.reveal(NAMES[:4], confirmations(NAMES[:4], masked, NAMES[:4]), verify)


def test_nothing_is_revealed_without_the_signatures_of_t_survivors_of_the_same_names(masked, graz):
    four = NAMES[:4]
    graz.confirm(four)
    with pytest.raises(MaskingRefused, match="too few confirmed the survivors: got 2 sites, expected at least 3"):
        graz.reveal(four, confirmations(("graz", "linz"), masked, four), verify)
    with pytest.raises(MaskingRefused, match="'linz' did not confirm the same sharers and survivors"):
        graz.reveal(four, confirmations(four, masked, four) | confirmations(("linz",), masked, NAMES[:3]), verify)
    with pytest.raises(MaskingRefused, match="'wels' did not confirm"):
        graz.reveal(four, confirmations(NAMES, masked, four), verify)
    assert set(graz.reveal(four, confirmations(("bern", "linz"), masked, four), verify)) == set(four)


def test_sites_that_were_told_other_sharers_have_masks_that_do_not_cancel():
    there = Round(restarts=False).until("share")
    four = NAMES[:4]
    bern = there.parties["bern"].mask(
        numbers("bern"), {s: there.deliveries["bern"].received[s] for s in four[1:]}, four
    )
    others = [there.parties[site].mask(numbers(site), there.deliveries[site].received, NAMES) for site in NAMES[1:]]
    total = np.sum([bern, *others], axis=0, dtype=np.uint32)
    for site in NAMES:
        add_mask(total, there.parties[site]._own.self_seed(there.collector._list().digest), subtract=True)
    assert not np.any(total == plain_sum(NAMES))


TOLD = {
    "bern": ("bern", "graz", "wels"),
    "graz": ("bern", "graz", "linz", "thun"),
    "linz": ("bern", "graz", "linz"),
    "thun": ("bern", "graz", "thun"),
    "wels": ("bern", "graz", "wels"),
}
"""Survivors that a server names to each of five sites with t = 3: always three or more, the site itself among them."""


def test_step_4_is_needed_as_different_survivors_for_each_site_would_give_the_sum_of_two_out_of_five():
    there = Round(restarts=False).until("share")
    masked = {site: there.parties[site].mask(numbers(site), there.deliveries[site].received, NAMES) for site in NAMES}
    signatures = {site: sign(site, there.parties[site].confirm(TOLD[site])) for site in NAMES}
    for site in NAMES:
        agreeing = {other: signatures[other] for other in NAMES if TOLD[other] == TOLD[site]}
        with pytest.raises(MaskingRefused, match="too few confirmed the survivors"):
            there.parties[site].reveal(TOLD[site], agreeing, verify)
        with pytest.raises(MaskingRefused, match="did not confirm the same sharers and survivors"):
            there.parties[site].reveal(TOLD[site], {s: signatures[s] for s in TOLD[site]}, verify)
    np.testing.assert_array_equal(sum_of_two(there, masked), plain_sum(NAMES[:2]))


def sum_of_two(there, masked):
    """What the server would compute, if each site revealed its shares for the survivors that it was told."""
    listed = there.collector._list()

    def secret_from_shares(owner, *, survived):
        shares = [
            (x, read_share(there.parties[site]._share_of(listed, owner, survived=survived)))
            for x, site in enumerate(NAMES, 1)
            if (owner in TOLD[site]) == survived
        ]
        return combine(shares, 3).to_bytes(32, "big")

    total = masked["bern"] + masked["graz"]
    for site in NAMES[:2]:
        add_mask(total, secret_from_shares(site, survived=True), subtract=True)
    for dropped, site in product(NAMES[2:], NAMES[:2]):
        pair = Pair(secret_from_shares(dropped, survived=False))
        agreed = pair.agree(listed.by_name[site].mask_key, site=site)
        seed = mask_seed(agreed, listed=listed.digest, sharers=digest_of_names(NAMES), sites=(site, dropped))
        add_mask(total, seed, subtract=not subtracts(site, dropped))
    return total


@pytest.mark.parametrize(("n", "threshold"), [(n, t) for n in range(3, 8) for t in range(n // 2 + 1, n + 1)])
def test_whatever_each_site_is_told_both_seeds_of_a_site_need_more_than_2t_minus_n_minus_1_colluding_sites(
    n, threshold
):
    """Each honest site gives one kind of share of a site, each colluding one both; 2t > n + c keeps one kind short."""
    for colluding in range(n):
        can_open = any(
            min(kinds.count("self"), kinds.count("key")) + colluding >= threshold
            for kinds in product(("self", "key"), repeat=n - colluding)
        )
        assert can_open == (2 * threshold <= n + colluding)
