"""Every rule of the table is provoked by a case that breaks it, and by nothing that does not."""

import dataclasses
import gzip
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from harness.one_case import check_case
from test_checks import SHAPE, a_case, blood, head

from sahfl.commands.checks import rules_table
from sahfl.data.checks import check_cases
from sahfl.data.ct import Scan
from sahfl.data.file_rules import judge_files, looks_personal
from sahfl.data.manifest import Case, read_datalist
from sahfl.data.measures import measure
from sahfl.data.misplaced import misplaced
from sahfl.data.phantom import PROFILES, make_case
from sahfl.data.repeat_scans import repeat_scans, warn_of_repeat_scans
from sahfl.data.rules import BY_ID, DICOM_RULES, RULES
from sahfl.data.scan_rules import judge_scan

ROOT = Path(__file__).parents[2]


def with_image(image=None, label=None, **settings):
    return lambda folder: a_case(folder, image=image, label=label, **settings)


def changed(change):
    """The good case after ``change(case)``."""

    def make(folder):
        case = a_case(folder)
        return change(case) or case

    return make


def header(change, which=("image", "label")):
    """The good case with changed headers."""

    def rewrite(case):
        for name in which:
            path = getattr(case, name)
            image = nibabel.Nifti1Image.from_bytes(path.read_bytes())
            change(image)
            nibabel.save(image, path)

    return changed(rewrite)


def affine(*rows):
    return np.array([*rows, (0, 0, 0, 1)], float)


def packed(case):
    """The image as a .gz that remembers the name of the file that was packed."""
    path = case.image.with_suffix(".nii.gz")
    with path.open("wb") as stream, gzip.GzipFile("Muster^Hans.nii", "wb", fileobj=stream) as inside:
        inside.write(case.image.read_bytes())
    return dataclasses.replace(case, image=path)


def renamed(case):
    return dataclasses.replace(case, image=case.image.rename(case.image.with_name("scan_1961-04-12.nii")))


def both_forms(sform, qform):
    def change(image):
        image.set_sform(sform, 1)
        image.set_qform(qform, 1)

    return change


GOOD = affine((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 5, 0))
TALL = np.concatenate([head()[:, :, :1], np.repeat(head()[:, :, 1:2], 13, axis=2)], axis=2)
DARK = np.where(blood(np.s_[6:12, 6:18, 3:9]) > 0, head() - 30, head())
"""Here the annotated brain is darker than around it."""


def other_slices(folder):
    """A bleed of one thin slice, of which the image's thicker slices see five times as much."""
    case = a_case(folder)
    label = np.zeros((*SHAPE[:2], 80), np.uint8)
    label[10:14, 10:14, 20] = 1
    nibabel.save(nibabel.Nifti1Image(label, affine((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0))), case.label)
    return case


def mirrored(folder):
    """A bleed on one side, annotated on the other."""
    image = head()[:28]  # so that the head is centred
    image[6:11, 8:20, 3:9] += 30
    label = np.zeros(image.shape, np.uint8)
    label[17:22, 8:20, 3:9] = 1
    return a_case(folder, image=image, label=label)


