"""The server file: the settings of a coordinating centre."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sahfl.section import PathInFile, Section
from sahfl.settings_file import load_trusted

Port = Annotated[int, Field(ge=0, le=65535)]


class ServerConfig(Section):
    """One server: its kit, its folder, where it listens, and how it works with its sites."""

    kit: PathInFile
    """Folder of certificates, keys and registered sites, written by ``sahfl provision``."""
    folder: PathInFile
    """The server's own folder: ``queue/``, ``runs/``, ``done/``, ``failed/``, ``status.json``, and ``cells/`` with the
    finished cells that later studies can take over. Any file of ``cells/`` may be deleted; it is computed again."""
    host: str = "0.0.0.0"
    """Address that the server listens on; by default every address of this machine."""
    port: Port = 8443
    """Port for the sites; 0 takes a free one, which the log and ``sahfl status`` name."""
    wait_for_sites_s: Annotated[float, Field(gt=0)] = 86_400.0
    """Seconds that a new study waits for its sites to connect before it fails, naming those that are missing."""
    start_with: Literal["all", "quorum"] = "all"
    """Whether a new study starts with all of its sites only, or after the wait also with a quorum of each stage's."""
    resume_wait_s: Annotated[float, Field(ge=0)] = 60.0
    """Seconds that an interrupted study waits for all of its sites before it goes on with a quorum of each stage's."""
    give_up_s: Annotated[float, Field(ge=1)] = 600.0
    """Seconds without a message from a site after which a round goes on without it; later rounds include it again."""
    lanes: Annotated[int, Field(ge=1, le=16)] = 2
    """Cells (a method on a fold) that run at a time; results do not depend on it. With two, a site that has finished in
    one cell works in the other meanwhile; more help if methods are trained at single sites."""
    log: Literal["text", "json"] = "text"
    """Form of the log lines on standard error: ``key=value`` or one JSON object a line."""
    metrics_port: Port | None = None
    """Port on 127.0.0.1 that shows the status as Prometheus text under ``/metrics``; null opens none."""


def load_server(path: Path) -> ServerConfig:
    """Read a server file, as ``settings_file.load_trusted``."""
    return load_trusted(ServerConfig, path)
