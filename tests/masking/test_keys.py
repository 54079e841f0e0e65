"""Keys and streams: the published vectors of the RFCs, through the functions that the protocol uses."""

import numpy as np
import pytest

from sahfl.errors import MaskingRefused
from sahfl.masking.context import Context
from sahfl.masking.keys import Pair, derive, mask_seed, public_key, seal, share_key, unseal
from sahfl.masking.masks import CHUNK_BYTES, add_mask, chacha20, subtracts
from sahfl.masking.own_secrets import OwnSecrets

ALICE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
BOB = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
LOW_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]
"""Points of small order, of https://cr.yp.to/ecdh.html#validate."""
SEALED = """d31a8d34648e60db7b86afbc53ef7ec2 a4aded51296e08fea9e2b5a736ee62d6 3dbea45e8ca9671282fafb69da92728b
1a71de0a9e060b2905d6a5b67ecd3b36 92ddbd7f2d778b8c9803aee328091b58 fab324e4fad675945585808b4831d7bc
3ff4def08e4b7a9de576d26586cec64b 61161ae10b594f09e26a7e902ecbd0600691"""
STREAM = """76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7
da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586
9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed
29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"""


def test_two_pairs_agree_on_the_secret_of_rfc_7748_section_6_1():
    assert public_key(ALICE).hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert public_key(BOB).hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    agreed = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert Pair(ALICE).agree(public_key(BOB), site="bob").hex() == agreed
    assert Pair(BOB).agree(Pair(ALICE).public, site="alice").hex() == agreed


@pytest.mark.parametrize("key", [*LOW_ORDER, "00" * 31, ""])
def test_a_key_with_which_everybody_agrees_on_zero_is_refused_naming_its_site(key):
    with pytest.raises(MaskingRefused, match="site 'graz': its public key gives everybody the same secret"):
        Pair(ALICE).agree(bytes.fromhex(key), site="graz")


def test_derived_keys_are_those_of_rfc_5869_test_cases_1_and_3():
    ikm = b"\x0b" * 22
    salt, info = bytes.fromhex("000102030405060708090a0b0c"), bytes.fromhex("f0f1f2f3f4f5f6f7f8f9")
    first = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    third = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    assert derive(ikm, info=info, salt=salt, length=42).hex() == first
    assert derive(ikm, info=b"", length=42).hex() == third


def test_a_sealed_text_is_that_of_rfc_8439_section_2_8_2():
    key, nonce = bytes(range(0x80, 0xA0)), bytes.fromhex("070000004041424344454647")
    associated = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
    text += b"sunscreen would be it."
    sealed = seal(key, text, associated=associated, nonce=nonce)
    assert sealed == bytes.fromhex(SEALED)
    assert unseal(key, sealed, associated=associated, site="graz", nonce=nonce) == text
    for bad in (sealed[:-1], b"", bytes([sealed[0] ^ 1]) + sealed[1:]):
        with pytest.raises(MaskingRefused, match="shares of 'graz': were not sealed by it"):
            unseal(key, bad, associated=associated, site="graz", nonce=nonce)
    with pytest.raises(MaskingRefused, match="were not sealed"):
        unseal(key, sealed, associated=b"another", site="graz", nonce=nonce)


def test_the_stream_of_a_mask_is_that_of_rfc_8439_appendix_a_1():
    following, expected = chacha20(bytes(32)), bytes.fromhex(STREAM)
    assert following(64) + following(64) == expected
    vector = np.zeros(32, np.uint32)
    add_mask(vector, bytes(32))
    np.testing.assert_array_equal(vector, np.frombuffer(expected, "<u4"))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
def test_a_mask_that_is_added_and_subtracted_leaves_the_vector_whatever_its_length(dtype):
    per_chunk = CHUNK_BYTES // np.dtype(dtype).itemsize
    for length in (0, 1, per_chunk - 1, per_chunk, per_chunk + 1, 2 * per_chunk + 5):
        vector = np.arange(length).astype(dtype)
        add_mask(vector, ALICE)
        assert length < 2 or not np.array_equal(vector, np.arange(length).astype(dtype))
        add_mask(vector, ALICE, subtract=True)
        np.testing.assert_array_equal(vector, np.arange(length).astype(dtype))


def test_of_two_sites_one_adds_and_the_other_subtracts():
    assert [subtracts("bern", "graz"), subtracts("graz", "bern")] == [False, True]


def test_every_part_of_the_purpose_of_a_key_changes_it():
    usual = {"listed": b"l" * 32, "sharers": b"s" * 32, "sites": ("bern", "graz")}
    seed = mask_seed(bytes(32), **usual)
    assert seed == mask_seed(bytes(32), **usual | {"sites": ("graz", "bern")})
    for other in ({"listed": b"m" * 32}, {"sharers": b"m" * 32}, {"sites": ("berng", "raz")}):
        assert mask_seed(bytes(32), **usual | other) != seed
    keys = {
        share_key(bytes(32), listed=b"l" * 32, sender=sender, receiver=receiver)
        for sender, receiver in (("bern", "graz"), ("graz", "bern"), ("ber", "ngraz"))
    }
    assert len(keys | {seed}) == 4


def test_every_field_of_the_context_changes_the_keys_of_a_site():
    usual = {"study": "a" * 64, "training": "cell", "round": 3, "purpose": "training", "agreed": "roster"}
    others = [{"study": "b" * 64}, {"training": "another"}, {"round": 4}, {"purpose": "evaluation"}, {"agreed": ""}]
    others.append({"purpose": "", "agreed": "trainingroster"})
    contexts = [Context(**usual | other) for other in ({}, *others)]
    pairs = [OwnSecrets(bytes(32), context) for context in contexts]
    assert len({key for own in pairs for key in (own.mask_pair.public, own.share_pair.public)}) == 2 * len(contexts)
    assert [Context.decode(context.encode()) for context in contexts] == contexts


def test_a_secret_of_another_length_is_refused():
    with pytest.raises(MaskingRefused, match="got a secret of 31 bytes, expected 32"):
        OwnSecrets(bytes(31), Context("", "", 0, ""))
