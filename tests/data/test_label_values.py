"""Which values of an annotation are blood: those that the list of cases declares, or that the site names."""

import json

import nibabel
import numpy as np
import pytest
from harness.dicom_files import write_series
from harness.one_case import check_case
from test_checks import a_case, blood, head

from sahfl.data.checks import check_cases, verify_unchanged
from sahfl.data.manifest import read_datalist
from sahfl.data.nnunet import read_nnunet
from sahfl.data.sources.datalist import SiteScansDatalist, StudyScansDatalist
from sahfl.data.sources.folders import SiteScansFolder, StudyScansFolders
from sahfl.data.sources.recognised import read_cases
from sahfl.errors import DataError

VOXEL_ML = 0.005
TWO = blood() + 3 * blood(np.s_[12:14, 12:14, 4])  # 12 voxels of value 1, 4 voxels of value 3


def nnunet(folder, labels, label=TWO):
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    affine = np.diag([1.0, 1, 5, 1])
    nibabel.save(nibabel.Nifti1Image(head(), affine), folder / "imagesTr" / "a_0000.nii")
    nibabel.save(nibabel.Nifti1Image(label, affine), folder / "labelsTr" / "a.nii")
    settings = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii"}
    (folder / "dataset.json").write_text(json.dumps(settings))
    return folder


def datalist(folder, labels=None, label=TWO):
    folder.mkdir(exist_ok=True)
    case = a_case(folder, label=label)
    entry = {"image": case.image.name, "label": case.label.name, "patient": "p"}
    content = {"sites": {"bern": [entry]}} | ({} if labels is None else {"labels": labels})
    path = folder / "list.json"
    path.write_text(json.dumps(content))
    return path


def checked(path, chosen=None):
    (case,) = read_cases(path, "bern", path.parent / "site", chosen)
    return check_case(case)


def rules_of(item):
    return {found.rule for found in item.findings}


def text_of(item, rule):
    return next(found.text for found in item.findings if found.rule == rule)


BACKGROUND = {"background": 0}


@pytest.mark.parametrize("make", [nnunet, datalist])
def test_a_value_that_is_not_declared_is_refused_and_each_remedy_works(tmp_path, make):
    item = checked(make(tmp_path / "a", BACKGROUND | {"ICH": 1}))
    assert (item.usable, rules_of(item)) == (False, {"label_undeclared"})
    assert text_of(item, "label_undeclared").endswith("value 3 (0.02 mL), and the list of cases declares 1")
    declared = checked(make(tmp_path / "b", BACKGROUND | {"ICH": 1, "SDH": 3}))
    assert (declared.volume_ml, rules_of(declared)) == (pytest.approx(16 * VOXEL_ML), set())
    chosen = checked(tmp_path / "a" / ("list.json" if make is datalist else "."), [1])
    assert (chosen.volume_ml, rules_of(chosen)) == (pytest.approx(12 * VOXEL_ML), {"label_left_out"})


@pytest.mark.parametrize("make", [nnunet, datalist])
@pytest.mark.parametrize("chosen", [["ICH"], ["ich"], [1], ["ICH", 1]], ids=str)
def test_a_site_names_the_labels_that_are_blood_by_name_or_value(tmp_path, make, chosen):
    path = make(tmp_path / "a", BACKGROUND | {"ICH": 1, "oedema": 3})
    with pytest.raises(DataError, match=r"labels\.oedema: is not named as blood; .*\(blood: \[ICH\]\)"):
        read_cases(path, "bern", path.parent / "site")
    item = checked(path, chosen)
    assert item.volume_ml == pytest.approx(12 * VOXEL_ML)
    text = "of the annotation's values, 1 (0.06 mL) are blood; left out: 3 (0.02 mL)"
    assert text_of(item, "label_left_out").endswith(text)
    assert item.usable


def test_a_value_that_is_blood_and_something_else_is_refused(tmp_path):
    path = datalist(tmp_path / "a", BACKGROUND | {"ICH": 1, "oedema": 1, "SDH": 3})
    with pytest.raises(DataError, match="blood: 'ICH' holds 1, which is 'oedema'; if it is blood too"):
        read_cases(path, "bern", path.parent / "site", ["ICH", "SDH"])
    assert checked(path, [1]).volume_ml == pytest.approx(12 * VOXEL_ML)


@pytest.mark.parametrize("make", [nnunet, datalist])
def test_a_name_or_value_that_is_no_label_is_refused_naming_those_that_are(tmp_path, make):
    path = make(tmp_path / "a", BACKGROUND | {"ICH": 1, "oedema": 3})
    for wrong in ("blod", 2):
        with pytest.raises(DataError, match=rf"blood: {wrong!r} is no label of .*, which has ICH: 1, oedema: 3"):
            read_cases(path, "bern", path.parent / "site", [wrong])


