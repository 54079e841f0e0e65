"""Which scans a folder, a datalist or a table stands for, and the names of their results."""

import json
import zipfile

import pytest
from harness.dicom_files import uid, write_series
from harness.finished_run import phantom_hu, write_scan

from sahfl.data.convert import find_scans
from sahfl.errors import DataError
from sahfl.prediction.scan_list import list_scans

IMAGE, LABEL, AFFINE = phantom_hu()
SMALL = IMAGE[:8, :8, :2]


def names(path, **options):
    found = list_scans(path, **options)
    return None if found is None else [wish.case for wish in found]


def volumes(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"a volume")


def patient(folder, study):
    def of_study(data, index):
        data.StudyInstanceUID = uid(study)

    write_series(folder, SMALL, AFFINE, change=of_study, series=study)


def test_volumes_in_a_folder_are_scans(tmp_path):
    volumes(tmp_path, "b.nii.gz", "a.NII", "c.nrrd", ".hidden.nii", "notes.txt")
    assert names(tmp_path) == ["a", "b", "c"]


def test_folders_of_several_studies_are_scans_and_those_of_one_are_parts_of_it(tmp_path):
    patient(tmp_path / "one" / "series", "first")
    patient(tmp_path / "one" / "again", "first")
    assert names(tmp_path / "one") is None
    patient(tmp_path / "two", "second")
    assert names(tmp_path) == ["one", "two"]
    assert names(tmp_path / "two") is None
    assert names(tmp_path / "one", each=True) == ["again", "series"]


