"""Scans as the NIfTI files that sahfl works on: HU, in the geometry of the series, with the mask on the same voxels.

    OUT/scans-0000.nii.gz        a case by its number; nobody's name
    OUT/scans-0000_mask.nii.gz   if the case has an annotation; otherwise draw one and save it under this name
    OUT/datalist.json            the cases with patient and fold, and where each came from: a source of its own

Source and copy have the same voxels: nothing is resampled, no value is changed but those that reading changes.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from sahfl.atomic import write_atomic
from sahfl.data import dicom
from sahfl.data.ct import Scan, read_image, read_scan
from sahfl.data.dicom.disc import NAME, is_disc
from sahfl.data.formats.names import is_volume
from sahfl.data.formats.volume import kind_of
from sahfl.data.manifest import Case
from sahfl.data.sources.recognised import read_cases
from sahfl.errors import DataError, ScanProblem

SITE = "scans"
LIST = "datalist.json"


@dataclass(frozen=True)
class Converted:
    """One case, as it was written."""

    case: Case
    image: str
    """Name of the file; empty if the case could not be read."""
    mask: str
    """Name of the file; empty if the case has no annotation that can be read."""
    problem: str
    """Why there is no image or no mask; empty if both are there."""
    notes: tuple[str, ...] = ()
    """What was done to the annotation."""


def find_scans(path: Path, into: Path) -> tuple[Case, ...]:
    """The cases at a path: one scan (a file, or a folder with one DICOM series), or a source of several.

    A disc is a source of its studies.

    Raises:
        DataError: there is none.
    """
    if is_disc(path if path.is_dir() else path.parent) and (path.is_dir() or path.name.upper() == NAME):
        return read_cases(path, SITE, into)
    if path.is_file() and (dicom.is_dicom(path) or is_volume(path) or kind_of(path) is not None):
        return (Case(f"{SITE}-0000", path, path, f"{SITE}-0000"),)
    if path.is_dir() and any(dicom.is_dicom(file) for file in path.iterdir() if file.is_file()):
        return (Case(f"{SITE}-0000", path, path, f"{SITE}-0000"),)
    return read_cases(path, SITE, into)


def convert(
    cases: Sequence[Case], source: Path, out: Path, *, on_case: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Converted, ...]:
    """Write all cases into a new folder, one at a time; a case that cannot be read is named in the result.

    Args:
        cases: as ``find_scans`` gives them.
        source: the path that they are of.
        out: folder to write.
        on_case: called after each case with (cases written, cases in all).

    Raises:
        DataError: no case could be read.
        OSError: a file cannot be written.
    """
    found = []
    for case in cases:
        found.append(_convert(case, out))
        on_case(len(found), len(cases))
    written = [one for one in found if one.image]
    if not written:
        raise DataError(f"{source}: none of {len(cases)} scan(s) can be read; the first: {found[0].problem}")
    entries = [_entry(one, source) for one in written]
    write_atomic(out / LIST, json.dumps({"training": entries}, indent=1, ensure_ascii=False) + "\n")
    return tuple(found)


def _convert(case: Case, out: Path) -> Converted:
    image, mask = f"{case.id}.nii.gz", f"{case.id}_mask.nii.gz"
    problem = ""
    try:
        scan = read_image(case)
    except ScanProblem as error:
        return Converted(case, "", "", str(error))
    try:
        if case.image == case.label and case.image.is_file():
            raise ScanProblem("missing", "a single file has no annotation")
        scan = read_scan(case)
    except ScanProblem as error:
        problem, mask = str(error), ""
    _write(out / image, _whole(scan.image), scan)
    if mask:
        _write(out / mask, scan.label.astype(np.uint8), scan)
    return Converted(case, image, mask, problem, tuple(text for _, text in scan.notes))


def _whole(hounsfield: NDArray[np.float32]) -> NDArray[np.int16] | NDArray[np.float32]:
    """The values as int16 if that changes none of them."""
    whole = np.clip(np.rint(hounsfield), -32768, 32767).astype(np.int16)
    return whole if np.array_equal(whole, hounsfield) else hounsfield


def _write(path: Path, voxels: NDArray[np.generic], scan: Scan) -> None:
    image = nibabel.Nifti1Image(voxels, scan.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(scan.affine, 1)
    image.set_qform(scan.affine, 1)  # without the shear of a tilted gantry, which only the sform has
    stream = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=stream, mode="wb", compresslevel=6, mtime=0) as packed:
        packed.write(image.to_bytes())
    write_atomic(path, stream.getvalue())


def _entry(one: Converted, source: Path) -> dict[str, object]:
    """A case's entry of the datalist; ``from`` is for the people who keep the scans."""
    case = one.case
    entry: dict[str, object] = {"image": one.image, "label": one.mask or one.image.replace(".nii", "_mask.nii")}
    entry["patient"] = case.patient
    if case.fold is not None:
        entry["fold"] = case.fold
    inside = case.image.is_relative_to(source) and case.image != source
    return entry | {"from": str(case.image.relative_to(source) if inside else case.image)}
