"""The server file: a coordinating centre's own settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sahfl.section import PathInFile, Section, parse, read_mapping

Port = Annotated[int, Field(ge=0, le=65535)]


class ServerConfig(Section):
    """One server: who it is, where it keeps its state, where it listens, how it works with its sites."""

    kit: PathInFile
    """Folder of certificates, keys and registered sites, written by ``sahfl provision``."""
    folder: PathInFile
    """The server's own folder: ``queue/``, ``runs/``, ``done/``, ``failed/``, ``status.json``, and ``cells/``: finished
    cells, from which later studies take what they share. Any file of ``cells/`` may be deleted; that costs its work."""
    host: str = "0.0.0.0"
    """Address that it listens on; the default is every address of this machine."""
    port: Port = 8443
    """Port for the sites; 0 takes a free one, which the log and ``sahfl status`` name."""
    wait_for_sites_s: Annotated[float, Field(gt=0)] = 86_400.0
    """Seconds that a new study waits for its sites to connect before it fails, naming those that are missing."""
    start_with: Literal["all", "quorum"] = "all"
    """Whether a new study starts with all of its sites only, or after the wait also with a quorum of each stage's."""
    resume_wait_s: Annotated[float, Field(ge=0)] = 60.0
    """Seconds that an interrupted study waits for all of its sites before it goes on with a quorum of each stage's."""
    give_up_s: Annotated[float, Field(ge=1)] = 600.0
    """Seconds without a sign of life after which a round goes on without a site; it may come back in any later one."""
    lanes: Annotated[int, Field(ge=1, le=16)] = 2
    """Cells (a method on a fold) worked on at a time; results do not depend on it. Two, so that a site which answered
    in one works for the other while the slowest site of the round trains; more help with trainings at single sites."""
    log: Literal["text", "json"] = "text"
    """Form of the log lines on standard error: ``key=value`` or one JSON object a line."""
    metrics_port: Port | None = None
    """Port on 127.0.0.1 that shows the status as Prometheus text under ``/metrics``; none is opened without it."""


def load_server(path: Path) -> ServerConfig:
    """Read a server file; relative paths in it start at the file's folder.

    Raises:
        ConfigError: the file cannot be read, or has problems: every unknown key and bad value, in one message.
    """
    return parse(ServerConfig, read_mapping(path), where=str(path), folder=path.parent)
