"""What lies in a patient's folder: the kind of each file, and what its header says of the series it belongs to."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from sahfl.data.dicom.foreign import (
    known_by_content,
    known_by_name,
    list_files,
    named_alike,
)
from sahfl.data.dicom.header import begins_as_dicom, code, private, read_elements
from sahfl.data.formats.names import is_volume
from sahfl.data.formats.volume import kind_of
from sahfl.data.series_choice import as_text
from sahfl.errors import ScanProblem
from sahfl.regular_files import SCAN_BYTES, open_regular

Kind = Literal["slice", "localizer", "frames", "segmentation", "nifti", "volume", "other"]
_ELEMENTS = (
    *("SOPClassUID", "Modality", "ImageType", "SeriesInstanceUID", "StudyInstanceUID", "NumberOfFrames"),
    *("SeriesDescription", "ConvolutionKernel", "ContrastBolusAgent", "SliceThickness", "FrameOfReferenceUID"),
    *("ImagePositionPatient", "ImageOrientationPatient", "Rows", "Columns", "PatientID"),
)
_START_BYTES = 1024
MOST_FILES = 20_000
"""Files in the folder of one patient: a perfusion scan has some thousands."""


@dataclass(frozen=True)
class Found:
    """One file, and what its header says of its series. The texts are compared, and never shown."""

    path: Path
    kind: Kind
    modality: str = ""
    series: str = ""
    study: str = ""
    frame_of_reference: str = field(default="", repr=False)
    description: str = field(default="", repr=False)
    kernel: str = field(default="", repr=False)
    agent: str = field(default="", repr=False)
    thickness_mm: float = 0.0
    position_mm: tuple[float, ...] = ()
    orientation: tuple[float, ...] = ()
    shape: tuple[int, int] = (0, 0)
    """Rows, columns."""
    derived: bool = False
    """Whether ImageType begins with DERIVED or goes on with SECONDARY."""
    n_frames: int = 1
    patient: bytes = field(default=b"", repr=False)
    """Hash of the patient id; empty if the header has none."""


@dataclass(frozen=True)
class Contents:
    """A patient's folder."""

    folder: Path
    found: tuple[Found, ...]
    foreign: dict[str, int]
    """Number of files of each kind that are no scan. Volumes (NRRD, MetaImage) are among them where there is another
    annotation: a viewer's scene holds some."""


def survey(folder: Path, *, below: bool = True) -> Contents:
    """The kind of each file in a patient's folder and, unless ``below`` is False, in the folders below it.

    Raises:
        ScanProblem: the folder or a file cannot be read, or a file may be a slice whose content is lost.
    """
    try:
        paths = list_files(folder, below=below, most=MOST_FILES)
    except PermissionError as error:
        raise ScanProblem("permission", "no permission to read the case's folder") from error
    except OSError as error:
        raise ScanProblem("missing", "the case's folder cannot be read") from error
    found: list[Found] = []
    foreign: Counter[str] = Counter()
    strange: list[tuple[Path, str | None]] = []
    for path in paths:
        if (kind := known_by_name(path)) and not is_volume(path):
            foreign[kind] += 1
            continue
        with placed(path, paths):
            item = _classify(path)
        if isinstance(item, Found):
            found.append(item)
        else:
            strange.append((path, item[0]))
    slices = [item.path for item in found if item.kind in ("slice", "frames")]
    for path, kind in strange:
        if kind is None or named_alike(path, slices):
            with placed(path, paths):
                raise ScanProblem("unreadable", "a file that may be a lost slice is neither DICOM nor NIfTI")
        foreign[kind] += 1
    foreign.update(f"DICOM {item.modality}" for item in found if item.kind == "other")
    if any(item.kind in ("nifti", "segmentation") for item in found):  # a viewer's volumes beside the annotation
        foreign["NRRD or MetaImage"] += sum(item.kind == "volume" for item in found)
        found = [item for item in found if item.kind != "volume"]
    return Contents(folder, tuple(found), dict(+foreign))


