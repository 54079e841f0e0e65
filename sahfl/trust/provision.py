"""Making a consortium's keys and kits, renewing them and revoking them.

``authority/issued.json`` records everything; each command ends by writing the server's lists from it. A certificate is
recorded before its kit gets its final name. The next command therefore finishes or undoes an interrupted one, and every
certificate in use is recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sahfl import process
from sahfl.atomic import write_atomic
from sahfl.config.consortium import Consortium
from sahfl.errors import TrustError
from sahfl.trust import folders, roster
from sahfl.trust.authority import Authority
from sahfl.trust.certificates import (
    Revoked,
    check_period,
    check_signature,
    day,
    key_hash,
    load_certificate,
    load_revoked,
    pem,
    serial,
)
from sahfl.trust.keys import key_pem, load_ed25519_key, load_node_key, read_file
from sahfl.trust.kit_files import address_of, server_files, site_files
from sahfl.trust.overview import Line, overview
from sahfl.trust.records import Holder, Issued, Record, RosterNote, read_note
from sahfl.trust.signing import Signer


def provision(settings: Consortium, folder: Path, *, now: datetime | None = None) -> list[Line]:
    """Make the missing parts of a consortium: its authority, the server's folder, a kit for each site.

    Guarantees: existing parts are not changed but for the roster, so a call can add sites; no private key is ever
    overwritten; the next call continues an interrupted one.

    Raises:
        TrustError: the folder is another consortium's, or its authority is missing, damaged or has expired.
        StorageError: the folder cannot be written.
    """
    with folders.alone_in(folder):
        _make_authority(settings, folder, _moment(now))
        with _office(folder, now) as office:
            office.adopt(settings)
            made = [name for name in ("server", *settings.sites) if name not in office.record.holders]
            for name in made:
                office.issue(name)
        return overview(office.record, office.authority.certificate, now=office.now, made=made)


def renew(folder: Path, name: str, *, now: datetime | None = None) -> list[Line]:
    """Give the server or one site a new certificate with a new key; the others get a new roster alone.

    The server's new pair replaces the old one. A site gets a whole new kit to be handed over; its old kit is kept as
    ``NAME.previous``. If the old kit is in this folder and was not revoked, the site keeps its node key, and can use
    the old kit until it installs the new one. Otherwise it gets a new node key, and only the new kit works.

    Raises:
        TrustError: there is no such site, or the authority is missing, damaged or has expired.
        StorageError: the folder cannot be written.
    """
    with folders.alone_in(folder), _office(folder, now) as office:
        office.holder(name)
        office.issue(name)
    return overview(office.record, office.authority.certificate, now=office.now, made=[name])


def revoke(folder: Path, site: str, *, now: datetime | None = None) -> list[Line]:
    """Revoke all certificates and the node key of one site; the others get a new roster.

    The server refuses the site once it has the new ``server/sites.json`` and ``server/revoked.crl``. The site's kit is
    kept and marked by a file ``REVOKED``.

    Raises:
        TrustError: there is no such site, or it is the server, which only a new authority could revoke.
        StorageError: the folder cannot be written.
    """
    with folders.alone_in(folder), _office(folder, now) as office:
        if site == "server":
            raise TrustError(
                "revoke server: the sites have no list of revoked servers; `sahfl renew server` replaces its "
                "certificate, and if its key is known to others, provision a new consortium in a new folder"
            )
        office.revoke(site)
    return overview(office.record, office.authority.certificate, now=office.now)


@dataclass
class _Office:
    """An open authority, with its folder and record."""

    folder: Path
    authority: Authority
    record: Record
    now: datetime

    def place(self, name: str) -> Path:
        return self.folder / "server" if name == "server" else self.folder / "sites" / name

    def holder(self, name: str) -> Holder:
        if name not in self.record.holders:
            names = ", ".join(self.record.holders) or "nobody yet"
            raise TrustError(f"{self.folder}: has no {name!r}, expected one of: {names}")
        return self.record.holders[name]

    def adopt(self, settings: Consortium) -> None:
        """Record a changed consortium file with the same name."""
        if settings.name != self.record.consortium:
            raise TrustError(
                f"{self.folder}: belongs to consortium {self.record.consortium!r}, got {settings.name!r}; name another "
                "folder with --out"
            )
        if settings != self.record.settings:
            self._keep(self.record.model_copy(update={"settings": settings}))

    def issue(self, name: str) -> None:
        authority = self.folder / "authority"
        remedy = "provision a new consortium in a new folder"
        check_period(self.authority.certificate, where=authority / "ca.crt", now=self.now, remedy=remedy)
        place, settings, old = self.place(name), self.record.settings, self.record.holders.get(name)
        signing_key = load_ed25519_key(authority / "signing.key")
        if name == "server":
            certificate, files = server_files(self.authority, settings, signing_key, now=self.now)
            node_key = ""
        else:
            kept = old is not None and old.state == "active" and (place / "node.key").exists()
            certificate, files, node_key = site_files(
                self.authority,
                settings,
                name,
                signer=Signer.of(signing_key).public,
                node_key=load_node_key(place / "node.key") if kept else None,
                now=self.now,
            )
        folders.make_aside(place, files)
        ends, key = certificate.not_valid_after_utc, key_hash(certificate)
        issued = Issued(serial=serial(certificate), issued=self.now, expires=ends, key_sha256=key)
        certificates = (*(old.certificates if old else ()), issued)
        holder = Holder(node_key=node_key, address=address_of(settings, name), certificates=certificates)
        self._keep(self.record.put(name, holder))
        self.settle(name)

    def revoke(self, site: str) -> None:
        holder = self.holder(site)
        if holder.state == "active":
            self._keep(self.record.put(site, holder.revoke(self.now)))
        if self.place(site).is_dir():
            write_atomic(self.place(site) / "REVOKED", f"{site} was revoked on {day(self.now)}\n")

    def settle(self, name: str) -> None:
        """Give a finished folder its final name if its certificate is recorded; remove it otherwise."""
        place = self.place(name)
        made = folders.aside(place)
        if not made.exists():
            return
        own = made / ("server.crt" if name == "server" else "client.crt")
        counts = name in self.record.holders and own.exists()
        if not counts or serial(load_certificate(own)) != self.record.holders[name].newest.serial:
            folders.discard(place)
        elif name == "server" and place.exists():
            folders.put_pair_in_place(place, "server.key", "server.crt")
        else:
            folders.put_in_place(place)

    def publish(self) -> None:
        """Write those of the server's lists, and of the sites' rosters, that differ from the record."""
        self._publish_roster()
        path, text = self.folder / "server" / "sites.json", self.record.site_list().text()
        if not path.exists() or read_file(path) != text.encode():
            write_atomic(path, text)
        path, serials = self.folder / "server" / "revoked.crl", self.record.revoked_serials()
        listed = self._listed(path)
        if listed is None or listed.serials != serials:
            after = listed.made if listed else None
            write_atomic(path, self.authority.revocation_list(serials, now=self.now, after=after))

    def _publish_roster(self) -> None:
        """Write the roster beside the kits and into those that are here, if it changed.

        There is none as long as a key is not known, of a kit that an earlier sahfl made and that is not here: a roster
        without a site would make the others refuse it.
        """
        sites = self.record.active_sites()
        keys = {name: issued.key_sha256 or self._key_of(name, issued) for name, issued in sites.items()}
        known = {name: key for name, key in keys.items() if key is not None}
        if len(known) < len(sites):
            return
        text = RosterNote(consortium=self.record.consortium, sites=known).text().encode()
        places = [self.folder, *(place for name in sites if (place := self.place(name)).is_dir())]
        differing = [place for place in places if not _is_signed(place, text, self.authority)]
        signature = self.authority.sign(text) if differing else b""
        for place in differing:  # the signature comes last, without which the roster is not valid
            (place / roster.SIGNATURE).unlink(missing_ok=True)
            write_atomic(place / roster.FILE, text)
            write_atomic(place / roster.SIGNATURE, signature)

    def _key_of(self, name: str, issued: Issued) -> str | None:
        """Hash of the key of a certificate, from the kit; None if the kit is not here."""
        path = self.place(name) / "client.crt"
        if not path.exists() or serial(found := load_certificate(path)) != issued.serial:
            return None
        return key_hash(found)

    def _listed(self, path: Path) -> Revoked | None:
        try:
            return load_revoked(path, authority=self.authority.certificate, now=self.now)
        except TrustError:
            return None

    def _keep(self, record: Record) -> None:
        write_atomic(self.folder / "authority" / "issued.json", record.text())
        self.record = record


@contextmanager
def _office(folder: Path, now: datetime | None) -> Iterator[_Office]:
    """Open the authority, finish interrupted work, and write the server's lists at the end."""
    path = folder / "authority"
    if not path.is_dir():
        raise TrustError(f"{folder}: holds no authority/ to issue certificates; name the folder of `sahfl provision`")
    record = read_note(Record, path / "issued.json")
    office = _Office(folder, Authority.load(path), record, _moment(now))
    waiting = [made.name.removeprefix(".").removesuffix(".new") for made in folder.glob("sites/.*.new")]
    for name in ("server", *waiting):
        office.settle(name)
    yield office
    office.publish()


