"""The interface of every source of scans, for a simulated study and for the site that holds the scans."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sahfl.data.manifest import Case
from sahfl.section import Section


class SiteScans(Section):
    """The data section of one site's configuration."""

    source: str
    """Which kind of data section this is."""

    @abstractmethod
    def list_cases(self, site: str, folder: Path, on_case: Callable[[int, int], None]) -> tuple[Case, ...]:
        """The cases of a site.

        Args:
            site: the site's name.
            folder: the site's own folder, for a source that writes its scans first.
            on_case: called with (cases written, cases in all) by such a source.

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
        """The section of each site in a simulation.

        Args:
            sites: names of the study's sites.
            study: the study's name, for messages.
            seed: the study's.

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
