"""Messages of the steps of a masked round (``sahfl.masking``): what the server asks, what a site answers.

Each request is that of the training or evaluation (task, header) with the record ``masking``. The round's terms in it
are the same in all five steps (``masked_terms``).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from sahfl.errors import PayloadError
from sahfl.federation.masked_terms import RECORD, Terms, read_names
from sahfl.federation.protocol import expect_records, read_header
from sahfl.federation.tensors import config_record
from sahfl.masking.encoding import LENGTH_BYTES, pack, unpack
from sahfl.masking.keys import KEY_BYTES
from sahfl.masking.party import SEALED_BYTES, Shares
from sahfl.masking.sharing import SHARE_BYTES
from sahfl.masking.site_list import Advert, SignedAdvert
from sahfl.payload import Header, check_header
from sahfl.trust.attestation import MOST_BYTES

KEYS, SHARES = "query.masking_keys", "query.masking_shares"
SURVIVORS, REVEAL = "query.masking_survivors", "query.masking_reveal"
MOST_SIGNATURE = 2 * MOST_BYTES + 8


def with_record(content: RecordDict, record: ConfigRecord, *, tensors: bool = False) -> RecordDict:
    """The request of a step: that of the training, with or without its tensors, and the record of the step."""
    left = {name: content[name] for name in ("task", "header")} if not tensors else dict(content)
    return RecordDict({**left, RECORD: record})


def _bytes(value: object, *, most: int, least: int = 0) -> bytes:
    if not isinstance(value, bytes) or not least <= len(value) <= most:
        raise PayloadError(f"masking: expected {least} to {most} bytes")
    return value


def _squeezed(signatures: Iterable[bytes]) -> bytes:
    """Signatures with their certificates, of which most bytes are the same in all."""
    return zlib.compress(pack(*signatures), 9)


def _unsqueezed(value: object, n: int) -> list[bytes]:
    most = n * (MOST_SIGNATURE + LENGTH_BYTES)
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(_bytes(value, most=most + 100), most + 1)
    except zlib.error as error:
        raise PayloadError("masking: expected compressed signatures") from error
    found = unpack(text) if reader.eof and not reader.unused_data else []
    if len(found) != n or max(map(len, found), default=0) > MOST_SIGNATURE:
        raise PayloadError(f"masking: expected {n} signatures, of at most {MOST_SIGNATURE} bytes each")
    return found


def _by_name(record: ConfigRecord, names: str, values: str, *, most: int, least: int = 0) -> dict[str, bytes]:
    found, parts = read_names(record.get(names)), record.get(values)
    if not isinstance(parts, list) or len(parts) != len(found) or len(set(found)) != len(found):
        raise PayloadError("masking: expected different names, with bytes for each")
    return {name: _bytes(part, most=most, least=least) for name, part in zip(found, parts, strict=True)}


def _require_keys(record: ConfigRecord, *names: str) -> None:
    if set(record) != set(names):
        raise PayloadError(f"masking: expected {', '.join(names)}")


# -------------------------------------------------------------------------------------------- what a step's request has


def listed_record(terms: Terms, listed: Iterable[SignedAdvert]) -> ConfigRecord:
    """For step 2: the keys of all sites with their signatures."""
    signed = list(listed)
    return terms.record(
        listed=[one.advert.site for one in signed],
        keys=[one.advert.mask_key + one.advert.share_key for one in signed],
        signatures=_squeezed(one.signature for one in signed),
    )


def read_listed(content: RecordDict) -> list[SignedAdvert]:
    """Read the list of step 2 without verifying it.

    Raises:
        PayloadError: it is missing or of a wrong form; so in all readers here.
    """
    record = config_record(content, RECORD)
    keys = _by_name(record, "listed", "keys", most=2 * KEY_BYTES, least=2 * KEY_BYTES)
    signatures = dict(zip(keys, _unsqueezed(record.get("signatures"), len(keys)), strict=True))
    return [
        SignedAdvert(Advert(site, both[:KEY_BYTES], both[KEY_BYTES:]), signatures[site]) for site, both in keys.items()
    ]


def delivery_record(terms: Terms, sharers: Iterable[str], received: Mapping[str, bytes]) -> ConfigRecord:
    """For step 3, the training or evaluation: who shared, and the sealed shares for this site."""
    return terms.record(sharers=list(sharers), senders=list(received), sealed=list(received.values()))


def read_delivery(content: RecordDict) -> tuple[list[str], dict[str, bytes]]:
    """Read who shared, and the sealed shares."""
    record = config_record(content, RECORD)
    sealed = _by_name(record, "senders", "sealed", most=SEALED_BYTES, least=SEALED_BYTES)
    return read_names(record.get("sharers")), sealed


def survivors_record(
    terms: Terms, survivors: Iterable[str], confirmations: Mapping[str, bytes] | None = None
) -> ConfigRecord:
    """For steps 4 and 5: who survived, and in step 5 who signed that."""
    if confirmations is None:
        return terms.record(survivors=list(survivors))
    signed: dict[str, Any] = {"signers": list(confirmations), "signatures": _squeezed(confirmations.values())}
    return terms.record(survivors=list(survivors), **signed)


def read_survivors(content: RecordDict) -> list[str]:
    """Read who survived."""
    return read_names(config_record(content, RECORD).get("survivors"))


def read_confirmations(content: RecordDict) -> dict[str, bytes]:
    """Read the survivors' signatures without verifying them."""
    record = config_record(content, RECORD)
    signers = read_names(record.get("signers"))
    if len(set(signers)) != len(signers):
        raise PayloadError("masking: expected different names")
    return dict(zip(signers, _unsqueezed(record.get("signatures"), len(signers)), strict=True))


