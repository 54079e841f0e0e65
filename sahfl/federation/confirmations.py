"""Confirmations of a round's start: other sites sign the hash of the start that they were shown.

A server that crafts a start for one hospital needs the signatures of other hospitals on it, and each signs one start
for each round. Signatures travel beside a training request and are no part of what its signer signed, so that the same
request is still the same with other signatures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from flwr.app import ConfigRecord, RecordDict

from sahfl.errors import PayloadError
from sahfl.federation.protocol import request
from sahfl.federation.tensors import config_record
from sahfl.payload import FINGERPRINT, Header
from sahfl.task import Task
from sahfl.trust.attestation import MOST_BYTES, Attestation

RECORD = "confirmations"
"""The record of a training request that holds the confirmations."""
MOST = 100
"""Most confirmations of a request that are read."""
CONTEXT = "sahfl start 1"
"""Part of every document, so that a signature made for another purpose is not valid for a start."""


def document(header: Header, start: str) -> bytes:
    """What a site signs: study, base, training and round of a header, and ``start``, the hash of the tensors."""
    place = [header.study, header.base, header.stage, header.method, header.fold, header.round]
    return hashlib.sha256(json.dumps([CONTEXT, *place, start]).encode()).digest()


def ask(task: Task, header: Header, start: str) -> RecordDict:
    """Make the request to confirm the start of the round that a header names."""
    return RecordDict({**request(task, header, {}), "start": ConfigRecord({"sha256": start})})


def read_asked(content: RecordDict) -> str:
    """Read the hash of a start from a request to confirm it.

    Raises:
        PayloadError: it is missing, or has not 64 hex digits.
    """
    start = config_record(content, "start").get("sha256")
    if not isinstance(start, str) or not FINGERPRINT.fullmatch(start):
        raise PayloadError("start: expected a hash of 64 hex digits")
    return start


def reply(header: Header, made: Attestation) -> RecordDict:
    """Make the answer to a request to confirm a start."""
    record = ConfigRecord({"certificate": made.certificate, "signature": made.signature})
    return RecordDict({"header": ConfigRecord(header.as_dict()), "confirmation": record})


def read_reply(content: RecordDict) -> Attestation:
    """Read a site's confirmation without verifying it; the sites do that.

    Raises:
        PayloadError: it is missing, or not of the right form.
    """
    record = config_record(content, "confirmation")
    certificate, signature = record.get("certificate"), record.get("signature")
    if set(record) != {"certificate", "signature"}:
        raise PayloadError("confirmation: expected a certificate and a signature")
    return _attestation(certificate, signature)


def attach(content: RecordDict, made: Iterable[Attestation]) -> RecordDict:
    """Add confirmations to a training request."""
    found = list(made)[:MOST]
    record = ConfigRecord(
        {"certificates": [one.certificate for one in found], "signatures": [one.signature for one in found]}
    )
    return RecordDict({**content, RECORD: record}) if found else content


def attached(content: RecordDict) -> tuple[Attestation, ...]:
    """Read the confirmations of a training request, without verifying them; none if it has none.

    Raises:
        PayloadError: they are not of the right form, or too many.
    """
    if RECORD not in content:
        return ()
    record = config_record(content, RECORD)
    certificates, signatures = record.get("certificates"), record.get("signatures")
    if not isinstance(certificates, list) or not isinstance(signatures, list):
        raise PayloadError("confirmations: expected certificates and signatures")
    if len(certificates) != len(signatures) or len(certificates) > MOST:
        raise PayloadError(f"confirmations: expected at most {MOST} certificates, and a signature for each")
    return tuple(_attestation(*pair) for pair in zip(certificates, signatures, strict=True))


def _attestation(certificate: object, signature: object) -> Attestation:
    for value in (certificate, signature):
        if not isinstance(value, bytes) or len(value) > MOST_BYTES:
            raise PayloadError(f"confirmation: expected certificates and signatures of at most {MOST_BYTES} bytes")
    assert isinstance(certificate, bytes)
    assert isinstance(signature, bytes)
    return Attestation(certificate, signature)
