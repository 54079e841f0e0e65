"""A scan without annotation is judged as training data are, and its results lie on its own grid."""

import warnings
from functools import partial

import nibabel
import numpy as np
import pydicom
import pytest
from harness.dicom_files import CANARIES, uid, write_segmentation, write_series
from harness.finished_run import phantom_hu, write_scan

from sahfl.data.ct import read_scan
from sahfl.data.dicom import read_segmentation, read_series
from sahfl.data.dicom.write_segmentation import write_segmentation as write_seg
from sahfl.data.manifest import Case
from sahfl.data.new_scan import read_new_scan
from sahfl.errors import DataError, DataRefused

IMAGE, LABEL, AFFINE = phantom_hu()


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PSR", "ILA"])
def test_a_volume_goes_back_to_the_scan_s_own_voxels_and_affine(tmp_path, axes):
    path = write_scan(tmp_path / "scan.nii.gz", IMAGE, AFFINE, axes)
    new = read_new_scan(path)
    np.testing.assert_array_equal(new.scan.image, IMAGE)
    back = new.on_source(new.scan.image)
    back.to_filename(tmp_path / "back.nii")
    stored, source = nibabel.load(tmp_path / "back.nii"), nibabel.load(path)
    np.testing.assert_array_equal(stored.get_fdata(), source.get_fdata())
    np.testing.assert_array_equal(stored.affine, source.affine)
    for name in ("sform_code", "qform_code", "xyzt_units"):
        assert stored.header[name] == source.header[name]
    np.testing.assert_array_equal(stored.header.get_qform(), source.header.get_qform())


def test_a_scan_with_a_qform_alone_keeps_it(tmp_path):
    path = tmp_path / "scan.nii"
    made = nibabel.Nifti1Image(IMAGE, AFFINE)
    made.set_qform(AFFINE, 1)
    made.set_sform(None, 0)
    nibabel.save(made, path)
    back = read_new_scan(path).on_source(LABEL.astype(np.uint8))
    assert (int(back.header["sform_code"]), int(back.header["qform_code"])) == (0, 1)
    assert back.header["scl_slope"] != 0 or np.isnan(back.header["scl_slope"])
    back.to_filename(tmp_path / "back.nii")
    np.testing.assert_array_equal(nibabel.load(tmp_path / "back.nii").affine, nibabel.load(path).affine)


def test_texts_of_a_header_are_not_copied(tmp_path):
    path = tmp_path / "scan.nii"
    made = nibabel.Nifti1Image(IMAGE, AFFINE)
    made.header["descrip"] = b"Muster^Hans"
    nibabel.save(made, path)
    new = read_new_scan(path)
    assert b"Muster" not in new.on_source(LABEL.astype(np.uint8)).to_bytes()
    assert [item.rule for item in new.findings if item.rule == "header_text"] == ["header_text"]


def test_a_dicom_folder_and_one_of_its_files_are_the_same_scan(tmp_path):
    files = write_series(tmp_path / "patient", IMAGE, AFFINE)
    folder, one = read_new_scan(tmp_path / "patient"), read_new_scan(files[3])
    assert folder.voxels == one.voxels
    np.testing.assert_array_equal(folder.scan.image, IMAGE)
    assert list(folder.series.files) == files


def test_a_file_says_which_of_two_series_is_meant(tmp_path):
    files = write_series(tmp_path / "patient", IMAGE, AFFINE)
    other = write_series(tmp_path / "patient", IMAGE + 1, AFFINE, series="other")
    with pytest.raises(DataRefused, match="several_series: got 2 CT series"):
        read_new_scan(tmp_path / "patient")
    np.testing.assert_array_equal(read_new_scan(files[0]).scan.image, IMAGE)
    np.testing.assert_array_equal(read_new_scan(other[0]).scan.image, IMAGE + 1)


REFUSED = {
    "windowed": (np.clip(IMAGE, 0, 80), "windowed: values from 0 to 80"),
    "not-hu": (np.full_like(IMAGE, 40), "windowed|not_hu"),
    "not-finite": (np.where(IMAGE > 1000, np.nan, IMAGE).astype(np.float32), "not_finite: image holds NaN"),
    "four-dimensions": (np.stack([IMAGE, IMAGE], -1), "not_3d: image has shape"),
}


