"""DICOM series: the same head as from NIfTI, refused by name where it is none, and silent about the patient."""

import logging
import os
import random
import re
import shutil
import warnings
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from harness.dicom_files import CANARIES, RAS_TO_LPS, uid, write_segmentation, write_series
from harness.one_case import check_case

from sahfl.config import SiteConfig
from sahfl.data.checks import verify_unchanged
from sahfl.data.ct import read_scan
from sahfl.data.dicom import read_patients, read_series
from sahfl.data.manifest import Case
from sahfl.data.sources.folders import SiteScansFolder
from sahfl.errors import DataError, ScanProblem
from sahfl.federation.site.site import Site

SPACING = (0.5, 0.75, 5.0)
"""Between columns, rows, slices."""


def a_volume(shape=(6, 8, 5)):
    """Every voxel has a value of its own."""
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape) * 3 - 1000


def a_label(shape=(6, 8, 5)):
    label = np.zeros(shape, np.uint8)
    label[1, 2, 1] = label[-2:, 3, -2] = 1
    return label


def placed(directions, origin=(-20.0, 30.0, 7.0)):
    """Affine to RAS mm with the given unit directions (columns of a matrix) of columns, rows, slices."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions, np.float64) @ np.diag(SPACING)
    affine[:3, 3] = origin
    return affine


def turned(degrees, axis=0):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.roll(np.array([[1, 0, 0], [0, c, -s], [0, s, c]]), (axis, axis), (0, 1))
    return turn


AXIAL = np.diag([-1.0, -1.0, 1.0])


def tilted(degrees):
    """Slices lean by the tilt around x, the table moves along z."""
    directions = turned(degrees) @ AXIAL
    directions[:, 2] = [0, 0, 1]
    return placed(directions)


GEOMETRIES = {
    "axial": placed(AXIAL),
    "axial-head-to-feet": placed(AXIAL @ np.diag([1, 1, -1])),
    "axial-prone": placed(np.diag([1.0, 1.0, 1.0])),
    "axial-mirrored": placed(np.diag([1.0, -1.0, 1.0])),
    "coronal": placed([[-1, 0, 0], [0, 0, -1], [0, -1, 0]]),
    "sagittal": placed([[0, 0, 1], [-1, 0, 0], [0, -1, 0]]),
    "rows-and-columns-swapped": placed([[0, -1, 0], [-1, 0, 0], [0, 0, 1]]),
    "oblique": placed(turned(20) @ turned(-11, axis=2) @ AXIAL),
    "oblique-head-to-feet": placed(turned(-15) @ turned(8, axis=1) @ AXIAL @ np.diag([1, 1, -1])),
    "gantry-tilt": tilted(23),
    "gantry-tilt-backwards": tilted(-18),
}


def dicom_case(folder, affine=GEOMETRIES["axial"], volume=None, **options):
    """A patient's folder with a series and a NIfTI annotation beside it."""
    volume = a_volume() if volume is None else volume
    write_series(folder, volume, affine, **options)
    nibabel.save(nibabel.Nifti1Image(a_label(volume.shape), affine), folder / "mask.nii.gz")
    return Case("bern-0003", folder, folder, "p")


def nifti_case(folder, affine, volume=None):
    folder.mkdir(parents=True)
    volume = a_volume() if volume is None else volume
    for name, voxels in (("image.nii", volume), ("label.nii", a_label(volume.shape))):
        nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / name)
    return Case("bern-0003", folder / "image.nii", folder / "label.nii", "p")


def broken(case):
    """Name of the rule that a case breaks, and the message."""
    with pytest.raises(ScanProblem) as caught:
        read_scan(case)
    assert str(caught.value).startswith("case bern-0003: ")
    return caught.value.rule, str(caught.value)


# --- geometry -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_D02_dicom_and_nifti_of_one_head_give_the_same_voxels_affine_and_volume(tmp_path, affine):
    series, nifti = read_scan(dicom_case(tmp_path / "d", affine)), read_scan(nifti_case(tmp_path / "n", affine))
    np.testing.assert_array_equal(series.image, nifti.image)
    np.testing.assert_array_equal(series.label, nifti.label)
    np.testing.assert_allclose(series.affine, nifti.affine, atol=1e-4)
    assert series.volume_ml == pytest.approx(3 * abs(np.linalg.det(affine[:3, :3])) / 1000, rel=1e-5)


