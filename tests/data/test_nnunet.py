"""nnU-Net raw folders and MONAI datalists: cases, patients, folds, and what is refused."""

import json
import re

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK

from sahfl.data.ct import read_scan
from sahfl.data.labels import is_blood
from sahfl.data.manifest import Case, declared_folds, patient_of, read_datalist
from sahfl.data.nnunet import read_nnunet
from sahfl.errors import DataError, ScanProblem

NAMES = ("ICH_001", "ICH_002", "sub-07_ses-1", "sub-07_ses-2")
DATASET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "IPH": 1, "subarachnoid_hemorrhage": 2},
    "numTraining": 4,
    "file_ending": ".nii.gz",
}
SPLITS = [
    {"train": ["ICH_002", "sub-07_ses-1", "sub-07_ses-2"], "val": ["ICH_001"]},
    {"train": ["ICH_001", "ICH_002"], "val": ["sub-07_ses-1", "sub-07_ses-2"]},
    {"train": ["ICH_001", "sub-07_ses-1", "sub-07_ses-2"], "val": ["ICH_002"]},
]


def raw_folder(folder, *, splits=None, names=NAMES, **changes):
    """A raw folder of empty files (the cases are listed, not read)."""
    for part, tail in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz"), ("imagesTs", "_0000.nii.gz")):
        (folder / part).mkdir(parents=True)
        for name in names:
            (folder / part / f"{name}{tail}").write_bytes(b"")
    settings = {key: value for key, value in (DATASET | changes).items() if value is not None}
    (folder / "dataset.json").write_text(json.dumps(settings))
    if splits is not None:
        (folder / "splits_final.json").write_text(json.dumps(splits))
    return folder


# --- the folder -----------------------------------------------------------------------------------------------------


def test_cases_come_in_the_order_of_their_names_with_their_files_and_patients(tmp_path):
    cases = read_nnunet(raw_folder(tmp_path / "raw"), "bern")
    assert cases[0] == Case(
        "bern-0000",
        tmp_path / "raw" / "imagesTr" / "ICH_001_0000.nii.gz",
        tmp_path / "raw" / "labelsTr" / "ICH_001.nii.gz",
        "ICH_001",
        None,
        patient_from_name=True,
        declared=(1, 2),
        by_value=True,
    )
    assert [case.patient for case in cases] == ["ICH_001", "ICH_002", "sub-07", "sub-07"]
    assert declared_folds(cases, n_folds=3) is None


AFFINE = np.array([[-0.5, 0, 0, 12.0], [0, -0.5, 0, 15.0], [0, 0, 5.0, -40.0], [0, 0, 0, 1]])
BLOOD = {None: 5, ("IPH",): 2, ("subarachnoid_hemorrhage",): 3, (2,): 3}
"""Voxels of the annotation by the labels that a site names."""


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize(("blood", "voxels"), BLOOD.items())
def test_the_same_scan_is_read_from_every_format_of_nnunet(tmp_path, ending, blood, voxels):
    image = np.random.default_rng(0).integers(-1000, 2000, (8, 10, 4)).astype(np.int16)
    label = np.zeros(image.shape, np.uint8)
    label[1, 2:4, 1], label[6, 3:6, 2] = 1, 2
    folder = raw_folder(tmp_path, names=(), numTraining=1, file_ending=ending)
    for name, part in ((f"imagesTr/a_0000{ending}", image), (f"labelsTr/a{ending}", label)):
        if ending.startswith(".nii"):
            nibabel.save(nibabel.Nifti1Image(part, AFFINE), folder / name)
        else:
            write_itk(folder / name, part)
    (case,) = read_nnunet(folder, "bern", blood)
    scan = read_scan(case)
    np.testing.assert_array_equal(scan.image, image[::-1, ::-1])
    np.testing.assert_allclose(scan.affine[:3, 3], [8.5, 10.5, -40.0])
    assert int(scan.label.sum()) == voxels
    assert scan.label[6, 7, 1] == (blood in (None, ("IPH",)))


def write_itk(path, voxels):
    """As SimpleITK, nnU-Net's reader of these formats, writes a volume of ``AFFINE``."""
    image = SimpleITK.GetImageFromArray(voxels.transpose(2, 1, 0))
    image.SetSpacing((0.5, 0.5, 5.0))
    image.SetOrigin((-12.0, -15.0, -40.0))
    SimpleITK.WriteImage(image, str(path))


