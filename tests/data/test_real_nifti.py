"""NIfTI as hospitals have it: other orders of axes, units, names and formats; read right, or refused by name."""

import gzip
import zipfile

import nibabel
import numpy as np
import pytest
from harness.dicom_files import write_series
from harness.one_case import check_case
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from test_checks import a_case, blood, head

from sahfl.data.checks import check_cases
from sahfl.data.ct import read_scan
from sahfl.data.manifest import Case
from sahfl.data.new_scan import read_new_scan
from sahfl.data.nifti import is_nifti
from sahfl.errors import DataRefused, ScanProblem

ORDERS = ["LPS", "LAS", "RPI", "SAR", "ASL", "PIR"]


def turn(path, order):
    """Store a NIfTI file's voxels with the axes in another order and direction; the place in the patient stays."""
    image = nibabel.Nifti1Image.from_bytes(path.read_bytes())
    wanted = ornt_transform(io_orientation(image.affine), axcodes2ornt(tuple(order)))
    other = image.as_reoriented(wanted)
    assert nibabel.aff2axcodes(other.affine) == tuple(order)
    nibabel.save(nibabel.Nifti1Image(np.asarray(other.dataobj), other.affine), path)


# --- axes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["image", "label"])
@pytest.mark.parametrize("order", ORDERS)
def test_an_annotation_may_store_its_axes_otherwise_than_its_image(tmp_path, which, order):
    case = a_case(tmp_path)
    expected = read_scan(case)
    turn(getattr(case, which), order)
    scan = read_scan(case)
    np.testing.assert_array_equal(scan.image, expected.image)
    np.testing.assert_array_equal(scan.label, expected.label)
    assert scan.volume_ml == expected.volume_ml == pytest.approx(0.06)
    assert check_case(case).findings == ()


def test_an_oblique_pair_in_two_orders_of_axes_is_one_place(tmp_path):
    case, tilt = a_case(tmp_path), np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]]
    for path in (case.image, case.label):
        image = nibabel.Nifti1Image.from_bytes(path.read_bytes())
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), tilt @ image.affine), path)
    turn(case.label, "SPL")
    assert read_scan(case).label.sum() == 12


def test_a_turned_annotation_that_is_moved_too_is_at_another_place(tmp_path):
    case = a_case(tmp_path)
    turn(case.label, "LPS")
    image = nibabel.Nifti1Image.from_bytes(case.label.read_bytes())
    affine = image.affine.copy()
    affine[2, 3] += 5
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), case.label)
    with pytest.raises(ScanProblem, match=r"at different places, up to 5\.0 mm apart") as caught:
        read_scan(case)
    assert caught.value.rule == "affine"


def test_a_nifti_mask_of_a_dicom_series_may_have_any_order_of_axes(tmp_path):
    volume, affine = head().astype(np.int16), np.diag([1.0, 1, 5, 1])
    write_series(tmp_path / "p" / "ct", volume, affine)
    mask = tmp_path / "p" / "mask.nii"
    nibabel.save(nibabel.Nifti1Image(blood(), affine), mask)
    case = Case("bern-0", tmp_path / "p", tmp_path / "p", "p")
    expected = read_scan(case).label
    assert expected.sum() == 12
    for order in ORDERS:
        turn(mask, order)
        np.testing.assert_array_equal(read_scan(case).label, expected)


def test_a_scan_in_memory_is_not_changed_by_its_file(tmp_path):
    case = a_case(tmp_path)
    scan = read_scan(case)
    case.image.write_bytes(b"")
    np.testing.assert_array_equal(scan.image, head())


def test_axes_of_length_one_beyond_the_third_are_dropped(tmp_path):
    case = a_case(tmp_path)
    expected = read_scan(case)
    for path, shape in ((case.image, (32, 32, 16, 1)), (case.label, (32, 32, 16, 1, 1))):
        image = nibabel.Nifti1Image.from_bytes(path.read_bytes())
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj).reshape(shape), image.affine), path)
    np.testing.assert_array_equal(read_scan(case).image, expected.image)
    np.testing.assert_array_equal(read_scan(case).label, expected.label)


def test_a_mask_for_a_scan_with_a_fourth_axis_is_written_on_its_voxels(tmp_path):
    case = a_case(tmp_path)
    image = nibabel.Nifti1Image.from_bytes(case.image.read_bytes())
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[..., None], image.affine), case.image)
    new = read_new_scan(case.image)
    written = new.on_source(new.scan.label.astype(np.uint8))
    assert written.shape == (32, 32, 16)
    np.testing.assert_array_equal(written.affine, image.affine)


