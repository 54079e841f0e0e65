"""The interface of every source of scans, and the source ``sites``, of which only the hospitals know the scans."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from sahfl.data.manifest import Case
from sahfl.errors import ConfigError
from sahfl.section import Section

LabelValue = Annotated[int, Field(ge=1, le=255)]
LabelName = Annotated[str, Field(min_length=1, max_length=80)]
BloodList = Annotated[tuple[LabelValue | LabelName, ...], Field(min_length=1, max_length=255)]
BloodLabels = BloodList | None


class SiteScans(Section):
    """The data section of one site's configuration."""

    source: str
    """Which kind of data section this is."""

    @abstractmethod
    def list_cases(self, site: str, folder: Path, on_case: Callable[[int, int], None]) -> tuple[Case, ...]:
        """The cases of a site.

        A source that writes its scans first uses ``folder``, the site's own, and calls ``on_case`` with (cases written,
        cases in all).

        Raises:
            DataError: the scans cannot be listed.
        """

    def glance(self, site: str, folder: Path) -> tuple[Case, ...]:
        """The cases as in ``list_cases``, but without patients if these take long to read."""
        return self.list_cases(site, folder, lambda done, total: None)

    @property
    def n_made(self) -> int:
        """Number of cases that the site makes when needed; 0 for existing scans."""
        return 0

    def label(self, site: str) -> str:
        """Name of this source in the site's description in results.json."""
        return self.source


class StudyScans(Section):
    """The data section of a study file, for all its sites."""

    source: str
    """Which kind of data section this is."""

    @abstractmethod
    def for_sites(self, sites: Sequence[str], *, study: str, seed: int) -> Mapping[str, SiteScans]:
        """The section of each site in a simulation of a study with this name and seed.

        Raises:
            ConfigError: the study cannot be simulated from this source.
            DataError: a site has no scans; the message names every such site.
        """

    def site_names(self) -> tuple[str, ...] | None:
        """The sites in this section; None if it accepts any names."""
        return None

    def identity(self) -> dict[str, Any]:
        """The settings that determine the result, without the paths of the scans."""
        return self.model_dump(mode="json")


class StudyScansAtSites(StudyScans):
    """Scans listed in each hospital's own site file; only the hospital has their paths."""

    source: Literal["sites"]
    """Which kind of data section this is."""

    def for_sites(self, sites: Sequence[str], *, study: str, seed: int) -> Mapping[str, SiteScans]:
        """Raise ConfigError, because a simulation has no site files."""
        raise ConfigError(
            f"study {study}: data.source is 'sites', so each site's own file says where its scans lie; run it "
            "with sahfl-server, or name another source to simulate it"
        )
