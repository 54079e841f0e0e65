"""A site's notes of a round: they come back as they were, or are refused; and hold no secret."""

import pytest
from harness.masked_round import CONTEXT, NAMES, Round, secret_of
from hypothesis import given, settings
from hypothesis import strategies as st

from sahfl.errors import MaskingRefused, PayloadError, SiteStateLost
from sahfl.masking.context import Context
from sahfl.masking.encoding import digest_of_names, pack, pack_names, unpack, unpack_names
from sahfl.masking.notes import MOST_BYTES
from sahfl.masking.party import Party

DONE = Round(leaves={"wels": "share"}).until("reveal").parties["bern"]
DATA = DONE.to_bytes()


def test_notes_come_back_as_they_were_at_every_step():
    there = Round()
    for step in ("advertise", "share", "mask", "confirm", "reveal"):
        getattr(there, step)()
        data = there.parties["bern"].to_bytes()
        assert Party.from_bytes(data, secret=secret_of("bern")).to_bytes() == data


def test_notes_hold_no_private_key_seed_or_share():
    own, listed = DONE._own, DONE._listed()
    hidden = [secret_of("bern"), own.mask_pair.private, own.share_pair.private, own.self_seed(listed.digest)]
    hidden += [share for pair in DONE._own_shares(listed).values() for share in pair]
    hidden += [share for pair in DONE._opened.values() for share in pair]
    assert len(hidden) > 12
    assert not [secret for secret in hidden if secret in DATA]


@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_notes_with_any_byte_changed_or_missing_are_refused(at, change):
    changed = DATA[:at] + bytes([DATA[at] ^ change]) + DATA[at + 1 :]
    for bad in (changed, DATA[:at], DATA + bytes([change])):
        with pytest.raises(SiteStateLost, match="must not begin it again with the same secret"):
            Party.from_bytes(bad, secret=secret_of("bern"))


def test_notes_with_another_secret_or_too_large_are_refused():
    with pytest.raises(SiteStateLost, match="another secret wrote them"):
        Party.from_bytes(DATA, secret=secret_of("graz"))
    with pytest.raises(SiteStateLost, match="expected at most"):
        Party.from_bytes(bytes(MOST_BYTES + 1), secret=secret_of("bern"))
    with pytest.raises(MaskingRefused, match="got a secret of 3 bytes"):
        Party.from_bytes(DATA, secret=b"abc")


@given(st.lists(st.binary(max_size=9)))
@settings(deadline=None)
def test_fields_come_back_and_no_two_lists_of_fields_have_the_same_bytes(fields):
    assert unpack(pack(*fields)) == fields


@given(st.binary(max_size=40))
@settings(deadline=None)
def test_any_bytes_are_fields_or_refused(data):
    try:
        fields = unpack(data)
    except PayloadError:
        return
    assert pack(*fields) == data


def test_fields_that_go_beyond_the_end_are_refused():
    for bad in (b"\0", b"\0\0\0\2a", pack(b"a") + b"\0\0"):
        with pytest.raises(PayloadError, match=r"fields: got \d+ bytes, expected \d+ or more"):
            unpack(bad)


def test_names_and_contexts_that_are_damaged_are_refused():
    assert unpack_names(pack_names(NAMES)) == NAMES
    assert digest_of_names(NAMES) == digest_of_names([*NAMES[::-1], NAMES[0]]) != digest_of_names(NAMES[1:])
    with pytest.raises(PayloadError, match="names: are not UTF-8"):
        unpack_names(pack(b"\xff"))
    good = unpack(CONTEXT.encode())
    for bad in (good[:-1], [b"sahfl masking 2", *good[1:]], [*good[:-1], b""]):
        with pytest.raises(PayloadError, match="damaged, or of another version"):
            Context.decode(pack(*bad))
    with pytest.raises(PayloadError, match="context: is not UTF-8"):
        Context.decode(pack(good[0], b"\xff", *good[2:]))
    assert str(CONTEXT) == "training cp_lora-r8, fold 0, round 3"
