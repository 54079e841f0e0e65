"""Folders of images and masks, tables, zips and discs become the same cases as a datalist of them would."""

import json
import os
import shutil
import stat
import zipfile

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from harness.dicom_files import uid, write_series

from sahfl.data.checks import check_cases
from sahfl.data.ct import read_scan
from sahfl.data.sources import zipped
from sahfl.data.sources.folders import SiteScansFolder
from sahfl.data.sources.recognised import read_cases, recognise
from sahfl.errors import DataError, StorageError

AFFINE = np.diag([-2.0, -2.0, 5.0, 1.0])


def volume(number):
    return np.full((6, 7, 4), 20 + number, np.int16)


def mask(number):
    found = np.zeros((6, 7, 4), np.uint8)
    found[: number + 1, 2, 1] = 1
    return found


def write(folder, image, label=None, number=1):
    """An image and its mask; by their endings NIfTI, NRRD or MetaImage."""
    for name, voxels in ((image, volume(number)), (label, mask(number))):
        if name is None:
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith((".nii", ".nii.gz")):
            nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), folder / name)
        else:
            SimpleITK.WriteImage(itk_image(voxels), str(folder / name))


def itk_image(voxels):
    image = SimpleITK.GetImageFromArray(voxels.transpose(2, 1, 0))
    image.SetSpacing((2.0, 2.0, 5.0))
    return image


def found(path, into):
    """Of each case the numbers of its image and its mask, and its patient."""
    cases = read_cases(path, "bern", into)
    assert [case.id for case in cases] == [f"bern-{index:04d}" for index in range(len(cases))]
    scans = [(read_scan(case), case.patient) for case in cases]
    return [(int(scan.image[0, 0, 0]) - 20, int(scan.label.sum()) - 1, patient) for scan, patient in scans]


# --- a folder of images and masks -----------------------------------------------------------------------------------

