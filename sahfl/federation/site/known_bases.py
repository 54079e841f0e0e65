"""The base networks that a site works with: those that its policy names, and those that its people accepted.

Whoever chooses the base network can choose one that copies scans into updates. The signature of a request is no
evidence against that, because an attacker may have the signer's key. So a site works with a base only if a person
compared its hash with the one that the coordinating centre published by another channel than this connection. Any other
base waits: the request is refused, and the server asks again later.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from sahfl.atomic import write_atomic, writing
from sahfl.config import SiteConfig
from sahfl.errors import BaseNotAccepted, ConfigError, StorageError
from sahfl.federation.site.audit import AuditLog
from sahfl.payload import FINGERPRINT, Header
from sahfl.process import locked, now_text
from sahfl.regular_files import LIST_BYTES, read_bytes
from sahfl.section import Section

FILE = "bases.json"
MOST = 1000
"""Most bases that wait; a server that names more gets no answer."""


class KnownBase(Section):
    """The record that a site keeps of a base network."""

    study: str
    """Fingerprint of the first study that asked with it; empty if it was accepted before any."""
    since: str
    """Time of the first request with it, or of its acceptance if that came first."""
    accepted: str | None = None
    """Time of its acceptance; None while it waits."""


_format = TypeAdapter(dict[str, KnownBase])


def require_accepted(config: SiteConfig, header: Header) -> None:
    """Refuse a request whose base network nobody at this site accepted, and note that the base waits.

    Raises:
        BaseNotAccepted: names the base, and the command that accepts it.
        StorageError: the notes cannot be read or written.
    """
    allowed = config.policy.bases
    if allowed == "any" or header.base in allowed or (not header.base and header.stage == "pretrain"):
        return
    if not FINGERPRINT.fullmatch(header.base):
        raise BaseNotAccepted("got a base network without a hash of 64 hex digits; nothing can accept it")
    with locked(config.folder / "bases.lock"):
        bases = known_bases(config.folder)
        known = bases.get(header.base)
        if known is not None and known.accepted:
            return
        if known is None and sum(not base.accepted for base in bases.values()) >= MOST:
            text = f"base network {header.base}: {MOST} others wait already; look into who sends them"
            raise BaseNotAccepted(text)
        if known is None:
            _write(config.folder, bases | {header.base: KnownBase(study=header.study[:64], since=now_text())})
    ask = "compare this hash with the one that the coordinating centre published"
    command = f"sahfl-client accept-base SITE_FILE {header.base}"
    raise BaseNotAccepted(f"base network {header.base} waits for acceptance; {ask}, then: {command}")


def accept_base(config: SiteConfig, sha256: str) -> KnownBase:
    """Accept a base network by its hash, whether or not a request named it before.

    The audit log has a line for it before it counts.

    Returns the record of the network before this; it has no study if no request named the network.

    Raises:
        ConfigError: the hash has not 64 hex digits.
        StorageError: the notes cannot be read or written.
    """
    sha256 = sha256.lower()
    if not FINGERPRINT.fullmatch(sha256):
        found = f"got {sha256[:80]!r}, expected the whole hash, 64 hex digits"
        raise ConfigError(f"accept-base: {found}; a part of it could be another network's")
    with locked(config.folder / "bases.lock"):
        bases, now = known_bases(config.folder), now_text()
        known = bases.get(sha256, KnownBase(study="", since=now))
        if known.accepted is None:
            AuditLog(config.folder).append("base_accepted", f"Accepted: base network {sha256}.", base=sha256)
            _write(config.folder, bases | {sha256: known.model_copy(update={"accepted": now})})
    return known


def known_bases(folder: Path) -> dict[str, KnownBase]:
    """The bases that a site noted, by their hashes; ``folder`` is the site's folder.

    Raises:
        StorageError: the file is damaged; a damaged note accepts nothing.
    """
    path = folder / FILE
    try:
        return _format.validate_json(read_bytes(path, most=LIST_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        text = f"{path}: cannot be read; restore it, or move it away and accept each base network again"
        raise StorageError(text) from error


def _write(folder: Path, bases: dict[str, KnownBase]) -> None:
    with writing(folder / FILE):
        write_atomic(folder / FILE, _format.dump_json(bases, indent=1))