def test_values_decide_in_nnunet_whatever_a_file_names_its_segments(tmp_path):
    folder = raw_folder(tmp_path, names=(), numTraining=1, file_ending=".nrrd")
    label = np.zeros((8, 10, 4), np.uint8)
    label[1, 2:4, 1], label[6, 3:6, 2] = 1, 2
    write_itk(folder / "imagesTr" / "a_0000.nrrd", label.astype(np.int16))
    header = {"space": "left-posterior-superior", "space directions": np.diag([0.5, 0.5, 5.0])}
    header |= {"space origin": [-12.0, -15.0, -40.0], "Segment0_Name": "ventricle", "Segment0_LabelValue": "2"}
    nrrd.write(str(folder / "labelsTr" / "a.nrrd"), label, header | {"Segment1_Name": "x", "Segment1_LabelValue": "1"})
    for blood, voxels in BLOOD.items():
        (case,) = read_nnunet(folder, "bern", blood)
        assert int(read_scan(case).label.sum()) == voxels


def test_the_splits_name_each_case_s_fold(tmp_path):
    cases = read_nnunet(raw_folder(tmp_path / "raw", splits=SPLITS), "bern")
    assert [case.fold for case in cases] == [0, 2, 1, 1]
    assert declared_folds(cases, n_folds=3) == {"ICH_001": 0, "ICH_002": 2, "sub-07": 1}


def test_D03_splits_with_a_patient_in_two_folds_are_refused(tmp_path):
    splits = [{"train": [], "val": list(NAMES[:3])}, {"train": [], "val": list(NAMES[3:])}]
    cases = read_nnunet(raw_folder(tmp_path / "raw", splits=splits), "bern")
    with pytest.raises(DataError, match="its patient is also in fold 0, expected one fold"):
        declared_folds(cases, n_folds=2)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_a_case_of_the_folder_is_read_as_any_nifti_scan(tmp_path, ending):
    folder = raw_folder(tmp_path / "raw", names=(), numTraining=1, file_ending=ending)
    volume, affine = np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([-0.5, -0.5, 5.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(volume, affine), folder / "imagesTr" / f"a_0000{ending}")
    nibabel.save(nibabel.Nifti1Image((volume > 56).astype(np.uint8) * 2, affine), folder / "labelsTr" / f"a{ending}")
    (case,) = read_nnunet(folder, "bern")
    scan = read_scan(case)
    np.testing.assert_array_equal(scan.image, volume[::-1, ::-1])
    assert scan.volume_ml == pytest.approx(3 * 0.5 * 0.5 * 5 / 1000)


def test_D01_an_image_without_its_label_is_a_case_that_says_so(tmp_path):
    folder = raw_folder(tmp_path / "raw")
    (folder / "labelsTr" / "ICH_002.nii.gz").unlink()
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)), folder / "imagesTr/ICH_002_0000.nii.gz")
    cases = read_nnunet(folder, "bern")
    assert len(cases) == 4
    with pytest.raises(ScanProblem, match="case bern-0001: the label file is missing"):
        read_scan(cases[1])


REGIONS = {"background": 0, "whole": [1, 2, 3], "hemorrhage": [1, 3], "edema": 2}


@pytest.mark.parametrize(
    ("labels", "blood", "expected"),
    [
        ({"background": 0, "blood": [1, 2]}, None, (None, (1, 2))),
        ({"background": 0, "blood": [1, 2], "sah": 1}, None, (None, (1, 2))),
        (REGIONS, ("hemorrhage",), ((1, 3), (1, 2, 3))),
        (REGIONS, (3,), ((3,), (1, 2, 3))),
        (REGIONS, ("hemorrhage", "edema"), ((1, 3, 2), (1, 2, 3))),
        (REGIONS, ("whole", 2), ((1, 2, 3), (1, 2, 3))),
        ({"background": 0, "SAH": 1, "sah": 2}, ("sah",), ((2,), (1, 2))),
    ],
)
def test_a_region_stands_for_all_its_values(tmp_path, labels, blood, expected):
    case = read_nnunet(raw_folder(tmp_path / "raw", labels=labels), "bern", blood)[0]
    assert (case.blood, case.declared) == expected