SCHEMES = {
    "mask-behind": [("x.nii.gz", "x_mask.nii.gz", "x"), ("y.nii.gz", "y_mask.nii.gz", "y")],
    "seg-behind": [("x-1.nii", "x-1_seg.nii", "x-1"), ("x-2.nii", "x-2_seg.nii", "x-2")],
    "label-behind": [("x.nrrd", "x-label.nrrd", "x"), ("y.nrrd", "y-label.nrrd", "y")],
    "slicer": [("x.nrrd", "x.seg.nrrd", "x"), ("y.nrrd", "y Segmentation.nrrd", "y")],
    "mask-before": [("x.mha", "mask_x.mha", "x"), ("y.mha", "mask_y.mha", "y")],
    "image-and-label": [("ct_01.mha", "label_01.mha", "ct_01"), ("ct_02.mha", "label_02.mha", "ct_02")],
    "folders": [("images/x.nii.gz", "labels/x.nii.gz", "x"), ("images/y.nii.gz", "labels/y.nii.gz", "y")],
    "masks": [("images/x.nii", "masks/x_mask.nii", "x"), ("images/y.nii", "masks/y_mask.nii", "y")],
    "instance": [("data/001.nii.gz", "label/001.nii.gz", "001"), ("data/002.nii.gz", "label/002.nii.gz", "002")],
    "bhsd": [("images/ID_a1.nii.gz", "ground truths/ID_a1.nii.gz", "ID_a1")],
    "truths": [("x.nii.gz", "x_ground_truth.nii.gz", "x"), ("y.nii.gz", "y_GroundTruths.nii.gz", "y")],
    "nnunet-without-json": [("imagesTr/x_0000.nii.gz", "labelsTr/x.nii.gz", "x_0000")],
    "split": [("train/images/x.nii", "train/labels/x.nii", "train/x"),
              ("val/images/x.nii", "val/labels/x.nii", "val/x")],
    "patient-folders": [("p1/ct.nii.gz", "p1/mask.nii.gz", "p1"), ("p2/ct.nii.gz", "p2/mask.nii.gz", "p2")],
    "named-folders": [("p1/p1.nii.gz", "p1/p1_seg.nii.gz", "p1"), ("p2/p2.nii.gz", "p2/p2_seg.nii.gz", "p2")],
    "two-of-a-patient": [("sub-1_ses-1_ct.nii", "sub-1_ses-1_mask.nii", "sub-1"),
                         ("sub-1_ses-2_ct.nii", "sub-1_ses-2_mask.nii", "sub-1")],
    "bids": [("sub-01/ct/sub-01_ct.nii.gz", "sub-01/ct/sub-01_label-blood_mask.nii.gz", "sub-01"),
             ("sub-02/ct/sub-02_ct.nii.gz", "sub-02/ct/sub-02_label-blood_mask.nii.gz", "sub-02")],
    "bids-derivatives": [
        ("sub-01/ct/sub-01_ct.nii.gz", "derivatives/man/sub-01/ct/sub-01_space-orig_desc-man_mask.nii.gz", "sub-01")],
    "mixed-formats": [("x.nii.gz", "x_mask.seg.nrrd", "x"), ("y.mha", "y_mask.nii.gz", "y")],
    "blood": [("x.nii.gz", "x_ICH.nii.gz", "x"), ("y.nii.gz", "y_blood.nii.gz", "y")],
    "blood-mask": [("ICH_x.nii.gz", "ICH_x_seg.nii.gz", "ICH_x"), ("y.nii.gz", "y_ICH_seg.nii.gz", "y")],
    "masks-elsewhere": [("a/x.nii", "reader/segmentations/x.nii", "a/x"),
                        ("b/y.nii", "reader/segmentations/y.nii", "b/y")],
}  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_images_and_masks_are_paired_by_their_names(tmp_path, scheme):
    for number, (image, label, _) in enumerate(scheme, 1):
        write(tmp_path, image, label, number)
    (tmp_path / "notes.txt").write_text("no scan")
    assert recognise(tmp_path, "bern") == "pairs"
    assert found(tmp_path, tmp_path) == [(number, number, patient) for number, (_, _, patient) in enumerate(scheme, 1)]


def test_an_image_without_a_mask_is_a_case_whose_check_says_so(tmp_path):
    write(tmp_path, "x.nii.gz", "x_mask.nii.gz")
    write(tmp_path, "y.nii.gz", None)
    cases = read_cases(tmp_path, "bern", tmp_path)
    rules = [[broken.rule for broken in item.findings if broken.rule == "missing"] for item in check_cases(cases)]
    assert rules == [[], ["missing"]]
    write(tmp_path, str(cases[1].label.name), None, 2)  # the name that the check expects is one that is found
    nibabel.save(nibabel.Nifti1Image(mask(2), AFFINE), cases[1].label)
    assert [item[1] for item in found(tmp_path, tmp_path)] == [1, 2]


AMBIGUOUS = {
    "mask-of-nothing": ["z_mask.nii.gz"],
    "second-mask": ["x_seg.nii.gz"],
    "two-images-of-one-name": ["x_ct.nii.gz"],
}


