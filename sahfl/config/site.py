"""A site file: one hospital, its scans, and what it allows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationInfo

from sahfl.config.policy import SitePolicy
from sahfl.data.manifest import Case
from sahfl.data.sources.scans import SiteScans
from sahfl.data.sources.table import AnySiteScans, one_of, site_sections
from sahfl.errors import DataError
from sahfl.section import Name, PathInFile, Section
from sahfl.settings_file import load_trusted


def _site_scans_or_pooled(value: Any, info: ValidationInfo) -> Any:
    return one_of((*site_sections(), SiteScansPooled), value, info)


class SiteConfig(Section):
    """One hospital: its name, its scans, the folder that it works in, and what it allows."""

    name: Name
    """The site's name in the study."""
    folder: PathInFile
    """The site's own folder (phantom scans, manifest, cache, base network, results per case); nothing of it leaves."""
    data: Annotated[SerializeAsAny[SiteScans], BeforeValidator(_site_scans_or_pooled)]
    """Where the scans come from; ``pooled`` in a simulation alone."""
    max_refused_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest share of cases that break an error rule of the data checks; above it the site refuses to train."""
    kit: PathInFile | None = None
    """The folder that ``sahfl provision`` made for this site: keys, certificates, and the signer whom it obeys."""
    secret: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Secret from which the site draws its batches, 64 hex digits; null: the site makes one and keeps it in its folder.
    A simulation gives each site one that follows from the study's seed."""
    simulated: bool = False
    """Whether this is a site of a simulation, which answers requests that no hospital answers whatever its policy."""
    policy: SitePolicy = SitePolicy()
    """What studies may ask, and what may leave."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,2})?)$")] = "auto"
    """Device that computes: auto (a GPU if there is one), cpu, cuda, or one of several GPUs, as cuda:1."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Processor threads that training may use; null: all cores. Simulations use one."""
    log: Literal["text", "json"] = "text"
    """Form of the log lines of ``sahfl-client``: ``key=value`` or one JSON object a line."""


class SiteScansPooled(SiteScans):
    """Scans of several simulated sites, each read and split into folds as its own site does."""

    source: Literal["pooled"] = "pooled"
    """Which kind of data section this is."""
    members: tuple[SiteConfig, ...]
    """The sites whose scans they are."""

    def list_cases(self, site: str, folder: Path, on_case: Callable[[int, int], None]) -> tuple[Case, ...]:
        """Refuse, because the scans belong to the members."""
        raise DataError(f"site {site}: has no scans of its own, those of its members are theirs")


class SiteFile(SiteConfig):
    """A hospital's own file, in which ``data`` cannot be ``pooled``, and ``simulated`` not true."""

    data: AnySiteScans
    """Where the scans come from."""
    simulated: Literal[False] = False
    """A hospital is not a site of a simulation."""


def load_site(path: Path) -> SiteFile:
    """Read a site file, as ``settings_file.load_trusted``."""
    return load_trusted(SiteFile, path)
