"""Reading and checking certificates: their holder, their issuer and their period of validity."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sahfl.errors import TrustError
from sahfl.trust.keys import DAMAGED_KEY, read_file

WARN_BEFORE = timedelta(days=30)
"""Users of a certificate are warned from this long before it expires."""
DAMAGED = (
    *(*DAMAGED_KEY, InvalidSignature),
    *(x509.InvalidVersion, x509.DuplicateExtension, x509.ExtensionNotFound, x509.UnsupportedGeneralNameType),
)
"""What ``cryptography`` raises for a certificate, a list or a signature that is damaged, or of a kind unknown to it."""
PURPOSES = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "site": ExtendedKeyUsageOID.CLIENT_AUTH}


def load_certificate(path: Path) -> x509.Certificate:
    """Read the only certificate of a file; a second one would be trusted by whoever reads the file as a whole.

    Raises:
        TrustError: it is missing or damaged, or the file holds more.
    """
    content = read_file(path)
    try:
        certificate = _read(x509.load_pem_x509_certificate, content)
        certificate.public_key()  # read only when it is asked for; a damaged one raises here
    except DAMAGED as error:
        raise TrustError(f"{path}: is damaged, expected a certificate in PEM; put the kit's file back") from error
    _require_only(path, content, pem(certificate), what="certificate")
    return certificate


def read_der(content: bytes) -> x509.Certificate:
    """Read a certificate that anybody may have sent.

    Raises:
        one of ``DAMAGED``: it is none, or one that RFC 5280, 4.1.2.2, does not allow: with a serial number below 1.
    """
    return _read(x509.load_der_x509_certificate, content)


def _read(load: Callable[[bytes], x509.Certificate], content: bytes) -> x509.Certificate:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        certificate = load(content)
        if certificate.serial_number < 1:
            raise ValueError("serial number")
    return certificate


def _require_only(path: Path, content: bytes, only: bytes, *, what: str) -> None:
    if content.split() != only.split():
        raise TrustError(f"{path}: holds more than its one {what} in PEM; put the kit's file back")


def pem(certificate: x509.Certificate) -> bytes:
    """Encode a certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate, 64 hex digits, as ``openssl x509 -fingerprint -sha256`` computes it."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def key_hash(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate's public key (DER), 64 hex digits: the same in each certificate of one key."""
    public = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(public).hexdigest()


def serial(certificate: x509.Certificate) -> str:
    """The certificate's serial number, in hex."""
    return f"{certificate.serial_number:x}"


def holder(certificate: x509.Certificate) -> str:
    """Holder of a certificate: a site's name, or ``server``."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def day(moment: datetime) -> str:
    """Format a moment for people: to the minute, in UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def check_period(certificate: x509.Certificate, *, where: Path, now: datetime, remedy: str) -> None:
    """Check that a certificate is valid at this moment.

    Raises:
        TrustError: it has expired (the message ends with ``remedy``), or is not valid yet.
    """
    _check_begun(certificate.not_valid_before_utc, where=where, now=now)
    if now > certificate.not_valid_after_utc:
        raise TrustError(f"{where}: expired on {day(certificate.not_valid_after_utc)} (now {day(now)}); {remedy}")


def _check_begun(begins: datetime, *, where: Path, now: datetime) -> None:
    if now < begins:
        clock = f"the clock of this machine shows {day(now)}; set the clock right"
        raise TrustError(f"{where}: is valid from {day(begins)}, but {clock}")


def check_issued(
    certificate: x509.Certificate, *, by: x509.Certificate, purpose: str, where: Path, key: ec.EllipticCurvePublicKey
) -> None:
    """Check that an authority issued a certificate for a purpose, to the holder of a key.

    Raises:
        TrustError: another authority issued it, or it is for another purpose or another key.
    """
    try:
        certificate.verify_directly_issued_by(by)
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except DAMAGED as error:
        raise TrustError(f"{where}: was not issued by the authority in ca.crt; use all files of one kit") from error
    if PURPOSES[purpose] not in usages:
        raise TrustError(f"{where}: is not a certificate of a {purpose}; use all files of one kit")
    if certificate.public_key() != key:
        raise TrustError(f"{where}: does not belong to {where.with_suffix('.key').name}; use all files of one kit")


def check_signature(authority: x509.Certificate, document: bytes, signature: bytes, *, where: Path) -> None:
    """Check that an authority signed exactly these bytes.

    Raises:
        TrustError: it did not.
    """
    key = authority.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TrustError(f"{where.parent / 'ca.crt'}: is not an authority of sahfl, expected an EC key")
    try:
        key.verify(signature, document, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise TrustError(
            f"{where}: was changed, or signed by another authority than the one in ca.crt; put the kit's file back"
        ) from None


@dataclass(frozen=True)
class Revoked:
    """An authority's list of revoked certificates."""

    serials: frozenset[int]
    made: datetime


def load_revoked(path: Path, *, authority: x509.Certificate, now: datetime) -> Revoked:
    """Read an authority's revocation list.

    Raises:
        TrustError: the list is missing, damaged, not alone in its file, another authority's, expired or not valid yet;
            no site could connect with such a list.
    """
    content = read_file(path)
    try:
        listed = x509.load_pem_x509_crl(content)
    except DAMAGED as error:
        raise TrustError(f"{path}: is damaged, expected a revocation list in PEM; copy it again") from error
    _require_only(path, content, listed.public_bytes(Encoding.PEM), what="revocation list")
    key = authority.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not listed.is_signature_valid(key):
        raise TrustError(f"{path}: was not made by the authority in ca.crt; use all files of one folder")
    if listed.next_update_utc is None or now > listed.next_update_utc:
        raise TrustError(f"{path}: has ended with its authority; provision the consortium anew")
    _check_begun(listed.last_update_utc, where=path, now=now)
    return Revoked(frozenset(entry.serial_number for entry in listed), listed.last_update_utc)


def warn_of_end(what: str, end: datetime, *, now: datetime, remedy: str) -> list[str]:
    """A warning from 30 days before something expires, and at any time afterwards; otherwise none."""
    if now > end:
        return [f"{what} expired on {day(end)}; {remedy}"]
    if now > end - WARN_BEFORE:
        return [f"{what} expires on {day(end)}, in {(end - now).days} days; {remedy}"]
    return []
