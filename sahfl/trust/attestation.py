"""Attestations: what one site of a consortium signed with its own key, for the other sites to verify.

A site signs with the key of its certificate, which its consortium's authority issued. The key never was at the server,
so whoever holds the server's keys cannot make an attestation. The certificate goes along; a site compares its key with
the roster (``roster``).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from sahfl import process
from sahfl.errors import TrustError
from sahfl.trust.certificates import DAMAGED, PURPOSES, holder, key_hash, load_certificate, read_der
from sahfl.trust.keys import load_ec_key

MOST_BYTES = 4000
"""Most bytes of a certificate or a signature that are read."""


@dataclass(frozen=True)
class Attestation:
    """A document's signature by one site."""

    certificate: bytes
    """The site's certificate, DER."""
    signature: bytes
    """ECDSA with SHA-384, DER."""


def attest(kit: Path, document: bytes) -> Attestation:
    """Sign a document with the key of a site's certificate; ``kit`` is the folder of its startup kit.

    Raises:
        TrustError: key or certificate are missing or damaged, or others can read the key.
    """
    certificate = load_certificate(kit / "client.crt").public_bytes(Encoding.DER)
    key = load_ec_key(kit / "client.key")
    return Attestation(certificate, key.sign(document, ec.ECDSA(hashes.SHA384())))


def who_attests(attestation: Attestation, document: bytes, *, kit: Path, now: datetime | None = None) -> str:
    """Verify an attestation; returns the name of the site that made it.

    Args:
        attestation: received from anybody.
        document: what the site is said to have signed.
        kit: folder of the verifying site's startup kit, whose authority must have issued the certificate.
        now: the moment at which the certificate must be valid; by default now.

    Raises:
        TrustError: the certificate is not that of a site of this consortium, or is not valid now, or the signature is
            not its holder's of this document.
    """
    if max(len(attestation.certificate), len(attestation.signature)) > MOST_BYTES:
        raise TrustError(f"attestation: has more than {MOST_BYTES} bytes")
    authority, moment = load_certificate(kit / "ca.crt"), now or process.now()
    try:
        certificate = read_der(attestation.certificate)
        certificate.verify_directly_issued_by(authority)
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        key = certificate.public_key()
        if PURPOSES["site"] not in usages or not isinstance(key, ec.EllipticCurvePublicKey):
            raise TrustError("attestation: is not by a site")
        if not certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc:
            raise TrustError(f"attestation: the certificate of {holder(certificate)} is not valid now")
        key.verify(attestation.signature, document, ec.ECDSA(hashes.SHA384()))
        return holder(certificate)
    except DAMAGED as error:
        raise TrustError("attestation: is not a signature of this document by a site of this consortium") from error


def key_of(attestation: Attestation) -> str:
    """Hash of the public key in an attestation's certificate, as a roster has it.

    Raises:
        TrustError: the certificate is damaged or too large.
    """
    if len(attestation.certificate) > MOST_BYTES:
        raise TrustError(f"attestation: has more than {MOST_BYTES} bytes")
    try:
        return key_hash(read_der(attestation.certificate))
    except DAMAGED as error:
        raise TrustError("attestation: its certificate is damaged") from error


def who_signed(attestation: Attestation, document: bytes) -> str:
    """The name in the certificate of an attestation that it verifies with, whoever issued the certificate.

    For a server, which has no list of authorities and trusts its sites no more for it: the sites decide by
    ``who_attests``, and this finds a site that signed wrongly before it spoils the others' work.

    Raises:
        TrustError: the signature is not that of the certificate's key, or one of them is damaged.
    """
    try:
        certificate = read_der(attestation.certificate)
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise TrustError("attestation: is not by a site")
        key.verify(attestation.signature, document, ec.ECDSA(hashes.SHA384()))
        return holder(certificate)
    except DAMAGED as error:
        raise TrustError("attestation: is not a signature of this document") from error
