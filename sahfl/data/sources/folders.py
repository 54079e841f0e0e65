"""The source ``folders``: scans on disk, at one path per site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sahfl.data.formats import glance_at_cases, read_cases, recognise
from sahfl.data.manifest import Case
from sahfl.data.sources.scans import SiteScans, StudyScans
from sahfl.errors import DataError
from sahfl.section import Name, PathInFile


class SiteScansFolder(SiteScans):
    """One site's scans on disk."""

    source: Literal["folder"] = "folder"
    """Which kind of data section this is."""
    path: PathInFile
    """A datalist (JSON), an nnU-Net raw folder or a folder of DICOM series; recognised by what is there."""

    def list_cases(self, site: str, folder: Path, on_case: Callable[[int, int], None]) -> tuple[Case, ...]:
        """The cases at the path."""
        return read_cases(self.path, site)

    def glance(self, site: str, folder: Path) -> tuple[Case, ...]:
        """The cases; for a DICOM export without patient ids, because these are inside its files."""
        return glance_at_cases(self.path, site)

    def label(self, site: str) -> str:
        """The format of the scans."""
        return recognise(self.path, site)


class StudyScansFolders(StudyScans):
    """Scans on disk, at one path per site."""

    source: Literal["folders"]
    """Which kind of data section this is."""
    sites: Annotated[dict[Name, PathInFile], Field(min_length=1)]
    """Per site a datalist (JSON), an nnU-Net raw folder or a folder of DICOM series; recognised by what is there."""

    @model_validator(mode="after")
    def _paths_are_distinct(self) -> Self:
        paths = list(self.sites.values())
        if twice := sorted(site for site, path in self.sites.items() if paths.count(path) > 1):
            raise ValueError(f"each site needs scans of its own, got one path for {', '.join(twice)}")
        return self

    def site_names(self) -> tuple[str, ...]:
        """The sites that have a path."""
        return tuple(self.sites)

    def for_sites(self, sites: Sequence[str], *, study: str, seed: int) -> dict[str, SiteScansFolder]:
        """The path of each site; each must contain scans."""
        problems = []
        for site in sites:
            try:
                recognise(self.sites[site], site)
            except DataError as error:
                problems.append(str(error))
        if problems:
            raise DataError("\n".join(problems))
        return {site: SiteScansFolder(path=self.sites[site]) for site in sites}

    def identity(self) -> dict[str, Any]:
        """The names of the sites without their paths."""
        return {"source": self.source, "sites": sorted(self.sites)}
