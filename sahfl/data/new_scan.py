"""Scans without annotation: read and checked like the scans that the network was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform
from numpy.typing import NDArray

from sahfl.data import dicom
from sahfl.data.checks import voxel_hash
from sahfl.data.ct import Scan, open_file, without_annotation
from sahfl.data.dicom import Series
from sahfl.data.file_rules import judge_files
from sahfl.data.manifest import Case
from sahfl.data.measures import measure
from sahfl.data.rules import BY_ID, Finding, finding
from sahfl.data.scan_rules import judge_scan
from sahfl.errors import DataRefused, ScanProblem

GEOMETRY = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
"""NIfTI header fields for the position of the voxels; no other field is copied, because texts may name the patient."""


@dataclass(frozen=True)
class NewScan:
    """A scan to segment."""

    scan: Scan
    """Turned to RAS+, with an empty annotation."""
    source: Any
    """The image as opened (nibabel); the result is written on its grid."""
    series: Series | None
    """The DICOM series, if the scan is one."""
    findings: tuple[Finding, ...]
    """Warnings and notes of the data checks."""
    voxels: str
    """SHA-256 over the voxels: identifies the scan without a name."""

    def on_source(self, volume: NDArray[Any]) -> nibabel.Nifti1Image:
        """A volume (X, Y, Z) of ``scan`` as NIfTI on the original grid, with its order of axes and its affine."""
        turn = ornt_transform([[0, 1], [1, 1], [2, 1]], io_orientation(self.source.affine))
        voxels = np.ascontiguousarray(apply_orientation(volume, turn))
        image = nibabel.Nifti1Image(voxels, self.source.affine)
        if isinstance(self.source.header, nibabel.Nifti1Header):
            for name in GEOMETRY:
                image.header[name] = self.source.header[name]
        image.header.set_data_dtype(voxels.dtype)
        return image


def read_new_scan(path: Path) -> NewScan:
    """Read a file with a volume, a folder with one DICOM series, or the DICOM series that a file belongs to.

    Raises:
        DataRefused: the scan breaks a rule of severity error: it is no head CT in HU, its geometry is unknown, or it
            cannot be read; the message lists each broken rule with its remedy. Or there is nothing at the path.
    """
    if not path.exists():
        expected = "a NIfTI, NRRD or MetaImage file, a folder with one DICOM series, or one of its files"
        raise DataRefused(f"{path}: got nothing (no such file or folder), expected {expected}; correct the path")
    case = Case("scan", path, path, "")
    try:
        series = None
        if path.is_dir() or dicom.is_dicom(path):
            series = dicom.read_series(path) if path.is_dir() else dicom.read_series(path.parent, of=path)
        source = open_file(case) if series is None else series.image
        scan = without_annotation(case, source)
        read = [finding(rule, text) for rule, text in (() if series is None else series.notes)]
        found = [*judge_scan(case.id, scan, measure(scan)), *judge_files(case), *read]
    except ScanProblem as problem:
        raise _refusal(path, [finding(problem.rule, str(problem))]) from problem
    if errors := [item for item in found if item.severity == "error"]:
        raise _refusal(path, errors)
    kept = (Finding(item.rule, item.severity, _text(item)) for item in found if item.rule != "no_blood")
    return NewScan(scan, source, series, tuple(kept), voxel_hash(scan.image))


def _refusal(path: Path, errors: list[Finding]) -> DataRefused:
    listed = "\n".join(f"  {item.rule}: {_text(item)}. {BY_ID[item.rule].remedy}" for item in errors)
    return DataRefused(f"{path}: got a scan that cannot be segmented, expected a head CT in HU\n{listed}")


def _text(item: Finding) -> str:
    return item.text.removeprefix("case scan: ")
