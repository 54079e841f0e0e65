"""Scans come in as a hospital stored them, and predictions go back onto the very same voxels."""

import gzip
import os

import nibabel
import numpy as np
import pytest

from sahfl.data.ct import Scan, from_grid, read_scan, to_grid
from sahfl.data.manifest import Case
from sahfl.errors import ScanProblem

AFFINE = np.array([[0.5, 0, 0, -60], [0, 0.75, 0, -80], [0, 0, 5.0, 20], [0, 0, 0, 1]])


def a_volume(shape=(6, 8, 5)):
    """Every voxel has a value of its own, so that no turn or mirroring goes unseen."""
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape) - 100


def stored(volume, affine, order, flips):
    """The same volume with permuted and mirrored voxel axes, and the affine that says so."""
    shape = np.array(volume.shape)
    to_old = np.eye(4)
    to_old[:3, :3] = 0
    for new, old in enumerate(order):
        to_old[old, new] = -1 if flips[old] else 1
        to_old[old, 3] = shape[old] - 1 if flips[old] else 0
    mirrored = volume[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    return mirrored.transpose(order), affine @ to_old


def write(path, volume, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(volume), affine), path)
    return path


def a_case(folder, image=None, label=None, affine=AFFINE, label_affine=None, suffix=".nii"):
    """A case on disk; by default a volume with two voxels of blood."""
    image = a_volume() if image is None else image
    if label is None:
        label = np.zeros(image.shape, np.uint8)
        label.flat[[3, 40]] = 1, 2
    label_affine = affine if label_affine is None else label_affine
    return Case(
        "bern-0007",
        write(folder / f"image{suffix}", image, affine),
        write(folder / f"label{suffix}", label, label_affine),
        "p",
    )


# --- reading --------------------------------------------------------------------------------------------------------

ORIENTATIONS = {
    "RAS": ((0, 1, 2), (False, False, False)),
    "LPS": ((0, 1, 2), (True, True, False)),
    "LAS": ((0, 1, 2), (True, False, False)),
    "RPI": ((0, 1, 2), (False, True, True)),
    "SRA-permuted": ((2, 0, 1), (False, False, False)),
    "ASR-permuted": ((1, 2, 0), (False, False, False)),
    "PIL-both": ((1, 2, 0), (True, True, True)),
    "LSA-both": ((0, 2, 1), (True, False, False)),
}


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
def test_a_scan_is_turned_to_ras_however_it_is_stored(tmp_path, order, flips):
    volume, label = a_volume(), np.zeros((6, 8, 5), np.uint8)
    label[1, 2, 3] = 1
    image_on_disk, affine = stored(volume, AFFINE, order, flips)
    label_on_disk, _ = stored(label, AFFINE, order, flips)
    scan = read_scan(a_case(tmp_path, image_on_disk, label_on_disk, affine))
    np.testing.assert_array_equal(scan.image, volume)
    np.testing.assert_array_equal(scan.label, label > 0)
    np.testing.assert_allclose(scan.affine, AFFINE, atol=1e-5)
    assert scan.spacing_mm == pytest.approx((0.5, 0.75, 5.0))


def test_a_scan_has_the_promised_types_and_every_kind_of_blood_counts(tmp_path):
    scan = read_scan(a_case(tmp_path))
    assert (scan.image.dtype, scan.label.dtype, scan.affine.dtype) == (np.float32, np.bool_, np.float64)
    assert scan.label.sum() == 2


def test_rescaled_integers_are_read_as_hounsfield_units(tmp_path):
    case = a_case(tmp_path)
    content = bytearray(case.image.read_bytes())
    content[112:120] = np.array([2.0, -1024.0], "<f4").tobytes()  # scl_slope, scl_inter
    case.image.write_bytes(content)
    np.testing.assert_array_equal(read_scan(case).image, a_volume() * 2.0 - 1024.0)


def oblique(spacing=(0.5, 0.75, 5.0), angle=0.3):
    """Tilted by ``angle`` around x, as with a tilted gantry table."""
    c, s = np.cos(angle), np.sin(angle)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.diag(spacing)
    return affine


def sheared():
    """Slices shifted against each other (gantry tilt): the volume of a voxel is not the product of its edges."""
    affine = np.diag([0.5, 0.75, 5.0, 1.0])
    affine[1, 2] = 2.0
    return affine