@pytest.mark.parametrize("names", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_what_fits_no_single_image_is_refused_with_a_remedy_that_works(tmp_path, names):
    write(tmp_path, "x.nii.gz", "x_mask.nii.gz")
    write(tmp_path, "y.nii.gz", "y_mask.nii.gz", 2)
    for name in names:
        write(tmp_path, name, None)
    with pytest.raises(
        DataError, match=r"1 mask\(s\) fit no image, or .* beside .* that fit; name each mask"
    ) as caught:
        read_cases(tmp_path, "bern", tmp_path)
    assert "_mask.nii" not in str(caught.value)
    (tmp_path / "list.csv").write_text("image,mask,patient\nx.nii.gz,x_mask.nii.gz,p\ny.nii.gz,y_mask.nii.gz,q\n")
    assert found(tmp_path, tmp_path) == [(1, 1, "p"), (2, 2, "q")]


# --- DICOM and files in one folder ----------------------------------------------------------------------------------


def mixed(folder):
    """Patient 1 has DICOM, 2 a folder of NRRD, 3 files in the folder itself, 4 an image and a mask in two folders."""
    nibabel.save(nibabel.Nifti1Image(mask(1), AFFINE), write_study(folder / "p1", 1, "A") / "mask.nii")
    write(folder, "p2/ct.nrrd", "p2/ct.seg.nrrd", 2)
    write(folder, "p3.nii.gz", "p3_mask.nii.gz", 3)
    write(folder, "images/p4.mha", "masks/p4.mha", 4)
    return folder


def test_patients_with_dicom_and_patients_with_files_are_one_site(tmp_path):
    assert recognise(mixed(tmp_path / "site"), "bern") == "mixed"
    cases = found(tmp_path / "site", tmp_path)
    assert [case[:2] for case in cases] == [(4, 4), (1, 1), (2, 2), (3, 3)]
    assert [case[2] for case in cases if case[0] != 1] == ["p4", "p2", "p3"]
    assert found(zip_of(tmp_path / "site", tmp_path / "scans.zip"), tmp_path / "work") == cases
    scans = SiteScansFolder(path=tmp_path / "site", blood=(1,))
    assert {case.blood for case in scans.list_cases("bern", tmp_path, print)} == {(1,)}
    assert [case.image for case in scans.glance("bern", tmp_path)] == [
        case.image for case in read_cases(tmp_path / "site", "bern", tmp_path)
    ]


def test_nothing_in_a_mixed_folder_is_left_out_without_a_word(tmp_path):
    write(mixed(tmp_path), "p5/ct.nii", None, 5)
    write(tmp_path, "p6/mask.nii", None)
    (tmp_path / "p7").mkdir()
    cases = read_cases(tmp_path, "bern", tmp_path)
    checked = {item.case.image.parts[len(tmp_path.parts)]: item for item in check_cases(cases)}
    missing = {name: {broken.rule for broken in item.findings} for name, item in checked.items()}
    assert "missing" in missing["p5"]
    assert missing["p6"] == missing["p7"] == {"not_ct"}
    write(tmp_path, "p8_mask.nii", None)
    with pytest.raises(DataError, match=r"1 mask\(s\) fit no image, or .* beside 3 that fit"):
        read_cases(tmp_path, "bern", tmp_path)


def test_a_viewer_beside_the_patients_of_a_mixed_folder_is_left_out_and_named_as_beside_dicom_alone(tmp_path):
    cases = read_cases(mixed(tmp_path / "site"), "bern", tmp_path)
    viewer = tmp_path / "site" / "VIEWER of Muster"
    viewer.mkdir()
    (viewer / "autorun.exe").write_bytes(b"MZ\x90")
    (viewer / "INDEX.HTM").write_bytes(b"<html>")
    first, *others = read_cases(tmp_path / "site", "bern", tmp_path)
    assert [case.image for case in (first, *others)] == [case.image for case in cases]
    (left_out,) = first.left_out
    assert "and no scan" in left_out
    assert "Muster" not in left_out
    assert not any(case.left_out for case in others)


def test_a_slice_beside_the_folders_of_a_mixed_site_has_no_patient(tmp_path):
    (mixed(tmp_path) / "p1" / "ct-1-000.dcm").rename(tmp_path / "lost.dcm")
    with pytest.raises(DataError, match=r"got 1 DICOM file.s. beside the patients' folders, expected them in a folder"):
        read_cases(tmp_path, "bern", tmp_path)


def test_masks_that_lost_their_series_leave_a_folder_of_dicom(tmp_path):
    write_study(tmp_path / "p1", 1, "A")
    write(tmp_path, "p2/mask.nii", None)
    assert recognise(tmp_path, "bern") == "DICOM"


def test_a_list_beside_dicom_is_read_and_several_lists_are_refused(tmp_path):
    mixed(tmp_path)
    (tmp_path / "list.csv").write_text("image,mask,patient\np1,p1/mask.nii,x\np2/ct.nrrd,p2/ct.seg.nrrd,x\n")
    assert recognise(tmp_path, "bern") == "CSV"
    assert found(tmp_path, tmp_path) == [(1, 1, "x"), (2, 2, "x")]
    (tmp_path / "more.csv").write_text("image,mask\np3.nii.gz,p3_mask.nii.gz\n")
    with pytest.raises(DataError, match=r"got 2 lists of cases .list.csv, more.csv., expected one; write all cases"):
        recognise(tmp_path, "bern")
    assert recognise(tmp_path / "more.csv", "bern") == "CSV"  # as the text says


# --- a table --------------------------------------------------------------------------------------------------------

TABLES = {
    "plain": "image,label,patient,fold\nx.nii,m/x.nii,Å1,0\ny.nii,m/y.nii,p2,1\n".encode(),
    "semicolons": "Image;Mask;Patient ID;fold\r\nx.nii;m\\x.nii;Å1;0\r\n;;;\r\ny.nii;m\\y.nii;p2;1\r\n".encode(
        "cp1252"
    ),
    "tabs-and-mark": "fold\tsubject\tct\tseg\n0\tÅ1\tx.nii\tm/x.nii\n1\tp2\ty.nii\tm/y.nii".encode("utf-8-sig"),
    "utf-16": "image,mask,patient,fold\nx.nii,m/x.nii,Å1,0\ny.nii,m/y.nii,p2,1\n".encode("utf-16"),
    "quoted": '"image","why","mask","patient","fold"\n"x.nii","a,b","m/x.nii","Å1","0"\ny.nii,,m/y.nii,p2,1\n'.encode(),
}


@pytest.mark.parametrize("content", TABLES.values(), ids=TABLES.keys())
def test_a_table_lists_the_cases_whatever_wrote_it(tmp_path, content):
    write(tmp_path, "x.nii", "m/x.nii", 1)
    write(tmp_path, "y.nii", "m/y.nii", 2)
    (tmp_path / "list.csv").write_bytes(content)
    assert recognise(tmp_path / "list.csv", "bern") == "CSV"
    assert found(tmp_path / "list.csv", tmp_path) == [(1, 1, "Å1"), (2, 2, "p2")]
    assert [case.fold for case in read_cases(tmp_path / "list.csv", "bern", tmp_path)] == [0, 1]
    assert recognise(tmp_path, "bern") == "CSV"
    assert found(tmp_path, tmp_path) == [(1, 1, "Å1"), (2, 2, "p2")]


def test_a_datalist_with_windows_separators_names_the_same_files(tmp_path):
    write(tmp_path, "scans/x.nii", "m/x.nii", 1)
    entry = {"image": "scans\\x.nii", "label": "m\\x.nii", "patient": "p"}
    (tmp_path / "list.json").write_text(json.dumps({"sites": {"bern": [entry]}}))
    assert found(tmp_path / "list.json", tmp_path) == [(1, 1, "p")]


def test_a_table_of_diagnoses_beside_images_and_masks_is_no_list_of_them(tmp_path):
    write(tmp_path, "x.nii.gz", "x_mask.nii.gz")
    (tmp_path / "diagnoses.csv").write_text("image,label\nx.nii.gz,0\n")
    assert recognise(tmp_path, "bern") == "pairs"
    (tmp_path / "list.csv").write_text("image,label\nx.nii.gz,x_mask.nii.gz\n")
    assert recognise(tmp_path, "bern") == "CSV"


def test_a_file_of_a_series_in_a_table_is_refused_with_what_to_list_and_its_folder_is_read(tmp_path):
    write_study(tmp_path / "p1" / "ct", 1, "A")
    nibabel.save(nibabel.Nifti1Image(mask(1), AFFINE), tmp_path / "p1" / "mask.nii")
    (tmp_path / "list.csv").write_text("image,mask\np1/ct/ct-1-000.dcm,p1/mask.nii\n")
    (item,) = check_cases(read_cases(tmp_path / "list.csv", "bern", tmp_path))
    (error,) = [broken for broken in item.findings if broken.rule == "unreadable"]
    assert error.text.endswith("the image file is one of a DICOM series; list the folder of the series instead")
    (tmp_path / "list.csv").write_text("image,mask\np1/ct,p1/mask.nii\n")
    assert [case[:2] for case in found(tmp_path / "list.csv", tmp_path)] == [(1, 1)]


BAD_TABLES = {
    "no-mask-column": ("image,patient\nx.nii,p\n", "its first row has no column 'label' .or mask, seg"),
    "empty": ("", "no column 'image' .* and 'label'"),
    "no-rows": ("image,label\n", "expected at least one case below"),
    "outside": ("image,label\n../x.nii,x.nii\n", "line 2: image: leads out of the table's folder; put the table above"),
    "absolute": ("image,label\nx.nii,/etc/passwd\n", "line 2: label: leads out of the table's folder"),
    "drive": ("image,label\nx.nii,C:\\scans\\x.nii\n", "line 2: label: leads out of the table's folder"),
    "blank": ("image,label\nx.nii,\n", "line 2: label: is empty, expected a path"),
    "short": ("image,label\nx.nii\n", "line 2: has too few fields"),
    "fold": ("image,label,fold\nx.nii,y.nii,first\n", "line 2: fold: got 'first', expected a whole number"),
    "two-masks": ("image,mask,label\nx.nii,a.nii,b.nii\n", "several columns for label, expected one"),
    "binary": ("\udcff\udcfe\udcff", "is no text in UTF-8, UTF-16"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_a_faulty_table_is_refused_by_line(tmp_path, text, message):
    (tmp_path / "list.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=f"(?s)site bern: .*{message}|list.csv: .*{message}"):
        read_cases(tmp_path / "list.csv", "bern", tmp_path)


# --- a zip ----------------------------------------------------------------------------------------------------------


def zip_of(folder, path, *, inside=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, os.path.join(inside, file.relative_to(folder)))
    return path


@pytest.fixture
def source(tmp_path):
    write(tmp_path / "scans", "x.nii.gz", "x_mask.nii.gz", 1)
    write(tmp_path / "scans", "y.mha", "y_mask.mha", 2)
    return tmp_path / "scans"


@pytest.mark.parametrize("inside", ["", "export of 2024/bern"])
def test_a_zip_is_unpacked_once_into_the_sites_folder(source, tmp_path, inside):
    path, into = zip_of(source, tmp_path / "scans.zip", inside=inside), tmp_path / "work"
    assert recognise(path, "bern") == "zip"
    assert [item[:2] for item in found(path, into)] == [(1, 1), (2, 2)]
    files = {file: file.stat() for file in into.rglob("*.*") if file.is_file()}
    assert {stat.S_IMODE(of.st_mode) for of in files.values()} == {0o600}
    found(path, into)
    assert {file: file.stat().st_mtime_ns for file in files} == {file: of.st_mtime_ns for file, of in files.items()}
    write(source, "z.nii", "z_mask.nii", 3)
    assert len(found(zip_of(source, path, inside=inside), into)) == 3
    assert len(list((into / zipped.FOLDER).iterdir())) == 1  # the earlier state is gone


def test_a_zip_of_a_datalist_is_read_as_one(source, tmp_path):
    entries = [{"image": "x.nii.gz", "label": "x_mask.nii.gz", "patient": "p7"}]
    (source / "datalist.json").write_text(json.dumps({"training": entries}))
    assert found(zip_of(source, tmp_path / "scans.zip"), tmp_path / "work") == [(1, 1, "p7")]


def hostile(name, content=b"x", mode=0o644, **changed):
    def make(path):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            entry = zipfile.ZipInfo(name)
            entry.external_attr, entry.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
        if changed:
            raw = path.read_bytes()
            at = raw.rindex(b"PK\1\2")
            for place, value in changed["bytes_at"].items():
                raw = raw[: at + place] + value + raw[at + place + len(value) :]
            path.write_bytes(raw)

    return make


HOSTILE = {
    "out": (hostile("../x.nii"), "file 1 of 1 in it has a name that could lead out"),
    "deep-out": (hostile("a/../../x.nii"), "could lead out"),
    "absolute": (hostile("/tmp/x.nii"), "could lead out"),
    "windows": (hostile("..\\x.nii"), "could lead out"),
    "nameless": (hostile(""), "file 1 of 1 in it has a name that could lead out"),
    "link": (hostile("x.nii", b"/etc/passwd", stat.S_IFLNK | 0o777), "is a link or a device"),
    "encrypted": (hostile("x.nii", bytes_at={8: b"\1\0"}), "is encrypted; pack it again without a password"),
    "huge": (hostile("x.nii", bytes_at={24: b"\xff\xff\xff\xfe"}), "claims 4278190079 bytes, expected at most"),
    "damaged": (lambda path: path.write_bytes(b"PK\3\4 and no more"), "is no zip that can be unpacked here"),
}


@pytest.mark.parametrize(("make", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_zip_writes_nothing(tmp_path, make, message):
    make(tmp_path / "scans.zip")
    with pytest.raises(DataError, match=message):
        read_cases(tmp_path / "scans.zip", "bern", tmp_path / "work" / "site")
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [tmp_path / "scans.zip"]


def test_a_zip_that_claims_less_than_it_holds_writes_no_more_than_it_claims(tmp_path):
    hostile("x.nii", bytes(10_000_000), bytes_at={24: b"\x10\0\0\0"})(tmp_path / "scans.zip")
    with pytest.raises(DataError):
        read_cases(tmp_path / "scans.zip", "bern", tmp_path / "work")
    assert sum(path.stat().st_size for path in (tmp_path / "work").rglob("*") if path.is_file()) == 0


def test_a_zip_for_which_there_is_no_room_is_not_begun(source, tmp_path, monkeypatch):
    monkeypatch.setattr(zipped.shutil, "disk_usage", lambda path: _FULL)
    with pytest.raises(StorageError, match="make room, or unpack it by hand and name the folder"):
        read_cases(zip_of(source, tmp_path / "scans.zip"), "bern", tmp_path / "work")
    assert not list((tmp_path / "work").iterdir())


_FULL = shutil.disk_usage("/")._replace(free=10)


# --- a disc ---------------------------------------------------------------------------------------------------------


def write_study(folder, number, patient):
    def change(data, index):
        data.PatientID, data.StudyInstanceUID = patient, uid("study", number)
        data.FrameOfReferenceUID = uid("frame", number)

    write_series(folder, volume(number), AFFINE, change=change, series=f"ct-{number}")
    return folder


def test_the_studies_of_a_disc_are_cases_and_each_patient_is_one(tmp_path):
    for number, (place, patient) in enumerate([("PA0/ST0", "A"), ("PA0/ST1", "A"), ("PA1/ST0", "B")], 1):
        write_study(tmp_path / "DICOM" / place / "SE0", number, patient)
        nibabel.save(nibabel.Nifti1Image(mask(number), AFFINE), tmp_path / "DICOM" / place / "SE0" / "mask.nii")
    (tmp_path / "DICOMDIR").write_bytes(b"what a burner wrote, of other files")
    assert recognise(tmp_path, "bern") == recognise(tmp_path / "DICOMDIR", "bern") == "DICOM disc"
    cases = found(tmp_path, tmp_path / "work")
    assert {case[:2] for case in cases} == {(1, 1), (2, 2), (3, 3)}
    patients = {number: patient for number, _, patient in cases}
    assert patients[1] == patients[2] != patients[3]
    assert not (tmp_path / "work").exists()
    assert found(tmp_path / "DICOMDIR", tmp_path / "work") == cases


def test_a_study_of_a_disc_without_ct_is_left_out_and_counted(tmp_path):
    write_study(tmp_path / "a", 1, "A")
    nibabel.save(nibabel.Nifti1Image(mask(1), AFFINE), tmp_path / "a" / "mask.nii")
    for path in write_study(tmp_path / "b", 2, "B").iterdir():
        data = pydicom.dcmread(path)
        data.Modality = "MR"
        data.save_as(path)
    (tmp_path / "DICOMDIR").write_bytes(b"")
    (case,) = read_cases(tmp_path, "bern", tmp_path / "work")
    assert case.image == tmp_path / "a"
    (checked,) = check_cases([case])
    text = "case bern-0000: beside the site's cases, 1 of 2 studies of the disc hold no CT; it is left out"
    assert [item.text for item in checked.findings if item.rule == "left_out"] == [text]
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(DataError, match="got 1 studies without CT, expected head CT"):
        read_cases(tmp_path, "bern", tmp_path / "work")


def test_a_mask_may_lie_in_any_folder_that_is_of_its_study_alone(tmp_path):
    for number, place in ((1, "p1/a/b"), (2, "p2/a/b")):
        write_study(tmp_path / place, number, f"P{number}")
        nibabel.save(nibabel.Nifti1Image(mask(number), AFFINE), tmp_path / f"p{number}" / "mask.nii")
    (tmp_path / "DICOMDIR").write_bytes(b"")
    assert {case[:2] for case in found(tmp_path, tmp_path / "work")} == {(1, 1), (2, 2)}


def test_the_only_study_of_a_disc_may_lie_beside_its_list(tmp_path):
    write_study(tmp_path, 1, "P1")
    nibabel.save(nibabel.Nifti1Image(mask(1), AFFINE), tmp_path / "mask.nii")
    (tmp_path / "DICOMDIR").write_bytes(b"")
    assert [case[:2] for case in found(tmp_path, tmp_path / "work")] == [(1, 1)]
    assert not (tmp_path / "work").exists()


def test_studies_that_share_a_folder_are_sorted_into_the_sites_folder(tmp_path):
    for number, patient in ((1, "A"), (2, "B")):
        write_study(tmp_path / "IMAGES", number, patient)
    (tmp_path / "DICOMDIR").write_bytes(b"")
    cases = read_cases(tmp_path, "bern", tmp_path / "work")
    series = [read_scan_without_mask(case) for case in cases]
    assert sorted(int(image[0, 0, 0]) - 20 for image in series) == [1, 2]
    assert [image.shape for image in series] == [(6, 7, 4)] * 2
    assert len({case.patient for case in cases}) == 2
    assert all(case.image.is_relative_to(tmp_path / "work") for case in cases)
    assert read_cases(tmp_path, "bern", tmp_path / "work") == cases


def read_scan_without_mask(case):
    from sahfl.data.dicom import read_series

    return np.asarray(read_series(case.image).image.dataobj)


def test_a_disc_of_which_only_the_list_was_copied_is_refused(tmp_path):
    (tmp_path / "DICOMDIR").write_bytes(b"list")
    with pytest.raises(DataError, match="its files name no study; copy the whole disc, not only its DICOMDIR"):
        read_cases(tmp_path, "bern", tmp_path / "work")


@pytest.mark.parametrize("places", [("M\udcfcller.nii", "M\udcfcller_mask.nii"), ("\udcff/a.nii", "\udcff/a_mask.nii")])
def test_names_that_are_not_in_utf_8_are_refused_before_anything_is_written(tmp_path, places):
    (tmp_path / "scans").mkdir()
    for name in (*places, "b.nii", "b_mask.nii"):
        (tmp_path / "scans" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "scans" / name).touch()
    with pytest.raises(DataError, match=r"site bern: got 2 path\(s\) that are not in UTF-8, .*; rename them, [^/]*$"):
        read_cases(tmp_path / "scans", "bern", tmp_path / "site")
