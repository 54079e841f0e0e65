"""The server's side: what a site must not send, and wrong shares, which never give a wrong sum."""

from dataclasses import replace

import numpy as np
import pytest
from harness.masked_round import CONTEXT, NAMES, Round, numbers, party, plain_sum, sign, signed, verify

from sahfl.errors import MaskingFailed, PayloadError
from sahfl.masking.collector import Collector
from sahfl.masking.reconstruction import MOST_TRIES, reconstruct
from sahfl.masking.sharing import PRIME, read_share, split_bytes
from sahfl.masking.site_list import SignedAdvert


def collector():
    return Collector(CONTEXT, verify, length=7, bits=32, threshold=3)


def other_share(share):
    return ((3 * int.from_bytes(share, "big") + 1) % PRIME).to_bytes(33, "big")


@pytest.mark.parametrize("of", ["graz", "wels"])
def test_a_wrong_share_of_a_survivor_or_a_drop_out_is_named_and_the_sum_is_right(of):
    there = Round(leaves={"wels": "mask"}, restarts=False).until("confirm")
    for site in there.confirmations:
        shares = there.parties[site].reveal(there.survivors, there.confirmations, verify)
        there.collector.revealed(site, shares | ({of: other_share(shares[of])} if site == "linz" else {}))
    total = there.collector.total()
    assert total.wrong == {"linz": (of,)}
    np.testing.assert_array_equal(total.numbers, plain_sum(NAMES[:4]))


@pytest.mark.parametrize(("of", "what"), [("graz", "the self mask of 'graz'"), ("wels", "the mask key of 'wels'")])
def test_too_many_wrong_shares_fail_the_round_and_name_what_cannot_be_rebuilt(of, what):
    there = Round(leaves={"wels": "mask"}, restarts=False).until("confirm")
    for site in there.confirmations:
        shares = there.parties[site].reveal(there.survivors, there.confirmations, verify)
        there.collector.revealed(site, shares | ({of: other_share(shares[of])} if site in NAMES[:2] else {}))
    with pytest.raises(MaskingFailed, match=f"{what}: at least one of 4 shares is wrong"):
        there.collector.total()


def test_a_site_that_commits_to_another_seed_than_it_shares_fails_the_round_by_name():
    there = Round(restarts=False).until("advertise")
    honest = there.parties["graz"].share
    there.parties["graz"].share = lambda *asked: replace(honest(*asked), commitment=bytes(32))
    for step in ("share", "mask", "confirm", "reveal"):
        getattr(there, step)()
    with pytest.raises(MaskingFailed, match="the self mask of 'graz': at least one of 5 shares is wrong"):
        there.collector.total()


def test_few_choices_of_shares_are_tried_and_too_few_shares_are_said():
    shares = {f"s{x:02d}": (x, read_share(share)) for x, share in enumerate(split_bytes(b"k" * 32, 30, 15), 1)}
    shares["s00"] = (31, 5)
    tried = []
    with pytest.raises(MaskingFailed, match="x: at least one of 31 shares is wrong"):
        reconstruct(dict(sorted(shares.items())), 15, lambda secret: bool(tried.append(secret)), what="x")
    assert 0 < len(tried) <= MOST_TRIES
    with pytest.raises(MaskingFailed, match="x: got 14 shares, expected at least 15"):
        reconstruct(dict(list(shares.items())[:14]), 15, lambda secret: True, what="x")


def test_keys_that_others_would_refuse_are_refused():
    one, there = signed(party("bern")), collector()
    unusable = [bytes(32), bytes(31), one.advert.share_key]
    for key in unusable:
        advert = replace(one.advert, mask_key=key)
        with pytest.raises(PayloadError, match="site 'bern' has unusable public keys"):
            there.advertised(SignedAdvert(advert, sign("bern", advert.document(CONTEXT))))
    with pytest.raises(PayloadError, match="site 'bern' did not sign these keys for this round"):
        there.advertised(SignedAdvert(one.advert, sign("graz", one.advert.document(CONTEXT))))
    there.advertised(one)
    with pytest.raises(PayloadError, match="site 'bern' came late or twice"):
        there.advertised(one)


def test_answers_before_the_list_is_made_are_refused_and_two_sites_make_no_list():
    there = collector()
    there.advertised(signed(party("bern")))
    with pytest.raises(PayloadError, match="before the list of sites was made"):
        there.shared("bern", Round().until("share").shares["bern"])
    with pytest.raises(MaskingFailed, match="list of sites: got 1, expected 3 to"):
        there.list_sites()


def test_shares_of_a_wrong_form_are_refused():
    there = Round(restarts=False).until("advertise")
    shares = there.parties["bern"].share(there.listed, verify)
    without = {site: text for site, text in shares.sealed.items() if site != "graz"}
    for bad, message in (
        (replace(shares, sealed=without), "has shares for other sites"),
        (replace(shares, sealed=shares.sealed | {"bern": bytes(82)}), "has shares for other sites"),
        (replace(shares, sealed=shares.sealed | {"graz": bytes(81)}), "has shares of a wrong size"),
        (replace(shares, commitment=b""), "has shares of a wrong size"),
    ):
        with pytest.raises(PayloadError, match=f"site 'bern' {message}"):
            there.collector.shared("bern", bad)
    there.collector.shared("bern", shares)
    for site in ("bern", "zug"):
        with pytest.raises(PayloadError, match=f"site '{site}' was not asked"):
            there.collector.shared(site, shares)


def test_vectors_of_a_wrong_form_twice_or_late_are_refused():
    there = Round(leaves={"wels": "mask", "thun": "share"}, restarts=False).until("share")
    for bad in (np.zeros(8, np.uint32), np.zeros(7, np.uint64), np.zeros((7, 1), np.uint32)):
        with pytest.raises(PayloadError, match=r"site 'bern' sent \(.*\) uint.., not \(7,\) uint32"):
            there.collector.masked("bern", bad)
    there.mask()
    for site in ("bern", "wels", "thun"):
        with pytest.raises(PayloadError, match=f"site '{site}' was not asked for a vector"):
            there.collector.masked(site, numbers(site))


def test_confirmations_and_shares_of_a_wrong_form_or_from_others_are_refused():
    there = Round(leaves={"wels": "mask", "thun": "confirm"}, restarts=False).until("mask")
    document = there.parties["bern"].confirm(there.survivors)
    with pytest.raises(PayloadError, match="site 'bern' did not sign who shared and survived"):
        there.collector.confirmed("bern", sign("bern", document + b"."))
    with pytest.raises(PayloadError, match="site 'wels' was not asked to confirm"):
        there.collector.confirmed("wels", sign("wels", document))
    there.confirm()
    shares = there.parties["bern"].reveal(there.survivors, there.confirmations, verify)
    for bad, message in (
        ({site: share for site, share in shares.items() if site != "graz"}, "revealed shares of other sites"),
        (shares | {"zug": shares["graz"]}, "revealed shares of other sites"),
        (shares | {"graz": bytes(32)}, "expected 33"),
        (shares | {"graz": b"\xff" * 33}, "in the field"),
    ):
        with pytest.raises(PayloadError, match=message):
            there.collector.revealed("bern", bad)
    with pytest.raises(PayloadError, match="site 'thun' was not asked to reveal"):
        there.collector.revealed("thun", shares)