@pytest.mark.parametrize("affine", [AFFINE, oblique(), sheared()], ids=["straight", "oblique", "sheared"])
def test_volume_in_ml_is_voxels_times_the_affines_determinant(tmp_path, affine):
    scan = read_scan(a_case(tmp_path, affine=affine))
    assert scan.voxel_ml == pytest.approx(0.5 * 0.75 * 5.0 / 1000, rel=1e-5)
    assert scan.volume_ml == pytest.approx(2 * 1.875e-3, rel=1e-5)


def test_the_spacing_of_a_sheared_scan_is_the_distance_of_its_voxels(tmp_path):
    assert read_scan(a_case(tmp_path, affine=sheared())).spacing_mm == pytest.approx((0.5, 0.75, np.hypot(5, 2)))


# --- rules ----------------------------------------------------------------------------------------------------------


def broken(case):
    with pytest.raises(ScanProblem) as caught:
        read_scan(case)
    assert str(caught.value).startswith("case bern-0007: ")
    return caught.value.rule, str(caught.value)


@pytest.mark.parametrize("which", ["image", "label"])
def test_a_missing_file_is_missing(tmp_path, which):
    case = a_case(tmp_path)
    getattr(case, which).unlink()
    assert broken(case) == ("missing", f"case bern-0007: the {which} file is missing")


def test_a_file_without_permission_is_named_so(tmp_path):
    case, user = a_case(tmp_path), os.geteuid()
    case.image.chmod(0)
    if user == 0:
        os.seteuid(65534)  # root may read every file; nobody may not
    try:
        assert broken(case) == ("permission", "case bern-0007: no permission to read the image file")
    finally:
        os.seteuid(user)


CONTENTS = {"empty": b"", "text": b"this is not an image" * 100, "zeros": bytes(2000)}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_a_file_that_is_no_nifti_is_unreadable(tmp_path, content, suffix):
    case = a_case(tmp_path, suffix=suffix)
    case.image.write_bytes(content)
    rule, text = broken(case)
    assert (rule, text.partition(": it is")[0]) == (
        "unreadable",
        "case bern-0007: the image file is not readable NIfTI",
    )


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_truncated_file_is_unreadable(tmp_path, suffix):
    volume = np.random.default_rng(0).integers(-1000, 1000, (16, 16, 10)).astype(np.int16)
    case = a_case(tmp_path, volume, suffix=suffix)
    case.image.write_bytes(case.image.read_bytes()[:-1000])
    assert broken(case) == ("unreadable", "case bern-0007: the image file is truncated or damaged")


def test_a_damaged_gzip_stream_is_unreadable(tmp_path):
    case = a_case(tmp_path, suffix=".nii.gz")
    content = bytearray(case.image.read_bytes())
    content[20:60] = b"\xff" * 40
    case.image.write_bytes(content)
    assert broken(case)[0] == "unreadable"


HEADERS = {
    "unknown-type": ("unreadable", 70, np.array([9999], "<i2")),
    "huge": ("too_large", 42, np.array([32767, 32767, 32767], "<i2")),
    "voxels-far-away": ("unreadable", 108, np.array([1e9], "<f4")),
    "voxels-nowhere": ("unreadable", 108, np.array([np.nan], "<f4")),
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("rule", "offset", "value"), HEADERS.values(), ids=HEADERS.keys())
def test_a_damaged_header_is_refused(tmp_path, rule, offset, value, suffix):
    case = a_case(tmp_path)
    pack = gzip.compress if suffix == ".nii.gz" else bytes
    paths = []
    for path in (case.image, case.label):
        content = bytearray(path.read_bytes())
        content[offset : offset + value.nbytes] = value.tobytes()
        paths.append(path.with_suffix(suffix))
        paths[-1].write_bytes(pack(bytes(content)))
    assert broken(Case(case.id, *paths, case.patient))[0] == rule


def test_a_colour_picture_is_unreadable_naming_its_type(tmp_path):
    colours = np.zeros((6, 8, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    rule, text = broken(a_case(tmp_path, colours, np.zeros((6, 8, 5), np.uint8)))
    assert rule == "unreadable"
    assert text.endswith("expected whole or real numbers")


def test_complex_voxels_are_not_read_as_their_real_part(tmp_path):
    assert broken(a_case(tmp_path, a_volume().astype(np.complex64)))[0] == "unreadable"


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 5, 2), (6, 8, 5, 1, 3)], ids=str)
def test_an_image_that_is_not_3d_is_refused_with_its_shape(tmp_path, shape):
    rule, text = broken(a_case(tmp_path, a_volume(shape)))
    assert rule == "not_3d"
    assert f"image has shape {shape}, expected three dimensions" in text