def test_several_values_that_nothing_explains_are_counted_with_a_warning_that_ends_when_they_are_named(tmp_path):
    path = datalist(tmp_path / "a")
    item = checked(path)
    assert (item.volume_ml, rules_of(item)) == (pytest.approx(16 * VOXEL_ML), {"label_kinds"})
    assert text_of(item, "label_kinds").endswith("values 1 (0.06 mL), 3 (0.02 mL) are all counted as blood")
    assert rules_of(checked(path, [1, 3])) == set()
    assert rules_of(checked(path, [1])) == {"label_left_out"}
    assert rules_of(checked(datalist(tmp_path / "b", BACKGROUND | {"Blutung": 1, "SAB": 3}))) == set()


@pytest.mark.parametrize("labels", [{"0": "background", "1": "ICH", "3": "SDH"}, {"ICH": 1, "SDH": 3}])
def test_labels_of_a_datalist_may_stand_as_in_nnunet_or_as_in_the_decathlon(tmp_path, labels):
    assert checked(datalist(tmp_path / "a", labels)).volume_ml == pytest.approx(16 * VOXEL_ML)


@pytest.mark.parametrize(
    "labels", [["background", "ICH"], {"ICH": "1"}, {"ICH": True}, {"1": "ICH", "3": "ICH"}, {}, 3]
)
def test_labels_of_a_datalist_that_are_none_are_refused_with_their_line(tmp_path, labels):
    with pytest.raises(DataError, match=r"labels: got .*, expected \{name: value\} \(line 1, column \d+\)"):
        read_datalist(datalist(tmp_path / "a", labels), "bern")


def test_a_name_needs_a_datalist_that_declares_names(tmp_path):
    with pytest.raises(DataError, match=r"blood: .ICH. is a name, and the datalist has no .labels.*; give the values"):
        read_datalist(datalist(tmp_path / "a"), "bern", ["ICH"])


def test_a_nifti_mask_beside_a_dicom_series_counts_the_values_that_the_site_names(tmp_path):
    write_series(tmp_path / "p" / "ct", head().astype(np.int16), np.diag([1.0, 1, 5, 1]))
    nibabel.save(nibabel.Nifti1Image(TWO, np.diag([1.0, 1, 5, 1])), tmp_path / "p" / "mask.nii")
    assert "label_kinds" in rules_of(checked(tmp_path))
    item = checked(tmp_path, [1])
    assert (item.volume_ml, "label_left_out" in rules_of(item)) == (pytest.approx(12 * VOXEL_ML), True)
    refused = checked(tmp_path, ["ICH"])
    assert "the label file has values; give the values" in text_of(refused, "label_values")


def test_another_choice_is_another_annotation_of_the_same_files(tmp_path):
    """The cache of preprocessed slices is keyed by this content."""
    path = datalist(tmp_path / "a")
    items = [
        check_cases(read_cases(path, "bern", path.parent / "site", chosen))[0] for chosen in (None, [1], [3], [1, 3])
    ]
    assert len({item.content for item in items}) == 4
    verify_unchanged(items, whole=True)


def test_the_setting_stands_in_the_data_sections_and_changes_the_identity_of_a_study_only_when_it_is_there(tmp_path):
    path = nnunet(tmp_path / "a", BACKGROUND | {"ICH": 1, "oedema": 3})
    site = SiteScansFolder.model_validate_json(json.dumps({"path": str(path), "blood": ["ICH"]}))
    (case,) = site.list_cases("bern", tmp_path, lambda done, total: None)
    assert case.blood == (1,)
    assert site.label("bern") == "nnU-Net"
    assert site.glance("bern", tmp_path) == (case,)
    study = {"source": "folder", "sites": {"bern": str(path)}}
    plain = StudyScansFolders.model_validate_json(json.dumps(study))
    chosen = StudyScansFolders.model_validate_json(json.dumps(study | {"blood": ["ICH"]}))
    assert plain.identity() == {"source": "folder", "sites": ["bern"]}
    assert chosen.identity() == {"source": "folder", "sites": ["bern"], "blood": ["ICH"]}
    assert chosen.for_sites(["bern"], study="s", seed=0)["bern"].blood == ("ICH",)
    listed = {"source": "datalist", "path": str(datalist(tmp_path / "b"))}
    plain = StudyScansDatalist.model_validate_json(json.dumps(listed))
    chosen = StudyScansDatalist.model_validate_json(json.dumps(listed | {"blood": [1]}))
    assert plain.identity() == {"source": "datalist"}
    assert chosen.identity() == {"source": "datalist", "blood": [1]}
    section = chosen.for_sites(["bern"], study="s", seed=0)["bern"]
    assert isinstance(section, SiteScansDatalist)
    assert section.list_cases("bern", tmp_path, lambda done, total: None)[0].blood == (1,)


@pytest.mark.parametrize("wrong", [[], [0], [256], [""], "ICH", [1.5], [True]], ids=str)
def test_the_setting_holds_names_and_values_only(tmp_path, wrong):
    with pytest.raises(ValueError, match="blood"):
        SiteScansFolder.model_validate_json(json.dumps({"path": str(tmp_path), "blood": wrong}))


def test_an_nnunet_folder_whose_names_are_german_is_read(tmp_path):
    (case,) = read_nnunet(nnunet(tmp_path / "a", BACKGROUND | {"Blutung": 1, "Subduralhämatom": 3}), "bern")
    assert check_case(case).volume_ml == pytest.approx(16 * VOXEL_ML)