def test_a_region_with_a_part_that_is_no_blood_is_refused_with_a_remedy_that_works(tmp_path):
    folder = raw_folder(tmp_path / "raw", labels={"background": 0, "hemorrhage": [1, 2], "edema": 2})
    remedy = "if it is blood too: blood: [hemorrhage, edema]; if not, the values that are: blood: [1]"
    text = f"blood: 'hemorrhage' holds 2, which is 'edema'; {remedy}"
    with pytest.raises(DataError, match=re.escape(text)):
        read_nnunet(folder, "bern", ("hemorrhage",))
    assert read_nnunet(folder, "bern", (1,))[0].blood == (1,)
    assert read_nnunet(folder, "bern", ("hemorrhage", "edema"))[0].blood == (1, 2)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (
            {"sah": [1, 2], "edema": [2, 3]},
            "'sah' holds 2, which is 'edema'; if .* if not, the values that are: blood: \\[1\\]",
        ),
        (
            {"sah": [1, 2], "edema": 1, "tumor": 2},
            r"'sah' holds 2, which is 'tumor'; if it is blood too: blood: \[sah, edema, tumor\]$",
        ),
        (
            {"sah": [1, 2, 3], "edema": 2, "tumor": 3},
            r"(?s)holds 2, which is 'edema'; if .* blood: \[1\]\n.*holds 3, which is 'tumor'; if .* blood: \[1\]$",
        ),
        ({"SAH": 1, "Sah": 2}, "blood: 'sah' is the name of several labels, SAH, Sah; give their values"),
    ],
)
def test_no_value_with_two_meanings_counts_as_blood_and_no_label_is_lost(tmp_path, labels, text):
    folder = raw_folder(tmp_path / "raw", labels={"background": 0} | labels)
    with pytest.raises(DataError, match=text):
        read_nnunet(folder, "bern", ("sah",))


