"""A consortium's keys and kits in a folder, for tests of whatever connects or signs."""

import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from sahfl.config import parse
from sahfl.config.consortium import Consortium
from sahfl.trust.provision import provision


@dataclass(frozen=True)
class Paths:
    """Where a consortium lies; ``sites`` holds the folder of each site's kit."""

    folder: Path
    authority: Path
    server: Path
    sites: dict[str, Path]
    host: str
    port: int


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def paths_of(folder, sites, host, port):
    kits = {site: folder / "sites" / site for site in sites}
    return Paths(folder, folder / "authority", folder / "server", kits, host, port)


def copy_of(paths, folder):
    """The same consortium in another folder, for a test that changes it."""
    shutil.copytree(paths.folder, folder)
    return paths_of(folder, paths.sites, paths.host, paths.port)


def settings_of(*, sites, host="localhost", port=8443, name="test", also=("127.0.0.1",), **more):
    server = {"host": host, "port": port, "also": list(also)}
    return parse(Consortium, {"name": name, "server": server, "sites": list(sites), **more}, where="test")


def make_consortium(folder, *, sites, host="localhost", port=0, now=None, **more):
    """Provision a consortium; with port 0 the kits name a port that is free at this moment.

    ``more`` are further keys of the consortium file (``name``, ``also``, ``valid_days``); ``now`` is when it is made.
    """
    port = port or free_port()
    provision(settings_of(sites=sites, host=host, port=port, **more), folder, now=now)
    return paths_of(folder, sites, host, port)