def _is_signed(place: Path, text: bytes, authority: Authority) -> bool:
    """Whether a folder has this roster with a signature that is valid."""
    try:
        if read_file(place / roster.FILE) != text:
            return False
        signature = read_file(place / roster.SIGNATURE)
        check_signature(authority.certificate, text, signature, where=place / roster.FILE)
    except TrustError:
        return False
    return True


def _moment(now: datetime | None) -> datetime:
    """The given moment, or now; in whole seconds, like the times in certificates."""
    return (now or process.now()).replace(microsecond=0)


def _make_authority(settings: Consortium, folder: Path, now: datetime) -> None:
    """Make the authority's folder if it is missing."""
    place = folder / "authority"
    if place.exists():
        return
    if existing := [name for name in ("server", "sites") if (folder / name).exists()]:
        raise TrustError(
            f"{folder}: has {' and '.join(existing)} but no authority/; put the authority's folder back, or name an "
            "empty folder with --out"
        )
    folders.discard(place)
    authority = Authority.create(settings.name, now=now, days=settings.valid_days.authority)
    files: dict[str, bytes | str] = {
        "ca.key": key_pem(authority.key),
        "ca.crt": pem(authority.certificate),
        "signing.key": key_pem(Ed25519PrivateKey.generate()),
        "issued.json": Record(consortium=settings.name, settings=settings).text(),
    }
    folders.make_aside(place, files)
    folders.put_in_place(place)
