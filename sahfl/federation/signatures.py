"""The signature on a request, which covers its type and every record but signatures: this one, and those of sites.

A site checks the signature before it reads anything else of a request. Someone who controls the connection but has no
signing key can therefore neither change a request nor replace the base network or the start of an adapter. A signed
request can be sent again, and then asks for the same work again.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from sahfl.errors import TrustError
from sahfl.trust import signing
from sahfl.trust.signing import Signer

RECORD = "signature"
UNSIGNED = (RECORD, "confirmations")
"""Records that a signature leaves out: itself, and the sites' own signatures on a start (``confirmations``)."""
CONTEXT = "sahfl message 1"
"""Part of every document, so that a signature made for another purpose is not valid for a message."""


def document(message_type: str, content: RecordDict) -> bytes:
    """The bytes to sign for a message: SHA-256 over its type and its records, independent of their order."""
    settings = sorted((name, record) for name, record in content.config_records.items() if name not in UNSIGNED)
    records = [
        *(["config", name, _values(record)] for name, record in settings),
        *(["metric", name, _values(record)] for name, record in sorted(content.metric_records.items())),
        *(["array", name, _arrays(record)] for name, record in sorted(content.array_records.items())),
    ]
    text = json.dumps([CONTEXT, message_type, records])
    return hashlib.sha256(text.encode()).digest()


def sign(message_type: str, content: RecordDict, signer: Signer) -> None:
    """Add a signature to a message."""
    content[RECORD] = ConfigRecord({RECORD: signer.sign(document(message_type, content))})


def check_signature(message_type: str, content: RecordDict, public: str) -> None:
    """Check that the signer signed exactly this message.

    Raises:
        TrustError: the signature is missing, or is not the signer's signature of this message.
    """
    record = content.config_records.get(RECORD)
    signature = None if record is None or set(record) != {RECORD} else record[RECORD]
    if not isinstance(signature, bytes):
        raise TrustError(f"request {message_type[:40]!r}: got no signature, expected that of signer {public[:16]}...")
    signing.verify(public, document(message_type, content), signature)


def _values(record: Any) -> list[list[Any]]:
    return [[name, *_plain(value)] for name, value in sorted(record.items())]


def _plain(value: Any) -> tuple[str, Any]:
    """A value with its type, because 1, 1.0, True and "1" are different settings."""
    if isinstance(value, list):
        return "list", [_plain(part) for part in value]
    return type(value).__name__, value.hex() if isinstance(value, bytes) else value


def _arrays(record: Any) -> list[list[Any]]:
    return [
        [name, array.dtype, list(array.shape), array.stype, hashlib.sha256(array.data).hexdigest()]
        for name, array in sorted(record.items())
    ]
