"""The roster: the sites of a consortium with the keys that they sign with, for each other.

The authority signs it, and `sahfl provision` puts it into each kit and beside the kits. A site that verifies another
one by the roster that its people accepted is not deceived by a site that the authority's holder makes up later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sahfl.errors import TrustError
from sahfl.trust.certificates import check_signature, load_certificate
from sahfl.trust.keys import read_file
from sahfl.trust.records import RosterNote, parse_note

FILE, SIGNATURE = "roster.json", "roster.sig"
SHOWN = 16
"""Digits of a key's hash that a list of changes shows."""


@dataclass(frozen=True)
class Roster:
    """A roster with the bytes that the authority signed."""

    text: bytes
    note: RosterNote

    @property
    def sha256(self) -> str:
        """Hash of the bytes, 64 hex digits, by which people compare rosters."""
        return hashlib.sha256(self.text).hexdigest()

    def changes(self, before: Roster | None) -> Iterator[str]:
        """Yield each difference from an earlier roster, one line each, by name."""
        old, new = {} if before is None else before.note.sites, self.note.sites
        for site in sorted(old.keys() | new.keys()):
            if site not in old:
                yield f"new: {site}, key {new[site][:SHOWN]}"
            elif site not in new:
                yield f"gone: {site}"
            elif old[site] != new[site]:
                yield f"another key: {site}, {old[site][:SHOWN]} before, {new[site][:SHOWN]} now"


def kit_has_roster(kit: Path) -> bool:
    """Whether a kit has a roster; those of earlier versions have none."""
    return (kit / FILE).exists()


def load_roster(kit: Path) -> Roster:
    """Read the roster of a kit and check that the kit's authority signed it.

    Raises:
        TrustError: it is missing or damaged, of another consortium's authority, or others may change it.
    """
    text = read_file(kit / FILE)
    check_signature(load_certificate(kit / "ca.crt"), text, read_file(kit / SIGNATURE), where=kit / FILE)
    return read_roster(text, where=kit / FILE)


def read_roster(text: bytes, *, where: Path) -> Roster:
    """Read a roster that was checked before.

    Raises:
        TrustError: it is damaged.
    """
    note = parse_note(RosterNote, text, where=where)
    if len(set(note.sites.values())) < len(note.sites):
        raise TrustError(f"{where}: has one key for two sites, expected a key for each")
    return Roster(text, note)
