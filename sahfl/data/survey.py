"""A first look at a site's scans: how many, in which format and how large; headers only, no check of the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from nibabel.affines import voxel_sizes

from sahfl.data.ct import open_file, turned
from sahfl.data.dicom import read_series
from sahfl.data.manifest import Case, scan_files
from sahfl.data.sources.recognised import Format, read_cases, recognise
from sahfl.errors import ScanProblem

MOST_FILES, MOST_SERIES = 40, 4
"""Most scans of a site of which the size is read; a DICOM series has to be read as a whole for it."""


@dataclass(frozen=True)
class ScanSize:
    """The grid of one scan along x (left-right), y (front-back) and z (foot-head)."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Length along each axis in mm."""
        x, y, z = (n * mm for n, mm in zip(self.shape, self.spacing_mm, strict=True))
        return (x, y, z)


@dataclass(frozen=True)
class SiteSurvey:
    """What was found at a site's path."""

    site: str
    path: Path
    format: Format
    n_scans: int
    n_patients: int
    n_unmasked: int
    """Scans without an annotation file."""
    n_folds: int | None
    """Folds that the scans' list assigns; None if it assigns none."""
    sizes: tuple[ScanSize, ...]
    """Sizes of some of the scans, evenly chosen from the list."""
    n_unreadable: int
    """Scans among those that could not be opened."""
    blood: tuple[int | str, ...] | None = None
    """The labels that are blood, as they were given."""
    no_blood: tuple[int, ...] = ()
    """Values of labels that the list of cases declares and that do not count as blood."""


def survey(
    path: Path,
    site: str,
    on_scan: Callable[[int, int], None] = lambda done, total: None,
    *,
    blood: tuple[int | str, ...] | None = None,
) -> SiteSurvey:
    """Look at the scans at a path.

    Args:
        path: of scans in a format that ``recognise`` knows.
        site: the site's name.
        on_scan: called after each scan with (scans opened, scans to open).
        blood: labels that are blood, by name or value; without them every label has to be named as blood.

    Raises:
        DataError: the path has none of these, or its list of scans is faulty.
    """
    format_ = recognise(path, site, blood)
    with TemporaryDirectory() as folder:  # for a zip, which is unpacked again into the site's folder
        cases = read_cases(path, site, Path(folder), blood)
        chosen = {value for case in cases for value in case.blood or ()}
        left = {value for case in cases for value in case.declared or ()} - chosen if chosen else set()
        return replace(_survey(site, path, format_, cases, on_scan), blood=blood, no_blood=tuple(sorted(left)))


def _survey(
    site: str, path: Path, format_: Format, cases: Sequence[Case], on_scan: Callable[[int, int], None]
) -> SiteSurvey:
    series = any(case.image.is_dir() for case in cases)
    chosen, sizes = _chosen(cases, MOST_SERIES if series else MOST_FILES), []
    for number, case in enumerate(chosen, 1):
        if (size := _size(case)) is not None:
            sizes.append(size)
        on_scan(number, len(chosen))
    folds = [case.fold for case in cases if case.fold is not None]
    return SiteSurvey(
        site=site,
        path=path,
        format=format_,
        n_scans=len(cases),
        n_patients=len({case.patient for case in cases}),
        n_unmasked=sum(not case.label.exists() for case in cases),
        n_folds=max(folds) + 1 if folds else None,
        sizes=tuple(sizes),
        n_unreadable=len(chosen) - len(sizes),
    )


def _chosen(cases: Sequence[Case], most: int) -> Sequence[Case]:
    """At most this many cases, evenly chosen."""
    return cases[:: max(1, -(-len(cases) // most))]


def mean_slices(cases: Sequence[Case]) -> float | None:
    """Mean number of axial slices, from the headers of some of the scans; None if none can be read.

    A DICOM series has a file for each slice.
    """
    found = []
    for case in _chosen(cases, MOST_FILES):
        if case.image.is_dir():
            found.append(len(scan_files(case.image)))
        elif (size := _size(case)) is not None:
            found.append(size.shape[2])
    return sum(found) / len(found) if found else None


def _size(case: Case) -> ScanSize | None:
    """The size of a scan; None if it cannot be opened, or is no volume."""
    try:
        image = turned(case, read_series(case.image).image if case.image.is_dir() else open_file(case), "image")
    except ScanProblem:
        return None
    x, y, z = (int(n) for n in image.shape)
    mm_x, mm_y, mm_z = (float(mm) for mm in voxel_sizes(image.affine))
    return ScanSize((x, y, z), (mm_x, mm_y, mm_z))