@pytest.mark.parametrize("name", [name for name in GEOMETRIES if "tilt" not in name])
def test_another_library_puts_the_voxels_at_the_same_places(tmp_path, name):
    """highdicom has its own way from headers to a volume; it counts (slice, row, column) in LPS."""
    paths = write_series(tmp_path / "d", a_volume(), GEOMETRIES[name])
    reference = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in paths])
    image = read_series(tmp_path / "d").image
    for index in ((0, 0, 0), (5, 0, 0), (0, 7, 0), (0, 0, 4), (3, 2, 1)):
        x, y, z, _ = reference.inverse_affine @ [*(RAS_TO_LPS @ (image.affine @ [*index, 1])[:3]), 1]
        there = tuple(np.rint([x, y, z]).astype(int))
        np.testing.assert_allclose([x, y, z], there, atol=1e-3)
        assert reference.array[there] == image.get_fdata()[index]


def test_a_voxel_lies_where_its_header_says_in_the_patient(tmp_path):
    """By hand: 3 columns, 2 rows and 4 slices from the first pixel; left and back turned to right and front."""
    series = read_series(dicom_case(tmp_path / "d", tilted(23)).image)
    position = np.array([20.0, -30.0, 7.0])  # LPS of slice 0
    lean = np.radians(23)
    column_direction = np.array([0, np.cos(lean), -np.sin(lean)])
    expected = position + 3 * 0.5 * np.array([1, 0, 0]) + 2 * 0.75 * column_direction + 4 * np.array([0, 0, 5.0])
    np.testing.assert_allclose(series.image.affine @ [3, 2, 4, 1], [*(RAS_TO_LPS @ expected), 1], atol=1e-4)
    assert series.image.get_fdata()[3, 2, 4] == a_volume()[3, 2, 4]


@pytest.mark.parametrize("degrees", [-30, -12, 0, 23, 30])
def test_a_tilted_gantry_shears_the_affine_and_keeps_pixels_and_volume(tmp_path, degrees):
    scan = read_scan(dicom_case(tmp_path / "d", tilted(degrees)))
    step, normal = scan.affine[:3, 2], np.cross(scan.affine[:3, 0], scan.affine[:3, 1])
    angle = np.degrees(np.arccos(step @ normal / np.linalg.norm(step) / np.linalg.norm(normal)))
    assert angle == pytest.approx(abs(degrees), abs=1e-3)
    assert scan.voxel_ml == pytest.approx(0.5 * 0.75 * 5 * np.cos(np.radians(degrees)) / 1000, rel=1e-5)
    assert set(np.unique(scan.image)) == set(np.unique(a_volume()))


def test_slices_are_sorted_by_position_not_by_number_or_name(tmp_path):
    def shuffle_numbers(data, index):
        data.InstanceNumber = (3, 1, 5, 2, 4)[index]

    straight = read_scan(dicom_case(tmp_path / "a"))
    shuffled = dicom_case(tmp_path / "b", change=shuffle_numbers)
    for index, name in enumerate("dbeca"):
        (tmp_path / "b" / f"ct-{index:03d}.dcm").rename(tmp_path / "b" / f"{name}.dcm")
    np.testing.assert_array_equal(read_scan(shuffled).image, straight.image)


def test_an_annotation_in_another_voxel_order_lies_on_the_same_voxels(tmp_path):
    case = dicom_case(tmp_path / "d")
    expected = read_scan(case).label
    label = nibabel.load(tmp_path / "d" / "mask.nii.gz")
    nibabel.save(nibabel.as_closest_canonical(label), tmp_path / "d" / "mask.nii.gz")
    np.testing.assert_array_equal(read_scan(case).label, expected)


