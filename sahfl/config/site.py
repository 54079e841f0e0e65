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
from sahfl.section import Name, PathInFile, Section, parse, read_mapping


def _site_scans_or_pooled(value: Any, info: ValidationInfo) -> Any:
    return one_of((*site_sections(), SiteScansPooled), value, info)


class SiteConfig(Section):
    """One hospital: its name, its scans, the folder that it works in, and what it allows."""

    name: Name
    """The site's name in the study."""
    folder: PathInFile
    """The site's own folder (phantom scans, manifest, cache, base network, results per case); never leaves."""
    data: Annotated[SerializeAsAny[SiteScans], BeforeValidator(_site_scans_or_pooled)]
    """Where the scans come from; ``pooled`` in a simulation alone."""
    max_refused_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the cases that may break an error rule of the data checks before the site refuses to train; 0: none."""
    kit: PathInFile | None = None
    """The folder that ``sahfl provision`` made for this site: keys, certificates, and whose signature it obeys."""
    policy: SitePolicy = SitePolicy()
    """What studies may ask, and what may leave; whatever is not said here is closed."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,2})?)$")] = "auto"
    """What computes: auto (a GPU if there is one), cpu, cuda, or one of several GPUs, as cuda:1."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Processor threads that training may use; all cores if it is not said. Simulations use one."""
    log: Literal["text", "json"] = "text"
    """Form of the log lines of ``sahfl-client``: ``key=value`` or one JSON object a line."""


class SiteScansPooled(SiteScans):
    """Scans of several simulated sites, each read and split into folds as its own site does."""

    source: Literal["pooled"] = "pooled"
    """Which kind of data section this is."""
    members: tuple[SiteConfig, ...]
    """The sites whose scans they are."""

    def list_cases(self, site: str, folder: Path, on_case: Callable[[int, int], None]) -> tuple[Case, ...]:
        """Refused: the members' scans stay theirs."""
        raise DataError(f"site {site}: has no scans of its own, those of its members are theirs")


class SiteFile(SiteConfig):
    """What a hospital's own file may say: its data are its own."""

    data: AnySiteScans
    """Where the scans come from."""


def load_site(path: Path) -> SiteFile:
    """Read a site file; relative paths in it start at the file's folder.

    Raises:
        ConfigError: the file cannot be read, or has problems: every unknown key and bad value, in one message.
    """
    return parse(SiteFile, read_mapping(path), where=str(path), folder=path.parent)