# --- units ----------------------------------------------------------------------------------------------------------

UNIT_CODES = {"metre": (1, 1e-3), "mm": (2, 1.0), "micron": (3, 1e3), "none": (0, 1.0)}


def in_unit(case, code, factor, which=("image", "label")):
    """Write the case's geometry in another unit: ``factor`` is a mm in it."""
    for name in which:
        path = getattr(case, name)
        image = nibabel.Nifti1Image.from_bytes(path.read_bytes())
        affine = np.diag([factor] * 3 + [1]) @ image.affine
        other = nibabel.Nifti1Image(np.asarray(image.dataobj), affine)
        other.set_sform(affine, 1)
        other.set_qform(affine, 1)
        other.header["xyzt_units"] = code | 8  # seconds
        nibabel.save(other, path)
    return case


def a_head(folder):
    """A case whose field of view is 224 mm wide."""
    return a_case(folder, spacing=(7.0, 7.0, 7.0))


@pytest.mark.parametrize(("code", "factor"), UNIT_CODES.values(), ids=UNIT_CODES.keys())
def test_the_declared_unit_of_length_counts(tmp_path, code, factor):
    checked = check_case(in_unit(a_head(tmp_path), code, factor))
    assert checked.volume_ml == pytest.approx(12 * 0.343)
    assert {finding.rule for finding in checked.findings} == {"spacing"}


def test_image_and_annotation_may_be_in_two_units(tmp_path):
    case = in_unit(a_head(tmp_path), *UNIT_CODES["micron"], which=("label",))
    assert check_case(case).volume_ml == pytest.approx(12 * 0.343)


WRONG_UNITS = {
    "mm-called-metre": (1, 1.0, "the image is in metre by its header: 2.24e+05 x 2.24e+05 x 1.12e+05 mm; in mm it"),
    "mm-called-micron": (3, 1.0, "in micron by its header: 0.224 x 0.224 x 0.112 mm; in mm it would have the size"),
    "metres-called-mm": (2, 1e-3, "in mm by its header: 0.224 x 0.224 x 0.112 mm; in metre it would have the size"),
    "microns-called-nothing": (0, 1e3, "2.24e+05 x 2.24e+05 x 1.12e+05 mm; in micron it would have the size"),
    "kilometres": (1, 1e-6, "no unit makes this the size of a head"),
}


@pytest.mark.parametrize(("code", "factor", "text"), WRONG_UNITS.values(), ids=WRONG_UNITS.keys())
def test_a_unit_in_which_no_head_has_this_size_is_refused(tmp_path, code, factor, text):
    (found,) = check_case(in_unit(a_head(tmp_path), code, factor)).findings
    assert (found.rule, found.severity) == ("units", "error")
    assert text in found.text


def test_the_remedy_for_a_wrong_unit_leads_to_the_right_volume(tmp_path):
    case = in_unit(a_head(tmp_path), 2, 1e-3)
    assert [found.rule for found in check_case(case).findings] == ["units"]
    for path in (case.image, case.label):  # "write the unit in which the affine is into the header"
        image = nibabel.Nifti1Image.from_bytes(path.read_bytes())
        image.header.set_xyzt_units("meter")
        nibabel.save(image, path)
    assert check_case(case).volume_ml == pytest.approx(12 * 0.343)


def test_two_forms_are_compared_in_the_declared_unit(tmp_path):
    case = in_unit(a_head(tmp_path), *UNIT_CODES["metre"])
    image = nibabel.Nifti1Image.from_bytes(case.image.read_bytes())
    moved = image.affine.copy()
    moved[0, 3] += 0.003
    image.set_qform(moved, 1)
    nibabel.save(image, case.image)
    texts = {found.rule: found.text for found in check_case(case).findings}
    assert texts["forms_differ"].endswith("sform and qform lie up to 3.0 mm apart")


# --- content, not names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ct.NII", "ct.nii.GZ", "ct.img", "ct", "ct.nii.gz.bak", "ct.dcm"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "packed"])
def test_a_nifti_file_is_known_by_its_content(tmp_path, name, pack):
    case = a_case(tmp_path)
    expected = check_case(case)
    path = tmp_path / name
    path.write_bytes(pack(case.image.read_bytes()))
    assert is_nifti(path)
    checked = check_case(Case(case.id, path, case.label, case.patient))
    assert (checked.findings, checked.voxels) == ((), expected.voxels)