def test_a_volume_without_voxels_is_refused(tmp_path):
    case = a_case(tmp_path)
    for path in (case.image, case.label):
        content = bytearray(path.read_bytes())
        content[42:44] = bytes(2)
        path.write_bytes(content)
    assert broken(case)[0] == "not_3d"


def test_a_label_of_another_number_of_axes_is_refused_with_its_shape(tmp_path):
    rule, text = broken(a_case(tmp_path, label=np.zeros((6, 8, 5, 2), np.uint8)))
    assert (rule, text) == ("shape", "case bern-0007: label has shape (6, 8, 5, 2), expected three dimensions")


def moved(by_mm):
    affine = AFFINE.copy()
    affine[0, 3] += by_mm
    return affine


def test_a_label_at_another_place_is_refused(tmp_path):
    rule, text = broken(a_case(tmp_path, label_affine=moved(0.1)))
    assert (rule, text) == (
        "affine",
        "case bern-0007: label and image have the same voxels at different places, up to 0.1 mm apart",
    )


def test_a_label_of_another_orientation_is_refused_even_if_the_shape_fits(tmp_path):
    assert broken(a_case(tmp_path, label_affine=np.diag([-1, 1, 1, 1]) @ AFFINE))[0] == "affine"


def test_rounding_in_an_affine_is_not_another_place(tmp_path):
    read_scan(a_case(tmp_path, label_affine=moved(1e-4)))


@pytest.mark.parametrize(
    "rows", [np.zeros((3, 4)), [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]], np.full((3, 4), np.nan)]
)
def test_an_affine_without_volume_is_refused(tmp_path, rows):
    case = a_case(tmp_path)
    for path in (case.image, case.label):
        content = bytearray(path.read_bytes())
        content[252:256] = np.array([0, 1], "<i2").tobytes()  # qform_code, sform_code
        content[280:328] = np.asarray(rows, "<f4").tobytes()
        path.write_bytes(content)
    assert broken(case)[0] == "affine"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_voxel_that_is_not_finite_is_refused(tmp_path, value):
    volume = a_volume().astype(np.float32)
    volume[2, 3, 4] = value
    assert broken(a_case(tmp_path, volume)) == ("not_finite", "case bern-0007: image holds NaN or infinite voxels")


@pytest.mark.parametrize("value", [0.5, -1, 256, np.nan, np.inf])
def test_label_values_must_be_whole_numbers(tmp_path, value):
    label = np.zeros((6, 8, 5), np.float32)
    label[0, 0, 0] = value
    rule, text = broken(a_case(tmp_path, label=label))
    assert (rule, text) == (
        "label_values",
        f"case bern-0007: the label holds {value:g}, expected whole numbers from 0 to 255",
    )


# --- the grid -------------------------------------------------------------------------------------------------------


def boxed_scan(shape=(20, 24, 3), spacing=(2.0, 2.0, 5.0)):
    """Air with a head from voxel (4, 6) to (13, 19), both included; no two voxels of it are alike."""
    image = np.full(shape, -1000.0, np.float32)
    head = (slice(4, 14), slice(6, 20))
    image[head] = np.arange(10 * 14 * shape[2]).reshape(10, 14, shape[2])
    label = np.zeros(shape, bool)
    label[6:9, 10:15, 1] = True
    return Scan(image, label, np.diag([*spacing, 1.0]))


@pytest.mark.parametrize(
    ("size", "start"),
    [((8, 10), (9 - 4, 13 - 5)), ((16, 18), (9 - 8, 13 - 9)), ((32, 48), (9 - 16, 13 - 24))],
    ids=["inside", "around-the-head", "beyond-the-scan"],
)
def test_on_the_scans_own_spacing_the_grid_is_a_cut_around_the_head_and_exact_both_ways(size, start):
    scan = boxed_scan()
    image, label, placement = to_grid(scan, spacing_mm=2.0, size=size)
    assert placement.start == start
    assert (image.shape, image.dtype, label.dtype) == ((*size, 3), np.int16, np.bool_)
    expected = np.zeros(scan.image.shape, np.float32)
    field = tuple(slice(max(s, 0), s + n) for s, n in zip(start, size, strict=True))
    expected[field] = scan.image[field]
    np.testing.assert_array_equal(from_grid(image.astype(np.float32), placement), expected)
    assert label.sum() == scan.label[field].sum()


