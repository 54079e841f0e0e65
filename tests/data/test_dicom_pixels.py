"""How the pixels of a series are stored: compression, padding, enhanced CT, and files without a preamble."""

import shutil
import subprocess

import nibabel
import numpy as np
import pydicom
import pytest
from harness.dicom_files import uid, write_series
from harness.packed_dicom import enhanced, pack
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ImplicitVRLittleEndian,
    LegacyConvertedEnhancedCTImageStorage,
)

from sahfl.data.ct import read_scan
from sahfl.data.dicom import is_dicom, read_series
from sahfl.data.dicom.codestream import claimed_size
from sahfl.data.dicom.write_segmentation import write_segmentation
from sahfl.data.manifest import Case
from sahfl.errors import DataError, ScanProblem

AFFINE = np.diag([-0.5, -0.75, 5.0, 1.0])


def volume(shape=(24, 32, 5)):
    return np.random.default_rng(3).integers(-1024, 3000, shape).astype(np.int16)


def values(folder):
    return read_series(folder).image.get_fdata()


def refused(folder):
    with pytest.raises(ScanProblem) as caught:
        read_series(folder)
    return caught.value.rule, str(caught.value)


# --- compression ----------------------------------------------------------------------------------------------------


def packed(folder, syntax):
    """A series with compressed pixels."""
    for path in write_series(folder, volume(), AFFINE):
        pack(path, syntax)
    return folder


LOSSLESS = {
    "JPEGLosslessProcess14": "1.2.840.10008.1.2.4.57",
    "JPEGLosslessProcess14_1": "1.2.840.10008.1.2.4.70",
    "JPEGLSLossless": "1.2.840.10008.1.2.4.80",
    "JPEG2000Lossless": "1.2.840.10008.1.2.4.90",
    "RLELossless": "1.2.840.10008.1.2.5",
}


@pytest.mark.parametrize(("syntax", "number"), LOSSLESS.items(), ids=LOSSLESS.keys())
def test_lossless_compression_gives_the_same_voxels(tmp_path, syntax, number):
    packed(tmp_path / "d", syntax)
    assert pydicom.dcmread(tmp_path / "d" / "ct-000.dcm").file_meta.TransferSyntaxUID == number
    np.testing.assert_array_equal(values(tmp_path / "d"), volume())


@pytest.mark.parametrize(("syntax", "off"), [("JPEGLSNearLossless", 3), ("JPEG2000", 1)])
def test_compression_with_losses_gives_nearly_the_same_voxels(tmp_path, syntax, off):
    assert np.abs(values(packed(tmp_path / "d", syntax)) - volume()).max() <= off


def of_eight_bits(data, index):
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit = 7
    data.RescaleIntercept = "-100"
    data.PixelData = smooth().tobytes()


def smooth():
    x, y = np.meshgrid(np.arange(24), np.arange(32))
    return (3 * x + 4 * y).astype(np.uint8)


def test_jpeg_of_eight_bits_is_read(tmp_path):
    for path in write_series(tmp_path / "d", volume(), AFFINE, change=of_eight_bits):
        pack(path, "JPEGBaselineProcess1")
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID.name == "JPEG Baseline (Process 1)"
    assert np.abs(values(tmp_path / "d")[:, :, 2] - (smooth().T - 100.0)).max() <= 4


def test_a_file_that_is_packed_as_a_whole_is_read(tmp_path):
    for path in write_series(tmp_path / "d", volume(), AFFINE):
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        data.save_as(path)
    np.testing.assert_array_equal(values(tmp_path / "d"), volume())


