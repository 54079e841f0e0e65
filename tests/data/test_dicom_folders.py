"""What lies in a patient's folder beside the slices, which of several series is used, and whose folder it is."""

import nibabel
import numpy as np
import pydicom
import pytest
from harness.dicom_files import uid, write_series
from harness.one_case import check_case

from sahfl.data.checks import check_cases
from sahfl.data.ct import read_scan
from sahfl.data.dicom import read_patients, read_series
from sahfl.data.manifest import Case
from sahfl.data.series_choice import SeriesChoice
from sahfl.data.sources.folders import SiteScansFolder, StudyScansFolders
from sahfl.errors import ScanProblem

AFFINE = np.diag([-0.5, -0.5, 5.0, 1.0])


def volume(n_slices=8, seed=0):
    return np.random.default_rng(seed).integers(-1000, 1000, (6, 8, n_slices)).astype(np.int16)


def with_header(**values):
    def change(data, index):
        for name, value in values.items():
            setattr(data, name, value)

    return change


def a_case(folder, n_slices=8, annotated=True, series=None, **header):
    write_series(folder, volume(n_slices), AFFINE, change=with_header(**header))
    if annotated:
        label = np.zeros((6, 8, n_slices), np.uint8)
        label[2:4, 2:5, 2:4] = 1
        nibabel.save(nibabel.Nifti1Image(label, AFFINE), folder / "mask.nii.gz")
    return Case("bern-0003", folder, folder, "p", series=series)


def notes(case):
    return dict(read_scan(case).notes)


def refused(case):
    with pytest.raises(ScanProblem) as caught:
        read_scan(case)
    return caught.value.rule, str(caught.value)


# --- other files ----------------------------------------------------------------------------------------------------

FOREIGN = {
    "autorun.inf": b"[autorun]",
    "README": b"This disc holds pictures.",
    "LIESMICH": "Größe".encode(),
    "viewer.exe": b"MZ\x90",
    "viewer": b"\x7fELF\2",
    "start.dll": b"MZ",
    "export.zip": b"PK\3\4",
    "backup": b"PK\3\4",
    "Segmentation.seg.nrrd": b"NRRD0004\n",
    "scene.mrml": b"<x/>",
    "thumbs.db": b"\xd0\xcf\x11\xe0",
    "report.pdf": b"%PDF-1.4",
    "key.jpg": b"\xff\xd8\xff\xe0",
    "key": b"\xff\xd8\xff\xe0",
    ".DS_Store": b"\0\0\0\1Bud1",
    "._ct-001.dcm": b"\0\5\x16\7",
    "DICOMDIR": bytes(200),
    "contours.lbl": bytes(range(256)),
    "notes.txt": b"",
}


@pytest.mark.parametrize(("name", "content"), FOREIGN.items(), ids=FOREIGN.keys())
def test_a_file_that_is_no_scan_is_left_out_and_counted(tmp_path, name, content):
    case = a_case(tmp_path / "d")
    expected = read_scan(case)
    assert expected.notes == ()
    (tmp_path / "d" / name).write_bytes(content)
    found = read_scan(case)
    np.testing.assert_array_equal(found.image, expected.image)
    ((rule, text),) = found.notes
    assert rule == "foreign_files"
    assert text.startswith("1 file(s) are no scan and left out: 1 x ")


