"""Startup kits: the files that a site and the server load before they connect, checked as a whole."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sahfl import process
from sahfl.errors import TrustError
from sahfl.trust.certificates import (
    check_issued,
    check_period,
    check_signature,
    fingerprint,
    holder,
    load_certificate,
    load_revoked,
    warn_of_end,
)
from sahfl.trust.keys import NodeKey, load_ec_key, load_node_key, node_key_line, public_pem, read_file
from sahfl.trust.records import KitNote, SiteEntry, SiteList, State, parse_note, read_note
from sahfl.trust.signing import Signer

AUTHORITY_ENDS = "the coordinating centre has to provision the consortium anew"
RENEW = "run `sahfl renew server`"


@dataclass(frozen=True)
class SiteKit:
    """What a site needs to connect, and to verify that requests come from its consortium; no repr shows keys."""

    folder: Path
    consortium: str
    site: str
    host: str
    port: int
    signer: str
    """Public key that signs all requests to this site, 64 hex digits."""
    node_key: NodeKey = field(repr=False, compare=False)
    authority: x509.Certificate = field(repr=False)
    """The only authority that this site trusts: the one that ``kit.json`` names."""
    certificate_expires: datetime
    authority_expires: datetime

    @classmethod
    def load(cls, folder: Path, *, now: datetime | None = None, at_any_time: bool = False) -> SiteKit:
        """Read a kit and check all of it; ``at_any_time`` skips the check that its certificates are valid now.

        Raises:
            TrustError: a file is missing or damaged, others may read a key, the authority did not sign ``kit.json``,
                files of different kits are mixed, or a certificate has expired or is not valid yet.
        """
        moment = None if at_any_time else now or process.now()
        authority = load_certificate(folder / "ca.crt")
        text = read_file(folder / "kit.json")
        check_signature(authority, text, read_file(folder / "kit.sig"), where=folder / "kit.json")
        note = parse_note(KitNote, text, where=folder / "kit.json")
        if note.ca_sha256 != fingerprint(authority):
            raise TrustError(f"{folder / 'ca.crt'}: is not the authority that kit.json names; put the kit's file back")
        node_key = load_node_key(folder / "node.key")
        if node_key_line(node_key) != note.node_key:
            raise TrustError(f"{folder / 'node.key'}: is not the key that kit.json names; put the kit's file back")
        remedy = f"ask the coordinating centre for a new kit (`sahfl renew {note.site}`)"
        own = _own_certificate(folder / "client.crt", authority, purpose="site", now=moment, remedy=remedy)
        if holder(own) != note.site:
            raise TrustError(f"{folder / 'client.crt'}: is made out to {holder(own)!r}, expected {note.site!r}")
        ends = own.not_valid_after_utc, authority.not_valid_after_utc
        return cls(folder, note.consortium, note.site, note.host, note.port, note.signer, node_key, authority, *ends)

    def tls(self) -> ssl.SSLContext:
        """TLS 1.3 that connects only to this consortium's server, and shows it this site's certificate.

        Raises:
            TrustError: the files changed since they were loaded.
        """
        context = _context(ssl.PROTOCOL_TLS_CLIENT, self.authority)  # this protocol checks certificate and host name
        _show(context, self.folder / "client.crt")
        return context

    def warnings(self, now: datetime) -> list[str]:
        """What expires within 30 days or has expired, each with its remedy."""
        ask = f"ask the coordinating centre for a new kit (`sahfl renew {self.site}`)"
        return [
            *warn_of_end(f"{self.site}: the site's certificate", self.certificate_expires, now=now, remedy=ask),
            *warn_of_end("the consortium's authority", self.authority_expires, now=now, remedy=AUTHORITY_ENDS),
        ]


@dataclass(frozen=True)
class ServerKit:
    """What the server needs to identify itself to sites, and to identify sites; no repr shows keys."""

    folder: Path
    consortium: str
    signer: Signer
    authority: x509.Certificate = field(repr=False)
    """The only authority whose sites this server accepts."""
    certificate_expires: datetime
    authority_expires: datetime

    @classmethod
    def load(cls, folder: Path, *, now: datetime | None = None) -> ServerKit:
        """Read the server's folder and check all of it.

        Raises:
            TrustError: a file is missing or damaged, others may read a key, the authority did not issue the certificate
                or the revocation list, or one of them has expired or is not valid yet.
        """
        now = now or process.now()
        authority = load_certificate(folder / "ca.crt")
        own = _own_certificate(folder / "server.crt", authority, purpose="server", now=now, remedy=RENEW)
        load_revoked(folder / "revoked.crl", authority=authority, now=now)
        consortium, signer = read_note(SiteList, folder / "sites.json").consortium, Signer.load(folder / "signing.key")
        kit = cls(folder, consortium, signer, authority, own.not_valid_after_utc, authority.not_valid_after_utc)
        kit.sites()
        return kit

    def tls(self) -> ssl.SSLContext:
        """TLS 1.3 that accepts only sites with a certificate of this authority that is not revoked.

        Sessions cannot be resumed: a resumed session skips the certificate check and would survive its revocation.

        Raises:
            TrustError: the files changed since they were loaded.
        """
        context = _context(ssl.PROTOCOL_TLS_SERVER, self.authority)
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        context.num_tickets = 0
        _show(context, self.folder / "server.crt")
        self.read_revoked(context)
        return context

    def read_revoked(self, context: ssl.SSLContext) -> None:
        """Make a context in use refuse newly revoked certificates; open connections stay open.

        Raises:
            TrustError: the revocation list is missing, damaged, or another authority's.
        """
        path = self.folder / "revoked.crl"
        load_revoked(path, authority=self.authority, now=process.now())
        try:
            context.load_verify_locations(cafile=str(path))
        except ssl.SSLError as error:
            raise TrustError(
                f"{path}: is damaged, expected a revocation list in PEM; put the kit's file back"
            ) from error

    def entries(self) -> dict[str, SiteEntry]:
        """All sites by name, revoked ones included, as currently listed in ``sites.json``.

        Raises:
            TrustError: it is missing, damaged, or another consortium's.
        """
        path = self.folder / "sites.json"
        listed = read_note(SiteList, path)
        if listed.consortium != self.consortium:
            raise TrustError(f"{path}: is of consortium {listed.consortium!r}, expected {self.consortium!r}")
        return listed.sites

    def sites(self) -> dict[str, bytes]:
        """The public keys (PEM, as Flower compares them) of the sites that may currently take part.

        Raises:
            TrustError: ``sites.json`` is missing or damaged.
        """
        return self._keys("active")

    def revoked(self) -> dict[str, bytes]:
        """The public keys of the sites that were revoked and have no new kit.

        Raises:
            TrustError: ``sites.json`` is missing or damaged.
        """
        return self._keys("revoked")

    def _keys(self, state: State) -> dict[str, bytes]:
        where = str(self.folder / "sites.json")
        return {
            site: public_pem(entry.node_key, where=f"{where}: {site}")
            for site, entry in self.entries().items()
            if entry.state == state
        }

    def warnings(self, now: datetime) -> list[str]:
        """What expires within 30 days or has expired, each with its remedy."""
        found = warn_of_end("the server's certificate", self.certificate_expires, now=now, remedy=RENEW)
        for site, entry in self.entries().items():
            if entry.state == "active":
                remedy = f"run `sahfl renew {site}` and hand over the new kit"
                found += warn_of_end(f"{site}: the site's certificate", entry.expires, now=now, remedy=remedy)
        remedy = "provision the consortium anew"
        return [*found, *warn_of_end("the consortium's authority", self.authority_expires, now=now, remedy=remedy)]


def _own_certificate(
    path: Path, authority: x509.Certificate, *, purpose: str, now: datetime | None, remedy: str
) -> x509.Certificate:
    """A kit's certificate, after every check that needs no connection; ``now`` None skips its period."""
    own, key = load_certificate(path), load_ec_key(path.with_suffix(".key"))
    check_issued(own, by=authority, purpose=purpose, where=path, key=key.public_key())
    if now is not None:
        check_period(authority, where=path.with_name("ca.crt"), now=now, remedy=AUTHORITY_ENDS)
        check_period(own, where=path, now=now, remedy=remedy)
    return own


def _context(protocol: int, authority: x509.Certificate) -> ssl.SSLContext:
    """TLS 1.3 that trusts this authority alone: the one that was checked, whatever its file holds now."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(cadata=authority.public_bytes(Encoding.DER))
    except ssl.SSLError as error:  # cryptography reads more than OpenSSL
        raise TrustError("ca.crt: is damaged, expected a certificate in PEM; put the kit's file back") from error
    return context


def _show(context: ssl.SSLContext, certificate: Path) -> None:
    try:
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    except OSError as error:
        raise TrustError(f"{certificate}: cannot be used any more; put the kit's files back") from error
