"""Annotations of DICOM series on the grids that other programs write, uneven slices, and segments chosen by name."""

import re
import shutil
import subprocess

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from harness.contours import write_structures
from harness.dicom_files import write_segmentation, write_segments, write_series
from harness.one_case import check_case
from pydicom.sr.codedict import codes
from scipy import ndimage

from sahfl.data.ct import read_scan
from sahfl.data.dicom import read_series
from sahfl.data.dicom.write_segmentation import write_segmentation as write_result
from sahfl.data.manifest import Case
from sahfl.data.regrid import apart_mm, regrid
from sahfl.errors import ScanProblem

SHAPE, MM = (48, 56, 14), (3.0, 3.0, 5.0)


def lesion(shape=SHAPE):
    x, y, z = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return ((x - 30) / 6) ** 2 + ((y - 22) / 9) ** 2 + ((z - shape[2] / 2 - 1) / 3.2) ** 2 < 1


def head(label):
    hu = np.full(label.shape, -1000, np.int16)
    hu[6:-6, 6:-6, 1:-1] = 30
    hu[label] = 1000  # as bright as nothing else, so that a converted image shows where it went
    return hu


def tilted(degrees, upwards=True):
    """Rows to the left, columns to the back and leaning; the table moves along z."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[-1, 0, 0], [0, -c, 0], [0, -s, 1 if upwards else -1]]) * MM
    affine[:3, 3] = [70, 80, -30 if upwards else 40]
    return affine


def a_case(folder, affine, label=None, change=lambda data, index: None):
    label = lesion() if label is None else label
    write_series(folder, head(label), affine, change=change)
    return Case("bern-0003", folder, folder, "p")


def annotated(case, label, affine, name="mask.nii.gz"):
    nibabel.save(nibabel.Nifti1Image(label.astype(np.uint8), affine), case.image / name)
    return case


def refused(case):
    with pytest.raises(ScanProblem) as caught:
        read_scan(case)
    return caught.value.rule, str(caught.value)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def true_scan(tmp_path, affine, label=None):
    label = lesion() if label is None else label
    return read_scan(annotated(a_case(tmp_path / "true", affine, label), label, affine))


# --- tilt -----------------------------------------------------------------------------------------------------------

TILTS = [(18.5, True), (18.5, False), (-18.5, True), (-18.5, False), (30, True), (-6, True)]


@pytest.mark.parametrize(("degrees", "upwards"), TILTS)
@pytest.mark.parametrize("canonical", [False, True])
def test_a_mask_that_itk_wrote_of_a_tilted_series_has_the_same_voxels(tmp_path, degrees, upwards, canonical):
    """ITK has no shear: it puts the slices along their normal, at the distance of their first pixels."""
    affine = tilted(degrees, upwards)
    itk = affine.copy()
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal *= np.sign(normal @ affine[:3, 2]) / np.linalg.norm(normal)
    itk[:3, 2] = normal * np.linalg.norm(affine[:3, 2])
    case = a_case(tmp_path / "d", affine)
    image = nibabel.Nifti1Image(lesion().astype(np.uint8), itk)
    nibabel.save(nibabel.as_closest_canonical(image) if canonical else image, case.image / "mask.nii.gz")
    scan, true = read_scan(case), true_scan(tmp_path, affine)
    np.testing.assert_array_equal(scan.label, true.label)
    assert scan.volume_ml == pytest.approx(true.volume_ml)
    off = apart_mm(SHAPE, itk, affine)
    assert f"another tilt (up to {off:.1f} mm off); the voxels are used" in dict(scan.notes)["annotation_grid"]


def test_a_mask_of_another_place_is_no_mask_of_the_tilted_series(tmp_path):
    affine = tilted(18.5)
    moved = affine.copy()
    moved[0, 3] += 12
    rule, text = refused(annotated(a_case(tmp_path / "d", affine), lesion(), moved))
    assert rule == "affine"
    assert "annotation and series lie up to 12.0 mm apart, with as many voxels" in text


def test_the_same_difference_without_a_tilt_is_another_place(tmp_path):
    affine = tilted(0)
    leaning = affine.copy()
    leaning[:3, 2] = [0, 1.5, 4.77]
    assert refused(annotated(a_case(tmp_path / "d", affine), lesion(), leaning))[0] == "affine"


def of_twelve_bits(data, index):
    """As scanners store; dcm2niix corrects no other tilt."""
    data.BitsStored, data.HighBit = 12, 11


def converted(folder, out):
    out.mkdir()
    command = ["dcm2niix", "-z", "y", "-o", str(out), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    images = sorted(out.glob("*.nii.gz"), key=lambda path: len(path.name))
    return images[0], next((path for path in images if "_Tilt" in path.name), None)


needs_dcm2niix = pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not installed (apt install)")


@needs_dcm2niix
@pytest.mark.parametrize(("degrees", "upwards"), TILTS)
def test_a_mask_on_what_dcm2niix_made_of_a_tilted_series_has_the_same_millilitres(tmp_path, degrees, upwards):
    affine = tilted(degrees, upwards)
    case, true = a_case(tmp_path / "d", affine, change=of_twelve_bits), true_scan(tmp_path, affine)
    raw, _ = converted(case.image, tmp_path / "nii")
    image = nibabel.load(raw)
    annotated(case, np.asarray(image.dataobj) > 500, image.affine)
    scan = read_scan(case)
    np.testing.assert_array_equal(scan.label, true.label)
    assert scan.volume_ml == pytest.approx(true.volume_ml)


@needs_dcm2niix
@pytest.mark.parametrize(("degrees", "upwards"), TILTS)
def test_a_mask_on_dcm2niix_tilt_corrected_copy_fits_or_is_refused_in_millimetres(tmp_path, degrees, upwards):
    """dcm2niix puts some copies beside the series: then nothing but the series' own pixels is right."""
    affine = tilted(degrees, upwards)
    case, true = a_case(tmp_path / "d", affine, change=of_twelve_bits), true_scan(tmp_path, affine)
    _, corrected = converted(case.image, tmp_path / "nii")
    if corrected is None:
        pytest.skip("this version of dcm2niix corrects no tilt here")
    image = nibabel.load(corrected)
    annotated(case, np.asarray(image.dataobj) > 500, image.affine)
    try:
        scan = read_scan(case)
    except ScanProblem as problem:
        (rule, text), found = (problem.rule, str(problem)), None
    else:
        rule, text, found = "", dict(scan.notes)["regridded"], scan
    assert (degrees, upwards) != (18.5, True) or found is not None, text
    if found is None:
        assert rule == "affine"
        assert re.search(r"\d+\.\d mm of the tilted series uncovered|the other way \(by \d+\.\d mm\)", text)
    else:
        assert dice(found.label, true.label) > 0.85
        assert found.volume_ml == pytest.approx(true.volume_ml, rel=0.1)


