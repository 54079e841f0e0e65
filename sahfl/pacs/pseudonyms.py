"""From a patient's images to images under a pseudonym: a short list of elements is kept, everything else is removed.

The Basic Application Level Confidentiality Profile of DICOM PS3.15 lists what to remove; its list grows each year, and
has no end for private elements. Here the list says what to keep: geometry, calibration, pixels, and the parts of a
segmentation. A test compares it with the profile, of which no kept element may be one to remove.

Kept with a new value: the UIDs, by a keyed hash, so that image and segmentation still belong together and a second
fetch gives the same; the patient's id and name, which become the pseudonym; a contrast agent's name, of which only
whether there is one remains. What DICOM wants to be there is empty: birth date, sex, date, time, numbers of the study.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID

from sahfl.data.dicom.complete_header import MAY_BE_EMPTY, in_unicode
from sahfl.data.dicom.protocol import names_agent
from sahfl.errors import PacsError

METHOD = "sahfl fetch: listed elements kept, all others removed"
UIDS = frozenset(
    {
        *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID", "ReferencedSOPInstanceUID"),
        *("DimensionOrganizationUID", "TrackingUID"),
    }
)
"""UIDs that are replaced. Those of DICOM itself, such as SOPClassUID, name no patient and are kept."""
OF_IMAGES = frozenset(
    {
        *("SOPClassUID", "ImageType", "Modality", "BurnedInAnnotation", "SeriesNumber", "InstanceNumber"),
        *("AcquisitionNumber", "KVP", "ConvolutionKernel", "GantryDetectorTilt", "ReconstructionDiameter"),
        *("SliceThickness", "SpacingBetweenSlices", "SliceLocation", "PatientPosition", "PositionReferenceIndicator"),
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "NumberOfFrames"),
        *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "PixelRepresentation"),
        *("BitsAllocated", "BitsStored", "HighBit", "SmallestImagePixelValue", "LargestImagePixelValue"),
        *("PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleIntercept", "RescaleSlope", "RescaleType"),
        *("WindowCenter", "WindowWidth", "LossyImageCompression", "LossyImageCompressionRatio"),
        *("LossyImageCompressionMethod", "PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
        *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "FrameContentSequence"),
        *("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence", "StackID"),
        *("InStackPositionNumber", "DimensionIndexValues", "PixelValueTransformationSequence", "FrameVOILUTSequence"),
        *("CTImageFrameTypeSequence", "FrameType", "PixelPresentation", "VolumetricProperties"),
        *("VolumeBasedCalculationTechnique",),
    }
)
"""Elements of CT images that are kept, at any depth."""
OF_SEGMENTATIONS = frozenset(
    {
        *("SegmentationType", "SegmentationFractionalType", "MaximumFractionalValue", "SegmentsOverlap"),
        *("SegmentSequence", "SegmentNumber", "SegmentLabel", "SegmentAlgorithmType", "SegmentIdentificationSequence"),
        *("SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence", "ReferencedSegmentNumber"),
        *("CodeValue", "CodingSchemeDesignator", "CodeMeaning", "DimensionOrganizationSequence"),
        *("DimensionIndexSequence", "DimensionIndexPointer", "FunctionalGroupPointer", "DimensionOrganizationType"),
        *("ReferencedSeriesSequence", "ReferencedInstanceSequence", "ReferencedSOPClassUID", "ReferencedFrameNumber"),
        *("DerivationImageSequence", "SourceImageSequence", "DerivationCodeSequence"),
        *("PurposeOfReferenceCodeSequence", "SpatialLocationsPreserved"),
    }
)
"""Elements of segmentations that are kept beside ``OF_IMAGES``. A segment's name is free text of a person."""
KEPT = OF_IMAGES | OF_SEGMENTATIONS
EMPTY = tuple(name for name in MAY_BE_EMPTY if name not in ("PatientID", "PatientName"))
"""Elements that are there without a value."""


def new_uid(uid: str, secret: bytes) -> str:
    """The UID that takes a UID's place: the same for the same secret, and without the secret nobody finds the old one.

    Source: DICOM PS3.5 2024, B.2 (UIDs from UUIDs: ``2.25.`` and a number of 128 bits).
    """
    return f"2.25.{int.from_bytes(hmac.digest(secret, uid.encode(), hashlib.sha256)[:16])}"


def pseudonymise(found: Dataset, patient: str, secret: bytes, uids: dict[str, str]) -> Dataset:
    """The same image or segmentation under a pseudonym; ``found`` is unchanged.

    Args:
        found: as the archive sent it.
        patient: the pseudonym of the patient.
        secret: key of the UIDs.
        uids: new UID to old one; those of this object are added.

    Raises:
        PacsError: the header says that text is burned into the pixels.
    """
    if str(found.get("BurnedInAnnotation", "")).upper() == "YES":
        raise PacsError("the header says that text is burned into the image, which may name the patient")
    made = _kept(found, secret, uids)
    for name in EMPTY:
        setattr(made, name, "")
    made.PatientID = made.PatientName = patient
    made.PatientIdentityRemoved, made.DeidentificationMethod = "YES", METHOD
    if "ContrastBolusAgent" in found:
        made.ContrastBolusAgent = "CONTRAST" if names_agent(str(found.ContrastBolusAgent or "")) else "NONE"
    in_unicode(made)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = found.file_meta.TransferSyntaxUID
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    return made


def _kept(found: Dataset, secret: bytes, uids: dict[str, str]) -> Dataset:
    made = Dataset()
    for element in found:
        if element.tag.is_private or element.keyword not in KEPT | UIDS:
            continue
        if element.VR == "SQ":
            value: object = Sequence([_kept(item, secret, uids) for item in element.value])
        elif element.keyword in UIDS:
            value = new_uid(str(element.value), secret)
            uids[str(value)] = str(element.value)
        else:
            value = element.value
        made.add(DataElement(element.tag, element.VR, value))
    return made


def name_again(made: Dataset, uids: Mapping[str, str], study: Dataset) -> None:
    """Put a segmentation of pseudonymised images back into its patient's study, in place.

    Args:
        made: the segmentation; its own UIDs, which no image has, stay.
        uids: new UID to old one, of the study.
        study: the archive's elements of the patient and the study.

    Raises:
        PacsError: the segmentation refers to an image that is not of this study.
    """
    in_unicode(made)
    own = {str(made.SOPInstanceUID), str(made.SeriesInstanceUID)}
    for part in _all_parts(made):
        for element in part:
            if element.keyword not in UIDS or str(element.value) in own:
                continue
            old = uids.get(str(element.value))
            if old is None and element.keyword not in ("DimensionOrganizationUID", "TrackingUID"):
                raise PacsError(f"the segmentation's {element.keyword} is of no image that was fetched for this study")
            element.value = UID(old or str(element.value))
    for name in MAY_BE_EMPTY:
        setattr(made, name, study.get(name) if study.get(name) is not None else "")
    for name in ("PatientIdentityRemoved", "DeidentificationMethod"):
        made.pop(name, None)


def _all_parts(dataset: Dataset) -> list[Dataset]:
    parts = [dataset]
    for element in dataset:
        if element.VR == "SQ":
            parts += [part for item in element.value for part in _all_parts(item)]
    return parts
