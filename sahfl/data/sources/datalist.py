"""The source ``datalist``: NIfTI scans on disk, named by one JSON file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from sahfl.data.manifest import Case, datalist_sites, listed, read_datalist
from sahfl.data.sources.scans import BloodLabels, SiteScans, StudyScans
from sahfl.errors import DataError
from sahfl.section import PathInFile
from sahfl.settings_file import about_setting


def require_file(path: Path) -> None:
    """Check that a datalist is no folder of scans, table or zip.

    Raises:
        DataError: it is one; the message names the source for it.
    """
    if path.is_dir() or path.suffix.lower() in (".csv", ".tsv", ".zip"):
        found = "a folder" if path.is_dir() else f"a {path.suffix.lower()} file"
        text = f"datalist {path}: is {found}, expected a JSON file that lists cases"
        raise DataError(f"{text}; for DICOM, nnU-Net, images and masks, a table or a zip write source: folder")


class SiteScansDatalist(SiteScans):
    """One site's NIfTI scans on disk, named by a datalist."""

    source: Literal["datalist"] = "datalist"
    """Which kind of data section this is."""
    path: PathInFile
    """The datalist; see ``StudyScansDatalist``."""
    blood: BloodLabels = None
    """Labels that are blood, by name or value, if the annotations have others too; all labels without it."""

    def list_cases(self, site: str, folder: Path, on_case: Callable[[int, int], None]) -> tuple[Case, ...]:
        """The cases under the site's name, in the datalist's order."""
        with about_setting("data", "path"):
            require_file(self.path)
            return read_datalist(self.path, site, self.blood)


class StudyScansDatalist(StudyScans):
    """NIfTI scans on disk, named by a datalist."""

    source: Literal["datalist"]
    """Which kind of data section this is."""
    path: PathInFile
    """JSON file ``{"sites": {name: [{"image": ..., "label": ..., "patient": ...}]}}``; files relative to its folder."""
    blood: BloodLabels = None
    """Labels that are blood, by name or value, if the annotations have others too; all labels without it."""

    def for_sites(self, sites: Sequence[str], *, study: str, seed: int) -> dict[str, SiteScansDatalist]:
        """Give each site the same datalist, which must contain all sites."""
        with about_setting("data", "path"):
            require_file(self.path)
            known = datalist_sites(self.path)
            if unknown := sorted(set(sites) - set(known)):
                raise DataError(f"{self.path}: has no site {', '.join(unknown)} (it has: {listed(sorted(known))})")
        return {site: SiteScansDatalist(path=self.path, blood=self.blood) for site in sites}

    def identity(self) -> dict[str, Any]:
        """The settings without the path."""
        return self.model_dump(mode="json", exclude={"path"} if self.blood is not None else {"path", "blood"})