def test_D02_an_annotation_drawn_on_a_tilt_corrected_copy_is_refused(tmp_path):
    case = dicom_case(tmp_path / "d", tilted(23))
    nibabel.save(nibabel.Nifti1Image(a_label(), placed(AXIAL)), tmp_path / "d" / "mask.nii.gz")
    rule, text = broken(case)
    assert rule == "affine"
    assert "annotation and series lie up to 2.1 mm apart, with as many voxels" in text  # 7 rows of 0.75 mm, 23 degrees


def test_D02_an_annotation_of_another_number_of_axes_is_refused(tmp_path):
    case = dicom_case(tmp_path / "d")
    label = np.zeros((6, 8, 5, 2), np.uint8)
    nibabel.save(nibabel.Nifti1Image(label, placed(AXIAL)), tmp_path / "d" / "mask.nii.gz")
    assert broken(case)[0] == "shape"


def test_D02_an_annotation_of_a_part_of_the_slices_lies_where_its_affine_says(tmp_path):
    case = dicom_case(tmp_path / "d")
    whole = read_scan(case)
    part = placed(AXIAL)
    part[:3, 3] += part[:3, 2]
    nibabel.save(nibabel.Nifti1Image(a_label()[:, :, 1:], part), tmp_path / "d" / "mask.nii.gz")
    assert np.array_equal(read_scan(case).label, whole.label)


# --- values ---------------------------------------------------------------------------------------------------------


def with_values(stored, *, slope, intercept, signed):
    def change(data, index):
        data.PixelRepresentation = int(signed)
        data.RescaleSlope, data.RescaleIntercept = str(slope), str(intercept)
        data.PixelData = stored.T.astype("<i2" if signed else "<u2").tobytes()

    return change


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "signed", "hounsfield"),
    [
        (1064, 1, -1024, False, 40),
        (40, 1, 0, True, 40),
        (-984, 1, 1024, True, 40),
        (532, 2, -1024, False, 40),
        (2120, 0.5, -1024, False, 36),
        (-1024, 1, -1024, True, -1024),  # -2048 after rescale: padding
        (-2000, 1, 0, True, -1024),
        (0, 1, -8192, False, -1024),
        (65535, 1, -1024, False, 64511),
    ],
)
def test_stored_values_become_hounsfield_units_and_padding_becomes_air(
    tmp_path, stored, slope, intercept, signed, hounsfield
):
    change = with_values(np.full((6, 8), stored), slope=slope, intercept=intercept, signed=signed)
    assert np.unique(read_scan(dicom_case(tmp_path / "d", change=change)).image).tolist() == [hounsfield]


def test_each_slice_has_its_own_rescale(tmp_path):
    def change(data, index):
        data.RescaleIntercept = str(-1024 + 100 * index)

    image = read_series(dicom_case(tmp_path / "d", change=change).image).image.get_fdata()
    np.testing.assert_array_equal(image, a_volume() + 100 * np.arange(5))


# --- what else lies in the folder -----------------------------------------------------------------------------------


def test_localizers_other_objects_and_texts_are_passed_over(tmp_path):
    case = dicom_case(tmp_path / "d")
    expected = read_scan(case)

    def localizer(data, index):
        data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        del data.ImagePositionPatient, data.RescaleSlope

    def report(data, index):
        data.Modality, data.SOPClassUID = "SR", "1.2.840.10008.5.1.4.1.1.88.67"
        del data.PixelData

    write_series(tmp_path / "d" / "scout", a_volume((4, 4, 2)), placed(AXIAL), change=localizer, series="scout")
    write_series(tmp_path / "d", a_volume((4, 4, 1)), placed(AXIAL), change=localizer, series="ct-scout")
    write_series(tmp_path / "d" / "dose", a_volume((4, 4, 1)), placed(AXIAL), change=report, series="dose")
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "DICOMDIR"):
        (tmp_path / "d" / name).write_bytes(b"x")
    np.testing.assert_array_equal(read_scan(case).image, expected.image)


def test_files_of_a_series_may_lie_in_folders_below_the_patients(tmp_path):
    case = dicom_case(tmp_path / "d")
    (tmp_path / "d" / "study" / "series").mkdir(parents=True)
    for path in sorted((tmp_path / "d").glob("ct-*.dcm"))[:3]:
        path.rename(tmp_path / "d" / "study" / "series" / path.stem)
    assert read_scan(case).image.shape == (6, 8, 5)


