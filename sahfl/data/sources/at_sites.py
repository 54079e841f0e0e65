"""The source ``sites``: scans listed in each hospital's own site file; only the hospital has their paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from sahfl.data.sources.scans import SiteScans, StudyScans
from sahfl.errors import ConfigError


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