# --- other grids ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zoom", [(2, 2, 1), (2, 2, 2), (0.5, 0.5, 1), (1, 1, 2)])
def test_a_mask_on_another_grid_is_resampled_and_its_dice_is_a_warning(tmp_path, zoom):
    affine = tilted(0)
    fine = np.diag([1 / z for z in zoom] + [1.0])
    fine[:3, 3] = [(1 / z - 1) / 2 for z in zoom]
    own_shape = tuple(int(n * z) for n, z in zip(SHAPE, zoom, strict=True))
    own = ndimage.affine_transform(
        lesion().astype(np.uint8), fine[:3, :3], fine[:3, 3], output_shape=own_shape, order=0, mode="nearest"
    )
    case = annotated(a_case(tmp_path / "d", affine), own, affine @ fine)
    scan, true = read_scan(case), true_scan(tmp_path, affine)
    assert scan.volume_ml == pytest.approx(true.volume_ml, rel=0.06)
    assert dice(scan.label, true.label) > 0.9
    text = dict(scan.notes)["regridded"]
    assert f"the annotation has {' x '.join(map(str, own_shape))} voxels, the series 48 x 56 x 14" in text
    assert "with a Dice of" in text
    (found,) = [finding for finding in check_case(case).findings if finding.rule == "regridded"]
    assert found.severity == "warning"


def test_a_mask_that_does_not_overlap_or_fades_is_refused_with_its_dice(tmp_path):
    affine = tilted(0)
    far = affine.copy()
    far[2, 3] += 500
    case = a_case(tmp_path / "d", affine)
    rule, text = refused(annotated(case, lesion()[:, :, :-1], far))
    assert rule == "shape"
    assert "it keeps a Dice of 0.00, expected 0.7 at least" in text
    thin = np.zeros((48, 56, 140), np.uint8)
    thin[20:30, 20:30, 63] = 1  # half a millimetre between two slices
    fine = affine @ np.diag([1, 1, 0.1, 1])
    assert "expected 0.7 at least" in refused(annotated(case, thin, fine))[1]


def test_resampling_to_the_same_grid_changes_nothing_and_an_empty_mask_stays_empty():
    mask, affine = lesion(), tilted(18.5)
    made, found = regrid(mask, affine, SHAPE, affine)
    np.testing.assert_array_equal(made, mask)
    assert found == 1.0
    made, found = regrid(np.zeros(SHAPE, bool), affine, (5, 5, 5), affine)
    assert (made.any(), found) == (False, 1.0)