def remove(index):
    return lambda folder: (folder / f"ct-{index:03d}.dcm").unlink()


def double(folder):
    shutil.copy(folder / "ct-002.dcm", folder / "copy.dcm")


def zero_byte(folder):
    (folder / "ct-004.dcm").write_bytes(b"")


def truncated(folder):
    path = folder / "ct-004.dcm"
    path.write_bytes(path.read_bytes()[:-20])


def no_slices(folder):
    for path in folder.glob("ct-*.dcm"):
        path.unlink()


def second_annotation(folder):
    shutil.copy(folder / "mask.nii.gz", folder / "mask2.nii.gz")


def no_annotation(folder):
    (folder / "mask.nii.gz").unlink()


FOLDERS = {
    "missing-slice": (remove(2), "missing_slices", r"1 slice\(s\) of 5.00 mm are missing"),
    "copied-slice": (double, "duplicate_positions", r"1 slice\(s\) lie where another lies"),
    "zero-byte": (zero_byte, "unreadable", "neither DICOM nor NIfTI"),
    "truncated": (truncated, "unreadable", "a DICOM file is damaged"),
    "empty": (no_slices, "not_ct", "got no DICOM file, expected a CT series"),
    "two-annotations": (second_annotation, "several_annotations", "holds 2 annotations, expected one"),
    "no-annotation": (no_annotation, "missing", "holds no annotation"),
}


@pytest.mark.parametrize(("damage", "rule", "text"), FOLDERS.values(), ids=FOLDERS.keys())
def test_D01_a_folder_that_is_no_series_is_refused_by_name(tmp_path, damage, rule, text):
    case = dicom_case(tmp_path / "d")
    damage(case.image)
    found, message = broken(case)
    assert found == rule
    assert re.search(text, message)


def test_D01_no_permission_is_not_damage(tmp_path, monkeypatch):
    case, user = dicom_case(tmp_path / "d"), os.geteuid()
    (case.image / "ct-004.dcm").chmod(0)
    monkeypatch.chdir(case.image)  # the folders above belong to the tests' user
    if user == 0:
        os.seteuid(65534)  # root may read every file; nobody may not
    try:
        assert broken(Case(case.id, Path(), Path(), "p")) == (
            "permission", "case bern-0003: no permission to read a DICOM file (file 5 of 6 in the order of names)",
        )  # fmt: skip
    finally:
        os.seteuid(user)


def test_a_slice_that_lost_half_its_pixels_is_named_by_its_bytes_and_place(tmp_path):
    case = dicom_case(tmp_path / "d", volume=a_volume((64, 64, 5)))
    path = tmp_path / "d" / "ct-004.dcm"
    path.write_bytes(path.read_bytes()[:4096])
    assert broken(case) == (
        "unreadable", "case bern-0003: a DICOM file is cut short: it has 4096 bytes, its header claims 8192 bytes of "
        "pixels (file 5 of 6 in the order of names)",
    )  # fmt: skip


def only(index, **values):
    """Alter one slice (or all, for None)."""

    def change(data, at):
        if index is None or at == index:
            for name, value in values.items():
                data.pop(name, None)  # or the old element would complain about the new value
                setattr(data, name, value)

    return change


def without(name):
    return lambda data, index: delattr(data, name)


def moved(index, *mm):
    def change(data, at):
        if at == index:
            data.ImagePositionPatient = [float(a) + b for a, b in zip(data.ImagePositionPatient, mm, strict=True)]

    return change


def steeply(data, index):
    """Each slice 10 mm further to the back."""
    x, y, z = map(float, data.ImagePositionPatient)
    data.ImagePositionPatient = [x, y + 10 * index, z]


