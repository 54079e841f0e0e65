"""What is kept of an image under a pseudonym, against the profile of DICOM, and the way back to the patient's study."""

import io

import pydicom
import pytest
from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as profile
from harness.dicom_files import CANARIES, slice_dataset, uid
from harness.finished_run import phantom_hu
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import SegmentationStorage

from sahfl.errors import PacsError
from sahfl.pacs.pseudonyms import EMPTY, KEPT, OF_IMAGES, UIDS, name_again, new_uid, pseudonymise

IMAGE, _, AFFINE = phantom_hu()
SECRET = bytes(range(32))
REMOVED = ("D_TAGS", "Z_TAGS", "X_TAGS", "Z_D_TAGS", "X_Z_TAGS", "X_D_TAGS", "X_Z_D_TAGS")
"""Tables of the Basic Profile whose elements get another value, none, or are removed. Those of
``X_Z_U_STAR_TAGS``, such as SourceImageSequence, may stay with replaced UIDs."""


def tags_of(*tables):
    return {tag[:2] for table in tables for tag in getattr(profile, table) if len(tag) == 2}


def tag_of(keyword):
    tag = pydicom.tag.Tag(tag_for_keyword(keyword))
    return tag.group, tag.element


def made(dataset, uids=None):
    return pseudonymise(dataset, "P001", SECRET, {} if uids is None else uids)


def test_no_kept_element_is_one_that_the_basic_profile_removes():
    removed = tags_of(*REMOVED)
    assert len(removed) > 300
    assert not sorted(keyword for keyword in KEPT if tag_of(keyword) in removed)


def test_every_uid_that_stays_is_replaced():
    replaced = tags_of("U_TAGS")
    assert not sorted(keyword for keyword in KEPT if tag_of(keyword) in replaced)
    assert all(tag_of(keyword) in replaced for keyword in UIDS)


def test_every_name_of_an_element_is_one_of_dicom():
    assert all(tag_for_keyword(keyword) is not None for keyword in (*KEPT, *UIDS, *EMPTY))


def test_an_image_keeps_its_geometry_and_pixels_and_nothing_of_the_patient():
    found = slice_dataset(IMAGE, AFFINE, 3)
    found.add_new(0x00091001, "LO", "Muster^Hans")
    found.StudyDescription, found.ImageComments, found.OperatorsName = "Hans", "Muster", "Dr-Who"
    result = made(found)
    for keyword in OF_IMAGES:
        assert result.get(keyword) == found.get(keyword), keyword
    assert result.pixel_array.shape == IMAGE.shape[1::-1]
    assert all(result[name].is_empty for name in EMPTY)
    stream = io.BytesIO()
    result.save_as(stream, enforce_file_format=True)
    assert not [text for text in CANARIES if text.encode() in stream.getvalue()]


def test_nested_elements_are_kept_by_the_same_list():
    found = slice_dataset(IMAGE, AFFINE, 0)
    item, inner = Dataset(), Dataset()
    inner.ImagePositionPatient, inner.ImageComments = [1, 2, 3], "Muster"
    item.PlanePositionSequence, item.PatientName = Sequence([inner]), "Muster^Hans"
    found.PerFrameFunctionalGroupsSequence = Sequence([item])
    (group,) = made(found).PerFrameFunctionalGroupsSequence
    assert [element.keyword for element in group] == ["PlanePositionSequence"]
    assert [element.keyword for element in group.PlanePositionSequence[0]] == ["ImagePositionPatient"]


def test_uids_are_the_same_for_a_secret_and_others_for_another_one():
    first, again, other = (new_uid("1.2.3", secret) for secret in (SECRET, SECRET, b"x" * 32))
    assert first == again != other
    assert pydicom.uid.UID(first).is_valid
    uids = {}
    found = slice_dataset(IMAGE, AFFINE, 0)
    assert uids[made(found, uids).SOPInstanceUID] == found.SOPInstanceUID


@pytest.mark.parametrize(("agent", "kept"), [("Ultravist of Muster", "CONTRAST"), ("none", "NONE"), ("", "NONE")])
def test_of_a_contrast_agent_only_its_presence_stays(agent, kept):
    found = slice_dataset(IMAGE, AFFINE, 0)
    found.ContrastBolusAgent = agent
    assert made(found).ContrastBolusAgent == kept


def test_an_image_with_burned_in_text_is_refused():
    found = slice_dataset(IMAGE, AFFINE, 0)
    found.BurnedInAnnotation = "YES"
    with pytest.raises(PacsError, match="text is burned into the image"):
        made(found)


def segmentation(image):
    reference, series, result = Dataset(), Dataset(), Dataset()
    reference.ReferencedSOPInstanceUID = image.SOPInstanceUID
    series.SeriesInstanceUID, series.ReferencedInstanceSequence = image.SeriesInstanceUID, Sequence([reference])
    result.ReferencedSeriesSequence = Sequence([series])
    result.StudyInstanceUID, result.FrameOfReferenceUID = image.StudyInstanceUID, image.FrameOfReferenceUID
    result.SOPInstanceUID, result.SeriesInstanceUID = uid("own"), uid("own series")
    result.PatientID = result.PatientName = "P001"
    return result


def test_a_segmentation_gets_the_names_and_uids_of_its_patient_s_study_again():
    uids, found = {}, slice_dataset(IMAGE, AFFINE, 0)
    result = segmentation(made(found, uids))
    name_again(result, uids, found)
    assert (result.PatientID, str(result.PatientName), result.StudyInstanceUID) == (
        "4711-0815",
        "Muster^Hans",
        found.StudyInstanceUID,
    )
    assert result.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == (
        found.SOPInstanceUID
    )
    assert (result.SOPInstanceUID, result.SeriesInstanceUID) == (uid("own"), uid("own series"))


def test_a_segmentation_of_another_study_is_refused():
    uids, found = {}, slice_dataset(IMAGE, AFFINE, 0)
    result = segmentation(made(found, uids))
    result.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID = uid("foreign")
    with pytest.raises(PacsError, match="ReferencedSOPInstanceUID is of no image that was fetched for this study"):
        name_again(result, uids, found)


NAMES = ("Müller^Jörg", "Łukasz^Żak", "Yamada^Tarou=山田^太郎")


@pytest.mark.parametrize("name", NAMES)
def test_names_of_patients_and_segments_survive_the_way_out_and_back_in_any_script(name):
    uids, image = {}, slice_dataset(IMAGE, AFFINE, 0)
    found = segmentation(image)
    found.SpecificCharacterSet, found.SOPClassUID = "ISO_IR 192", SegmentationStorage
    found.SegmentSequence = Sequence([Dataset()])
    found.SegmentSequence[0].SegmentLabel = "Hämatom, 血腫"
    found.file_meta = image.file_meta
    made(image, uids)
    out = as_stored(made(found, uids))
    assert out.SegmentSequence[0].SegmentLabel == "Hämatom, 血腫"
    study = Dataset.from_json({"00100010": {"vr": "PN", "Value": [parts_of_name(name)]}})
    name_again(out, uids, study)
    back = as_stored(out)
    assert str(back.PatientName) == name
    assert back.SegmentSequence[0].SegmentLabel == "Hämatom, 血腫"


def as_stored(dataset):
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return pydicom.dcmread(io.BytesIO(stream.getvalue()))


def parts_of_name(name):
    return dict(zip(("Alphabetic", "Ideographic"), name.split("="), strict=False))