SINGLE = {
    "missing": changed(lambda case: case.image.unlink()),
    "unreadable": changed(lambda case: _write(case, b"II*\0")),
    "not_3d": with_image(np.zeros((4, 4, 4, 2), np.float32), np.zeros((4, 4, 4, 2), np.uint8)),
    "not_finite": with_image(np.where(np.indices(SHAPE).sum(0) == 20, np.nan, head()).astype(np.float32)),
    "shape": with_image(label=np.stack([blood(), blood()], axis=3)),
    "grid_lost": other_slices,
    "affine": header(lambda image: image.set_sform(GOOD + 0.01 * np.eye(4)[[3, 3, 3, 3]], 1), which=("label",)),
    "no_orientation": header(lambda image: both_forms(GOOD, GOOD)(image) or _no_forms(image)),
    "handedness": header(both_forms(GOOD, GOOD @ np.diag([-1, 1, 1, 1]))),
    "forms_differ": header(
        both_forms(GOOD, GOOD + affine((0, 0, 0, 3), (0, 0, 0, 0), (0, 0, 0, 0)) - np.diag([0, 0, 0, 1]))
    ),
    "sheared": header(lambda image: image.set_sform(affine((1, 0, 0, 0), (0, 1, 1.3, 0), (0, 0, 5, 0)), 1)),
    "spacing": with_image(spacing=(1.3, 1.0, 5.0)),
    "one_slice": with_image(head()[:, :, 3:4], blood()[:, :, 3:4]),
    "slices": with_image(np.concatenate([TALL[:, :, 1:13], head()[:, :, 14:]], 2), blood()[:, :, :14]),
    "vertex": with_image(np.concatenate([head()[:, :, :14], head()[:, :, :2]], 2)),
    "windowed": with_image(np.clip(head(), 0, 255)),
    "shifted": with_image(np.clip(head() + 1024, 0, None)),
    "not_hu": with_image(head() * 0.4),
    "brain_not_hu": with_image(np.where(np.abs(head() - 33) < 60, head() + 100, head()).astype(np.float32)),
    "brain_hu": with_image(np.where(np.abs(head() - 33) < 60, head() + 20, head()).astype(np.float32)),
    "low_air": with_image(np.maximum(head(), -800)),
    "low_bone": with_image(
        np.where((head() > 200) & ((np.indices(SHAPE)[2] > 0) | (np.indices(SHAPE)[1] > 12)), 100, head()).astype(
            np.float32
        )
    ),
    "padding": with_image(np.where(np.indices(SHAPE)[0] < 2, -2000, head()).astype(np.float32)),
    "not_whole": with_image(head() + np.float32(0.25)),
    "few_values": with_image(np.where(head() > 300, 1000, head()).astype(np.float32)),
    "noise": with_image(head() + np.rint(np.random.default_rng(1).normal(0, 20, SHAPE)).astype(np.float32)),
    "label_values": with_image(label=blood().astype(np.float32) / 2),
    "no_blood": with_image(label=blood(np.s_[:0])),
    "much_blood": with_image(label=blood(np.s_[6:20, 6:20, 3:10]), spacing=(9.0, 9.0, 9.0)),
    "label_share": with_image(label=blood(np.s_[5:23, 5:23, 2:12])),
    "label_place": with_image(label=blood(np.s_[:2, :, 2:4])),
    "label_outside": with_image(label=blood(np.s_[0:9, 10:12, 3])),
    "label_on_air": with_image(label=blood(np.s_[0:9, 10:12, 3])),
    "label_on_bone": with_image(label=blood(np.s_[3:7, 10:12, 3])),
    "label_hu": with_image(DARK.astype(np.float32), blood(np.s_[6:12, 6:18, 3:9])),
    "label_kinds": with_image(label=blood() + 2 * blood(np.s_[12:14, 12:14, 4])),
    "label_undeclared": changed(lambda case: dataclasses.replace(case, declared=(2,))),
    "label_left_out": changed(lambda case: dataclasses.replace(case, blood=(2,))),
    "label_contrast": with_image(label=blood(np.s_[12:16, 12:16, 3:6])),
    "label_gaps": with_image(label=blood(np.s_[8:12, 8:12, 1:8:3])),
    "left_right": mirrored,
    "file_name": changed(renamed),
    "header_text": changed(packed),
}
"""One broken case for each rule of a single case."""
ACROSS = {
    "duplicate",
    "corrected_copy",
    "near_duplicate",
    "same_annotation",
    "patient_alike",
    "repeat_scan",
    "left_out",
}
PROTOCOL = {"contrast_agent", "sharp_kernel"}
READING = {"one_id", "uneven_slices", "derived_series", "not_axial", "scrambled_uids", "regridded", "annotation_grid"}
READING |= {"series_choice", "seg_counted", "no_frame", "foreign_files"}
ELSEWHERE = {*ACROSS, *PROTOCOL, *READING, *(rule for rule, *_ in DICOM_RULES)}
ELSEWHERE |= {"permission", "too_large", "units", "looks_like_mr", "no_head"}
"""Across cases: below; protocol: in test_protocol; how a series was read: in test_dicom_folders and
test_dicom_annotations; permission: in tests/faults with a user who may not read; too_large: in test_bounded_scans;
units: in test_real_nifti; looks_like_mr and no_head: in test_skull; segments: in test_formats;
those of DICOM: in test_dicom."""