WRONG = {
    "two-channels": ({"channel_names": {"0": "CT", "1": "CT"}}, "channel_names: got .*'1'.*, expected one channel, CT"),
    "magnetic-resonance": ({"channel_names": {"0": "T1"}}, "channel_names: got .*T1.*, expected one channel, CT"),
    "no-channels": ({"channel_names": None, "modality": {"0": "CT"}}, "channel_names: missing; .* version 1"),
    "pictures": ({"file_ending": ".png"}, "file_ending: got '.png', expected one of .nii.gz, .nii, .nrrd, .mha"),
    "no-labels": ({"labels": None}, "labels: got null, expected {'background': 0, name: value"),
    "background-1": ({"labels": {"background": 1, "sah": 2}}, "labels: got .*expected {'background': 0"),
    "only-background": ({"labels": {"background": 0}}, "labels: got .*expected {'background': 0"),
    "region-of-nothing": ({"labels": {"background": 0, "blood": []}}, r"labels.blood: got \[\], .*or a list of some"),
    "region-of-0": ({"labels": {"background": 0, "blood": [0, 1]}}, r"labels.blood: got \[0, 1\], expected a whole"),
    "region-twice": ({"labels": {"background": 0, "sah": [1, 2], "sdh": [1, 2]}}, r"value \[1, 2\] is given twice"),
    "region-and-oedema": ({"labels": {"background": 0, "sah": [1, 2], "edema": 2}}, "labels.edema: is not named as"),
    "version-1-labels": ({"labels": {"background": 0, "blood": "1"}}, "labels.blood: got '1', expected a whole number"),
    "region-of-the-same-values": (
        {"labels": {"background": 0, "sah": [1, 2], "sdh": [2, 1]}},
        r"value \[1, 2\] is given twice",
    ),
    "region-of-one-label": ({"labels": {"background": 0, "sah": 1, "sdh": [1, 1]}}, "value 1 is given twice"),
    "true": ({"labels": {"background": 0, "blood": True}}, "labels.blood: got true, expected a whole number"),
    "twice": ({"labels": {"background": 0, "sah": 1, "sdh": 1}}, "labels: value 1 is given twice"),
    "oedema": (
        {"labels": {"background": 0, "sah": 1, "edema": 2}},
        r"labels.edema: is not named as blood; name those that are in the data section .* \(blood: \[sah\]\)",
    ),
    "ignore": ({"labels": {"background": 0, "sah": 1, "ignore": 2}}, "labels.ignore: is not named as blood"),
    "count": ({"numTraining": 5}, r"numTraining: got 5, found 4 case\(s\)"),
    "listed-files": ({"dataset": {}}, "dataset: files listed in dataset.json are not read"),
    "other-case": ({"splits": [{"train": [], "val": ["x", *NAMES]}]}, r"0 case\(s\) are in no val list, 1 are not in"),
    "case-without-fold": ({"splits": SPLITS[:2]}, r"1 case\(s\) are in no val list, 0 are not in the folder"),
    "two-folds": ({"splits": [*SPLITS, SPLITS[0]]}, "case 'ICH_001' is in val of splits 0 and 3"),
    "trained-and-held-out": ({"splits": [{"train": ["ICH_001"], "val": NAMES}]}, r"1 case\(s\) are in train and"),
    "split-without-val": ({"splits": [{"train": NAMES}]}, "split 0: expected lists 'train' and 'val'"),
    "splits-mapping": ({"splits": {}}, "splits_final.json: got dict, expected list"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_no_ct_hemorrhage_dataset_is_refused_by_key(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        read_nnunet(raw_folder(tmp_path / "raw", **changes), "bern")


def test_all_problems_are_in_one_message(tmp_path):
    folder = raw_folder(tmp_path / "raw", numTraining=1, file_ending=".mhd", channel_names={"0": "PET"})
    with pytest.raises(DataError, match=r"(?s)3 problem\(s\)\n.*channel_names.*\n.*file_ending.*\n.*numTraining"):
        read_nnunet(folder, "bern")


@pytest.mark.parametrize("content", ["{", "\udcff", "[]", "[" * 100_000])
def test_B07_a_dataset_json_that_is_none_is_refused(tmp_path, content):
    folder = raw_folder(tmp_path / "raw")
    (folder / "dataset.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=r"dataset\.json: (is not JSON|got list, expected dict)"):
        read_nnunet(folder, "bern")


def test_a_second_channel_s_file_is_refused_and_hidden_files_are_not_files(tmp_path):
    folder = raw_folder(tmp_path / "raw")
    (folder / "imagesTr" / ".DS_Store").write_bytes(b"")
    assert len(read_nnunet(folder, "bern")) == 4
    (folder / "imagesTr" / "ICH_001_0001.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"imagesTr: 1 file\(s\) do not end in _0000.nii.gz"):
        read_nnunet(folder, "bern")


def test_a_folder_without_images_is_refused(tmp_path):
    folder = raw_folder(tmp_path / "raw", names=(), numTraining=0)
    with pytest.raises(DataError, match="imagesTr: holds no case"):
        read_nnunet(folder, "bern")
    (folder / "labelsTr").rmdir()
    with pytest.raises(DataError, match="labelsTr: No such file or directory"):
        read_nnunet(folder, "bern")


# --- patients and labels by name ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "patient"),
    [("sub-012_ses-2", "sub-012"), ("sub-012", "sub-012"), ("sub-012_run-1_ct", "sub-012")],
)
def test_a_bids_name_has_the_patient(name, patient):
    assert patient_of(name) == (patient, False)


@pytest.mark.parametrize("name", ["sub-0x.1_a", "subject-1_2", "ICH_012_2", "135014"])
def test_any_other_name_is_a_patient_of_its_own(name):
    assert patient_of(name) == (name, True)


def test_patients_json_names_the_patient_of_each_case(tmp_path):
    folder = raw_folder(tmp_path / "raw")
    patients = {"ICH_001": "p1", "ICH_002": "p1", "sub-07_ses-1": "p2", "sub-07_ses-2": "p3"}
    (folder / "patients.json").write_text(json.dumps(patients))
    cases = read_nnunet(folder, "bern")
    assert [(case.patient, case.patient_from_name) for case in cases] == [(name, False) for name in patients.values()]


@pytest.mark.parametrize(
    ("patients", "message"),
    [
        ({"ICH_001": "p1", "x": "p2"}, r"patients.json: 3 case\(s\) have no patient, 1 are not in the folder"),
        (dict.fromkeys(NAMES, 7), r"patients.json: 4 case\(s\) have something else than a text as patient"),
        (dict.fromkeys(NAMES, " "), r"patients.json: 4 case\(s\) have something else than a text as patient"),
        ([], "patients.json: got list, expected dict"),
    ],
)
def test_a_wrong_patients_json_is_refused_without_names(tmp_path, patients, message):
    folder = raw_folder(tmp_path / "raw")
    (folder / "patients.json").write_text(json.dumps(patients))
    with pytest.raises(DataError, match=message):
        read_nnunet(folder, "bern")


@pytest.mark.parametrize(
    ("name", "expected"),
    [(name, True) for name in ("IPH", "sah", "SDH_acute", "Hemorrhage", "haemorrhage", "hematoma", "Haematoma", "blood",
                               "intracranial bleeding", "contusion", "Intraventricular", "subdural", "EDH-left",
                               "Blutung", "Hirnblutung", "Hämatom", "Haematom", "SAB links", "ICB", "Kontusion",
                               "Subduralhämatom", "HÄMORRHAGIE", "hémorragie", "hématome sous-dural", "saignement",
                               "contusion hémorragique", "hemorragia", "hemorragia superior", "hematoma", "sangrado",
                               "hemorragia subaracnoidea", "emorragia", "ematoma", "ematoma extradurale", "Blut",
                               "emorragia intraparenchimale", "intrazerebrale Blutung", "He\u0301morragie",
                               "subarachnoid space hemorrhage", "blood at an intraventricular drain")]
    + [(name, False) for name in ("", "edema", "perihematomal edema", "ventricle", "brain", "ignore", "lesion", "tumor",
                                  "subdural hygroma", "blood vessel", "no hemorrhage", "which", "Segment_1", "rich",
                                  "Ödem", "Oedem", "Perihämatomödem", "œdème périhématome", "Blutgefäß",
                                  "keine Blutung", "subdural empyema", "Epiduralabszess", "epidural abscess",
                                  "intraventricular catheter", "Intraventrikuläre Drainage", "subarachnoid space",
                                  "subdural strip electrode", "intracerebral tumor", "intraventricular CSF",
                                  "sans hémorragie", "sin sangrado", "senza emorragia", "edema perilesional", "vaso",
                                  "infarto", "Infarkt", "Hygrom", "ventricolo", "cerveau", "Schädel", "Liquor")],
)  # fmt: skip
def test_only_names_of_blood_are_blood(name, expected):
    assert is_blood(name) is expected


# --- MONAI datalists ------------------------------------------------------------------------------------------------


def datalist(folder, **content):
    path = folder / "list.json"
    path.write_text(json.dumps(content))
    return path


def test_a_monai_datalist_is_one_site_s_cases(tmp_path):
    entries = [
        {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz", "fold": 1},
        {"image": "b.nii", "label": "b_mask.nii", "fold": 0, "patient": "p7"},
        {"image": "sub-3_ses-1.nii.gz", "label": "c.nii.gz", "fold": 0},
    ]
    path = datalist(tmp_path, training=entries, testing=["x.nii.gz"], name="ours")
    assert read_datalist(path, "bern") == (
        Case(
            "bern-0000", tmp_path / "imagesTr/a.nii.gz", tmp_path / "labelsTr/a.nii.gz", "a", 1, patient_from_name=True
        ),
        Case("bern-0001", tmp_path / "b.nii", tmp_path / "b_mask.nii", "p7", 0),
        Case("bern-0002", tmp_path / "sub-3_ses-1.nii.gz", tmp_path / "c.nii.gz", "sub-3", 0),
    )


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ([], "expected a list with at least one case"),
        ({"a": 1}, "expected a list with at least one case"),
        ([3], "case 0: got int, expected a mapping with image, label and patient"),
        ([{"image": ["a", "b"], "label": "c"}], "case 0: expected text under image, patient"),
        ([{"image": "a"}], "case 0: expected text under label"),
        ([{"image": "a", "label": "b", "fold": "0"}], "case 0: fold must be a whole number, got '0'"),
    ],
)
def test_a_wrong_monai_datalist_is_refused_naming_the_entry(tmp_path, training, message):
    with pytest.raises(DataError, match=message):
        read_datalist(datalist(tmp_path, training=training), "bern")
