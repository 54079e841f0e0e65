"""The JSON files of a consortium: a kit's note, the server's list of sites, and the record of the authority."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AwareDatetime, ConfigDict, Field

from sahfl.config import Name, Section, parse
from sahfl.config.consortium import Consortium, Host
from sahfl.errors import ConfigError, TrustError
from sahfl.trust.keys import read_file

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]+$")]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
State = Literal["active", "revoked"]


class _Note(Section):
    """A JSON file with the version of its format."""

    model_config = ConfigDict(populate_by_name=True)

    version: Literal[1] = Field(default=1, alias="schema")
    """Version of the file's format."""
    consortium: Name
    """Name of the consortium."""

    def text(self) -> str:
        """The file's content."""
        return self.model_dump_json(indent=2, by_alias=True) + "\n"


class KitNote(_Note):
    """``kit.json``: what a site needs to connect and to check requests; the authority signs its bytes."""

    site: Name
    """Name of the site in studies."""
    host: Host
    """Host name or address of the server."""
    port: Annotated[int, Field(ge=1, le=65535)]
    """TCP port of the server."""
    signer: Hash
    """Public key that signs the server's requests, 64 hex digits."""
    node_key: str
    """The site's public key, as a line of OpenSSH."""
    ca_sha256: Hash
    """SHA-256 of the authority's certificate."""
    issued: AwareDatetime
    """When the kit was made."""
    expires: AwareDatetime
    """When the site's certificate expires."""


class SiteEntry(Section):
    """One site in the server's list."""

    node_key: str
    """The site's public key, as a line of OpenSSH."""
    certificate: Hex
    """Serial number of the site's newest certificate."""
    expires: AwareDatetime
    """When that certificate expires."""
    state: State
    """Whether the site may take part."""


class SiteList(_Note):
    """``sites.json``: the sites that the server accepts or refuses."""

    sites: dict[Name, SiteEntry]
    """The sites by name."""


class RosterNote(_Note):
    """``roster.json``: the sites of a consortium with their keys, for each other; the authority signs its bytes."""

    sites: dict[Name, Hash]
    """By name, the SHA-256 of the public key (DER) in the site's newest certificate; without revoked sites."""


class Issued(Section):
    """One certificate that the authority issued."""

    serial: Hex
    """Its serial number."""
    issued: AwareDatetime
    """When it was made."""
    expires: AwareDatetime
    """When it expires."""
    revoked: AwareDatetime | None = None
    """When it was revoked."""
    key_sha256: Hash | None = None
    """Hash of its public key; None for one that an earlier sahfl issued."""


class Holder(Section):
    """The server or a site, with its certificates."""

    node_key: str = ""
    """The site's public key, as a line of OpenSSH; the server has none."""
    address: str
    """Address of the server, as written in its certificate or the site's kit."""
    certificates: Annotated[tuple[Issued, ...], Field(min_length=1)]
    """All certificates, the newest last."""

    @property
    def newest(self) -> Issued:
        """The current certificate."""
        return self.certificates[-1]

    @property
    def state(self) -> State:
        """Whether the holder may take part."""
        return "active" if self.newest.revoked is None else "revoked"

    def revoke(self, now: datetime) -> Holder:
        """A copy of the holder with every certificate revoked."""
        revoked = tuple(c if c.revoked else c.model_copy(update={"revoked": now}) for c in self.certificates)
        return self.model_copy(update={"certificates": revoked})


class Record(_Note):
    """``issued.json``: everything that the authority issued; the server's lists are made from it."""

    settings: Consortium
    """The consortium file as it was last provisioned."""
    holders: dict[Name, Holder] = Field(default_factory=dict)
    """``server`` and the sites by name."""

    def put(self, name: str, holder: Holder) -> Record:
        """A copy of the record with a holder added or replaced."""
        return self.model_copy(update={"holders": self.holders | {name: holder}})

    def site_list(self) -> SiteList:
        """The server's list of sites."""
        entries = {
            name: SiteEntry(
                node_key=site.node_key,
                certificate=site.newest.serial,
                expires=site.newest.expires,
                state=site.state,
            )
            for name, site in self.holders.items()
            if name != "server"
        }
        return SiteList(consortium=self.consortium, sites=entries)

    def active_sites(self) -> dict[str, Issued]:
        """The newest certificate of each site that may take part, by name."""
        sites = {name: site for name, site in sorted(self.holders.items()) if name != "server"}
        return {name: site.newest for name, site in sites.items() if site.state == "active"}

    def revoked_serials(self) -> frozenset[int]:
        """Serial numbers of all revoked certificates."""
        return frozenset(
            int(c.serial, 16) for holder in self.holders.values() for c in holder.certificates if c.revoked
        )


NoteT = TypeVar("NoteT", bound=_Note)


def read_note(model: type[NoteT], path: Path) -> NoteT:
    """Read one of the JSON files.

    Raises:
        TrustError: it is missing, damaged, or of another version.
    """
    return parse_note(model, read_file(path), where=path)


def parse_note(model: type[NoteT], content: bytes, *, where: Path) -> NoteT:
    """Check the content of one of the JSON files.

    Raises:
        TrustError: it is damaged, or of another version.
    """
    try:
        settings: Any = json.loads(content)
        if isinstance(settings, dict) and settings.get("schema") != 1:
            raise TrustError(f"{where}: got schema {settings.get('schema')!r}, expected 1; use the sahfl that wrote it")
        return parse(model, settings, where=str(where))
    except (ValueError, RecursionError, ConfigError) as error:
        detail = str(error).removeprefix(f"{where}: ") if isinstance(error, ConfigError) else "is not JSON"
        raise TrustError(f"{where}: is damaged: {detail}") from error
