"""The source ``folder``: scans on disk, at one path per site, in a format that is recognised from the files there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sahfl.data.manifest import Case, read_datalist, scan_files
from sahfl.data.nnunet import read_nnunet
from sahfl.data.series_choice import SeriesChoice
from sahfl.data.sources.scans import SiteScans, StudyScans
from sahfl.errors import DataError
from sahfl.section import Name, PathInFile
from sahfl.settings_file import about_setting

Format = Literal["datalist", "nnU-Net", "DICOM"]


def recognise(path: Path, site: str) -> Format:
    """The format at a site's path: a datalist (JSON), an nnU-Net raw folder, or a folder of DICOM series.

    It reads only what is needed to decide; ``read_cases`` reads the cases.

    Raises:
        DataError: the path is none of these three, or its datalist is faulty or does not contain this site.
    """
    from sahfl.data import dicom

    try:
        if path.is_file() and path.suffix == ".json":
            read_datalist(path, site)
            return "datalist"
        if (path / "dataset.json").is_file():
            return "nnU-Net"
        if path.is_dir() and any(dicom.is_dicom(file) for file in scan_files(path)):
            return "DICOM"
        found = "nothing" if not path.exists() else "a folder" if path.is_dir() else "a file"
    except OSError as error:
        raise DataError(f"site {site}: {path}: {error.strerror}") from error
    expected = "a datalist (.json), an nnU-Net raw folder (with dataset.json) or a folder of DICOM series"
    raise DataError(f"site {site}: {path}: got {found}, expected {expected}")


def read_cases(path: Path, site: str) -> tuple[Case, ...]:
    """The cases at a site's path.

    Raises:
        DataError: the source is not recognised, or its list of cases is faulty.
    """
    from sahfl.data import dicom

    readers = {"datalist": read_datalist, "nnU-Net": read_nnunet, "DICOM": dicom.read_patients}
    return readers[recognise(path, site)](path, site)


class SiteScansFolder(SiteScans):
    """One site's scans on disk."""

    source: Literal["folder"] = "folder"
    """Which kind of data section this is."""
    path: PathInFile
    """A datalist (JSON), an nnU-Net raw folder or a folder of DICOM series; recognised by what is there."""
    series: SeriesChoice | None = None
    """Which series to use where a patient's DICOM folder holds several; null: the one that the annotation fits, else by
    the rule of docs/data.md."""
    blood: tuple[str | int, ...] = ()
    """Labels or values of an annotation that are blood; empty: those whose names mean blood."""

    def list_cases(self, site: str, folder: Path, on_case: Callable[[int, int], None]) -> tuple[Case, ...]:
        """The cases at the path."""
        with about_setting("data", "path"):
            return tuple(replace(case, series=self.series, blood=self.blood) for case in read_cases(self.path, site))

    def glance(self, site: str, folder: Path) -> tuple[Case, ...]:
        """The cases; for a DICOM export only its folders, because patient ids are inside its files."""
        if recognise(self.path, site) != "DICOM":
            return read_cases(self.path, site)
        folders = sorted(child for child in self.path.iterdir() if child.is_dir() and not child.name.startswith("."))
        return tuple(Case(f"{site}-{i:04d}", child, child, "") for i, child in enumerate(folders) if scan_files(child))

    def label(self, site: str) -> str:
        """The format of the scans."""
        return recognise(self.path, site)


class StudyScansFolders(StudyScans):
    """Scans on disk, at one path per site."""

    source: Literal["folder"]
    """Which kind of data section this is."""
    sites: Annotated[dict[Name, PathInFile], Field(min_length=1)]
    """Per site a datalist (JSON), an nnU-Net raw folder or a folder of DICOM series; recognised by what is there."""
    series: SeriesChoice | None = None
    """Which series to use where a patient's DICOM folder holds several, at every site."""
    blood: tuple[str | int, ...] = ()
    """Labels or values of an annotation that are blood, at every site; empty: those whose names mean blood."""

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
        problems: dict[tuple[str | int, ...], str] = {}
        for site in sites:
            try:
                recognise(self.sites[site], site)
            except DataError as error:
                problems["data", "sites", site] = str(error)
        if problems:
            failed = DataError("\n".join(problems.values()))
            failed.settings = problems
            raise failed
        return {site: SiteScansFolder(path=self.sites[site], series=self.series, blood=self.blood) for site in sites}

    def identity(self) -> dict[str, Any]:
        """The names of the sites without their paths, and what selects series and labels, if the study says it."""
        given = self.model_dump(mode="json", include={"series", "blood"}, exclude_defaults=True)
        return {"source": self.source, "sites": sorted(self.sites), **given}