def _write(case, content):
    case.image.write_bytes(content)


def _no_forms(image):
    image.set_sform(None, 0)
    image.set_qform(None, 0)


@pytest.mark.parametrize("rule", SINGLE)
def test_a_case_that_breaks_a_rule_has_its_finding_with_the_tables_severity(tmp_path, rule):
    found = {finding.rule: finding for finding in check_case(SINGLE[rule](tmp_path)).findings}
    assert rule in found
    assert found[rule].severity == BY_ID[rule].severity
    assert found[rule].text.startswith("case bern-a: ")


def test_every_rule_of_the_table_is_provoked_by_a_test():
    assert set(SINGLE) | ELSEWHERE == set(BY_ID)


def test_a_rule_that_the_code_names_is_in_the_table():
    text = "".join(path.read_text() for path in (ROOT / "sahfl").rglob("*.py"))
    named = set(re.findall(r'ScanProblem\(\s*"(\w+)"', text)) | set(re.findall(r'\bfinding\("(\w+)"', text))
    assert named
    assert named <= set(BY_ID)


def test_each_rule_is_told_once_in_one_sentence_with_a_remedy():
    assert len(BY_ID) == len(RULES)
    for rule in RULES:
        assert rule.meaning.endswith(".")
        assert rule.remedy.endswith(".")
        assert "|" not in rule.meaning + rule.remedy


def test_the_document_holds_the_table_as_it_is():
    assert rules_table() in (ROOT / "docs" / "data-checks.md").read_text()


@pytest.mark.parametrize(
    ("findings", "n_cases", "rules"),
    [
        ({"left_right": 5}, 5, ("left_right",)),
        ({"left_right": 1, "label_contrast": 1}, 5, ()),  # each may be old blood
        ({"label_contrast": 4}, 12, ()),  # as at tbi_b of the demo
        ({"label_contrast": 8, "left_right": None}, 16, ("label_contrast",)),
        ({"label_contrast": 3, "left_right": 3}, 15, ("left_right",)),
        ({"same_annotation": None}, 16, ("same_annotation",)),
        ({"spacing": 16}, 16, ()),
    ],
)
def test_annotations_of_another_scan_or_side_are_announced_where_they_are_no_accident(findings, n_cases, rules):
    assert misplaced(findings, n_cases) == rules


# --- across cases ---------------------------------------------------------------------------------------------------


def found_across(cases):
    return {(item.case.id, finding.rule) for item in check_cases(cases) for finding in item.findings}


def test_the_same_voxels_in_another_file_format_and_orientation_are_a_duplicate(tmp_path):
    first = a_case(tmp_path, "a", patient="p1")
    turned = a_case(tmp_path, "b", patient="p2")
    for path in (turned.image, turned.label):
        image = nibabel.Nifti1Image.from_bytes(path.read_bytes())
        orientation = nibabel.orientations.axcodes2ornt(("L", "P", "S"))
        other = image.as_reoriented(
            nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), orientation)
        )
        nibabel.save(nibabel.Nifti1Image(np.asarray(other.dataobj).astype(np.int16), other.affine), path)
    assert found_across([first, turned]) == {("bern-b", "duplicate")}


