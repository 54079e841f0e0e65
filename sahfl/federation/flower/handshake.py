"""The headers that a site sends with every request, and the comparison of its versions with the server's."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

from sahfl import __version__
from sahfl.payload import SCHEMA

VERSION, FLWR, PAYLOAD, INSTANCE = "x-sahfl-version", "x-sahfl-flwr", "x-sahfl-schema", "x-sahfl-instance"
"""Names of the headers: versions of sahfl, flwr and the payload, and a random name of the site's process."""


def own_versions() -> dict[str, str]:
    """The headers with the versions of this installation."""
    return {VERSION: __version__, FLWR: version("flwr"), PAYLOAD: str(SCHEMA)}


def request_headers(instance: str) -> dict[str, str]:
    """The headers that a site's process sends with every request: its versions, and its random name ``instance``."""
    return own_versions() | {INSTANCE: instance}


def differences(headers: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The versions that differ, as ``{"server": {...}, "client": {...}}``; empty if all are equal."""
    own = own_versions()
    odd = [name for name, value in own.items() if headers.get(name) != value]
    names = {name: name.removeprefix("x-sahfl-").replace("version", "sahfl") for name in odd}
    client = {names[name]: headers.get(name, "none")[:40] for name in odd}
    return {"server": {names[name]: own[name] for name in odd}, "client": client} if odd else {}
