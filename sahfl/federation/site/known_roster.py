"""The roster that the people of a site accepted: the other sites, with the keys by which this one verifies them.

The first roster is that of the kit, which a person handed over. A later one is in force once a person accepted it,
because whoever holds the authority's key could add sites that do not exist: with enough of them among the sites of a
masked sum, the server would see through the masks, and they could confirm the start of a round for one hospital alone.
"""

from __future__ import annotations

from pathlib import Path

from sahfl.atomic import write_atomic, writing
from sahfl.config import SiteConfig
from sahfl.errors import ConfigError, RosterNotAccepted, StorageError, TrustError
from sahfl.federation.site.audit import AuditLog
from sahfl.payload import FINGERPRINT
from sahfl.process import locked
from sahfl.regular_files import LIST_BYTES, read_bytes
from sahfl.trust.attestation import Attestation, key_of, who_attests
from sahfl.trust.roster import Roster, kit_has_roster, load_roster, read_roster

FILE = "roster.json"
GET = "ask the coordinating centre for roster.json and roster.sig (`sahfl provision` writes them beside the kits)"


def accepted_roster(folder: Path) -> Roster | None:
    """The roster in force at a site, by the site's folder; None before the first.

    Raises:
        StorageError: it cannot be read, or is damaged.
    """
    path = folder / FILE
    try:
        return read_roster(read_bytes(path, most=LIST_BYTES), where=path)
    except FileNotFoundError:
        return None
    except (OSError, TrustError) as error:
        text = f"{path}: cannot be read; restore it, or delete it and accept the roster of the kit again"
        raise StorageError(text) from error


def require_roster(config: SiteConfig) -> Roster:
    """The roster in force; before the first, that of the kit comes into force, with a line in the audit log.

    Raises:
        RosterNotAccepted: the site has no kit, or a kit without a roster.
        TrustError: the kit's roster is damaged, or its authority did not sign it.
        StorageError: the roster in force cannot be read or written.
    """
    with locked(config.folder / "roster.lock"):
        if (known := accepted_roster(config.folder)) is not None:
            return known
        roster = waiting_roster(config)
        _put_in_force(config.folder, roster, "The kit's first roster is in force")
        return roster


def signed_by_rostered(config: SiteConfig, attestation: Attestation, document: bytes) -> str:
    """The site that signed a document, with its key in the roster; of kits without a roster, any site of the authority.

    Raises:
        TrustError: nobody of the consortium signed it, or the roster in force does not have the site with this key.
        StorageError: as ``require_roster``.
    """
    assert config.kit is not None
    name = who_attests(attestation, document, kit=config.kit)
    knows_sites = (config.folder / FILE).exists() or kit_has_roster(config.kit)
    if knows_sites and (known := require_roster(config).note.sites.get(name)) != key_of(attestation):
        raise TrustError(f"attestation: {not_in_force(config, name, known and key_of(attestation))}")
    return name


def not_in_force(config: SiteConfig, site: str, key: str | None = None) -> str:
    """Why a site is not believed, and what to do: whether the kit has the roster with it, or the centre must send it.

    Args:
        config: of the site that asks.
        site: the other site, or this one after its own key was renewed.
        key: hash of the key that it signed with; None if it is not in the roster.
    """
    own = f"{site}, this site," if site == config.name else site
    found = f"{own} has another key than in" if key is not None else f"{own} is not in"
    try:
        waits = waiting_roster(config)
    except (RosterNotAccepted, TrustError):
        waits = None
    known = None if waits is None else waits.note.sites.get(site)
    if waits is not None and known is not None and key in (None, known):
        remedy = f"The kit has a roster with it, {waits.sha256}: compare this hash with the centre's, and accept it"
    else:
        remedy = f"If it joined or has a new key, {GET}, put both files into the kit's folder, and accept the roster"
    return f"{found} the roster that was accepted here. {remedy}: sahfl-client accept-roster SITE_FILE HASH"


def accept_roster(config: SiteConfig, sha256: str) -> Roster:
    """Put the roster of the kit into force, if its hash is the one that a person compared.

    The audit log has a line for it before it counts.

    Raises:
        ConfigError: the hash has not 64 hex digits, or is not that of the kit's roster.
        RosterNotAccepted, TrustError: as ``waiting_roster``.
        StorageError: it cannot be written.
    """
    sha256 = sha256.lower()
    if not FINGERPRINT.fullmatch(sha256):
        raise ConfigError(f"accept-roster: got {sha256[:80]!r}, expected the whole hash, 64 hex digits")
    roster = waiting_roster(config)
    if roster.sha256 != sha256:
        raise ConfigError(f"accept-roster: the roster of the kit has the hash {roster.sha256}; {GET} of the other one")
    with locked(config.folder / "roster.lock"):
        _put_in_force(config.folder, roster, "Accepted: a roster")
    return roster


def waiting_roster(config: SiteConfig) -> Roster:
    """The roster in a site's kit, whether or not it is in force.

    Raises:
        RosterNotAccepted: the site has no kit, or a kit without a roster.
        TrustError: the roster is damaged, or the kit's authority did not sign it.
    """
    if config.kit is None or not kit_has_roster(config.kit):
        remedy = f"{GET}, and put both files into the kit's folder"
        raise RosterNotAccepted(f"site {config.name}: its kit has no roster of the other sites' keys; {remedy}")
    return load_roster(config.kit)


def _put_in_force(folder: Path, roster: Roster, words: str) -> None:
    sites = sorted(roster.note.sites)
    AuditLog(folder).append("roster_accepted", f"{words}: {len(sites)} sites.", roster=roster.sha256, sites=sites)
    with writing(folder / FILE):
        write_atomic(folder / FILE, roster.text)
