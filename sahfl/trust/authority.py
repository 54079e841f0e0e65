"""The consortium's certificate authority: it vouches for the server and the sites, and takes back what it said."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sahfl.config.consortium import is_address
from sahfl.trust.certificates import load_certificate
from sahfl.trust.keys import load_ec_key

CLOCK_SLACK = timedelta(minutes=5)
"""Certificates are valid from a little before they are made, for machines whose clock is behind."""
USAGES = [
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
]


@dataclass(frozen=True)
class Authority:
    """The authority's certificate and, unseen in any repr, its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False, compare=False)

    @classmethod
    def create(cls, consortium: str, *, now: datetime, days: int) -> Authority:
        """A new authority that vouches for servers and sites, but for no other authority."""
        key, name = ec.generate_private_key(ec.SECP384R1()), _name(f"{consortium} authority", consortium)
        certificate = (
            _builder(name, name, key.public_key(), now=now, until=now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
            .sign(key, hashes.SHA384())
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """Read the authority's key and certificate.

        Raises:
            TrustError: one is missing, damaged, or the key open to others than its owner.
        """
        return cls(load_certificate(folder / "ca.crt"), load_ec_key(folder / "ca.key"))

    def server_certificate(
        self, public_key: ec.EllipticCurvePublicKey, hosts: Sequence[str], *, now: datetime, days: int
    ) -> x509.Certificate:
        """A certificate of the server, under all its names and addresses."""
        names = [x509.IPAddress(ipaddress.ip_address(h)) if is_address(h) else x509.DNSName(h) for h in hosts]
        return self._issue("server", public_key, names, ExtendedKeyUsageOID.SERVER_AUTH, now=now, days=days)

    def site_certificate(
        self, public_key: ec.EllipticCurvePublicKey, site: str, *, now: datetime, days: int
    ) -> x509.Certificate:
        """A certificate with which a site connects to the server, and can do nothing else."""
        names = [x509.UniformResourceIdentifier(f"urn:sahfl:{self.consortium}:{site}")]
        return self._issue(site, public_key, names, ExtendedKeyUsageOID.CLIENT_AUTH, now=now, days=days)

    @property
    def consortium(self) -> str:
        """The name of the consortium."""
        (name,) = self.certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        return str(name.value)

    def sign(self, document: bytes) -> bytes:
        """The signature of a document that ``certificates.check_signature`` checks."""
        return self.key.sign(document, ec.ECDSA(hashes.SHA384()))

    def revocation_list(self, serials: Iterable[int], *, now: datetime, after: datetime | None = None) -> bytes:
        """The list of the certificates that count no longer, as PEM.

        It is valid until the authority itself ends: the server gets a new one by copying the file whenever a site is
        revoked, so that an earlier end would protect nobody, and would lock out every site on the day it is forgotten.

        Args:
            serials: serial numbers of the certificates.
            now: the moment at which it is made.
            after: date of the list before. Of two lists OpenSSL believes the one with the later date, so that two
                revocations within one second must not have the same.
        """
        since = now - CLOCK_SLACK if after is None else max(now - CLOCK_SLACK, after + timedelta(seconds=1))
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(since)
            .next_update(self.certificate.not_valid_after_utc)
            .add_extension(x509.CRLNumber(int(since.timestamp())), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        for serial in sorted(serials):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self.key, hashes.SHA384()).public_bytes(Encoding.PEM)

    def _issue(
        self,
        holder: str,
        public_key: ec.EllipticCurvePublicKey,
        names: Sequence[x509.GeneralName],
        purpose: x509.ObjectIdentifier,
        *,
        now: datetime,
        days: int,
    ) -> x509.Certificate:
        until = min(now + timedelta(days=days), self.certificate.not_valid_after_utc)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return (
            _builder(_name(holder, self.consortium), self.certificate.subject, public_key, now=now, until=until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage("digital_signature"), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self.key, hashes.SHA384())
        )


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, *, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _name(holder: str, consortium: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, consortium), x509.NameAttribute(NameOID.COMMON_NAME, holder)]
    )


def _usage(*allowed: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in allowed for usage in USAGES})
