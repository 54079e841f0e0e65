"""The kinds of files below a patient's folder, and the files of its CT series."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from sahfl.data.dicom.header import code, is_dicom, private, read_elements
from sahfl.data.formats.volume import ENDINGS, kind_of
from sahfl.data.manifest import scan_files
from sahfl.errors import ScanProblem
from sahfl.regular_files import SCAN_BYTES, check_regular

Kind = Literal["slice", "localizer", "frames", "segmentation", "nifti", "other"]


@dataclass(frozen=True)
class Found:
    """The kind of one file."""

    path: Path
    kind: Kind
    modality: str = ""
    series: str = ""


def survey(folder: Path) -> tuple[Found, ...]:
    """The kind of each file below a patient's folder.

    Raises:
        ScanProblem: the folder or a file cannot be read; a file that is neither DICOM nor NIfTI may be a lost slice.
    """
    try:
        paths = scan_files(folder)
    except PermissionError as error:
        raise ScanProblem("permission", "no permission to read the case's folder") from error
    except OSError as error:
        raise ScanProblem("missing", "the case's folder cannot be read") from error
    found = []
    for path in paths:
        if path.name != "DICOMDIR":
            with placed(path, folder):
                found.append(_classify(path))
    return tuple(found)


@contextmanager
def placed(path: Path, folder: Path) -> Iterator[None]:
    """Add a file's position in the folder to a problem's text, because its name may be the patient's."""
    try:
        yield
    except ScanProblem as problem:
        place = ""
        with suppress(OSError, ValueError):  # the folder changed just now
            paths = scan_files(folder)
            place = f" (file {paths.index(path) + 1} of {len(paths)} in the order of names)"
        raise ScanProblem(problem.rule, f"{problem}{place}") from None


def _classify(path: Path) -> Found:
    if path.name.lower().endswith(ENDINGS) or kind_of(path) is not None:
        return Found(path, "nifti")
    with private():
        check_regular(path, most=SCAN_BYTES)  # raises PermissionError, which would otherwise be reported as "not DICOM"
        if not is_dicom(path):
            raise ScanProblem("unreadable", "the case's folder holds a file that is neither DICOM nor NIfTI")
        header = read_elements(path, ("SOPClassUID", "Modality", "ImageType", "SeriesInstanceUID", "NumberOfFrames"))
        modality, series = code(header, "Modality"), str(header.get("SeriesInstanceUID", ""))
        kind: Kind = "other"
        if modality in ("SEG", "RTSTRUCT"):
            kind = "segmentation"
        elif modality == "CT" and "LOCALIZER" in (header.get("ImageType") or ()):
            kind = "localizer"
        elif header.get("SOPClassUID") in (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage):
            kind = "frames"
        elif modality == "CT" and header.get("SOPClassUID", CTImageStorage) == CTImageStorage:
            kind = "frames" if int(header.get("NumberOfFrames") or 1) > 1 else "slice"
        return Found(path, kind, modality, series)


def find_slices(folder: Path, *, of: Path | None = None) -> list[Path]:
    """Files of the folder's only CT series (one SeriesInstanceUID), or of the series that a given file belongs to."""
    found = survey(folder)
    if of is not None:
        wanted = {item.series for item in found if item.path == of}
        found = tuple(item for item in found if item.series in wanted)
    kinds = Counter(item.kind for item in found)
    if kinds["frames"]:
        text = "got multi-frame (enhanced) CT, expected one file per slice; export as classic CT"
        raise ScanProblem("multi_frame", text)
    series = Counter(item.series for item in found if item.kind == "slice")
    if not series:
        if kinds["localizer"]:
            raise ScanProblem("localizer", f"got {kinds['localizer']} localizer image(s) only, expected a CT series")
        others = Counter(item.modality for item in found if item.kind in ("other", "segmentation"))
        listed = ", ".join(f"{n} x {modality}" for modality, n in sorted(others.items())) or "no DICOM file"
        raise ScanProblem("not_ct", f"got {listed}, expected a CT series")
    if len(series) > 1:
        sizes = ", ".join(map(str, sorted(series.values())))
        raise ScanProblem("several_series", f"got {len(series)} CT series (of {sizes} slices), expected one: keep one")
    return [item.path for item in found if item.kind == "slice"]
