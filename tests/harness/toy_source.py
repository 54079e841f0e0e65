"""A source of scans that sahfl does not have: arrays of numpy, one file per patient, which a site writes as NIfTI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np

from sahfl.data.manifest import Case
from sahfl.data.sources.scans import SiteScans, StudyScans
from sahfl.data.sources.table import Source
from sahfl.errors import DataError
from sahfl.section import Name, PathInFile


class SiteScansArrays(SiteScans):
    """One site's scans as arrays."""

    source: Literal["arrays"] = "arrays"
    """Which kind of data section this is."""
    path: PathInFile
    """Folder of PATIENT.npz files: ``image`` in HU and ``label``, (X, Y, Z), and ``affine``, (4, 4)."""

    def list_cases(self, site: str, folder: Path, on_case: Callable[[int, int], None]) -> tuple[Case, ...]:
        """The patients in the order of their names, written below ``nifti`` in the site's folder."""
        files = sorted(self.path.glob("*.npz"))
        if not files:
            raise DataError(f"site {site}: {self.path}: holds no .npz file")
        cases = []
        for index, file in enumerate(files):
            case = Case(
                f"{site}-{index:04d}", *(folder / "nifti" / kind / f"{index:04d}.nii" for kind in "il"), file.stem
            )
            _write(file, case)
            cases.append(case)
            on_case(index + 1, len(files))
        return tuple(cases)


class StudyScansArrays(StudyScans):
    """Scans as arrays, in a folder for each site."""

    source: Literal["arrays"]
    """Which kind of data section this is."""
    sites: dict[Name, PathInFile]
    """The folder of each site."""

    def site_names(self) -> tuple[str, ...]:
        """The sites that have a folder."""
        return tuple(self.sites)

    def for_sites(self, sites: Sequence[str], *, study: str, seed: int) -> dict[str, SiteScansArrays]:
        """Each site's own folder."""
        return {site: SiteScansArrays(path=self.sites[site]) for site in sites}


ARRAYS = Source(StudyScansArrays, SiteScansArrays)
"""The entry for the table of sources."""


def _write(file: Path, case: Case) -> None:
    """Write a patient's arrays as NIfTI, if they are not there yet."""
    if case.label.exists():
        return
    with np.load(file) as arrays:
        for name, path in (("image", case.image), ("label", case.label)):
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(arrays[name], arrays["affine"]), path)