def test_beyond_the_scan_there_is_air_without_blood():
    image, label, _ = to_grid(boxed_scan(), spacing_mm=2.0, size=(32, 48))
    assert (image[:7] == -1000).all()
    assert not label[:7].any()


def test_a_scan_without_a_head_is_cut_in_the_middle():
    empty = Scan(np.full((20, 24, 3), -1000.0, np.float32), np.zeros((20, 24, 3), bool), np.diag([2.0, 2, 5, 1]))
    assert to_grid(empty, spacing_mm=2.0, size=(8, 8))[2].start == (6, 8)


def test_hounsfield_units_are_rounded_not_cut():
    scan = boxed_scan()
    scan.image[9, 13] = [-1.6, 1.6, 2.4]
    image, _, placement = to_grid(scan, spacing_mm=2.0, size=(16, 18))
    assert list(image[9 - placement.start[0], 13 - placement.start[1]]) == [-2, 2, 2]


def test_values_beyond_hounsfield_units_are_cut_off_not_wrapped():
    scan = boxed_scan()
    scan.image[8, 12, 1] = 1e6
    assert to_grid(scan, spacing_mm=2.0, size=(16, 18))[0].max() == 4095


def ball_scan(spacing, radius_mm=18.0):
    """A bright ball of blood away from the centre of a larger ball of tissue."""
    x, y = ((np.arange(round(160 / s)) + 0.5) * s for s in spacing[:2])
    ball = ((x[:, None] - 95) ** 2 + (y - 60) ** 2 < radius_mm**2)[..., None] & np.ones(6, bool)
    head = ((x[:, None] - 85) ** 2 + (y - 75) ** 2 < 70**2)[..., None] & np.ones(6, bool)
    image = np.where(ball, 70, np.where(head, 30, -1000)).astype(np.float32)
    return Scan(image, ball, np.diag([*spacing, 1.0]))


def centroid(weights):
    return np.array([(np.indices(weights.shape)[axis] * weights).sum() / weights.sum() for axis in range(3)])


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 5.0), (0.9, 1.3, 5.0), (3.0, 3.0, 5.0)], ids=str)
def test_to_another_spacing_and_back_keeps_place_and_volume(spacing):
    scan = ball_scan(spacing)
    _, label, placement = to_grid(scan, spacing_mm=2.0, size=(96, 112))
    back = from_grid(label.astype(np.float32), placement)
    assert back.shape == scan.label.shape
    shift_mm = (centroid(back) - centroid(scan.label))[:2] * spacing[:2]
    assert np.abs(shift_mm).max() < min(2.0, *spacing[:2]) / 2
    assert label.sum() * 4.0 == pytest.approx(scan.label.sum() * spacing[0] * spacing[1], rel=0.05)
    found = back > 0.5
    assert 2 * (found & scan.label).sum() / (found.sum() + scan.label.sum()) > 0.93


def test_shrinking_averages_instead_of_picking():
    """Lines of one voxel at 0.5 mm cover a quarter of every 2 mm pixel: all pixels see them, none alone."""
    image = np.zeros((64, 64, 1), np.float32)
    image[::4] = 400.0
    shrunk, _, _ = to_grid(Scan(image, image > 0, np.diag([0.5, 0.5, 5, 1])), spacing_mm=2.0, size=(16, 16))
    inner = shrunk[2:-2, 2:-2]
    assert inner.min() > 50
    assert inner.max() < 150


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 5.0), (1.6, 0.8, 5.0), (4.0, 4.0, 5.0)], ids=str)
def test_a_pixel_of_the_grid_shows_what_lies_at_its_place(spacing):
    """The image says ten times each voxel's distance in mm from the scan's edge, first along x, then along y."""
    n_x, n_y = (round(160 / s) for s in spacing[:2])
    from_edge = (
        10 * (np.arange(n_x)[:, None, None] + 0.5) * spacing[0],
        10 * (np.arange(n_y)[:, None] + 0.5) * spacing[1],
    )
    expected = 10 * (np.arange(80) + 0.5) * 2.0
    inner = slice(4, -4)  # at the very edge there is nothing to average with
    for axis, distances in enumerate(from_edge):
        image = np.broadcast_to(distances, (n_x, n_y, 2)).astype(np.float32)
        grid, _, _ = to_grid(Scan(image, image < 0, np.diag([*spacing, 1.0])), spacing_mm=2.0, size=(80, 80))
        along = grid[:, 40, 0] if axis == 0 else grid[40, :, 0]
        np.testing.assert_allclose(along[inner], expected[inner], atol=1)