@pytest.mark.parametrize(("image", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_head_ct_in_hu_is_refused_by_the_name_of_the_rule(tmp_path, image, message):
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(image, AFFINE), path)
    with pytest.raises(DataRefused, match=f"expected a head CT in HU\n  ({message})"):
        read_new_scan(path)


def test_missing_and_unknown_files_are_refused(tmp_path):
    (tmp_path / "note.txt").write_text("no scan")
    with pytest.raises(
        DataRefused,
        match=r"none.nii: got nothing \(no such file or folder\), expected a NIfTI, .*; correct the path$",
    ):
        read_new_scan(tmp_path / "none.nii")
    with pytest.raises(DataRefused, match="unreadable"):
        read_new_scan(tmp_path / "note.txt")


def test_findings_say_nothing_of_a_missing_annotation(tmp_path):
    new = read_new_scan(write_scan(tmp_path / "scan.nii.gz", IMAGE, AFFINE))
    assert {item.rule for item in new.findings} == {"spacing", "slices"}
    assert not new.scan.label.any()
    assert not any(item.text.startswith("case") for item in new.findings)


# --- DICOM segmentation ---------------------------------------------------------------------------------------------


def shear(affine):
    tilted = affine.copy()
    tilted[1, 2] = 2.0
    return tilted


@pytest.mark.parametrize("affine", [AFFINE, shear(AFFINE)], ids=["straight", "tilted"])
def test_a_written_segmentation_is_read_back_on_the_same_voxels(tmp_path, affine):
    write_series(tmp_path / "patient", IMAGE, affine)
    series = read_series(tmp_path / "patient")
    write_seg(tmp_path / "out.dcm", LABEL, series, algorithm="sahfl tiny cp_lora-r2")
    found = read_segmentation(tmp_path / "out.dcm", series)
    np.testing.assert_array_equal(np.asarray(found.dataobj) > 0, LABEL)


def test_a_segmentation_refers_to_its_series_and_says_what_made_it(tmp_path):
    files = write_series(tmp_path / "patient", IMAGE, AFFINE)
    series = read_series(tmp_path / "patient")
    write_seg(tmp_path / "out.dcm", LABEL, series, algorithm="sahfl tiny cp_lora-r2")
    made, first = pydicom.dcmread(tmp_path / "out.dcm"), pydicom.dcmread(files[0])
    assert made.ReferencedSeriesSequence[0].SeriesInstanceUID == first.SeriesInstanceUID
    assert (made.StudyInstanceUID, made.PatientID) == (first.StudyInstanceUID, first.PatientID)
    assert made.SeriesInstanceUID != first.SeriesInstanceUID
    (segment,) = made.SegmentSequence
    assert (segment.SegmentLabel, segment.SegmentAlgorithmType) == ("Intracranial hemorrhage", "AUTOMATIC")
    assert "research" in made.SeriesDescription
    assert len(made.PerFrameFunctionalGroupsSequence) == LABEL.any(axis=(0, 1)).sum()


def test_an_empty_mask_is_a_segmentation_too(tmp_path):
    write_series(tmp_path / "patient", IMAGE, AFFINE)
    series = read_series(tmp_path / "patient")
    write_seg(tmp_path / "out.dcm", np.zeros_like(LABEL), series, algorithm="sahfl")
    assert not np.asarray(read_segmentation(tmp_path / "out.dcm", series).dataobj).any()
    assert pydicom.dcmread(tmp_path / "out.dcm").NumberOfFrames == IMAGE.shape[2]


def spoil(data, name, value):
    """Put a value in an element that DICOM does not allow there, as some de-identification does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        setattr(data, name, value)


MADE = {
    "StudyInstanceUID": "an archive files it in a study of its own",
    "SeriesInstanceUID": "a viewer does not find the series that it refers to",
    "FrameOfReferenceUID": "a viewer does not lay it over the series",
}


@pytest.mark.parametrize("how", ["gone", "empty", "no-uid"])
@pytest.mark.parametrize("name", MADE)
def test_a_missing_uid_is_made_and_said(tmp_path, name, how):
    def without(data, index):
        if how == "gone":
            delattr(data, name)
        else:
            spoil(data, name, "" if how == "empty" else "REMOVED")

    write_series(tmp_path / "patient", IMAGE, AFFINE, change=without)
    (note,) = write_seg(tmp_path / "out.dcm", LABEL, read_series(tmp_path / "patient"), algorithm="sahfl")
    assert note == f"the series has no {name}, so a new one was made for the segmentation: {MADE[name]}"
    made = pydicom.dcmread(tmp_path / "out.dcm")
    uid = made.ReferencedSeriesSequence[0].SeriesInstanceUID if name == "SeriesInstanceUID" else made[name].value
    assert uid.is_valid
    assert len(made.PerFrameFunctionalGroupsSequence) == LABEL.any(axis=(0, 1)).sum()


FRAMES = {"none": lambda index: "", "no-uid": lambda index: "REMOVED", "one-each": lambda index: uid("frame", index)}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES.keys())
def test_a_segmentation_of_a_series_without_a_common_frame_is_read_back_as_its_annotation(tmp_path, frame):
    def scrambled(data, index):
        spoil(data, "FrameOfReferenceUID", frame(index))
        if frame(0) != frame(1):
            data.SeriesInstanceUID = uid("series", index)

    write_series(tmp_path / "patient", IMAGE, AFFINE, change=scrambled)
    notes = write_seg(tmp_path / "patient" / "seg.dcm", LABEL, read_series(tmp_path / "patient"), algorithm="sahfl")
    assert any("FrameOfReferenceUID, so a new one was made for the segmentation" in note for note in notes)
    scan = read_scan(Case("bern-0000", tmp_path / "patient", tmp_path / "patient", "p"))
    np.testing.assert_array_equal(scan.label[::-1, ::-1] if AFFINE[0, 0] < 0 else scan.label, LABEL)


NAMES = {"ISO_IR 100": "Müller^Jörg", "ISO_IR 144": "Иванов^Иван", "\\ISO 2022 IR 87": "Yamada^Tarou=山田^太郎"}


@pytest.mark.parametrize(("charset", "name"), NAMES.items())
def test_a_segmentation_repeats_the_name_in_any_script(tmp_path, charset, name):
    def named(data, index):
        data.SpecificCharacterSet, data.PatientName = charset.split("\\"), name

    write_series(tmp_path / "patient", IMAGE, AFFINE, change=named)
    assert not write_seg(tmp_path / "out.dcm", LABEL, read_series(tmp_path / "patient"), algorithm="sahfl")
    assert str(pydicom.dcmread(tmp_path / "out.dcm").PatientName) == name


EMPTIED = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")
EMPTIED += ("AccessionNumber", "ReferringPhysicianName")


@pytest.mark.parametrize("name", EMPTIED)
def test_a_missing_element_that_may_be_empty_becomes_empty(tmp_path, name):
    write_series(tmp_path / "patient", IMAGE, AFFINE, change=lambda data, index: delattr(data, name))
    assert write_seg(tmp_path / "out.dcm", LABEL, read_series(tmp_path / "patient"), algorithm="sahfl") == ()
    assert pydicom.dcmread(tmp_path / "out.dcm")[name].is_empty


@pytest.mark.parametrize("name", ["PatientBirthDate", "StudyDate", "StudyTime", "AccessionNumber"])
def test_a_text_in_the_place_of_a_value_becomes_empty_and_is_not_quoted(tmp_path, name):
    change = partial(spoil, name=name, value="REMOVED of Muster^Hans")
    write_series(tmp_path / "patient", IMAGE, AFFINE, change=lambda data, index: change(data))
    (note,) = write_seg(tmp_path / "out.dcm", LABEL, read_series(tmp_path / "patient"), algorithm="sahfl")
    assert note == f"the series' {name} is not in the form that DICOM requires; the segmentation has none"
    assert pydicom.dcmread(tmp_path / "out.dcm")[name].is_empty


def test_a_series_without_thickness_gets_the_distance_of_its_slices(tmp_path):
    write_series(tmp_path / "patient", IMAGE, AFFINE, change=lambda data, index: delattr(data, "SliceThickness"))
    (note,) = write_seg(tmp_path / "out.dcm", LABEL, read_series(tmp_path / "patient"), algorithm="sahfl")
    assert "the segmentation has the distance of the slices" in note
    shared = pydicom.dcmread(tmp_path / "out.dcm").SharedFunctionalGroupsSequence[0]
    assert shared.PixelMeasuresSequence[0].SliceThickness == pytest.approx(AFFINE[2, 2])


def test_an_error_of_the_library_names_the_element_and_quotes_nothing(tmp_path, monkeypatch):
    def lacking(*args, **kwargs):
        raise ValueError("PatientAge of Muster^Hans, born 19470312, is wrong")

    monkeypatch.setattr("highdicom.seg.Segmentation", lacking)
    write_series(tmp_path / "patient", IMAGE, AFFINE)
    with pytest.raises(DataError, match=r"segmentation has to repeat \(PatientAge\)") as info:
        write_seg(tmp_path / "out.dcm", LABEL, read_series(tmp_path / "patient"), algorithm="sahfl")
    assert not any(canary in str(info.value) for canary in CANARIES)
    assert not (tmp_path / "out.dcm").exists()


def test_the_folder_may_hold_an_annotation_which_is_passed_over(tmp_path):
    files = write_series(tmp_path / "patient", IMAGE, AFFINE)
    write_segmentation(tmp_path / "patient" / "seg.dcm", files, LABEL)
    assert not read_new_scan(tmp_path / "patient").scan.label.any()