# ------------------------------------------------------------------------------------------------- what a site answers


def keys_reply(header: Header, signed: SignedAdvert) -> RecordDict:
    """Answer step 1."""
    advert = signed.advert
    record = {"mask_key": advert.mask_key, "share_key": advert.share_key, "signature": signed.signature}
    return _reply(header, "keys", record)


def read_keys_reply(content: RecordDict, header: Header | None, site: str) -> SignedAdvert:
    """Read the answer to step 1; without ``header``, that is not compared."""
    record = _read_reply(content, header, "keys")
    _require_keys(record, "mask_key", "share_key", "signature")
    keys = (_bytes(record[name], most=KEY_BYTES, least=KEY_BYTES) for name in ("mask_key", "share_key"))
    return SignedAdvert(Advert(site, *keys), _bytes(record["signature"], most=MOST_SIGNATURE))


def shares_reply(header: Header, shares: Shares) -> RecordDict:
    """Answer step 2."""
    named = {"receivers": list(shares.sealed), "sealed": list(shares.sealed.values())}
    return _reply(header, "shares", {"commitment": shares.commitment, **named})


def read_shares_reply(content: RecordDict, header: Header | None) -> Shares:
    """Read the answer to step 2."""
    record = _read_reply(content, header, "shares")
    _require_keys(record, "commitment", "receivers", "sealed")
    sealed = _by_name(record, "receivers", "sealed", most=SEALED_BYTES, least=SEALED_BYTES)
    return Shares(_bytes(record["commitment"], most=KEY_BYTES, least=KEY_BYTES), sealed)


def survivors_reply(header: Header, signature: bytes) -> RecordDict:
    """Answer step 4."""
    return _reply(header, "survivors", {"signature": signature})


def read_survivors_reply(content: RecordDict, header: Header | None) -> bytes:
    """Read the answer to step 4."""
    record = _read_reply(content, header, "survivors")
    _require_keys(record, "signature")
    return _bytes(record["signature"], most=MOST_SIGNATURE)


def reveal_reply(header: Header, shares: Mapping[str, bytes]) -> RecordDict:
    """Answer step 5."""
    return _reply(header, "revealed", {"sites": list(shares), "shares": list(shares.values())})


def read_reveal_reply(content: RecordDict, header: Header | None) -> dict[str, bytes]:
    """Read the answer to step 5."""
    record = _read_reply(content, header, "revealed")
    _require_keys(record, "sites", "shares")
    return _by_name(record, "sites", "shares", most=SHARE_BYTES, least=SHARE_BYTES)


def _reply(header: Header, name: str, record: dict[str, Any]) -> RecordDict:
    return RecordDict({"header": ConfigRecord(header.as_dict()), name: ConfigRecord(record)})


def _read_reply(content: RecordDict, header: Header | None, name: str) -> ConfigRecord:
    expect_records(content, "header", name)
    if header is not None:
        check_header(read_header(content), header)
    return config_record(content, name)