def test_a_copy_of_a_refused_case_is_not_refused_for_that(tmp_path):
    bad = a_case(tmp_path, "a", label=blood(np.s_[:2]))
    assert found_across([bad, a_case(tmp_path, "b")]) == {("bern-a", "label_place")}


def test_a_resampled_copy_is_a_near_duplicate_and_another_head_is_not(tmp_path):
    settings = {"kind": "sah", "profile": PROFILES["standard"]}
    cases = []
    for name, seed, shape, spacing in (
        ("a", 4, (96, 112, 24), (2.0, 2.0, 5.0)),
        ("b", 4, (80, 94, 24), (2.4, 2.4, 5.0)),
        ("c", 5, (96, 112, 24), (2.0, 2.0, 5.0)),
    ):
        made = make_case(seed, shape=shape, spacing_mm=spacing, **settings)
        cases.append(a_case(tmp_path, name, made.image, made.label, spacing=spacing))
    assert {(case, rule) for case, rule in found_across(cases) if rule != "spacing"} == {("bern-b", "near_duplicate")}


def test_one_mask_for_two_images_is_found_whatever_its_file_is_called(tmp_path):
    shape, spacing = (96, 112, 24), (2.0, 2.0, 5.0)
    made = [
        make_case(seed, kind="sah", profile=PROFILES["standard"], shape=shape, spacing_mm=spacing) for seed in (4, 5)
    ]
    first, second = (
        a_case(tmp_path, name, one.image, made[0].label, spacing=spacing) for name, one in zip("ab", made, strict=True)
    )
    for other in (second, dataclasses.replace(second, label=first.label)):  # a copy of the file, and the file itself
        assert ("bern-b", "same_annotation") in found_across([first, other])
    assert "same_annotation" not in {rule for _, rule in found_across([first])}
    own = a_case(tmp_path, "c", made[1].image, made[1].label, spacing=spacing)
    assert "same_annotation" not in {rule for _, rule in found_across([first, own])}


def copies(folder, first, second):
    """Two cases with other voxels under names of files that the test chooses."""
    cases = [a_case(folder, "a", patient="p1"), a_case(folder, "b", head() + 2, patient="p2")]
    return [
        dataclasses.replace(case, image=case.image.rename(folder / name))
        for case, name in zip(cases, (first, second), strict=True)
    ]


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        ("7.nii", "7_Tilt_1.nii", "it is a corrected copy of case bern-a"),
        ("7_0000.nii", "7_Eq_0000.nii", "it is a corrected copy of case bern-a"),
        ("7_Tilt_Eq_1.nii", "7.nii", "it is the uncorrected copy of case bern-a"),
        ("7_Eq.nii", "7_Tilt_Eq.nii", "it is a corrected copy of case bern-a"),
    ],
)
def test_a_raw_and_a_corrected_copy_of_dcm2niix_are_refused_without_their_names(tmp_path, first, second, text):
    _, checked = check_cases(copies(tmp_path, first, second))
    (found,) = checked.findings
    assert (found.rule, found.text) == ("corrected_copy", f"case bern-b: by its file name {text}")
    assert not checked.usable


@pytest.mark.parametrize("second", ["8_Tilt_1.nii", "7_tilted.nii", "7_Equal.nii", "7_2.nii", "7_0001.nii"])
def test_other_names_side_by_side_are_no_copies(tmp_path, second):
    assert ("bern-b", "corrected_copy") not in found_across(copies(tmp_path, "7.nii", second))


def test_a_corrected_copy_alone_and_one_in_another_folder_are_no_copies(tmp_path):
    first, second = copies(tmp_path, "7_Tilt.nii", "8.nii")
    (tmp_path / "other").mkdir()
    second = dataclasses.replace(second, image=second.image.rename(tmp_path / "other" / "7.nii"))
    assert ("bern-b", "corrected_copy") not in found_across([first, second])


