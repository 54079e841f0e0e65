"""The source ``sites``: scans that each hospital's own site file names. Nobody else has to know where they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from sahfl.data.sources.scans import SiteScans, StudyScans
from sahfl.errors import ConfigError


class StudyScansAtSites(StudyScans):
    """Scans that each hospital's own site file names; nobody else knows where they lie."""

    source: Literal["sites"]
    """Which kind of data section this is."""

    def for_sites(self, sites: Sequence[str], *, study: str, seed: int) -> Mapping[str, SiteScans]:
        """Refused: there is no site file in a simulation."""
        raise ConfigError(
            f"study {study}: data.source is 'sites', so each site's own file says where its scans lie; run it "
            "with sahfl-server, or name another source to simulate it"
        )
