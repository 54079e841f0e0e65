"""The consortium's certificate authority: it issues the certificates of the server and the sites, and revokes them."""

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
"""Certificates become valid this long before they are made, for machines whose clock is behind."""
USAGES = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
USAGES += ["key_cert_sign", "crl_sign", "encipher_only", "decipher_only"]


@dataclass(frozen=True)
class Authority:
    """The authority's certificate and its key, which no repr shows."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False, compare=False)

    @classmethod
    def create(cls, consortium: str, *, now: datetime, days: int) -> Authority:
        """Create an authority that can issue certificates for servers and sites, but not for other authorities."""
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
            TrustError: a file is missing or damaged, or others than the owner may read the key.
        """
        return cls(load_certificate(folder / "ca.crt"), load_ec_key(folder / "ca.key"))

    def server_certificate(
        self, public_key: ec.EllipticCurvePublicKey, hosts: Sequence[str], *, now: datetime, days: int
    ) -> x509.Certificate:
        """Issue a certificate for the server, with all its names and addresses."""
        names = [x509.IPAddress(ipaddress.ip_address(h)) if is_address(h) else x509.DNSName(h) for h in hosts]
        return self._issue("server", public_key, names, ExtendedKeyUsageOID.SERVER_AUTH, now=now, days=days)

    def site_certificate(
        self, public_key: ec.EllipticCurvePublicKey, site: str, *, now: datetime, days: int
    ) -> x509.Certificate:
        """Issue a certificate with which a site can connect to the server, and do nothing else."""
        names = [x509.UniformResourceIdentifier(f"urn:sahfl:{self.consortium}:{site}")]
        return self._issue(site, public_key, names, ExtendedKeyUsageOID.CLIENT_AUTH, now=now, days=days)

    @property
    def consortium(self) -> str:
        """Name of the consortium."""
        (name,) = self.certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        return str(name.value)

    def sign(self, document: bytes) -> bytes:
        """Sign a document; ``certificates.check_signature`` checks the signature."""
        return self.key.sign(document, ec.ECDSA(hashes.SHA384()))

    def revocation_list(self, serials: Iterable[int], *, now: datetime, after: datetime | None = None) -> bytes:
        """The list of revoked certificates, as PEM; ``after`` is the date of the previous list.

        It is valid until the authority expires. An earlier end would protect nobody, because the server gets a new list
        with every revocation. It would lock out every site if someone forgot to renew the list. OpenSSL uses the list
        with the later date, so two revocations within one second need different dates.
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
    parts = {NameOID.ORGANIZATION_NAME: consortium, NameOID.COMMON_NAME: holder}
    return x509.Name([x509.NameAttribute(kind, text) for kind, text in parts.items()])


def _usage(*allowed: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in allowed for usage in USAGES})