@pytest.mark.parametrize("image", [head() * np.float32(1e30), np.where(head() > 300, 80_000, head())])
def test_values_that_no_scanner_stores_are_no_hounsfield_units(tmp_path, image):
    (found,) = check_case(a_case(tmp_path, image=image.astype(np.float32))).findings
    assert found.rule == "not_hu"
    assert re.search(r"values from -1\S+ to \S+e\+\d\d are more than a scanner can store", found.text)


def test_the_finding_about_a_folder_s_name_speaks_of_the_folder(tmp_path):
    case = Case("bern-a", tmp_path / "Muster^Hans", tmp_path / "Muster^Hans", "p")
    (found,) = judge_files(case)
    assert found.text == "case bern-a: the name of the folder looks like a name or a date"


@pytest.mark.parametrize(("spacing", "text"), [((2.0, 2.0, 5.0), "coarser"), ((0.2, 0.2, 5.0), "finer")])
def test_the_spacing_finding_says_in_which_way_it_is_unusual(tmp_path, spacing, text):
    found = {finding.rule: finding.text for finding in check_case(a_case(tmp_path, spacing=spacing)).findings}
    assert f"mm, {text} than usual" in found["spacing"]


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [("P-007", "p7", True), ("p 1", "P1", True), ("1-12", "11-2", False), ("p1", "p10", False), ("p1", "p1", False)],
)
def test_patient_ids_that_are_almost_the_same_are_a_warning(tmp_path, first, second, alike):
    cases = [a_case(tmp_path, "a", patient=first), a_case(tmp_path, "b", head() + 50, patient=second)]
    assert (("bern-b", "patient_alike") in found_across(cases)) == alike


def by_name(*names):
    """Cases of which only the names are known."""
    return [Case(f"bern-{i:04d}", Path(name), Path(name), name, None, True) for i, name in enumerate(names)]


def groups_of(names):
    return [{case.patient for case in group} for group in repeat_scans(by_name(*names))]


SERIAL = [f"ICH_{i:03}" for i in range(1, 20)]


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        ([*SERIAL, "ICH_007_2"], [{"ICH_007", "ICH_007_2"}]),
        ([*SERIAL, "ICH_007b", "ICH_007c"], [{"ICH_007", "ICH_007b", "ICH_007c"}]),
        ([*SERIAL, "ICH_007_20240131"], [{"ICH_007", "ICH_007_20240131"}]),
        ([*SERIAL, "ICH_009_31.1.2024", "ICH_009_2"], [{"ICH_009", "ICH_009_31.1.2024", "ICH_009_2"}]),
        ([*SERIAL, "ICH_007_day2", "ICH_007_day2_1"], [{"ICH_007", "ICH_007_day2", "ICH_007_day2_1"}]),
        ([*SERIAL, "ICH_007-t1", "ICH_007followup"], [{"ICH_007", "ICH_007-t1", "ICH_007followup"}]),
        (["P1_scan1", "P1_scan2", "P2_scan1"], [{"P1_scan1", "P1_scan2"}]),
        (["012_001", "012_002", "013_001"], [{"012_001", "012_002"}]),
        (["P_1", "P_2", "P_3", "P_4", "P_2_1"], [{"P_2", "P_2_1"}]),
        (["abc-1", "abc-2", "def-1", "ghi-1"], [{"abc-1", "abc-2"}]),
    ],
)  # fmt: skip
def test_names_that_differ_in_a_last_number_letter_date_or_word_are_likely_repeat_scans(names, groups):
    assert groups_of(names) == groups


@pytest.mark.parametrize(
    "names",
    [
        SERIAL,
        [f"ICH_{i}" for i in range(1, 30)],
        [f"CQ500-CT-{i}" for i in range(30)],
        [f"INSTANCE22_{i:03}" for i in range(30)],
        [f"{part}_{i}" for part in ("tbi", "sah") for i in range(5)],
        ["135014", "135015", "135016"],
        ["9f31d2", "9f31d7", "a0c4e1"],
    ],
)
def test_serial_numbers_are_no_repeat_scans(names):
    assert groups_of(names) == []


