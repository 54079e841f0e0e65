"""Messages of the steps of a masked round (``sahfl.masking``): what the server asks, what a site answers.

Each request is that of the training or evaluation (task, header) with the record ``masking``. The round's terms in it
are the same in all five steps: they are part of what the sites sign, so that the masks cancel only between sites that
were told the same.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from sahfl.errors import PayloadError
from sahfl.federation.protocol import expect_records, read_header
from sahfl.federation.tensors import config_record
from sahfl.masking.context import Context
from sahfl.masking.encoding import LENGTH_BYTES, pack, unpack
from sahfl.masking.graph import LEAST_SITES
from sahfl.masking.keys import KEY_BYTES
from sahfl.masking.party import SEALED_BYTES, Shares
from sahfl.masking.ring import FixedPoint
from sahfl.masking.sharing import SHARE_BYTES
from sahfl.masking.site_list import Advert, SignedAdvert
from sahfl.payload import FINGERPRINT, MOST_VOLUMES, Header, check_header
from sahfl.task import Task
from sahfl.trust.attestation import MOST_BYTES

RECORD = "masking"
KEYS, SHARES = "query.masking_keys", "query.masking_shares"
SURVIVORS, REVEAL = "query.masking_survivors", "query.masking_reveal"
BITS = 32
MOST_LOSS = 100.0
"""A larger mean loss counts as this one in the sum."""
MOST_ATTEMPTS = 1_000_000
MOST_SIGNATURE = 2 * MOST_BYTES + 8
MOST_SITES = 10_000
OWN = "own_round"
"""The one setting of a task that differs between the sites of a sum."""


@dataclass(frozen=True)
class Terms:
    """What all sites of a masked round are told alike."""

    attempt: int
    """From 1; each has keys of its own."""
    volumes: Mapping[str, int]
    """Volumes that each site of the training registered, whose sum is what a site's weight is a share of; in an
    evaluation, patients that each site holds out. A site signs only its own right number."""
    start: str
    """Hash of the tensors that the round starts from."""

    def context(self, task: Task, header: Header) -> Context:
        """The name of the round, of which everything that sites must agree on is a part: all settings of the task too.

        With a learning rate of almost nothing at all sites but one, or other held-out scans at one alone, the sum, or
        the difference of two, would be that site's.
        """
        asked = task.model_dump(mode="json", exclude={OWN})
        agreed = [header.base, self.attempt, sorted(self.volumes.items()), self.start, asked]
        digest = hashlib.sha256(json.dumps(agreed).encode()).hexdigest()
        return Context(header.study, header.training, header.round, purpose_of(task), digest)

    def lack_of_patients(self, sites: Iterable[str]) -> str | None:
        """Why a sum over some sites is refused: fewer than three of them have patients in it; None if it is not."""
        found = sum(self.volumes.get(site, 0) > 0 for site in sites)
        if found >= LEAST_SITES:
            return None
        return f"{found} of the sites in the sum have patients in it, expected at least {LEAST_SITES}"

    def lack_of_signers(self, survivors: Collection[str], signers: Collection[str], threshold: int) -> str | None:
        """Why a sum that some sites signed is not opened: too few of those with patients in it did; None if enough did.

        A site without patients has no reason to refuse a sum. Signatures of such sites alone could open one that each
        of the others refuses.
        """
        having = {site for site in survivors if self.volumes.get(site, 0) > 0}
        found, needed = len(having & set(signers)), min(threshold, len(having))
        if found >= needed:
            return None
        return f"{found} of the {len(having)} sites with patients in the sum confirmed it, expected at least {needed}"

    @property
    def total(self) -> int:
        """Registered volumes of all sites of the training."""
        return sum(self.volumes.values())

    def forms(self, clip: float) -> tuple[FixedPoint, FixedPoint]:
        """How numbers of a change, and a loss, are written."""
        return FixedPoint(BITS, clip, len(self.volumes)), FixedPoint(BITS, MOST_LOSS, len(self.volumes))

    def record(self, **more: Any) -> ConfigRecord:
        """The record of a request, with what its step adds."""
        names = sorted(self.volumes)
        volumes: list[int] = [self.volumes[name] for name in names]
        known: dict[str, Any] = {"attempt": self.attempt, "start": self.start, "sites": names, "volumes": volumes}
        return ConfigRecord({**known, **more})


def purpose_of(task: Task) -> str:
    """What is summed: a round of training, or the evaluation of a method or of a part of it."""
    if task.evaluation is None:
        return "training"
    return "evaluation" if task.part is None else f"evaluation-{task.part}"


def with_record(content: RecordDict, record: ConfigRecord, *, tensors: bool = False) -> RecordDict:
    """The request of a step: that of the training, with or without its tensors, and the record of the step."""
    left = {name: content[name] for name in ("task", "header")} if not tensors else dict(content)
    return RecordDict({**left, RECORD: record})


def read_terms(content: RecordDict) -> Terms:
    """Read the terms of a request.

    Raises:
        PayloadError: they are missing or of a wrong form.
    """
    record = config_record(content, RECORD)
    attempt, start, names, volumes = (record.get(name) for name in ("attempt", "start", "sites", "volumes"))
    if type(attempt) is not int or not 1 <= attempt <= MOST_ATTEMPTS:
        raise PayloadError("masking: expected the number of an attempt")
    if not isinstance(start, str) or (start and not FINGERPRINT.fullmatch(start)):
        raise PayloadError("masking: expected the hash of the round's start")
    sites = _texts(names)
    right = isinstance(volumes, list) and len(volumes) == len(sites) and sites == sorted(set(sites))
    if not right or not all(type(n) is int and 0 <= n <= MOST_VOLUMES for n in volumes or ()):  # type: ignore[union-attr]
        raise PayloadError("masking: expected different sites in order, with the volumes of each")
    return Terms(attempt, dict(zip(sites, volumes, strict=True)), start)  # type: ignore[arg-type]


def _texts(value: object) -> list[str]:
    if not isinstance(value, list) or len(value) > MOST_SITES or not all(isinstance(one, str) for one in value):
        raise PayloadError("masking: expected a list of names")
    return [str(one) for one in value]


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
    found, parts = _texts(record.get(names)), record.get(values)
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
    return _texts(record.get("sharers")), sealed


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
    return _texts(config_record(content, RECORD).get("survivors"))


def read_confirmations(content: RecordDict) -> dict[str, bytes]:
    """Read the survivors' signatures without verifying them."""
    record = config_record(content, RECORD)
    signers = _texts(record.get("signers"))
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