def test_the_studies_of_a_disc_are_scans_and_those_that_share_a_folder_are_converted_first(tmp_path):
    for name in ("first", "second"):
        patient(tmp_path / "disc" / "DICOM" / name, name)
    (tmp_path / "disc" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    for path in (tmp_path / "disc", tmp_path / "disc" / "DICOMDIR"):
        assert sorted(names(path)) == ["first", "second"]
    (tmp_path / "disc" / "DICOM" / "second").rename(tmp_path / "away")
    assert names(tmp_path / "disc") is None
    assert names(tmp_path / "disc" / "DICOMDIR") == ["disc"]
    patient(tmp_path / "disc" / "DICOM" / "first", "second")
    with pytest.raises(DataError, match=r"2 studies share a folder; write each as a scan of its own \(sahfl convert\)"):
        list_scans(tmp_path / "disc")
    assert len(find_scans(tmp_path / "disc", tmp_path / "work")) == 2
    assert len(find_scans(tmp_path / "disc" / "DICOMDIR", tmp_path / "work")) == 2


def test_volumes_beside_the_slices_of_a_patient_are_annotations(tmp_path):
    patient(tmp_path / "loose", "first")
    volumes(tmp_path / "loose", "mask.nii.gz")
    assert names(tmp_path / "loose") is None
    patient(tmp_path / "deep" / "series", "first")
    volumes(tmp_path / "deep", "mask.nii.gz", "second.nii.gz", "annotations/third.nii.gz")
    assert names(tmp_path / "deep") is None


def test_folders_with_a_volume_each_are_scans(tmp_path):
    volumes(tmp_path, "p1/ct.nii.gz", "p2/deep/ct.nii.gz", "p3/a.nii", "p3/b.nii")
    assert [(wish.case, wish.path.relative_to(tmp_path).as_posix()) for wish in list_scans(tmp_path)] == [
        ("p1", "p1/ct.nii.gz"),
        ("p2", "p2/deep/ct.nii.gz"),
        ("p3", "p3"),
    ]
    first, _, third = list_scans(tmp_path)
    assert first.problem == ""
    assert third.problem.startswith("got a folder of 2 volumes without DICOM, expected one scan; predict this folder")
    assert names(tmp_path / "p3") == ["a", "b"]  # as the text says


ANNOTATED = {
    "flat": (["a.nii.gz", "a_mask.nii.gz", "b.nrrd", "b.seg.nrrd"], ["a", "b"]),
    "patients": (["p1/ct.nii", "p1/mask.nii", "p2/ct.mha", "p2/label.mha"], ["p1", "p2"]),
    "one-patient": (["ct.nii", "mask.nii"], ["ct"]),
    "folder-of-masks": (["a.nii", "b.nii", "labels/a.nii", "labels/b.nii"], ["a", "b"]),
    "mask-without-image": (["a.nii", "a_mask.nii", "c_mask.nii"], ["a", "c_mask"]),
}


@pytest.mark.parametrize(("files", "cases"), ANNOTATED.values(), ids=ANNOTATED.keys())
def test_a_mask_beside_its_image_is_no_scan(tmp_path, files, cases):
    volumes(tmp_path, *files)
    assert names(tmp_path) == cases
    assert not [wish for wish in list_scans(tmp_path) if wish.problem]
    everything = list_scans(tmp_path, each=True)
    assert len(everything) == len({path.split("/")[0] for path in files})


def test_patients_with_series_and_patients_with_files_are_scans_side_by_side(tmp_path):
    patient(tmp_path / "p1" / "ct", "first")
    patient(tmp_path / "p2", "second")
    volumes(tmp_path, "p1/mask.nii.gz", "p3/ct.nii.gz", "p3/mask.nii.gz", "p4.mha", "p4_mask.mha")
    assert names(tmp_path) == ["p1", "p2", "p3", "p4"]


def test_the_patients_of_a_disc_are_scans(tmp_path):
    patient(tmp_path / "DICOM" / "PA0" / "ST0", "first")
    patient(tmp_path / "DICOM" / "PA1" / "ST0", "second")
    first = next((tmp_path / "DICOM" / "PA0" / "ST0").iterdir())
    (tmp_path / "DICOMDIR").write_bytes(first.read_bytes())  # as a real one, it begins like any DICOM file
    assert names(tmp_path) == names(tmp_path / "DICOMDIR") == ["PA0", "PA1"]


def test_a_zip_is_refused_with_what_to_do(tmp_path):
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.writestr("a.nii", b"a volume")
    for each in (True, False):
        with pytest.raises(DataError, match=r"scans.zip: is a zip, expected scans; unpack it, and predict the folder"):
            list_scans(tmp_path / "scans.zip", each=each)


def test_a_file_is_one_scan(tmp_path):
    assert list_scans(write_scan(tmp_path / "scan.nii.gz", SMALL, AFFINE)) is None
    assert list_scans(tmp_path / "missing.nii") is None  # its reader says that nothing is there


LISTS = {
    "sites": {"sites": {"a": [{"image": "a/1.nii"}], "b": [{"image": "b/2.nii", "label": "m.nii"}]}},
    "monai": {"training": [{"image": ["a/1.nii"], "label": "m.nii"}], "validation": ["b/2.nii"]},
}


@pytest.mark.parametrize("content", LISTS.values(), ids=LISTS.keys())
def test_every_scan_of_a_datalist_counts_and_needs_no_annotation(tmp_path, content):
    (tmp_path / "list.json").write_text(json.dumps(content))
    found = list_scans(tmp_path / "list.json")
    assert [(wish.case, wish.path) for wish in found] == [("1", tmp_path / "a/1.nii"), ("2", tmp_path / "b/2.nii")]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_names_scans_and_cases(tmp_path, separator):
    rows = [["case", "image"], ["P 1", "a.nii"], ["", "b.nii"]]
    (tmp_path / "list.csv").write_text("\ufeff" + "".join(separator.join(row) + "\r\n" for row in rows))
    found = list_scans(tmp_path / "list.csv")
    assert [(wish.case, wish.path) for wish in found] == [("P_1", tmp_path / "a.nii"), ("b", tmp_path / "b.nii")]


@pytest.mark.parametrize("column", ["image", "Images", "ct", "img", "scan", "path"])
def test_a_table_that_trains_predicts_too_with_its_columns_and_windows_separators(tmp_path, column):
    (tmp_path / "list.csv").write_text(f"{column};mask\r\nscans\\p1\\ct.nii;scans\\p1\\mask.nii\r\n")
    assert [wish.path for wish in list_scans(tmp_path / "list.csv")] == [tmp_path / "scans" / "p1" / "ct.nii"]
    (tmp_path / "list.json").write_text(json.dumps({"test": [{"image": "scans\\p1\\ct.nii"}]}))
    assert [wish.path for wish in list_scans(tmp_path / "list.json")] == [tmp_path / "scans" / "p1" / "ct.nii"]


def test_equal_names_are_told_apart_by_their_folders_and_then_by_a_hash(tmp_path):
    rows = ["image", "p1/ct.nii", "p2/ct.nii", "x/p2/CT.nii", "other.nii"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    first, second, third, other = names(tmp_path / "list.csv")
    assert (first, other) == ("p1_ct", "other")
    assert second.startswith("p2_ct-")
    assert third.startswith("p2_CT-")
    assert second.lower() != third.lower()


def test_no_name_leads_out_of_the_folder_of_results(tmp_path):
    (tmp_path / "list.csv").write_text("case,image\n../../etc,a.nii\n..,b.nii\n/abs/x,c.nii\n")
    found = names(tmp_path / "list.csv")
    assert found == ["_.._etc", "scan", "_abs_x"]


def test_an_nnunet_folder_gives_its_images_without_its_annotations(tmp_path):
    volumes(tmp_path, "dataset.json", "imagesTr/c_0000.nii.gz", "labelsTr/c.nii.gz", "imagesTs/d_0000.nii.gz")
    assert names(tmp_path) == ["c_0000", "d_0000"]


WRONG = {
    "no-column": ("list.csv", "name,file\n1,2\n", "expected one named image, scan or path"),
    "empty-cell": ("list.csv", "image,x\na.nii,1\n,2\n", "line 3 has no text under image"),
    "twice": ("list.csv", "image\na.nii\na.nii\n", "listed more than once"),
    "no-rows": ("list.csv", "image\n", "got 0 scans"),
    "binary": ("list.csv", b"\xff\xfe\xff", "is no text in UTF-8, UTF-16 or Windows-1252"),
    "endless-field": ("list.csv", 'image\n"' + "a" * 200_000, "line 2: is no row of a table"),
    "no-lists": ("list.json", "{}", "got no lists of scans"),
    "no-image": ("list.json", '{"test": [{"label": "a"}]}', "case 0: got no text under image"),
    "no-json": ("list.json", "image", "is not JSON"),
}


@pytest.mark.parametrize(("name", "content", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_faulty_list_is_one_error_that_names_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        list_scans(tmp_path / name)


def test_a_name_that_no_disk_takes_is_a_scan_that_cannot_be_read(tmp_path):
    (tmp_path / "list.csv").write_text(f"image\n{'a' * 300}.nii\nb.nii\n")
    assert names(tmp_path / "list.csv") == ["a" * 100, "b"]


def test_each_needs_a_folder_or_a_list(tmp_path):
    with pytest.raises(DataError, match=r"no such file or folder\), expected a folder of scans or a list"):
        list_scans(tmp_path / "none", each=True)
