"""A patient's folder as a case: its series and its annotation, which may decide between several series."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sahfl.data.dicom.choice import Fits, Notes
from sahfl.data.dicom.fit import fit, fits
from sahfl.data.dicom.header import is_dicom
from sahfl.data.dicom.segmentation import find_annotation, read_segments, series_of
from sahfl.data.dicom.series import Series, choose_series, load_series, stack_of
from sahfl.data.dicom.survey import Contents, Found, survey
from sahfl.data.formats.voxels import as_image
from sahfl.data.series_choice import SeriesChoice
from sahfl.errors import ScanProblem

OpenLabel = Callable[[Path], Any]
"""Opens a file without its voxels; raises ScanProblem."""
Choose = Callable[[Any], Any]
"""Reads an open annotation; raises ScanProblem."""


def read_case(
    folder: Path,
    label: Path,
    open_label: OpenLabel,
    choose: Choose,
    *,
    wanted: SeriesChoice | None = None,
    blood: Sequence[str | int] = (),
) -> tuple[Any, Any, Notes]:
    """The series of a folder in HU, its annotation on the same voxels, and what a site should see of both.

    Args:
        folder: of the series.
        label: the annotation, or the folder that holds it.
        open_label: opens the annotation if it is a file of another format than DICOM.
        choose: makes of an open annotation one that is 1 where there is blood.
        wanted: which of several series the site wants.
        blood: which segments of a segmentation are blood.

    Raises:
        ScanProblem: there is no series or annotation, or they do not fit; it names the broken rule.
    """
    contents = survey(folder)
    annotation, missing = _annotation(label, contents)
    series = load_series(contents, choose_series(contents, wanted, _fits(annotation, open_label)))
    if annotation is None:
        raise missing or ScanProblem("missing", "the case has no annotation")
    if is_dicom(annotation):
        values, notes = read_segments(annotation, series, blood)
    else:
        values, notes = fit(choose(open_label(annotation)), series.image, series.places)
        values = _on_planes(values, series)
    made = as_image(values, np.asarray(series.image.affine, np.float64), named=True)
    return series.image, made, (*series.notes, *notes)


def _on_planes(values: Any, series: Series) -> Any:
    on_planes = values.shape == series.image.shape
    return values if on_planes else series.on_planes(values)


def _annotation(label: Path, contents: Contents) -> tuple[Path | None, ScanProblem | None]:
    """The annotation's file; a problem with it comes after those of the series."""
    if not os.path.isdir(label):  # unlike Path.is_dir, it does not raise PermissionError
        return label, None
    try:
        return find_annotation(contents if label == contents.folder else survey(label)), None
    except ScanProblem as problem:
        return None, problem


def _fits(annotation: Path | None, open_label: OpenLabel) -> Fits | None:
    """A test whether the annotation fits a series, for a choice between several."""
    if annotation is None:
        return None

    def one_fits(files: Sequence[Found]) -> bool:
        try:
            if is_dicom(annotation):
                return not series_of(annotation).isdisjoint(item.series for item in files)
            stacked = stack_of(files)
            columns, rows = stacked.slices[0].shape[::-1]
            shape = (columns, rows, stacked.n_planes)
            return fits(open_label(annotation), shape, np.asarray(stacked.affine), len(stacked.slices))
        except ScanProblem:
            return False

    return one_fits