# --- uneven distances -----------------------------------------------------------------------------------------------


def at(positions, thickness=None):
    def change(data, index):
        data.ImagePositionPatient = [*data.ImagePositionPatient[:2], f"{positions[index]:.4f}"]
        if thickness is not None:
            data.SliceThickness = str(thickness[index])

    return change


def edges_of(label, z):
    """A contour around each run of voxels in a row of a slice."""
    found = []
    for index, row in zip(*np.nonzero(label.any(axis=0).T), strict=True):
        steps = np.diff(np.concatenate([[0], label[:, row, index].astype(int), [0]]))
        for left, right in zip(np.flatnonzero(steps > 0) - 0.5, np.flatnonzero(steps < 0) - 0.5, strict=True):
            corners = [(left, row - 0.5), (right, row - 0.5), (right, row + 0.5), (left, row + 0.5)]
            found.append(("ICH", z[index], corners))
    return found


def two_thicknesses():
    z = np.cumsum([0] + [2.5] * 7 + [5.0] * 6)
    return z, [2.5] * 8 + [5.0] * 6


@pytest.mark.parametrize("with_thickness", [True, False])
def test_a_series_of_two_distances_is_resampled_with_a_record(tmp_path, with_thickness):
    z, thickness = two_thicknesses()
    case = a_case(tmp_path / "d", tilted(0), change=at(z, thickness if with_thickness else None))
    series = read_series(case.image)
    assert series.image.shape == (48, 56, 20)  # 47.5 mm
    np.testing.assert_allclose(nibabel.affines.voxel_sizes(series.image.affine), [3, 3, 2.5])
    text = "14 slices at distances of 2.50 to 5.00 mm are resampled to 20 planes of 2.50 mm"
    assert dict(series.notes)["uneven_slices"] == text
    written = read_series(case.image).image.get_fdata()
    hu = head(lesion()).astype(float)
    np.testing.assert_array_equal(written[:, :, :8], hu[:, :, :8])
    np.testing.assert_array_equal(written[:, :, 9], hu[:, :, 8])
    np.testing.assert_array_equal(written[:, :, 8], np.rint((hu[:, :, 7] + hu[:, :, 8]) / 2))


@pytest.mark.parametrize("kind", ["segmentation", "nifti", "contours"])
def test_an_annotation_of_uneven_slices_keeps_its_millilitres(tmp_path, kind):
    z, thickness = two_thicknesses()
    case = a_case(tmp_path / "d", tilted(0), change=at(z, thickness))
    if kind == "segmentation":
        write_segmentation(case.image / "seg.dcm", sorted(case.image.glob("ct-*")), lesion())
    elif kind == "contours":
        of_slices = tilted(0)
        of_slices[2] = [0, 0, 1, 0]  # a contour's z in mm
        write_structures(case.image / "rs.dcm", edges_of(lesion(), z), of_slices)
    else:
        mean = tilted(0)
        mean[2] = [0, 0, z[-1] / 13, 0]
        annotated(case, lesion(), mean)
    scan = read_scan(case)
    reach = np.diff(np.concatenate([[z[0]], (z[1:] + z[:-1]) / 2, [z[-1]]]))  # of each slice
    expected = float((lesion().sum(axis=(0, 1)) * reach).sum()) * 9 / 1000
    assert scan.volume_ml == pytest.approx(expected, rel=0.1)
    assert "uneven_slices" in dict(scan.notes)
    of_slices = read_series(case.image).on_slices(scan.label[::-1, ::-1])
    np.testing.assert_array_equal(of_slices, lesion() > 0)


def test_a_result_on_resampled_planes_is_written_on_the_series_own_slices(tmp_path):
    z, thickness = two_thicknesses()
    case = a_case(tmp_path / "d", tilted(0), change=at(z, thickness))
    series = read_series(case.image)
    write_result(case.image / "seg.dcm", series.image.get_fdata() > 900, series, algorithm="test")
    frames = highdicom.seg.segread(case.image / "seg.dcm").pixel_array
    assert frames.sum() == lesion().sum()


