"""The source ``folder``: scans on disk, at one path per site, in a format that is recognised from the files there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sahfl.data.manifest import Case, scan_files
from sahfl.data.series_choice import SeriesChoice
from sahfl.data.sources.recognised import read_cases, recognise
from sahfl.data.sources.scans import BloodLabels, BloodList, SiteScans, StudyScans
from sahfl.errors import DataError
from sahfl.section import Name, PathInFile
from sahfl.settings_file import about_setting


class SiteScansFolder(SiteScans):
    """One site's scans on disk."""

    source: Literal["folder"] = "folder"
    """Which kind of data section this is."""
    path: PathInFile
    """A folder or file with scans, recognised by what is there: a folder of DICOM series (one folder per patient), an
    nnU-Net raw folder, a folder of images and masks, a disc, a datalist (JSON), a table (CSV) or a zip."""
    series: SeriesChoice | None = None
    """Which series to use where a patient's DICOM folder holds several; null: the one that the annotation fits, else by
    the rule of docs/data.md."""
    blood: BloodLabels = None
    """Labels that are blood, by name or value, if the annotations have others too; all labels without it, and of
    segments those whose names mean blood."""

    def list_cases(self, site: str, folder: Path, on_case: Callable[[int, int], None]) -> tuple[Case, ...]:
        """The cases at the path."""
        with about_setting("data", "path"):
            cases = read_cases(self.path, site, folder, self.blood)
            return tuple(replace(case, series=self.series) for case in cases)

    def glance(self, site: str, folder: Path) -> tuple[Case, ...]:
        """The cases; for a DICOM export only its folders, because patient ids are inside its files."""
        if recognise(self.path, site, self.blood) != "DICOM":
            return read_cases(self.path, site, folder, self.blood)
        from sahfl.data.dicom.patients import patient_folders

        folders, _ = patient_folders(self.path)
        return tuple(Case(f"{site}-{i:04d}", child, child, "") for i, child in enumerate(folders) if scan_files(child))

    def label(self, site: str) -> str:
        """The format of the scans."""
        return recognise(self.path, site, self.blood)


class StudyScansFolders(StudyScans):
    """Scans on disk, at one path per site."""

    source: Literal["folder"]
    """Which kind of data section this is."""
    sites: Annotated[dict[Name, PathInFile], Field(min_length=1)]
    """Per site a folder or file with scans, recognised by what is there; see ``path`` of a site file."""
    series: SeriesChoice | None = None
    """Which series to use where a patient's DICOM folder holds several, at every site."""
    blood: BloodList | dict[Name, BloodList] | None = None
    """Labels that are blood, by name or value, if the annotations have others too; all labels without it. A list is for
    every site; ``{graz: [hematoma]}`` gives those of one site."""

    @model_validator(mode="after")
    def _paths_are_distinct(self) -> Self:
        if isinstance(self.blood, dict) and (unknown := sorted(self.blood.keys() - self.sites.keys())):
            raise ValueError(f"blood names {', '.join(unknown)}; data.sites has {', '.join(sorted(self.sites))}")
        paths = list(self.sites.values())
        if twice := sorted(site for site, path in self.sites.items() if paths.count(path) > 1):
            raise ValueError(f"each site needs scans of its own, got one path for {', '.join(twice)}")
        return self

    def site_names(self) -> tuple[str, ...]:
        """The sites that have a path."""
        return tuple(self.sites)

    def for_sites(self, sites: Sequence[str], *, study: str, seed: int) -> dict[str, SiteScansFolder]:
        """The path of each site; each must contain scans."""
        problems: dict[tuple[str | int, ...], str] = {}
        for site in sites:
            try:
                recognise(self.sites[site], site, self._blood_of(site))
            except DataError as error:
                problems["data", "sites", site] = str(error)
        if problems:
            failed = DataError("\n".join(problems.values()))
            failed.settings = problems
            raise failed
        return {
            site: SiteScansFolder(path=self.sites[site], series=self.series, blood=self._blood_of(site))
            for site in sites
        }

    def _blood_of(self, site: str) -> BloodLabels:
        return self.blood.get(site) if isinstance(self.blood, dict) else self.blood

    def identity(self) -> dict[str, Any]:
        """The names of the sites without their paths, and what selects series and labels, if the study says it."""
        given = self.model_dump(mode="json", include={"series", "blood"}, exclude_defaults=True)
        return {"source": self.source, "sites": sorted(self.sites), **given}
