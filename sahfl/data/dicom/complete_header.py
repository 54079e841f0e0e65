"""What a new DICOM object repeats from its series, made complete where a de-identified series lacks it.

DICOM wants elements of type 2 to be there and lets them be empty; elements of type 1 need a value. De-identification
removes both, or puts a text in the place of a date.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from pydicom.config import RAISE
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage, generate_uid
from pydicom.valuerep import validate_value

MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
"""Elements of type 2 of the modules Patient and General Study."""
OF_ALL_SLICES = {
    "StudyInstanceUID": "an archive files it in a study of its own",
    "SeriesInstanceUID": "a viewer does not find the series that it refers to",
    "FrameOfReferenceUID": "a viewer does not lay it over the series",
}
"""Elements of type 1 that all slices of a series share, and what a made one costs."""
REMOVABLE = (
    *("PatientAge", "PatientSize", "PatientWeight", "StudyDescription", "PatientComments", "AdditionalPatientHistory"),
    *("PatientBirthTime", "PatientIdentityRemoved", "DeidentificationMethod", "AdmissionID", "Occupation"),
)
"""Elements of type 3 that a new object repeats, and does not need."""


def complete(slices: Sequence[Dataset], *, spacing_mm: float) -> tuple[str, ...]:
    """Give every slice the elements that a new object repeats, in place. Only within ``private``.

    A missing element of type 2 becomes empty, silently. One whose value DICOM does not allow becomes empty too. A
    missing element of type 1, or one in which the slices differ, is made; a missing thickness of the slices is their
    distance, ``spacing_mm``.

    Returns:
        A sentence for each element that was emptied or made; it names the element, never its value.

    Source: DICOM PS3.3 2024, C.7.1.1, C.7.2.1, C.7.3.1, C.7.4.1 and C.12.1.
    """
    found = [note for name in (*MAY_BE_EMPTY, *REMOVABLE) if (note := _without_faults(name, slices))]
    for name, cost in OF_ALL_SLICES.items():
        uids = {str(part.get(name)) for part in slices if _is_uid(part.get(name))}
        if len(uids) != 1 or not all(_is_uid(part.get(name)) for part in slices):
            uid = next(iter(uids)) if len(uids) == 1 else _made(name, slices)
            for part in slices:
                setattr(part, name, uid)
            lacks = f"the slices have no common {name}" if uids else f"the series has no {name}"
            found.append(f"{lacks}, so a new one was made for the segmentation: {cost}")
    if not all(_is_uid(part.get("SOPInstanceUID")) for part in slices):
        for part in slices:
            _name_instance(part)
        found.append(
            "slices have no SOPInstanceUID, so the segmentation refers to new ones: a viewer may not find them"
        )
    bare = [part for part in slices if not part.get("SliceThickness") and int(part.get("NumberOfFrames") or 1) == 1]
    if bare:
        found.append("the series has no SliceThickness, so the segmentation has the distance of the slices")
    for part in bare:
        part.SliceThickness = f"{spacing_mm:.6g}"
    for part in slices:
        part.SOPClassUID = part.get("SOPClassUID") or CTImageStorage
        in_unicode(part)
    return tuple(found)


def in_unicode(dataset: Dataset) -> None:
    """Let a dataset's texts be written as UTF-8, in place: a name in any script can be read again.

    Source: DICOM PS3.3 2024, C.12.1.1.2 (specific character set).
    """
    dataset.decode()
    dataset.SpecificCharacterSet = "ISO_IR 192"


def _without_faults(name: str, slices: Sequence[Dataset]) -> str:
    """Empty an element, or remove it if it need not be there, if its value breaks the form of its kind."""
    faulty = [part for part in slices if not _is_allowed(name, part.get(name))]
    for part in slices:
        if faulty and name in REMOVABLE:
            part.pop(name, None)
        elif name in MAY_BE_EMPTY and (faulty or part.get(name) is None):
            setattr(part, name, "")
    return f"the series' {name} is not in the form that DICOM requires; the segmentation has none" if faulty else ""


def _is_allowed(name: str, value: object) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            validate_value(dictionary_VR(name), value if value is None else str(value), RAISE)
    except (ValueError, TypeError, Warning):
        return False
    return True


def _is_uid(value: object) -> bool:
    return bool(value) and UID(str(value)).is_valid


def _made(name: str, slices: Sequence[Dataset]) -> str:
    """The same UID for the same series, so that two segmentations of it lie together."""
    known = next((str(part.get("SeriesInstanceUID")) for part in slices if part.get("SeriesInstanceUID")), None)
    return generate_uid(entropy_srcs=[name, known or _pixels_of(slices[0])])


def _name_instance(part: Dataset) -> None:
    in_file = part.file_meta.get("MediaStorageSOPInstanceUID") if hasattr(part, "file_meta") else None
    if not _is_uid(part.get("SOPInstanceUID")):
        place = str(part.get("ImagePositionPatient"))
        part.SOPInstanceUID = in_file if _is_uid(in_file) else generate_uid(entropy_srcs=[place, _pixels_of(part)])


def _pixels_of(part: Dataset) -> str:
    return repr(part.get("PixelData", b""))


def missing_element(error: Exception) -> str:
    """The element that a library missed, by its keyword; only the kind of error if it names none of DICOM's.

    A message can quote values, so nothing of it is used but a keyword.
    """
    words = str(error).replace("'", " ").replace('"', " ").split()
    named = next((word for word in words if len(word) > 3 and tag_for_keyword(word) is not None), None)
    return named or type(error).__name__
