"""Table of a consortium's certificates: their holders and expiry."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from sahfl.trust.certificates import WARN_BEFORE, serial
from sahfl.trust.kit_files import address_of
from sahfl.trust.records import Record


@dataclass(frozen=True)
class Line:
    """One holder of a certificate."""

    who: str
    certificate: str
    """Serial number in hex."""
    expires: datetime
    days_left: int
    state: str
    """new, valid, expires soon, expired, revoked, or the difference from the consortium file."""


def overview(record: Record, authority: x509.Certificate, *, now: datetime, made: Iterable[str] = ()) -> list[Line]:
    """One line for the authority, the server and each site; ``made`` are the holders that just got a certificate."""
    lines = [_line("authority", serial(authority), authority.not_valid_after_utc, now, "")]
    for name, holder in record.holders.items():
        state = "new" if name in made else ""
        if holder.state == "revoked":
            state = "revoked"
        elif holder.address != address_of(record.settings, name):
            state = f"has {holder.address}: renew"
        elif name not in ("server", *record.settings.sites):
            state = "not in the consortium file"
        lines.append(_line(name, holder.newest.serial, holder.newest.expires, now, state))
    return lines


def _line(who: str, certificate: str, expires: datetime, now: datetime, state: str) -> Line:
    left = expires - now
    if not state:
        state = "expired" if now > expires else "expires soon" if left < WARN_BEFORE else "valid"
    return Line(who, certificate, expires, max(left.days, 0), state)
