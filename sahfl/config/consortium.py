"""The consortium file: the sites, the server's address, and how long certificates last."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, field_validator, model_validator

from sahfl.section import Name, Section
from sahfl.settings_file import load

LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)", re.ASCII)
RESERVED = ("authority", "server")
"""Names that no site may have, because commands use them."""


def is_address(host: str) -> bool:
    """Whether a host is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host


def _host(host: str) -> str:
    labels = host.split(".")
    named = len(host) <= 253 and all(LABEL.fullmatch(label) for label in labels) and not labels[-1].isdigit()
    if not (named or is_address(host)):
        raise ValueError("expected a DNS name or an IP address, without scheme, port or wildcard")
    return host


Host = Annotated[str, AfterValidator(_host)]
"""A DNS name or an IP address."""


class ServerAddress(Section):
    """Where the sites reach the server."""

    host: Host
    """Name or address that the sites connect to; the server's certificate names it."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8443
    """TCP port that the sites connect to."""
    also: tuple[Host, ...] = ()
    """Further names and addresses that the server's certificate is valid for."""


class ValidDays(Section):
    """How long certificates last, in days."""

    authority: Annotated[int, Field(ge=1, le=7300)] = 3650
    """The authority's certificate; when it expires, everybody needs a new kit."""
    certificates: Annotated[int, Field(ge=1, le=3650)] = 397
    """The certificates of the server and the sites."""

    @model_validator(mode="after")
    def _authority_lasts_longest(self) -> ValidDays:
        if self.authority < self.certificates:
            raise ValueError(f"authority: {self.authority} is less than certificates: {self.certificates}")
        return self


class Consortium(Section):
    """A consortium: one server and its sites, with certificates of one authority."""

    name: Name
    """The consortium's name, in every certificate."""
    server: ServerAddress
    """Where the sites reach the server."""
    sites: Annotated[tuple[Name, ...], Field(min_length=1)]
    """The sites' names in studies; each site gets a kit."""
    valid_days: ValidDays = ValidDays()
    """How long certificates last."""

    @field_validator("sites")
    @classmethod
    def _sites_are_told_apart(cls, sites: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({site for site in sites if sites.count(site) > 1}):
            raise ValueError(f"named twice: {', '.join(twice)}")
        if reserved := sorted(set(sites) & set(RESERVED)):
            raise ValueError(f"no site can be called {' or '.join(reserved)}; choose another name")
        return sites


def load_consortium(path: Path) -> Consortium:
    """Read a consortium file, as ``section.load``."""
    return load(Consortium, path)