def test_the_kinds_of_files_are_counted_as_a_note_of_the_case(tmp_path):
    case = a_case(tmp_path / "d")
    for name in ("autorun.inf", "desktop.ini", "Muster_Hans.exe", "a.zip"):
        (tmp_path / "d" / name).write_bytes(FOREIGN.get(name, b"x"))
    write_series(tmp_path / "d", volume(1), AFFINE, series="sr",
                 change=with_header(Modality="SR", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.67"))  # fmt: skip
    (found,) = [finding for finding in check_case(case).findings if finding.rule == "foreign_files"]
    kinds = "1 x DICOM SR, 1 x archive, 1 x program, 2 x system file"
    assert (found.severity, found.text) == ("note", f"case bern-0003: 5 file(s) are no scan and left out: {kinds}")


def test_a_missing_annotation_names_what_lies_there_instead(tmp_path):
    case = a_case(tmp_path / "d", annotated=False)
    (tmp_path / "d" / "scene.mrml").write_bytes(b"<x/>")
    rule, text = refused(case)
    assert rule == "missing"
    assert "DICOM segmentation or contours); it holds 1 x scene of a viewer" in text


LOST = {
    "ct-008.dcm": b"",
    "ct-009.dcm": b"not DICOM",
    "last.DCM": b"PK\3\4",
    "slice.ima": b"\xff\xd8\xff",
    "IM000001": b"",
    "1.2.840.113619": bytes(500),
    "A0F3": bytes(range(256)),
    "ct-001.dcm.gz": b"\x1f\x8b\x08",
}


@pytest.mark.parametrize(("name", "content"), LOST.items(), ids=LOST.keys())
def test_a_file_that_may_be_a_lost_slice_is_not_left_out(tmp_path, name, content):
    case = a_case(tmp_path / "d")
    (tmp_path / "d" / name).write_bytes(content)
    rule, text = refused(case)
    assert rule == "unreadable"
    assert "a file that may be a lost slice is neither DICOM nor NIfTI (file " in text


def test_a_text_named_like_the_slices_may_be_one(tmp_path):
    case = a_case(tmp_path / "d")
    for path in (tmp_path / "d").glob("*.dcm"):
        path.rename(path.with_name(f"IM{path.stem[-3:]}"))
    (tmp_path / "d" / "IM008").write_text("404 not found")
    assert refused(case)[0] == "unreadable"


def test_a_series_named_by_one_of_its_files_is_read_without_a_look_at_other_files_and_folders(tmp_path):
    write_series(tmp_path / "d", volume(), AFFINE)
    write_series(tmp_path / "d", volume(4, seed=1), AFFINE, series="other")
    (tmp_path / "d" / "holiday.zip").write_bytes(b"PK\3\4")
    (tmp_path / "d" / "deep").mkdir()
    (tmp_path / "d" / "deep" / "ct-000.dcm").write_bytes(b"")  # would be a lost slice
    assert read_series(tmp_path / "d", of=tmp_path / "d" / "ct-003.dcm").image.shape == (6, 8, 8)
    assert read_series(tmp_path / "d", of=tmp_path / "d" / "other-000.dcm").image.shape == (6, 8, 4)


# --- several series -------------------------------------------------------------------------------------------------


def add(folder, name, n_slices=8, affine=AFFINE, **header):
    write_series(folder / name, volume(n_slices, seed=5), affine, series=name, change=with_header(**header))


SCREENS = {
    "dose-screen": {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]},
    "original-single-image": {},
    "another-size": {"Rows": 4, "Columns": 12},
    "another-plane": {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
    "without-geometry": {"ImageOrientationPatient": None, "ImagePositionPatient": None},
}


@pytest.mark.parametrize("header", SCREENS.values(), ids=SCREENS.keys())
@pytest.mark.parametrize("annotated", [True, False])
def test_a_single_image_beside_a_series_never_decides(tmp_path, header, annotated):
    case = a_case(tmp_path / "d", annotated=annotated)
    expected = read_series(tmp_path / "d").image.get_fdata()
    add(tmp_path / "d", "screen", n_slices=1, **header)
    found = read_series(tmp_path / "d")
    np.testing.assert_array_equal(found.image.get_fdata(), expected)
    assert (
        "of 2 series, the one of 8 slices of 5 mm is used; left out: 1 image(s)" in dict(found.notes)["series_choice"]
    )
    if annotated:
        assert "series_choice" in notes(case)


def test_a_screen_that_shares_the_series_uid_is_no_slice(tmp_path):
    case = a_case(tmp_path / "d")
    expected = read_scan(case).image
    write_series(tmp_path / "d" / "x", volume(1), AFFINE,
                 change=with_header(ImageType=["DERIVED", "SECONDARY"], SOPInstanceUID=uid("x")))  # fmt: skip
    np.testing.assert_array_equal(read_scan(case).image, expected)


def test_a_derived_reformat_and_a_coronal_one_are_left_out(tmp_path):
    a_case(tmp_path / "d", annotated=False)
    add(tmp_path / "d", "mpr", 20, np.diag([-0.5, -0.5, 2.0, 1.0]), ImageType=["DERIVED", "PRIMARY", "AXIAL"])
    add(tmp_path / "d", "coronal", 20, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    found = read_series(tmp_path / "d")
    assert found.image.shape[2] == 8
    text = dict(found.notes)["series_choice"]
    assert "20 image(s) of 5 mm (derived)" in text
    assert "20 image(s) of 5 mm (another plane)" in text


def test_a_derived_or_coronal_series_alone_is_used_with_a_warning(tmp_path):
    a_case(tmp_path / "a", annotated=False, ImageType=["DERIVED", "SECONDARY", "AXIAL"])
    assert "derived or secondary" in dict(read_series(tmp_path / "a").notes)["derived_series"]
    coronal = np.array([[-0.5, 0, 0, 0], [0, 0, -5.0, 0], [0, -0.5, 0, 0], [0, 0, 0, 1]])
    write_series(tmp_path / "b", volume(), coronal)
    assert "coronal or sagittal" in dict(read_series(tmp_path / "b").notes)["not_axial"]


def test_of_real_series_the_annotations_geometry_decides(tmp_path):
    case = a_case(tmp_path / "d")
    add(tmp_path / "d", "thin", 15, np.diag([-0.5, -0.5, 2.5, 1.0]), SliceThickness="2.5")
    scan = read_scan(case)
    assert scan.image.shape == (6, 8, 8)
    assert "8 slices of 5 mm is used, by the annotation's geometry" in dict(scan.notes)["series_choice"]


def test_without_an_annotation_the_thinnest_whole_soft_native_series_is_used(tmp_path):
    thin = np.diag([-0.5, -0.5, 1.25, 1.0])
    folder = a_case(tmp_path / "d", annotated=False, ConvolutionKernel="H30s").image
    add(folder, "bone", 29, thin, ConvolutionKernel=["H70h", "3"])
    add(folder, "contrast", 29, thin, ContrastBolusAgent="Ultravist")
    add(folder, "part", 12, thin, ConvolutionKernel="H30s")
    assert read_series(folder).image.shape[2] == 8
    add(folder, "soft", 15, np.diag([-0.5, -0.5, 2.5, 1.0]), SliceThickness="2.5", ConvolutionKernel="H30s")
    found = read_series(folder)
    assert found.image.shape[2] == 15
    assert "by the rule: soft kernel, no contrast agent, whole head, thinnest" in dict(found.notes)["series_choice"]


def test_two_alike_series_are_refused_with_a_setting_that_mends_it(tmp_path):
    folder = a_case(tmp_path / "d", annotated=False, SeriesDescription="Head native").image
    add(folder, "again", SeriesDescription="Head repeated", ConvolutionKernel="H31s")
    with pytest.raises(ScanProblem, match=r"name the one to use under data\.series") as caught:
        read_series(folder)
    assert caught.value.rule == "several_series"
    for setting in ({"uids": (uid("again"),)}, {"description": "head REP*"}, {"kernel": "h31s"}):
        found = read_series(folder, wanted=SeriesChoice(**setting))
        np.testing.assert_array_equal(found.image.get_fdata(), volume(seed=5))
        assert f"the setting data.series ({next(iter(setting))})" in dict(found.notes)["series_choice"]


def test_a_site_names_its_series_by_thickness_even_against_the_annotation(tmp_path):
    case = a_case(tmp_path / "d")
    add(tmp_path / "d", "thin", 15, np.diag([-0.5, -0.5, 2.5, 1.0]), SliceThickness="2.5")
    assert read_scan(case).image.shape[2] == 8
    found = read_series(tmp_path / "d", wanted=SeriesChoice(thickness_mm=(1.0, 3.0)))
    assert found.image.shape[2] == 15


def test_a_setting_that_fits_no_series_is_named(tmp_path):
    case = a_case(tmp_path / "d", series=SeriesChoice(kernel="H99"))
    rule, text = refused(case)
    assert rule == "several_series"
    assert "none of 1 CT series (of 8 slices) fits the setting data.series (kernel)" in text


def test_only_an_annotated_series_is_used_where_a_site_says_so(tmp_path):
    case = a_case(tmp_path / "d", series=SeriesChoice(annotated=True))
    add(tmp_path / "d", "thin", 15, np.diag([-0.5, -0.5, 2.5, 1.0]), SliceThickness="2.5")
    assert read_scan(case).image.shape[2] == 8
    add(tmp_path / "d", "bone", 8, ConvolutionKernel="BONE")  # on the same grid
    assert "the annotation fits 2 of 3 CT series" in refused(case)[1]


def test_a_study_is_the_same_study_without_the_settings_and_another_with_them(tmp_path):
    def identity(**more):
        return StudyScansFolders(source="folder", sites={"bern": tmp_path}, **more).identity()

    assert identity() == {"source": "folder", "sites": ["bern"]}
    assert identity(series=SeriesChoice(kernel="H30s"))["series"] == {"kernel": "H30s"}
    assert identity(blood=("ICH",))["blood"] == ["ICH"]


def test_a_sites_settings_reach_its_cases(tmp_path):
    a_case(tmp_path / "bern" / "p1")
    choice = SeriesChoice(description="head*")
    (case,) = SiteScansFolder(path=tmp_path / "bern", series=choice, blood=("ICH", 2)).list_cases(
        "bern", tmp_path, lambda done, total: None
    )
    assert (case.series, case.blood) == (choice, ("ICH", 2))


def test_slices_with_a_series_uid_each_are_put_together(tmp_path):
    def scramble(data, index):
        data.SeriesInstanceUID, data.FrameOfReferenceUID = uid("s", index), uid("f", index)

    expected = read_scan(a_case(tmp_path / "a"))
    case = a_case(tmp_path / "d")
    write_series(tmp_path / "d", volume(), AFFINE, change=scramble)
    scan = read_scan(case)
    np.testing.assert_array_equal(scan.image, expected.image)
    assert notes(case)["scrambled_uids"].startswith("8 slices have a series UID each")
    assert "no_frame" in notes(case)


def test_a_series_without_a_frame_of_reference_is_used_with_a_note(tmp_path):
    case = a_case(tmp_path / "d", FrameOfReferenceUID="")
    assert "no common frame of reference" in notes(case)["no_frame"]


@pytest.mark.parametrize("annotated", [True, False])
@pytest.mark.parametrize("place", ["again", "."])
def test_series_of_two_patients_in_one_folder_are_refused(tmp_path, annotated, place):
    case = a_case(tmp_path / "d", annotated=annotated)
    write_series(tmp_path / "d" / place, volume(15), AFFINE, series="of-another", change=with_header(PatientID="8"))
    with pytest.raises(ScanProblem, match="the CT images hold 2 patient ids, expected one") as caught:
        read_scan(case) if annotated else read_series(case.image)
    assert caught.value.rule == "mixed_patients"
    assert read_series(case.image, of=tmp_path / "d" / "ct-000.dcm").image.shape[2] == 8


def test_between_two_studies_of_a_patient_no_rule_decides(tmp_path):
    case = a_case(tmp_path / "d")
    other = {"StudyInstanceUID": uid("follow-up"), "FrameOfReferenceUID": uid("its frame")}
    add(tmp_path / "d", "thin", 15, np.diag([-0.5, -0.5, 2.5, 1.0]), **other)
    assert read_scan(case).image.shape[2] == 8  # the annotation decides
    with pytest.raises(ScanProblem, match="of 2 studies, between which nothing decides") as caught:
        read_series(tmp_path / "d")
    assert caught.value.rule == "several_series"
    assert read_series(tmp_path / "d", of=tmp_path / "d" / "ct-000.dcm").image.shape[2] == 8
    assert read_series(tmp_path / "d", wanted=SeriesChoice(uids=(uid("thin"),))).image.shape[2] == 15


def test_an_annotation_that_fits_no_series_is_put_into_no_other_frame_of_reference(tmp_path):
    case = a_case(tmp_path / "d")
    add(tmp_path / "d", "thin", 15, np.diag([-0.5, -0.5, 2.5, 1.0]), FrameOfReferenceUID=uid("moved"))
    fine = np.zeros((12, 16, 8), np.uint8)  # on a finer grid of one of them
    fine[4:8, 4:10, 2:4] = 1
    placed = AFFINE @ np.diag([0.5, 0.5, 1, 1])
    placed[:3, 3] = [0.125, 0.125, 0]
    nibabel.save(nibabel.Nifti1Image(fine, placed), tmp_path / "d" / "mask.nii.gz")
    rule, text = refused(case)
    assert (rule, "in 2 frames of reference, none with the voxels of the annotation" in text) == (
        "several_series",
        True,
    )
    named = SeriesChoice(uids=(uid("ct"),))
    assert read_scan(Case("bern-0003", case.image, case.label, "p", series=named)).label.sum() == 12


def test_a_file_of_a_series_whose_uids_were_scrambled_names_all_of_it(tmp_path):
    def scramble(data, index):
        data.SeriesInstanceUID, data.FrameOfReferenceUID = uid("s", index), uid("f", index)

    files = write_series(tmp_path, volume(), AFFINE, change=scramble)
    assert read_series(tmp_path, of=files[3]).image.shape[2] == 8


@pytest.mark.parametrize("shift_mm", [0.0, 2.5])
def test_two_reconstructions_under_one_series_uid_are_two_series(tmp_path, shift_mm):
    soft = a_case(tmp_path / "d", annotated=False, ConvolutionKernel="H30s").image
    alone = read_series(soft).image.get_fdata()

    def sharp(data, index):
        data.SeriesInstanceUID, data.ConvolutionKernel = uid("ct"), "H60s"
        data.ImagePositionPatient = [*data.ImagePositionPatient[:2], data.ImagePositionPatient[2] + shift_mm]

    write_series(soft, volume(seed=7), AFFINE, change=sharp, series="bone")
    found = read_series(soft)
    np.testing.assert_array_equal(found.image.get_fdata(), alone)
    assert "left out: 8 image(s) of 5 mm (sharp kernel)" in dict(found.notes)["series_choice"]


def test_a_series_that_changes_its_kernel_once_stays_one(tmp_path):
    def changing(data, index):
        data.ConvolutionKernel = "H40s" if index < 8 else "H30s"

    write_series(tmp_path, volume(16), AFFINE, change=changing)
    assert read_series(tmp_path).image.shape[2] == 16


# --- patients -------------------------------------------------------------------------------------------------------


def patients(folder, ids):
    for number, name in enumerate(ids):
        write_series(folder / f"pat{number}", volume(1), AFFINE, change=with_header(PatientID=name))
    return read_patients(folder, "bern")


@pytest.mark.parametrize(
    "ids",
    [["ANONYMOUS"] * 6, ["anon"] * 2, ["0"] * 2 + ["7", "8"], ["S-17"] * 5 + ["P2"], ["PSEUDONYM1"] * 3, ["N/A"] * 2],
)
def test_folders_with_an_id_that_is_no_persons_are_patients_each(tmp_path, ids):
    cases = patients(tmp_path / "bern", ids)
    assert len({case.patient for case in cases}) == len(cases)
    n = ids.count(ids[0])
    assert [case.n_same_id for case in cases] == [n if name == ids[0] else 0 for name in ids]
    found = [finding for item in check_cases(cases) for finding in item.findings if finding.rule == "one_id"]
    assert [finding.severity for finding in found] == ["warning"] * n
    assert f"{n} of {len(ids)} folders hold one patient id, each is a patient" in found[0].text


@pytest.mark.parametrize("ids", [["4711", "4711"], ["4711", "4711", "8", "9"], ["a", "a", "a", "b", "c", "d"]])
def test_a_patient_with_several_folders_and_a_real_id_stays_one_patient(tmp_path, ids):
    cases = patients(tmp_path / "bern", ids)
    assert len({case.patient for case in cases}) == len(set(ids))
    assert not [case for case in cases if case.n_same_id]


def test_ids_of_their_own_end_the_warning(tmp_path):
    patients(tmp_path / "bern", ["ANON"] * 4)
    for number in range(4):
        for path in (tmp_path / "bern" / f"pat{number}").iterdir():
            data = pydicom.dcmread(path)
            data.PatientID = f"P{number}"
            data.save_as(path)
    cases = read_patients(tmp_path / "bern", "bern")
    assert len({case.patient for case in cases}) == 4
    assert not [case for case in cases if case.n_same_id]


VIEWER = {"autorun.exe": b"MZ\x90", "INDEX.HTM": b"<html>", "icons/a.jpg": b"\xff\xd8\xff\xe0", "._x": b"\0\5\x16\7"}


def test_a_folder_without_a_scan_beside_the_patients_is_left_out_and_named_by_its_place(tmp_path):
    for name in ("p1", "p2"):
        a_case(tmp_path / "site" / name, PatientID=name)
    viewer = tmp_path / "site" / "VIEWER of Muster"
    for name, content in VIEWER.items():
        (viewer / name).parent.mkdir(parents=True, exist_ok=True)
        (viewer / name).write_bytes(content)
    section = SiteScansFolder(path=tmp_path / "site")
    cases = section.list_cases("bern", tmp_path, lambda done, total: None)
    assert [case.image.name for case in cases] == ["p1", "p2"]
    assert len(section.glance("bern", tmp_path)) == 2
    told = [item.text for one in check_cases(cases) for item in one.findings if item.rule == "left_out"]
    kinds = "1 x hidden file, 1 x picture, 1 x program, 1 x text or table"
    what = f"folder 1 of 3 in the order of names has {kinds}, and no scan"
    assert told == [f"case bern-0000: beside the site's cases, {what}; it is left out"]


NO_VIEWER = {"empty": {}, "lost": {"IM0001": b""}, "volume": {"ct.nii.gz": b"MZ"}, "slice": {"a.dcm": b"<html>"}}


@pytest.mark.parametrize("files", NO_VIEWER.values(), ids=NO_VIEWER.keys())
def test_a_folder_that_may_be_a_patients_is_a_case_that_is_refused(tmp_path, files):
    a_case(tmp_path / "p1")
    (tmp_path / "p2").mkdir()
    for name, content in files.items():
        (tmp_path / "p2" / name).write_bytes(content)
    cases = read_patients(tmp_path, "bern")
    assert [one.usable for one in check_cases(cases)][1:] == [False]