def foreign_only(folder: Path) -> dict[str, int]:
    """Number of files of each kind in a folder that holds files, and none that is a scan or may be a lost slice.

    Empty for any other folder: a patient's, one without files, and one that cannot be read, which its check reports.
    """
    found: Counter[str] = Counter()
    try:
        for path in list_files(folder):
            kind = None if is_volume(path) else known_by_name(path)
            if kind is None:
                item = _classify(path)
                kind = None if isinstance(item, Found) else item[0]
            if kind is None:
                return {}
            found[kind] += 1
    except (OSError, ScanProblem):
        return {}
    return dict(found)


@contextmanager
def placed(path: Path, paths: Sequence[Path]) -> Iterator[None]:
    """Add a file's position in the folder to a problem's text, because its name may be the patient's."""
    try:
        yield
    except ScanProblem as problem:
        place = ""
        with suppress(ValueError):
            place = f" (file {paths.index(path) + 1} of {len(paths)} in the order of names)"
        raise ScanProblem(problem.rule, f"{problem}{place}") from None


def _is_nifti_name(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))


def _classify(path: Path) -> Found | tuple[str | None]:
    """What a file is; of a file that is neither DICOM nor a volume the kind, or None if it may be a lost slice."""
    if is_volume(path):
        return Found(path, "nifti" if _is_nifti_name(path) else "volume")
    with private():
        with open_regular(path, most=SCAN_BYTES) as stream:
            start = stream.read(_START_BYTES)
        if begins_as_dicom(start[:132]):
            return _of_header(path, read_elements(path, _ELEMENTS))
    if (format_ := kind_of(path)) is not None or start[344:348] == b"ni1\0":
        return Found(path, "volume" if format_ in ("nrrd", "metaimage") else "nifti")
    return (known_by_content(path, start),)


def _of_header(path: Path, header: Dataset) -> Found:
    modality = code(header, "Modality")
    types = as_text(header.get("ImageType")).split("\\")
    storage, kind = header.get("SOPClassUID", CTImageStorage), "other"
    if modality in ("SEG", "RTSTRUCT"):
        kind = "segmentation"
    elif modality == "CT" and "LOCALIZER" in types:
        kind = "localizer"
    elif storage in (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage):
        kind = "frames"
    elif modality == "CT" and storage == CTImageStorage:
        kind = "frames" if int(header.get("NumberOfFrames") or 1) > 1 else "slice"
    position = header.get("ImagePositionPatient") or ()
    orientation = header.get("ImageOrientationPatient") or ()
    texts = {name: as_text(header.get(name)) for name in ("SeriesDescription", "ConvolutionKernel")}
    return Found(
        path=path,
        kind=kind,  # type: ignore[arg-type]
        modality=modality,
        series=str(header.get("SeriesInstanceUID", "")),
        study=str(header.get("StudyInstanceUID", "")),
        frame_of_reference=str(header.get("FrameOfReferenceUID") or ""),
        description=texts["SeriesDescription"],
        kernel=texts["ConvolutionKernel"],
        agent=as_text(header.get("ContrastBolusAgent")).strip(),
        thickness_mm=_number(header.get("SliceThickness")),
        position_mm=tuple(map(_number, position)) if len(position) == 3 else (),
        orientation=tuple(map(_number, orientation)) if len(orientation) == 6 else (),
        shape=(int(header.get("Rows") or 0), int(header.get("Columns") or 0)),
        derived=types[:1] == ["DERIVED"] or types[1:2] == ["SECONDARY"],
        n_frames=int(header.get("NumberOfFrames") or 1),
        patient=_hashed(header.get("PatientID")),
    )


def _hashed(patient_id: object) -> bytes:
    """A short hash of a patient id, to compare files within this process; empty for none."""
    text = str(patient_id or "").strip()
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8] if text else b""


def _number(value: object) -> float:
    try:
        return float(value or 0)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return 0.0
