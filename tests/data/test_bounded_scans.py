"""The size of a scan is known before it is unpacked: no small file fills the memory, no pipe holds a check up."""

import gzip
import os
import tracemalloc

import nibabel
import numpy as np
import pydicom
import pytest
from harness.dicom_files import write_series
from pydicom.uid import DeflatedExplicitVRLittleEndian

from sahfl.data import nifti
from sahfl.data.ct import read_scan
from sahfl.data.manifest import Case
from sahfl.errors import ScanProblem

AFFINE = np.diag([0.5, 0.5, 5.0, 1.0])


def write(path, volume):
    nibabel.save(nibabel.Nifti1Image(volume, AFFINE), path)
    return path


def a_case(folder, suffix=".nii"):
    image = np.arange(240, dtype=np.int16).reshape(6, 8, 5)
    return Case(
        "bern-0007",
        write(folder / f"image{suffix}", image),
        write(folder / f"label{suffix}", (image > 200).astype(np.uint8)),
        "p",
    )


def broken(case):
    """The broken rule and the message."""
    with pytest.raises(ScanProblem) as caught:
        read_scan(case)
    return caught.value.rule, str(caught.value)


def header_of(shape, *, voxels_at=352, extended=False):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header["magic"], header["vox_offset"] = b"n+1", voxels_at
    return header.binaryblock + (b"\1\0\0\0" if extended else bytes(4))


def extension(length):
    return np.array([length, 6], "<i4").tobytes()


BOMBS = {
    "voxels": ("too_large", header_of((2000, 2000, 1000))),
    "extension-without-end": ("unreadable", header_of((6, 8, 5), voxels_at=1000, extended=True) + extension(-1)),
    "extension-of-no-length": ("unreadable", header_of((6, 8, 5), voxels_at=1000, extended=True) + extension(0)),
    "extension-too-long": ("unreadable", header_of((6, 8, 5), voxels_at=1000, extended=True) + extension(2**30)),
}


@pytest.mark.parametrize(("rule", "start"), BOMBS.values(), ids=BOMBS.keys())
def test_a_small_file_of_many_voxels_takes_no_memory(tmp_path, rule, start):
    path = tmp_path / "scan.nii.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(start)
        for _ in range(100):
            stream.write(bytes(1_000_000))
    assert path.stat().st_size < 2_000_000
    tracemalloc.start()
    try:
        found, text = broken(Case("bern-0007", path, path, "p"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == rule, text
    assert peak < 50_000_000


def test_a_file_that_unpacks_to_more_than_its_header_claims_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti, "UNPACKED_BYTES", 20_000_000)
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(header_of((6, 8, 5)) + bytes(30_000_000), 1))
    tracemalloc.start()
    try:
        with pytest.raises(ScanProblem, match="unpacks to more than") as caught:
            nifti.check_unpacked(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert caught.value.rule == "too_large"


def test_header_extensions_of_converters_are_accepted(tmp_path):
    case = a_case(tmp_path, suffix=".nii.gz")
    image = nibabel.load(case.image)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"made by a converter" * 1000))
    nibabel.save(image, tmp_path / "extended.nii.gz")
    extended = Case(case.id, tmp_path / "extended.nii.gz", case.label, case.patient)
    assert np.array_equal(read_scan(extended).image, read_scan(case).image)


def test_nifti_2_is_read_like_nifti_1(tmp_path):
    case = a_case(tmp_path)
    for path in (case.image, case.label):
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti2Image(image.dataobj, image.affine), path)
    assert read_scan(case).image.shape == (6, 8, 5)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_a_pipe_or_a_device_in_the_place_of_a_scan_is_unreadable(tmp_path, make):
    make(tmp_path / "scan.nii.gz")
    rule, text = broken(Case("bern-0007", tmp_path / "scan.nii.gz", tmp_path / "scan.nii.gz", "p"))
    assert rule == "unreadable"
    assert "expected a regular file" in text


# --- DICOM ----------------------------------------------------------------------------------------------------------


def a_series(folder, change=lambda data, index: None):
    """A patient's folder with a series and its annotation."""
    volume = np.zeros((6, 8, 5), np.int16)
    write_series(folder / "ct", volume, AFFINE, change=change)
    write(folder / "label.nii", volume.astype(np.uint8))
    return Case("bern-0007", folder, folder, "p")


def large(data, index):
    data.Rows, data.Columns = 20_000, 20_000


def padded(data, index):
    data.PixelData = bytes(100_000_000)


HOSTILE = {
    "large": (large, "too_large", "voxels, expected at most"),
    "more-pixels-than-claimed": (padded, "too_large", "its header claims 96 bytes of pixels"),
}


@pytest.mark.parametrize(("change", "rule", "words"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_series_that_claims_or_holds_too_much_is_refused_before_its_pixels_are_read(tmp_path, change, rule, words):
    case = a_series(tmp_path, lambda data, index: change(data, index) if index == 0 or change is large else None)
    tracemalloc.start()
    try:
        found, text = broken(case)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found, words in text) == (rule, True), text
    assert peak < 50_000_000


def test_a_packed_file_of_zeros_is_not_unpacked(tmp_path):
    case = a_series(tmp_path)
    path = next((tmp_path / "ct").iterdir())
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.add_new(0x00091001, "OB", bytes(100_000_000))
    data.save_as(path)
    assert path.stat().st_size < 1_000_000
    tracemalloc.start()
    try:
        assert broken(case)[0] in ("unreadable", "too_large")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_a_pipe_or_a_device_among_the_slices_is_unreadable(tmp_path, make):
    case = a_series(tmp_path)
    make(tmp_path / "ct" / "slice")
    rule, text = broken(case)
    assert rule == "unreadable"
    assert "expected a regular file" in text
