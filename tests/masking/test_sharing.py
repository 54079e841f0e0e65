"""Shamir's sharing: published numbers, any t shares give the secret, and t - 1 shares say nothing at all."""

from collections import Counter
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sahfl.errors import PayloadError
from sahfl.masking.sharing import PRIME, SHARE_BYTES, combine, read_share, split, split_bytes

WIKIPEDIA = [(1, 1494), (2, 329), (3, 965), (4, 176), (5, 1188), (6, 775)]
"""Shares of 1234 with the coefficients 166 and 94 modulo 1613, https://en.wikipedia.org/wiki/Shamir%27s_secret_sharing,
section "Problem of using integer arithmetic" (n = 6, k = 3)."""


def given_coefficients(*coefficients):
    following = iter(coefficients)
    return lambda n_bytes: next(following).to_bytes(n_bytes, "big")


def test_the_shares_of_the_published_example_are_found_and_give_its_secret():
    shares = split(1234, range(1, 7), 3, prime=1613, random=given_coefficients(166, 94))
    assert shares == WIKIPEDIA
    assert {combine(chosen, 3, prime=1613) for chosen in combinations(WIKIPEDIA, 3)} == {1234}
    assert combine(WIKIPEDIA[:3], 3, prime=1613, at=6) == 775


def test_the_field_is_that_of_the_smallest_prime_above_2_to_the_256():
    assert pow(3, PRIME - 1, PRIME) == pow(5, PRIME - 1, PRIME) == 1
    for between in range(2**256 + 1, PRIME, 2):
        assert pow(3, between - 1, between) != 1 or pow(5, between - 1, between) != 1


@given(st.binary(min_size=32, max_size=32), st.integers(1, 8), st.data())
@settings(max_examples=40, deadline=None)
def test_any_t_shares_give_the_secret_and_one_less_is_refused(secret, threshold, data):
    n = data.draw(st.integers(threshold, 12))
    shares = split_bytes(secret, n, threshold)
    assert {len(share) for share in shares} == {SHARE_BYTES}
    numbered = [(x, read_share(share)) for x, share in enumerate(shares, 1)]
    chosen = data.draw(st.permutations(numbered))[:threshold]
    assert combine(chosen, threshold).to_bytes(32, "big") == secret
    with pytest.raises(PayloadError, match="expected at least the threshold"):
        combine(chosen[:-1], threshold)


@pytest.mark.parametrize("threshold", [2, 3])
def test_fewer_shares_than_the_threshold_are_equally_likely_for_every_secret(threshold):
    prime, xs = 5, (1, 2, 3, 4)
    seen = {
        secret: {
            chosen: Counter(
                tuple(
                    split(secret, xs, threshold, prime=prime, random=given_coefficients(*drawn))[i][1] for i in chosen
                )
                for drawn in product(range(prime), repeat=threshold - 1)
            )
            for chosen in combinations(range(4), threshold - 1)
        }
        for secret in range(prime)
    }
    assert all(seen[secret] == seen[0] for secret in range(prime))
    assert set(seen[0][(0,) if threshold == 2 else (0, 1)].values()) == {1}


def test_a_wrong_share_gives_another_secret():
    shares = [(x, read_share(share)) for x, share in enumerate(split_bytes(bytes(32), 4, 3), 1)]
    assert combine([*shares[:2], (3, shares[2][1] ^ 1)], 3) != 0


BAD = {
    "an x of 0": ([(0, 1), (1, 1)], "its x is 0"),
    "an x beyond the field": ([(PRIME, 1), (1, 1)], "outside the field"),
    "an x twice": ([(1, 1), (1, 2)], "an x occurs twice"),
    "a value beyond the field": ([(1, PRIME), (2, 1)], "its value is outside the field"),
    "a negative value": ([(1, -1), (2, 1)], "its value is outside the field"),
    "too few": ([(1, 1)], "got 1, expected at least the threshold of 2"),
}


@pytest.mark.parametrize(("shares", "message"), BAD.values(), ids=BAD.keys())
def test_shares_that_cannot_be_are_refused(shares, message):
    with pytest.raises(PayloadError, match=message):
        combine(shares, 2)


def test_a_secret_outside_the_field_or_of_another_length_is_refused():
    with pytest.raises(PayloadError, match="outside the field"):
        split(1613, [1, 2], 2, prime=1613)
    with pytest.raises(PayloadError, match="got 31 bytes, expected 32"):
        split_bytes(bytes(31), 3, 2)
    for share in (b"", bytes(32), bytes(34), PRIME.to_bytes(33, "big")):
        with pytest.raises(PayloadError, match="expected 33"):
            read_share(share)