def test_the_rules_of_a_header_hold_whatever_the_file_is_called(tmp_path):
    case = a_case(tmp_path)
    for path in (case.image, case.label):
        image = nibabel.Nifti1Image.from_bytes(path.read_bytes())
        # Without forms nibabel centres the image; a label has to have a place of its own.
        image.set_sform(image.header.get_base_affine(), int(path == case.label))
        image.set_qform(None, 0)
        image.header["descrip"] = b"Muster^Hans"
        nibabel.save(image, path)
    for name in ("ct.img", "CT.NII"):
        path = tmp_path / name
        path.write_bytes(case.image.read_bytes())
        checked = check_case(Case(case.id, path, case.label, case.patient))
        assert {found.rule for found in checked.findings} == {"no_orientation", "header_text"}


def zipped(path):
    with zipfile.ZipFile(path, "w") as stream:
        stream.writestr("ct.nii", bytes(2000))


def analyze(path):
    nibabel.AnalyzeImage(np.zeros((4, 4, 4), np.int16), np.eye(4)).to_filename(path.with_suffix(".hdr"))


def pair(path):
    nibabel.Nifti1Pair(np.zeros((4, 4, 4), np.int16), np.eye(4)).to_filename(path.with_suffix(".hdr"))


FOREIGN = {
    "ct.mnc": (b"\x89HDF\r\n\x1a\n" + bytes(600), "it is an HDF5 file, such as MINC 2"),
    "old.mnc": (b"CDF\1" + bytes(600), "it is a netCDF file, such as MINC 1"),
    "ct.mgh": (b"\0\0\0\1" + bytes(600), "it is a FreeSurfer volume (.mgh)"),
    "ct.par": (b"# === DATA DESCRIPTION FILE ====\n" * 30, "it is a Philips PAR file"),
    "ct+orig.HEAD": (b"\ntype = string-attribute\n" * 30, "not readable NIfTI"),
    "ct.png": (b"\x89PNG\r\n\x1a\n" + bytes(600), "it is a PNG picture"),
    "ct.pdf": (b"%PDF-1.4" + bytes(600), "it is a PDF document"),
    "ct.npy": (b"\x93NUMPY\1\0" + bytes(600), "it is a NumPy array"),
    "ct.nii.bz2": (b"BZh9" + bytes(600), "it is a file packed with bzip2"),
    "lfs.nii.gz": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a placeholder of Git LFS"),
    "page.nii.gz": (b"<!doctype html><html>log in</html>" * 30, "it is a web page or XML"),
    "ct.zip": (zipped, "it is a zip archive"),
    "analyze.hdr": (analyze, "it is an Analyze header"),
    "pair.hdr": (pair, "it is the header of a NIfTI pair"),
    "one.dcm": (bytes(128) + b"DICM" + bytes(600), "DICOM"),
    "empty.nii": (b"", "it is an empty file"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_format_is_refused_by_name_and_the_others_are_checked(tmp_path, name):
    content, text = FOREIGN[name]
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    good = a_case(tmp_path)
    cases = [Case("bern-x", path, good.label, "x"), good, Case("bern-y", good.image, path, "y")]
    first, second, third = check_cases(cases)
    for item, which in ((first, "image"), (third, "label")):
        (found,) = item.findings
        assert (found.rule, found.severity) == ("unreadable", "error")
        assert found.text.startswith(f"case {item.case.id}: the {which} file is ")
        assert text in found.text
    assert second.usable
    with pytest.raises(DataRefused):
        read_new_scan(path)


EXTENSIONS = {"dicom": (2, b"no dicom"), "cifti": (32, b"<no xml"), "unknown": (99, b"\xff" * 9), "text": (6, b"x")}


@pytest.mark.parametrize(("code", "content"), EXTENSIONS.values(), ids=EXTENSIONS.keys())
def test_a_damaged_extension_does_not_end_a_check(tmp_path, code, content):
    case = a_case(tmp_path)
    plain = case.image.read_bytes()
    blob = np.array([32, code], "<i4").tobytes() + content.ljust(24, b"\0")
    start = bytearray(plain[:352] + blob)
    start[108:112] = np.array([352 + len(blob)], "<f4").tobytes()
    start[348] = 1
    case.image.write_bytes(bytes(start) + plain[352:])
    assert check_case(case).usable


def test_a_quaternion_that_is_none_is_a_finding_not_an_exception(tmp_path):
    case = a_case(tmp_path)
    content = bytearray(case.image.read_bytes())
    content[252:256] = np.array([1, 1], "<i2").tobytes()  # qform_code, sform_code
    content[256:268] = np.array([3, 3, 3], "<f4").tobytes()
    case.image.write_bytes(content)
    (found,) = check_case(case).findings
    assert (found.rule, found.text) == ("unreadable", "case bern-a: the forms of the image file are damaged")


@pytest.mark.parametrize("seed", range(6))
def test_a_header_of_random_bytes_never_ends_a_check(tmp_path, seed):
    rng, case = np.random.default_rng(seed), a_case(tmp_path)
    plain = case.image.read_bytes()
    for _ in range(25):
        content = bytearray(plain)
        for place in rng.integers(4, 348, rng.integers(1, 12)):
            content[place] = rng.integers(256)
        case.image.write_bytes(content)
        (checked,) = check_cases([case])
        assert checked.case is case


# --- forms and sizes of voxels --------------------------------------------------------------------------------------


def patch(path, **fields):
    """Change fields of a header as they stand in the file."""
    content = path.read_bytes()
    header = nibabel.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + content[348:])


def cropped(path, start, end, moved_mm=0.0):
    """Keep a part of a volume; its sform may be moved up against its qform."""
    image = nibabel.Nifti1Image.from_bytes(path.read_bytes())
    part = nibabel.Nifti1Image(np.asarray(image.slicer[start:end, start:end].dataobj), image.affine)
    affine = image.slicer[start:end, start:end].affine
    part.set_qform(affine, 1)
    affine[2, 3] += moved_mm
    part.set_sform(affine, 1)
    nibabel.save(part, path)


def test_a_cropped_annotation_without_an_orientation_is_refused(tmp_path):
    case = a_case(tmp_path)
    cropped(case.label, 4, 28)
    assert check_case(case).usable
    patch(case.label, sform_code=0, qform_code=0)
    (finding,) = check_case(case).findings
    text = "the label has no orientation (sform and qform codes are both 0)"
    remedy = "give it the image's only if you know that their voxels match"
    assert (finding.rule, finding.text) == ("no_orientation", f"case bern-a: {text}; {remedy}")


def test_a_cropped_annotation_at_two_places_is_a_warning(tmp_path):
    case = a_case(tmp_path)
    cropped(case.label, 4, 28, moved_mm=5.0)
    texts = {finding.rule: finding.text for finding in check_case(case).findings}
    assert texts["forms_differ"] == "case bern-a: of the label, sform and qform lie up to 5.0 mm apart"


@pytest.mark.parametrize("size", [0.0, -5.0, np.nan])
def test_a_qform_whose_voxels_have_no_size_is_refused_and_an_sform_gives_it(tmp_path, size):
    case = a_case(tmp_path)
    affine = np.diag([1.0, 1, 5, 1])
    for path in (case.image, case.label):
        image = nibabel.Nifti1Image.from_bytes(path.read_bytes())
        image.set_sform(affine, 0)
        image.set_qform(affine, 1)
        nibabel.save(image, path)
    assert check_case(case).volume_ml == pytest.approx(0.06)
    patch(case.image, pixdim=[1, 1, 1, size, 0, 0, 0, 0])
    (finding,) = check_case(case).findings
    text = f"the voxels of the image file have no size: pixdim is 1 x 1 x {size:g}, and there is no sform"
    assert (finding.rule, finding.text) == ("affine", f"case bern-a: {text}")
    patch(case.image, sform_code=1, pixdim=[1, 1, 1, 5, 0, 0, 0, 0])
    assert check_case(case).volume_ml == pytest.approx(0.06)


# --- values of annotations ------------------------------------------------------------------------------------------


def test_a_scale_that_is_rounded_in_the_header_leaves_classes(tmp_path):
    case = a_case(tmp_path, label=blood() * np.uint8(255))
    patch(case.label, scl_slope=0.003922, scl_inter=0)
    item = check_case(case)
    assert (item.volume_ml, item.findings) == (pytest.approx(0.06), ())


@pytest.mark.parametrize(
    ("label", "text"),
    [
        (blood() * np.float32(0.5), "0.5"),
        (np.where(blood() > 0, np.float32(1), np.float32(np.nan)), "nan"),
        (blood() * np.int16(2) - 1, "-1"),
        (blood() * np.int16(256), "256"),
    ],
)
def test_a_value_that_is_no_class_is_shown(tmp_path, label, text):
    (finding,) = check_case(a_case(tmp_path, label=label)).findings
    expected = f"case bern-a: the label holds {text}, expected whole numbers from 0 to 255"
    assert (finding.rule, finding.text) == ("label_values", expected)