MOVED = {
    "one-by-a-millimetre": ([0, 5, 11, 15, 20, 25], "uneven"),
    "rising": ([0, 4, 8.5, 13.5, 19, 25], "uneven"),
    "one-missing": ([0, 5, 15, 20, 25, 30], "1 slice(s) of 5.00 mm are missing"),
    "two-missing": ([0, 5, 10, 25, 30, 35], "2 slice(s) of 5.00 mm are missing"),
    "one-missing-of-each-kind": (np.cumsum([0] + [2.5] * 5 + [5] + [2.5] * 4 + [5] * 5 + [10] + [5] * 4), "2 slice(s)"),
    "two-gaps-side-by-side": (np.cumsum([0] + [5] * 5 + [10, 10] + [5] * 5), "2 slice(s) of 5.00 mm are missing"),
}


@pytest.mark.parametrize(("z", "expected"), MOVED.values(), ids=MOVED.keys())
def test_uneven_slices_are_resampled_and_missing_ones_refused(tmp_path, z, expected):
    write_series(tmp_path / "d", np.zeros((6, 8, len(z)), np.int16), tilted(0), change=at(z))
    if expected == "uneven":
        series = read_series(tmp_path / "d")
        assert "uneven_slices" in dict(series.notes)
        length = np.linalg.norm(series.image.affine[:3, 2]) * (series.image.shape[2] - 1)
        assert length == pytest.approx(25)
        return
    with pytest.raises(ScanProblem) as caught:
        read_series(tmp_path / "d")
    assert caught.value.rule == "missing_slices"
    assert expected in str(caught.value)


# --- segments -------------------------------------------------------------------------------------------------------


def segmented(folder, names, kinds=None):
    """A series with a segmentation whose first segment is the lesion, and whose second lies beside it."""
    case = a_case(folder, tilted(0))
    masks = np.stack([lesion(), np.roll(lesion(), 12, axis=0)], -1)
    named = list(zip(names, kinds or [codes.SCT.Lesion] * 2, strict=True))
    write_segments(folder / "seg.dcm", sorted(folder.glob("ct-*")), masks, named)
    return case


def with_blood(case, *names):
    return Case(case.id, case.image, case.label, case.patient, blood=names)


def test_of_blood_and_oedema_the_blood_counts(tmp_path):
    case = segmented(tmp_path / "d", ["Hemorrhage", "Perihematomal edema"])
    scan = read_scan(case)
    assert scan.label.sum() == lesion().sum()
    np.testing.assert_array_equal(scan.label, true_scan(tmp_path, tilted(0)).label)
    assert dict(scan.notes)["seg_counted"] == "1 of 2 segments count, those named as blood"


def test_a_segment_is_blood_by_the_code_of_its_property_type(tmp_path):
    code = pydicom.sr.coding.Code("50960005", "SCT", "Zeichenfolge")
    case = segmented(tmp_path / "d", ["Segment_1", "Segment_2"], [code, codes.SCT.Edema])
    assert read_scan(case).label.sum() == lesion().sum()


def test_a_site_names_its_segments_of_blood_by_label_or_number(tmp_path):
    case = segmented(tmp_path / "d", ["Segment_1", "Segment_2"])
    rule, text = refused(case)
    assert rule == "seg_segments"
    assert (
        "none of 2 segment(s) is named as blood; name it (label or property type), or list it under data.blood" in text
    )
    first = read_scan(with_blood(case, "segment_1"))
    np.testing.assert_array_equal(read_scan(with_blood(case, 1)).label, first.label)
    assert first.label.sum() == lesion().sum()
    both = read_scan(with_blood(case, "Segment_1", "Segment_2"))
    assert both.label.sum() == (lesion() | np.roll(lesion(), 12, axis=0)).sum()
    assert refused(with_blood(case, "ICH"))[0] == "seg_segments"


def test_the_series_that_a_segmentation_refers_to_is_used(tmp_path):
    case = segmented(tmp_path / "d", ["Hemorrhage", "Edema"])
    write_series(tmp_path / "d" / "bone", head(lesion()) + 1, tilted(0), series="bone")
    scan = read_scan(case)
    assert scan.image.max() == 1000
    assert "by the annotation's geometry" in dict(scan.notes)["series_choice"]


def test_a_segmentation_drawn_on_another_reconstruction_is_resampled(tmp_path):
    thin = tilted(0) @ np.diag([1, 1, 0.5, 1])
    label = lesion((48, 56, 28)) & (np.arange(28) % 28 > 3)
    thin_slices = write_series(tmp_path / "thin", head(label), thin, series="thin")
    case = a_case(tmp_path / "d", tilted(0))
    write_segmentation(case.image / "seg.dcm", thin_slices, label)
    scan = read_scan(case)
    assert scan.volume_ml == pytest.approx(label.sum() * 22.5 / 1000, rel=0.1)
    assert "the segmentation has 48 x 56 x" in dict(scan.notes)["regridded"]
