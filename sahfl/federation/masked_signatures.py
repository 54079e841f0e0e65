"""Signatures of a masked round: by the key of a site's certificate, and in a simulation a stand-in from the seed.

The stand-in protects nothing, and need not: all sites and the server of a simulation are one machine's.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from sahfl.errors import PayloadError, TrustError
from sahfl.masking.encoding import pack, unpack
from sahfl.trust.attestation import Attestation, attest, key_of, who_attests, who_signed

STAND_IN_BYTES = 32


def stand_in(seed: int, site: str, document: bytes) -> bytes:
    """What a simulated site signs with."""
    key = hashlib.sha256(f"sahfl stand-in {seed} {site}".encode()).digest()
    return hmac.digest(key, document, "sha256")


def signature(kit: Path, document: bytes) -> bytes:
    """A site's signature with its certificate, as one text.

    Raises:
        TrustError: as ``attest``.
    """
    made = attest(kit, document)
    return pack(made.certificate, made.signature)


def key_by_site(kit: Path, site: str, document: bytes, signed: bytes) -> str | None:
    """Hash of the key with which a site, of the consortium of a kit, signed a document; None: it did not."""
    try:
        found = _attestation(signed)
        return key_of(found) if who_attests(found, document, kit=kit) == site else None
    except (PayloadError, TrustError):
        return None


def is_consistent(seed: int, site: str, document: bytes, signed: bytes) -> bool:
    """For the server: whether a text is the stand-in's, or verifies with a certificate of that site's name."""
    if len(signed) == STAND_IN_BYTES:
        return hmac.compare_digest(signed, stand_in(seed, site, document))
    try:
        return who_signed(_attestation(signed), document) == site
    except (PayloadError, TrustError):
        return False


def _attestation(signed: bytes) -> Attestation:
    fields = unpack(signed)
    if len(fields) != 2:
        raise PayloadError("signature: expected a certificate and a signature")
    return Attestation(*fields)