LEAN = [1, 0, 0, 0, 0.98480775, -0.17364818]
HEADERS = {
    "shifted-sideways": (moved(2, 3.0, 0, 0), "shifted_slices", "3.00 mm off the straight line"),
    "last-slice-far": (moved(4, 0, 0, 3.0), "missing_slices", "5.00 to 8.00 mm"),
    "same-place": (moved(2, 0, 0, 5.0), "duplicate_positions", "lie where another lies"),
    "too-steep": (steeply, "tilt", "stacked 63 degrees off"),
    "mixed-orientations": (only(3, ImageOrientationPatient=LEAN), "mixed_orientations", "lean differently"),
    "no-orientation": (without("ImageOrientationPatient"), "no_geometry", "no usable ImageOrientationPatient"),
    "skewed": (only(None, ImageOrientationPatient=[1, 0, 0, 0.5, 1, 0]), "no_geometry", "perpendicular unit vectors"),
    "thickness-of-words": (only(None, SliceThickness="1e999"), "no_geometry", "no usable SliceThickness"),
    "no-position": (without("ImagePositionPatient"), "no_geometry", "no usable ImagePositionPatient"),
    "short-position": (only(1, ImagePositionPatient=[1, 2]), "no_geometry", "no usable ImagePositionPatient"),
    "mixed-spacing": (only(1, PixelSpacing=[0.6, 0.6]), "mixed_sizes", "6 x 8 of 0.6 x 0.6 mm"),
    "mixed-matrix": (only(1, Rows=4, Columns=12), "mixed_sizes", "12 x 4 of"),
    "flat-pixels": (only(None, PixelSpacing=[0, 0.5]), "no_geometry", "PixelSpacing is not above 0"),
    "mixed-frames": (only(1, FrameOfReferenceUID=uid("other")), "mixed_frames", "several frames of reference"),
    "two-patients": (only(1, PatientID="4712"), "mixed_patients", "hold 2 patient ids, expected one"),
    "multi-frame": (only(None, NumberOfFrames=2), "multi_frame", "got multi-frame"),
    "enhanced": (only(None, SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1"), "multi_frame", "got multi-frame"),
    "magnetic-resonance": (
        only(None, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4"), "not_ct", "got 5 x MR, expected a CT",
    ),
    "free-text-modality": (only(None, Modality="muster hans"), "not_ct", "got 5 x unknown, expected a CT"),
    "localizers-only": (only(None, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer", "got 5 localizer"),
    "no-slope": (without("RescaleSlope"), "no_rescale", "no usable RescaleSlope"),
    "no-intercept": (without("RescaleIntercept"), "no_rescale", "no usable RescaleIntercept"),
    "zero-slope": (only(None, RescaleSlope="0"), "no_rescale", "RescaleSlope is 0"),
    "electron-density": (only(None, RescaleType="ED"), "not_hu", "values are in ED, expected HU"),
    "inverted": (only(None, PhotometricInterpretation="MONOCHROME1"), "not_grey", "not plain grey"),
    "colour": (only(None, SamplesPerPixel=3), "not_grey", "not plain grey"),
    "no-pixels": (without("PixelData"), "unreadable", "a DICOM file is damaged"),
    "huge": (only(None, Rows=65535, Columns=65535), "too_large", "voxels, expected at most"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "rule", "text"), HEADERS.values(), ids=HEADERS.keys())
def test_D02_a_series_that_is_no_plain_ct_volume_is_refused_by_name(tmp_path, change, rule, text):
    found, message = broken(dicom_case(tmp_path / "d", change=change))
    assert found == rule
    assert text in message


def test_positions_may_be_rounded_by_a_tenth_of_a_millimetre(tmp_path):
    assert read_scan(dicom_case(tmp_path / "d", change=moved(2, 0, 0, 0.09))).spacing_mm[2] == pytest.approx(5.0)


def test_a_single_slice_is_as_thick_as_it_says_and_refused_if_it_says_nothing(tmp_path):
    volume = a_volume((6, 8, 1))
    write_series(tmp_path / "d", volume, placed(AXIAL))
    assert nibabel.affines.voxel_sizes(read_series(tmp_path / "d").image.affine) == pytest.approx(SPACING)
    write_series(tmp_path / "d", volume, placed(AXIAL), change=without("SliceThickness"))
    with pytest.raises(ScanProblem, match="one slice without SliceThickness") as caught:
        read_series(tmp_path / "d")
    assert caught.value.rule == "unknown_thickness"


def test_run_length_compressed_pixels_are_read(tmp_path):
    case = dicom_case(tmp_path / "d")
    expected = read_scan(case).image
    for path in (tmp_path / "d").glob("*.dcm"):
        data = pydicom.dcmread(path)
        data.compress(pydicom.uid.RLELossless)
        data.save_as(path)
    np.testing.assert_array_equal(read_scan(case).image, expected)


def test_D02_pixels_that_nothing_here_decodes_are_refused_naming_the_compression(tmp_path):
    case = dicom_case(tmp_path / "d")
    for path in (tmp_path / "d").glob("*.dcm"):
        data = pydicom.dcmread(path)
        data.PixelData = pydicom.encaps.encapsulate([b"\0" * 10])
        data["PixelData"].VR = "OB"
        data.file_meta.TransferSyntaxUID = pydicom.uid.HTJ2KLossless
        data.save_as(path)
    rule, message = broken(case)
    assert rule == "compressed"
    assert "High-Throughput JPEG 2000" in message
    assert "gdcmconv --raw" in message


def test_B07_a_damaged_series_is_refused_whatever_the_damage(tmp_path):
    case = dicom_case(tmp_path / "d", volume=a_volume((4, 4, 3)))
    path = tmp_path / "d" / "ct-001.dcm"
    whole, dice = path.read_bytes(), random.Random(5)
    refused = []
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            content[dice.randrange(128, len(content))] = dice.randrange(256)
        path.write_bytes(content[: dice.choice([len(content), dice.randrange(len(content))])])
        try:
            read_scan(case)
        except ScanProblem as problem:
            refused.append(str(problem))
    assert len(refused) > 100
    assert not [text for text in refused for canary in CANARIES if canary in text]


# --- segmentation objects -------------------------------------------------------------------------------------------


def segmented(folder, affine=GEOMETRIES["axial"], name="Hemorrhage", **options):
    slices = write_series(folder, a_volume(), affine, **options)
    write_segmentation(folder / "seg.dcm", slices, a_label(), name)
    return Case("bern-0003", folder, folder, "p")


@pytest.mark.parametrize("name", ["axial", "axial-head-to-feet", "coronal", "oblique", "gantry-tilt"])
def test_a_segmentation_object_lies_on_the_same_voxels_as_the_nifti_annotation(tmp_path, name):
    affine = GEOMETRIES[name]
    case = segmented(tmp_path / "d", affine)
    np.testing.assert_array_equal(read_scan(case).label, read_scan(nifti_case(tmp_path / "n", affine)).label)


def test_a_segmentation_of_one_frame_is_a_volume_too(tmp_path):
    label = np.zeros((6, 8, 5), np.uint8)
    label[2:4, 1, 3] = 1
    slices = write_series(tmp_path / "d", a_volume(), GEOMETRIES["axial"])
    write_segmentation(tmp_path / "d" / "seg.dcm", slices, label)
    scan = read_scan(Case("bern-0003", tmp_path / "d", tmp_path / "d", "p"))
    np.testing.assert_array_equal(scan.label, label[::-1, ::-1] > 0)


def test_the_annotation_may_lie_elsewhere_as_a_datalist_says(tmp_path):
    case = segmented(tmp_path / "d")
    expected = read_scan(case).label
    (tmp_path / "d" / "seg.dcm").rename(tmp_path / "seg")
    apart = Case(case.id, case.image, tmp_path / "seg", case.patient)
    np.testing.assert_array_equal(read_scan(apart).label, expected)
    assert apart.files()[-1] == tmp_path / "seg"


def test_a_segment_may_be_blood_by_its_property_type(tmp_path):
    case = segmented(tmp_path / "d", name="Segment_1")
    assert broken(case)[0] == "seg_segments"
    data = pydicom.dcmread(tmp_path / "d" / "seg.dcm")
    data.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning = "Intracranial hemorrhage"
    data.save_as(tmp_path / "d" / "seg.dcm")
    assert read_scan(case).label.sum() == 3


def other_frame(data):
    data.FrameOfReferenceUID = uid("other")


def other_place(data):
    group = data.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    group.ImagePositionPatient = [float(mm) + 1 for mm in group.ImagePositionPatient]


def beyond(data):
    group = data.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    group.ImagePositionPatient = [*group.ImagePositionPatient[:2], 500.0]


def other_size(data):
    data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.6, 0.6]


def other_kind(data):
    data.SegmentationType = "FRACTIONAL"


def other_name(data):
    data.SegmentSequence[0].SegmentLabel = "Muster"


def no_positions(data):
    del data.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence


SEGMENTATIONS = {
    "other-frame-of-reference": (other_frame, "seg_frame_of_reference", "another frame of reference"),
    "between-slices": (other_place, "seg_geometry", "does not lie on a slice"),
    "beyond-the-stack": (beyond, "seg_geometry", "does not lie on a slice"),
    "other-pixels": (other_size, "seg_geometry", "does not lie on a slice"),
    "fractional": (other_kind, "seg_type", "not a binary DICOM segmentation"),
    "not-named-as-blood": (other_name, "seg_segments", "none of 1 segment(s) is named as blood"),
    "no-positions": (no_positions, "unreadable", "damaged"),
}


@pytest.mark.parametrize(("change", "rule", "text"), SEGMENTATIONS.values(), ids=SEGMENTATIONS.keys())
def test_D02_a_segmentation_that_does_not_fit_is_refused_by_name(tmp_path, change, rule, text):
    case = segmented(tmp_path / "d")
    data = pydicom.dcmread(tmp_path / "d" / "seg.dcm")
    change(data)
    data.save_as(tmp_path / "d" / "seg.dcm")
    found, message = broken(case)
    assert found == rule
    assert text in message
    assert "Muster" not in message


# --- patients -------------------------------------------------------------------------------------------------------


def site_folder(folder, ids=("4711-0815", "12", "12")):
    for number, patient in enumerate(ids):
        dicom_case(folder / f"case-{number}", change=only(None, PatientID=patient))
    return folder


def test_each_folder_is_a_case_and_an_id_that_comes_twice_is_one_patient(tmp_path):
    cases = read_patients(site_folder(tmp_path / "bern"), "bern")
    assert [(case.id, case.image.name, case.label) for case in cases] == [
        (f"bern-000{i}", f"case-{i}", tmp_path / "bern" / f"case-{i}") for i in range(3)
    ]
    first, second, third = (case.patient for case in cases)
    assert first != second == third
    assert all(len(bytes.fromhex(key)) == 16 for key in (first, second))


def test_without_an_id_each_folder_is_a_patient(tmp_path):
    cases = read_patients(site_folder(tmp_path / "bern", ids=("", " ")), "bern")
    assert cases[0].patient != cases[1].patient
    assert "case" not in cases[0].patient


def test_loose_files_are_refused_because_nothing_says_whose_they_are(tmp_path):
    write_series(tmp_path / "bern", a_volume(), placed(AXIAL))
    with pytest.raises(DataError, match=r"got 5 DICOM file\(s\) in it, expected one folder per patient"):
        read_patients(tmp_path / "bern", "bern")


def test_D05_a_change_in_any_file_of_a_series_is_noticed(tmp_path):
    case = dicom_case(tmp_path / "d")
    for damage in (zero_byte, remove(3), second_annotation):
        checked = check_case(case)
        damage(case.image)
        with pytest.raises(DataError, match="files changed after they were checked"):
            verify_unchanged([checked])


def test_C06_what_headers_say_of_the_patient_is_nowhere_else(tmp_path, caplog, capfd):
    """Good and bad cases through the site's own preparation: manifest, log, messages and objects are searched."""
    caplog.set_level(logging.DEBUG)
    site = site_folder(tmp_path / "bern", ids=["4711-0815"] * 3)
    inside = np.zeros((6, 8, 5), np.int16)
    inside[0], inside[1] = -1000, 1000  # air and bone, so that the case counts as a head
    dicom_case(site / "case-0", volume=inside)
    dicom_case(site / "odd")
    for path in (site / "odd").glob("*.dcm"):
        path.write_bytes(path.read_bytes().replace(b"DS\4\x005.0 ", b"DS\4\0Hans"))  # a name for a thickness
    segmented(site / "seg-odd")
    data = pydicom.dcmread(site / "seg-odd" / "seg.dcm")
    data.SegmentSequence[0].SegmentLabel = "Muster Hans"
    data.save_as(site / "seg-odd" / "seg.dcm")
    truncated(site / "case-2")
    (site / "not-dicom").mkdir()
    (site / "not-dicom" / "x").write_text("Muster")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        hospital = Site(
            SiteConfig(name="bern", folder=tmp_path / "work", data=SiteScansFolder(path=site), max_refused_share=1.0)
        )
        hospital.prepare(lambda done, total: None)
    described = hospital.describe(n_folds=2, seed=1)
    assert described.source == "DICOM"
    assert described.n_refused >= 4
    manifest = (tmp_path / "work" / "manifest.json").read_text()
    texts = [manifest, caplog.text, *capfd.readouterr(), *(str(item.message) for item in warned), repr(described)]
    texts += [repr(check_case(case)) for case in read_patients(site, "bern")]
    texts.append(repr(read_series(site / "case-1")))
    for name in ("case-2", "odd", "seg-odd", "not-dicom"):
        with pytest.raises(ScanProblem) as caught:
            read_scan(Case("bern-0009", site / name, site / name, "p"))
        error = caught.value
        while error is not None:
            texts.append(repr(error) + str(error))
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert any("damaged" in text for text in texts)
    assert b"Muster^Hans" in (site / "odd" / "ct-001.dcm").read_bytes()
    assert not [(canary, text) for canary in CANARIES for text in texts if canary in text]
    assert not re.search(r"4711\W?0815", manifest)  # not "4711" alone: a file's time in nanoseconds may hold it


# --- real slices ----------------------------------------------------------------------------------------------------


@pytest.fixture
def real_slices(realct):
    folder = realct / "rsna_dicom"
    if not folder.is_dir():
        pytest.skip("no real DICOM slices here")
    return sorted(folder.glob("*.dcm"))


def stacked(path, folder, n=3, step_mm=5.0):
    """A series of n copies of a real slice, as if the table had moved along the body."""
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their UIDs are no UIDs
        for index in range(n):
            data = pydicom.dcmread(path)
            data.ImagePositionPatient[2] += index * step_mm
            data.save_as(folder / f"{index}.dcm")
    return folder


def test_a_real_slice_alone_has_no_known_volume(real_slices, tmp_path):
    for path in real_slices:
        folder = tmp_path / path.stem
        folder.mkdir()
        shutil.copy(path, folder)
        with pytest.raises(ScanProblem) as caught:
            read_series(folder)
        assert caught.value.rule == "unknown_thickness"


def test_real_slices_stack_to_hounsfield_units_with_their_tilt(real_slices, tmp_path):
    tilts = []
    for path in real_slices:
        image = read_series(stacked(path, tmp_path / path.stem)).image
        values, affine = image.get_fdata(), image.affine[:3, :3]
        assert values.min() >= -1024
        assert 20 <= np.median(values[(values > 0) & (values < 80)]) <= 45
        normal = np.cross(affine[:, 0], affine[:, 1])
        step = affine[:, 2]
        cosine = abs(step @ normal) / np.linalg.norm(step) / np.linalg.norm(normal)
        tilts.append(round(float(np.degrees(np.arccos(min(1.0, cosine))))))
    assert sorted(tilts) == [0, 0, 14, 23]


def test_no_text_of_a_real_header_gets_into_a_message(real_slices, tmp_path):
    for path in real_slices:
        (case,) = read_patients(stacked(path, tmp_path / path.stem).parent, "bern")
        checked = check_case(case)
        assert [finding.rule for finding in checked.findings] == ["missing"]
        assert "ID_" not in "".join(finding.text for finding in checked.findings) + case.patient
        shutil.rmtree(Path(case.image))