def test_cases_with_a_known_patient_are_never_likely_repeat_scans():
    cases = [dataclasses.replace(case, patient_from_name=False) for case in by_name("P1_1", "P1_2", "P2_1")]
    assert repeat_scans(cases) == []
    assert warn_of_repeat_scans(cases) == ""


def test_each_likely_repeat_scan_is_a_warning_that_names_no_file(tmp_path):
    cases = [
        dataclasses.replace(a_case(tmp_path, name, head() + 30 * i, patient=patient), patient_from_name=True)
        for i, (name, patient) in enumerate([("a", "P1_1"), ("b", "P1_2"), ("c", "P2_1")])
    ]
    found = {item.case.id: item.findings for item in check_cases(cases)}
    texts = {case: [f.text for f in findings if f.rule == "repeat_scan"] for case, findings in found.items()}
    group = "by its name likely one of 2 scans of a patient (group 1 of 1)"
    assert texts == {"bern-a": [f"case bern-a: {group}"], "bern-b": [f"case bern-b: {group}"], "bern-c": []}
    warning = warn_of_repeat_scans(cases)
    assert warning.startswith("by their names, 2 cases look like repeat scans of 1 patient(s)")
    assert "patients.json" in warning
    assert "P1" not in warning


# --- no false alarms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("kind", ["tbi", "sah", "normal"])
def test_a_phantom_of_any_profile_breaks_no_error_rule(profile, kind):
    spacing = (2.0, 2.0, 5.0)
    case = make_case(21, kind=kind, profile=PROFILES[profile], shape=(96, 112, 24), spacing_mm=spacing)
    scan = Scan(case.image.astype(np.float32), case.label > 0, case.affine)
    found = {finding.rule for finding in judge_scan("x", scan, measure(scan))}
    # The trauma patient of this seed has an old, dark subdural: worth these two warnings, and no error.
    assert found <= {"spacing", "no_blood"} | ({"label_hu", "label_contrast"} if kind == "tbi" else set())
    assert not any(BY_ID[rule].severity == "error" for rule in found)
    assert ("no_blood" in found) == (kind == "normal")


def test_real_slices_break_no_error_rule(realct):
    for site in ("tbi_a", "sah_b"):
        for item in check_cases(read_datalist(realct / "datalist.json", site)):
            assert item.usable, item.findings
            expected = {"one_slice", "few_values", "brain_hu", "label_hu", "label_contrast"}
            assert {finding.rule for finding in item.findings} <= expected


# --- names and dates ------------------------------------------------------------------------------------------------

PERSONAL = ["Muster^Hans", "MUSTER, HANS", "Hans_Muster", "scan 12.04.1961", "ct_19610412", "1961-04-12", "Müller Jörg"]
HARMLESS = ["120018", "sub-07_ct", "Brain_Hemorrhage_001", "CT Head", "20241399", "case-0007", "5.0.10", "FSL5.0"]


@pytest.mark.parametrize("text", PERSONAL)
def test_a_name_or_a_date_is_suspected(text):
    assert looks_personal(text)


@pytest.mark.parametrize("text", HARMLESS)
def test_plain_names_of_files_are_not_suspected(text):
    assert not looks_personal(text)


@pytest.mark.parametrize("field", ["descrip", "db_name", "aux_file", "intent_name"])
def test_a_finding_about_a_header_never_shows_what_it_found(tmp_path, field):
    def write(image):
        image.header[field] = b"Muster^Hans"

    (finding,) = check_case(header(write, which=("image",))(tmp_path)).findings
    assert finding.rule == "header_text"
    assert field in finding.text
    assert "Muster" not in finding.text


def test_a_header_extension_is_searched_too(tmp_path):
    def extend(image):
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"Patient: Muster^Hans"))

    (finding,) = check_case(header(extend, which=("label",))(tmp_path)).findings
    assert finding.text == "case bern-a: an extension of the label file looks like a name or a date"