@pytest.mark.skipif(shutil.which("dcmcjpeg") is None, reason="dcmtk is not installed (apt install dcmtk)")
def test_the_printed_remedy_for_compression_that_is_not_read_ends_in_the_same_voxels(tmp_path):
    """JPEG Extended of twelve bits: no free decoder of Python reads it."""
    paths = write_series(tmp_path / "d", volume() // 4 * 2, AFFINE, change=of_twelve_bits)
    for path in paths:
        subprocess.run(
            ["dcmcjpeg", "--encode-extended", "--quality", "100", path, path], check=True, capture_output=True
        )
    rule, text = refused(tmp_path / "d")
    assert rule == "compressed"
    assert "(JPEG Extended (Process 2 and 4)) in a way that this installation cannot read" in text
    assert "dcmdjpeg" in text
    for path in paths:
        subprocess.run(["dcmdjpeg", path, path], check=True, capture_output=True)
    assert np.abs(values(tmp_path / "d") - volume() // 4 * 2).max() <= 8


def of_twelve_bits(data, index):
    data.BitsStored, data.HighBit = 12, 11


def test_packed_pixels_of_another_size_than_the_header_says_are_not_unpacked(tmp_path):
    packed(tmp_path / "d", "JPEGLosslessProcess14_1")
    path = tmp_path / "d" / "ct-002.dcm"
    data = pydicom.dcmread(path)
    at = data.PixelData.index(b"\xff\xc3") + 5
    data.PixelData = data.PixelData[:at] + b"\x27\x10\x27\x10" + data.PixelData[at + 4 :]
    data.save_as(path)
    rule, text = refused(tmp_path / "d")
    assert rule == "unreadable"
    assert "a slice is packed as (10000, 10000) pixels, its header claims (32, 24)" in text


def test_packed_pixels_that_are_not_what_the_header_says_are_named(tmp_path):
    packed(tmp_path / "d", "RLELossless")
    path = tmp_path / "d" / "ct-002.dcm"
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.70"
    data.save_as(path)
    rule, text = refused(tmp_path / "d")
    assert rule == "unreadable"
    assert "a slice's packed pixels are not JPEG Lossless" in text
    assert "(file 3 of 5 in the order of names)" in text


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"])
def test_damaged_packed_pixels_are_refused_or_read_and_never_end_the_program(tmp_path, syntax):
    packed(tmp_path / "d", syntax)
    path, dice = tmp_path / "d" / "ct-002.dcm", np.random.default_rng(1)
    whole, rules = path.read_bytes(), set()
    begin = whole.index(b"\xe0\x7f\x10\x00")
    for _ in range(20):
        content = bytearray(whole)
        for place in dice.integers(begin, len(content), 3):
            content[place] = dice.integers(256)
        path.write_bytes(content[: dice.integers(begin, len(content))])
        rules.add(rule_of(tmp_path / "d"))
    assert "unreadable" in rules
    assert rules <= {"read", "unreadable", "too_large"}


def rule_of(folder):
    try:
        read_series(folder)
    except ScanProblem as problem:
        return problem.rule
    return "read"


def test_the_size_that_packed_pixels_claim_is_read_from_their_header():
    assert claimed_size(b"\xff\xd8\xff\xe0\0\4ab\xff\xc0\0\x11\x08\0\x20\0\x18\3") == (32, 24)
    assert claimed_size(b"\xff\xd8\xff\xff\xf7\0\x0b\x08\0\x20\0\x18\1") == (32, 24)
    assert claimed_size(b"\xff\x4f\xff\x51\0\x29\0\0\0\0\0\x18\0\0\0\x20\0\0\0\0\0\0\0\0") == (32, 24)
    assert claimed_size(bytes(64)) is None
    assert claimed_size(b"\xff\xd8\xff\xe0\xff\xff") is None


# --- padding --------------------------------------------------------------------------------------------------------


def ring(shape=(24, 32)):
    x, y = np.meshgrid(np.arange(shape[0]) - 11.5, np.arange(shape[1]) - 15.5, indexing="ij")
    return (x / 12) ** 2 + (y / 16) ** 2 > 1


def with_padding(stored, *, signed, **tags):
    """A head of 40 HU whose outside holds a stored value; ``tags`` are written as they are."""

    def change(data, index):
        data.PixelRepresentation = int(signed)
        pixels = np.where(ring().T, stored, 40 if signed else 1064)
        if signed:
            data.RescaleIntercept = "0"
        data.PixelData = pixels.astype("<i2" if signed else "<u2").tobytes()
        for name, (vr, value) in tags.items():
            data.add_new(name, vr, value)

    return change


VALUE, LIMIT = "PixelPaddingValue", "PixelPaddingRangeLimit"
PADDINGS = {
    "unsigned-high": (63536, False, {VALUE: ("US", 63536)}),
    "unsigned-written-as-signed": (63536, False, {VALUE: ("SS", -2000)}),
    "signed": (-2000, True, {VALUE: ("SS", -2000)}),
    "signed-written-as-unsigned": (-2000, True, {VALUE: ("US", 63536)}),
    "signed-high": (32767, True, {VALUE: ("SS", 32767)}),
    "range": (60000, False, {VALUE: ("US", 59000), LIMIT: ("US", 65535)}),
    "range-upside-down": (60000, False, {VALUE: ("US", 65535), LIMIT: ("US", 59000)}),
    "range-signed": (-1500, True, {VALUE: ("SS", -2000), LIMIT: ("SS", -1025)}),
    "zero-hounsfield": (0, True, {VALUE: ("SS", 0)}),
}


@pytest.mark.parametrize(("stored", "signed", "tags"), PADDINGS.values(), ids=PADDINGS.keys())
@pytest.mark.parametrize("syntax", ["explicit", "implicit"])
def test_padding_outside_the_field_of_view_is_air(tmp_path, stored, signed, tags, syntax):
    paths = write_series(tmp_path / "d", volume(), AFFINE, change=with_padding(stored, signed=signed, **tags))
    for path in paths if syntax == "implicit" else ():
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        data.save_as(path, implicit_vr=True, little_endian=True)
    found = values(tmp_path / "d")[:, :, 1]
    assert np.unique(found[ring()]).tolist() == [-1024]
    assert np.unique(found[~ring()]).tolist() == [40]


def test_padding_of_a_value_that_brain_has_leaves_the_brain_alone(tmp_path):
    def change(data, index):
        with_padding(0, signed=True, PixelPaddingValue=("SS", 0))(data, index)
        pixels = np.frombuffer(data.PixelData, "<i2").reshape(32, 24).copy()
        pixels[16, 12] = 0  # liquor of 0 HU
        data.PixelData = pixels.tobytes()

    write_series(tmp_path / "d", volume(), AFFINE, change=change)
    found = values(tmp_path / "d")[:, :, 1]
    assert found[12, 16] == 0
    assert found[0, 0] == -1024


# --- files without a preamble ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("with_meta", [False, True])
def test_files_without_a_preamble_are_read(tmp_path, implicit, with_meta):
    for path in write_series(tmp_path / "d", volume(), AFFINE):
        data = pydicom.dcmread(path)
        if with_meta:
            path.write_bytes(path.read_bytes()[132:])
        else:
            del data.file_meta
            data.preamble = None
            data.save_as(path, implicit_vr=implicit, little_endian=True)
        assert is_dicom(path)
    np.testing.assert_array_equal(values(tmp_path / "d"), volume())


@pytest.mark.parametrize("content", [b"", b"\x08", b"\x08\0", b"\x08\0\x05\0 a text", b"\x02\0" * 40, bytes(500)])
def test_bytes_that_only_begin_alike_are_no_dicom(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    assert not is_dicom(tmp_path / "x")


# --- enhanced CT ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", [EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage])
@pytest.mark.parametrize("shared", [True, False])
def test_enhanced_ct_is_the_same_volume_as_single_slices(tmp_path, storage, shared):
    write_series(tmp_path / "single", volume(), AFFINE)
    enhanced(tmp_path / "d", volume(), AFFINE, order=[3, 0, 4, 1, 2], localizers=1, storage=storage, shared=shared)
    expected, found = read_series(tmp_path / "single"), read_series(tmp_path / "d")
    np.testing.assert_array_equal(found.image.get_fdata(), expected.image.get_fdata())
    np.testing.assert_allclose(found.image.affine, expected.image.affine, atol=1e-5)
    assert found.frames == (1, 3, 4, 0, 2)


def test_an_annotation_of_enhanced_ct_and_a_segmentation_that_is_written_lie_on_its_voxels(tmp_path):
    folder = enhanced(tmp_path / "d", volume(), AFFINE, order=[3, 0, 4, 1, 2])
    label = np.zeros((24, 32, 5), np.uint8)
    label[3:9, 4:8, 1:3] = 1
    nibabel.save(nibabel.Nifti1Image(label, AFFINE), folder / "mask.nii.gz")
    case = Case("bern-0003", folder, folder, "p")
    expected = read_scan(case).label
    assert expected.sum() == 6 * 4 * 2
    write_segmentation(folder / "seg.dcm", label > 0, read_series(folder), algorithm="test")
    (folder / "mask.nii.gz").unlink()
    np.testing.assert_array_equal(read_scan(case).label, expected)


def test_a_series_in_two_multi_frame_files_is_one_volume_and_gets_no_segmentation_for_that_reason(tmp_path):
    for part in range(2):
        place = AFFINE.copy()
        place[:3, 3] = AFFINE[:3] @ [0, 0, 5 * part, 1]
        folder = enhanced(tmp_path / f"half-{part}", volume(), place)
        data = pydicom.dcmread(folder / "enhanced.dcm")
        data.SOPInstanceUID = uid("half", part)
        (tmp_path / "d").mkdir(exist_ok=True)
        data.save_as(tmp_path / "d" / f"{part}.dcm")
    series = read_series(tmp_path / "d")
    assert series.image.shape == (24, 32, 10)
    with pytest.raises(DataError, match="the series lies in 2 multi-frame files, and a segmentation refers to one"):
        write_segmentation(tmp_path / "seg.dcm", np.ones((24, 32, 10), bool), series, algorithm="test")


def test_a_multi_frame_file_that_does_not_describe_its_frames_is_refused_by_name(tmp_path):
    folder = enhanced(tmp_path / "d", volume(), AFFINE)
    data = pydicom.dcmread(folder / "enhanced.dcm")
    del data.PerFrameFunctionalGroupsSequence[4]
    data.save_as(folder / "enhanced.dcm")
    assert refused(folder)[0] == "multi_frame"
    assert uid("ct") not in refused(folder)[1]
