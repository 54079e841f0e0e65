"""NRRD and MetaImage files: the same voxels and places as in SimpleITK, and refused where these are not known."""

import gzip
import re
import tracemalloc

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK
from harness.one_case import check_case

from sahfl.data.checks import verify_unchanged
from sahfl.data.ct import read_scan
from sahfl.data.formats.volume import kind_of, open_volume
from sahfl.data.manifest import Case
from sahfl.errors import DataChanged, ScanProblem

SPACING = (0.5, 0.75, 5.0)
LPS = np.diag([-1.0, -1.0, 1.0])


def turned(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


DIRECTIONS = {"axial": np.eye(3), "upside-down": np.diag([1.0, -1.0, -1.0]), "oblique": turned(17)}


def a_volume(dtype=np.int16):
    return (np.arange(6 * 8 * 5).reshape(6, 8, 5) % 120 - (20 if np.dtype(dtype).kind in "if" else 0)).astype(dtype)


def written(path, volume, directions=DIRECTIONS["axial"], *, packed=False):
    """A volume (X, Y, Z), as SimpleITK writes it."""
    image = SimpleITK.GetImageFromArray(volume.transpose(2, 1, 0))
    image.SetSpacing(SPACING)
    image.SetOrigin((-11.5, 22.25, 7.0))
    image.SetDirection(directions.ravel().tolist())
    SimpleITK.WriteImage(image, str(path), packed)
    return path


def expected_affine(directions):
    affine = np.eye(4)
    affine[:3, :3] = LPS @ directions @ np.diag(SPACING)
    affine[:3, 3] = LPS @ (-11.5, 22.25, 7.0)
    return affine


@pytest.mark.parametrize("directions", DIRECTIONS.values(), ids=DIRECTIONS.keys())
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("name", ["scan.nrrd", "scan.nhdr", "scan.mha", "scan.mhd"])
def test_a_volume_has_the_voxels_and_the_place_that_simpleitk_gave_it(tmp_path, name, packed, directions):
    image = open_volume(written(tmp_path / name, a_volume(), directions, packed=packed))
    assert np.array_equal(np.asarray(image.dataobj), a_volume())
    assert np.allclose(image.affine, expected_affine(directions), atol=1e-6)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])
@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mha"])
def test_every_type_of_voxels_is_read(tmp_path, name, dtype):
    image = open_volume(written(tmp_path / name, a_volume(dtype)))
    assert np.asarray(image.dataobj).dtype == np.dtype(dtype)
    assert np.array_equal(np.asarray(image.dataobj), a_volume(dtype))


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
def test_nrrd_of_pynrrd_in_ras_and_high_byte_first_is_read(tmp_path, encoding):
    header = {"space": "right-anterior-superior", "space directions": np.diag(SPACING), "space origin": (1.0, 2.0, 3.0)}
    nrrd.write(str(tmp_path / "a.nrrd"), a_volume(">i2"), header | {"encoding": encoding, "endian": "big"})
    image = open_volume(tmp_path / "a.nrrd")
    assert np.array_equal(np.asarray(image.dataobj), a_volume())
    assert np.array_equal(image.affine, np.diag([*SPACING, 1.0]) + np.pad([[1.0], [2.0], [3.0]], ((0, 1), (3, 0))))


def test_metaimage_with_its_high_bytes_first_is_read(tmp_path):
    path = written(tmp_path / "a.mha", a_volume())
    content = path.read_bytes()
    start = content.index(b"LOCAL\n") + 6
    changed = content[:start].replace(b"MSB = False", b"MSB = True") + a_volume(">i2").tobytes(order="F")
    assert changed[:start] != content[:start]
    path.write_bytes(changed)
    assert np.array_equal(np.asarray(open_volume(path).dataobj), a_volume())


def test_the_content_decides_about_the_format_and_not_the_name(tmp_path):
    for made, renamed, kind in (("a.nrrd", "a.nii.gz", "nrrd"), ("a.mha", "b.nii", "metaimage")):
        written(tmp_path / made, a_volume()).rename(tmp_path / renamed)
        assert kind_of(tmp_path / renamed) == kind
        assert np.array_equal(np.asarray(open_volume(tmp_path / renamed).dataobj), a_volume())
    nibabel.save(nibabel.Nifti1Image(a_volume(), np.eye(4)), tmp_path / "c.nii.gz")
    assert kind_of(tmp_path / "c.nii.gz") == "nifti"
    (tmp_path / "d.txt").write_text("Name: nobody")
    assert kind_of(tmp_path / "d.txt") is None
    assert kind_of(tmp_path / "nothing") is None


# --- refused --------------------------------------------------------------------------------------------------------

NRRD = """NRRD0004
type: short
dimension: 3
space: left-posterior-superior
sizes: 6 8 5
space directions: (0.5,0,0) (0,0.75,0) (0,0,5)
endian: little
encoding: raw
space origin: (0,0,0)

"""
META = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 0 0 0
ElementSpacing = 0.5 0.75 5
DimSize = 6 8 5
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""
FAULTS = {
    "no-space": (NRRD, "space: left-posterior-superior\n", "", "no_orientation", "where right, front"),
    "unknown-space": (NRRD, "left-posterior-superior", "3D-right-handed", "no_orientation", "where right, front"),
    "nrrd-many-voxels": (NRRD, "6 8 5", "6000 8000 5000", "too_large", "6000 x 8000 x 5000 voxels"),
    "nrrd-below-zero": (NRRD, "6 8 5", "-6 8 5", "unreadable", "contradict each other"),
    "nrrd-four-axes": (NRRD, "dimension: 3", "dimension: 4", "unreadable", "contradict each other"),
    "nrrd-outside": (NRRD, "encoding", "data file: ../secret.raw\nencoding", "unreadable", "in another folder"),
    "nrrd-absolute": (NRRD, "encoding", "data file: /etc/passwd\nencoding", "unreadable", "in another folder"),
    "nrrd-list": (NRRD, "encoding", "data file: LIST\nencoding", "unreadable", "in several files"),
    "nrrd-ascii": (NRRD, "raw", "ascii", "unreadable", "expected raw, gzip or bzip2"),
    "nrrd-blocks": (NRRD, "type: short", "type: block", "unreadable", "not plain numbers"),
    "nrrd-no-numbers": (NRRD, "(0,0,5)", "(0,0,x)", "unreadable", "NRRD"),
    "nrrd-unit": (NRRD, "endian", 'space units: "inch" "inch" "inch"\nendian', "unreadable", "the unit of the space"),
    "nrrd-too-large-number": (NRRD, "6 8 5", "6 8 9999999999999999999999", "unreadable", "the header is faulty"),
    "nrrd-flat": (NRRD, "(0,0,5)", "(0,0,0)", "affine", "the voxels have no volume"),
    "nrrd-cut-short": (NRRD, "", "", "unreadable", "truncated"),
    "meta-no-matrix": (META, "TransformMatrix = 1 0 0 0 1 0 0 0 1\n", "", "no_orientation", "no TransformMatrix"),
    "meta-many-voxels": (META, "6 8 5", "6000 8000 5000", "too_large", "6000 x 8000 x 5000 voxels"),
    "meta-two-axes": (META, "NDims = 3", "NDims = 2", "not_3d", "it has 2 axes"),
    "meta-outside": (META, "LOCAL", "../secret.raw", "unreadable", "in another folder"),
    "meta-absolute": (META, "LOCAL", "/etc/passwd", "unreadable", "in another folder"),
    "meta-list": (META, "LOCAL", "LIST", "unreadable", "in several files"),
    "meta-pattern": (META, "LOCAL", "slice%03d.raw 1 5 1", "unreadable", "in several files"),
    "meta-colours": (META, "NDims = 3", "NDims = 3\nElementNumberOfChannels = 3", "unreadable", "not plain numbers"),
    "meta-text": (META, "BinaryData = True", "BinaryData = False", "unreadable", "not plain numbers"),
    "meta-endless": (META, "ElementDataFile = LOCAL\n", "", "unreadable", "no ElementDataFile"),
    "meta-flat": (META, "0.5 0.75 5", "0.5 0.75 0", "affine", "the voxels have no volume"),
    "meta-infinite": (META, "0.5 0.75 5", "0.5 inf 5", "unreadable", "ElementSpacing is not 3 numbers"),
    "meta-cut-short": (META, "", "", "unreadable", "truncated"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "old", "new", "rule", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_a_faulty_file_is_refused_by_name(tmp_path, text, old, new, rule, message):
    (tmp_path / "scan").write_bytes(text.replace(old, new).encode() + bytes(100))
    with pytest.raises(ScanProblem, match=re.escape(message)) as caught:
        read_scan(Case("bern-0003", tmp_path / "scan", tmp_path / "scan", "p"))
    assert caught.value.rule == rule
    assert str(tmp_path) not in str(caught.value)


PACKED = {
    "nrrd": NRRD.replace("encoding: raw", "encoding: gzip").encode() + gzip.compress(bytes(50_000_000), 1),
    "metaimage": META.replace("CompressedData = False", "CompressedData = True").encode()
    + gzip.zlib.compress(bytes(50_000_000), 1),
}


@pytest.mark.parametrize("content", PACKED.values(), ids=PACKED.keys())
def test_a_small_file_that_unpacks_to_much_takes_no_memory(tmp_path, content):
    (tmp_path / "scan").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ScanProblem, match="truncated or damaged"):
            read_scan(Case("bern-0003", tmp_path / "scan", tmp_path / "scan", "p"))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["scan.nhdr", "scan.mhd"])
def test_voxels_in_a_file_of_their_own_are_watched_like_the_header(tmp_path, name):
    image = written(tmp_path / name, a_volume())
    label = written(tmp_path / "label.nrrd", (a_volume() > 90).astype(np.uint8))
    case = Case("bern-0003", image, label, "p")
    (voxels,) = set(tmp_path.iterdir()) - {image, label}
    assert case.files() == (image, voxels, label)
    checked = check_case(case)
    verify_unchanged([checked], whole=True)
    content = bytearray(voxels.read_bytes())
    content[0] ^= 1
    voxels.write_bytes(content)
    with pytest.raises(DataChanged):
        verify_unchanged([checked])


@pytest.mark.parametrize(("name", "field"), [("scan.nhdr", b"data file: "), ("scan.mhd", b"ElementDataFile = ")])
def test_voxels_may_lie_in_this_folder_as_a_path_says_it(tmp_path, name, field):
    header = written(tmp_path / name, a_volume())
    assert header.read_bytes().count(field) == 1
    header.write_bytes(header.read_bytes().replace(field, field + b"./"))
    assert np.array_equal(np.asarray(open_volume(header).dataobj), a_volume())


def test_directions_that_scale_the_voxels_of_a_metaimage_are_refused(tmp_path):
    scan = written(tmp_path / "scan.mha", a_volume())
    scan.write_bytes(scan.read_bytes().replace(b"TransformMatrix = 1 0 0", b"TransformMatrix = 2 0 0"))
    with pytest.raises(ScanProblem, match="the directions of TransformMatrix are not 1 long") as refused:
        open_volume(scan)
    assert refused.value.rule == "unreadable"


@pytest.mark.parametrize("place", [0, 3], ids=["first", "last"])
def test_an_axis_of_length_one_that_is_not_of_space_is_dropped(tmp_path, place):
    directions = np.insert(np.diag(SPACING), place, np.nan, axis=0)
    header = {"space": "left-posterior-superior", "space directions": directions, "space origin": (-11.5, 22.25, 7.0)}
    header["kinds"] = ["domain"] * 3
    header["kinds"].insert(place, "list")
    nrrd.write(str(tmp_path / "scan.nrrd"), np.expand_dims(a_volume(), place), header)
    image = open_volume(tmp_path / "scan.nrrd")
    assert np.array_equal(np.asarray(image.dataobj), a_volume())
    assert np.allclose(image.affine, expected_affine(np.eye(3)))


# --- segmentations of 3D Slicer -------------------------------------------------------------------------------------


def slicer_segmentation(path, layers, segments, *, origin=(0.0, 0.0, 0.0), old=False):
    """A .seg.nrrd of layers (L, X, Y, Z); ``segments`` are (name, layer, value)."""
    layers = np.asarray(layers, np.uint8)
    header = {"space": "left-posterior-superior", "encoding": "gzip", "space origin": origin}
    header["space directions"] = np.vstack([np.full(3, np.nan), np.diag(SPACING)])
    header["kinds"] = ["list", "domain", "domain", "domain"]
    if len(layers) == 1:
        layers, header["space directions"], header["kinds"] = layers[0], np.diag(SPACING), ["domain"] * 3
    for index, (name, layer, value) in enumerate(segments):
        header |= {f"Segment{index}_ID": f"Segment_{index + 1}", f"Segment{index}_Name": name}
        if not old:
            header |= {f"Segment{index}_Layer": str(layer), f"Segment{index}_LabelValue": str(value)}
    nrrd.write(str(path), layers, header)
    return path


def a_scan(folder):
    """An image (24, 20, 6) from (0, 0, 0) on, LPS."""
    image = SimpleITK.GetImageFromArray(np.full((6, 20, 24), 30, np.int16))
    image.SetSpacing(SPACING)
    SimpleITK.WriteImage(image, str(folder / "scan.mha"))
    return folder / "scan.mha"


def masks():
    one, two = np.zeros((24, 20, 6), np.uint8), np.zeros((24, 20, 6), np.uint8)
    one[4:9, 3:8, 2:4] = 1
    two[7:15, 5:12, 3:5] = 1
    return one, two


def blood_of(folder, label):
    """The mask in the order of the file, and the texts of what was done to it."""
    scan = read_scan(Case("bern-0003", a_scan(folder), label, "p"))
    return scan.label[::-1, ::-1].astype(np.uint8), dict(scan.notes)


def test_the_segments_named_as_blood_are_the_blood_and_the_others_are_told(tmp_path):
    one, two = masks()
    segments = [("Odem", 0, 1), ("Subdural hematoma", 1, 1), ("brain", 0, 2), ("SAH", 0, 3)]
    first = one.copy()
    first[20:, 15:, :] = 2
    first[0, 0, 5] = 3
    label = slicer_segmentation(tmp_path / "a.seg.nrrd", [first, two], segments)
    label.write_bytes(label.read_bytes().replace(b"Odem", "Ödem".encode()))
    blood, notes = blood_of(tmp_path, label)
    assert np.array_equal(blood, two | (first == 3))
    assert notes == {"seg_counted": "2 of 4 segments are named as blood and count"}


def test_the_cropped_extent_of_a_segmentation_lies_where_its_origin_says(tmp_path):
    one, _ = masks()
    crop = one[4:9, 3:8, 2:4]
    origin = (4 * SPACING[0], 3 * SPACING[1], 2 * SPACING[2])
    label = slicer_segmentation(tmp_path / "a.seg.nrrd", [crop], [("ICH", 0, 1)], origin=origin)
    blood, notes = blood_of(tmp_path, label)
    assert np.array_equal(blood, one)
    assert notes == {}  # its voxels are the image's


def test_old_segmentations_have_each_segment_in_a_layer_of_its_own(tmp_path):
    one, two = masks()
    segments = [("left ICH", 0, 0), ("right ICH", 0, 0)]
    label = slicer_segmentation(tmp_path / "a.seg.nrrd", [one, two], segments, old=True)
    assert np.array_equal(blood_of(tmp_path, label)[0], one | two)


def test_a_single_segment_that_slicer_named_by_itself_counts(tmp_path):
    one, _ = masks()
    label = slicer_segmentation(tmp_path / "a.seg.nrrd", [one], [("Segment_1", 0, 1)])
    assert np.array_equal(blood_of(tmp_path, label)[0], one)


def test_a_site_may_name_the_segments_that_are_blood_by_name_or_value(tmp_path):
    one, two = masks()
    label = slicer_segmentation(tmp_path / "a.seg.nrrd", [one, 5 * two], [("SAH", 1, 5), ("Zone A", 0, 1)])
    for wanted, expected in ((["zone a"], one), ([1], one), (["Zone A", "5"], one | two), ([], two)):
        assert np.array_equal(np.asarray(open_volume(label, wanted).dataobj), expected)
    for wanted in ("zone c", 2):
        with pytest.raises(ScanProblem, match="none of 2 segment"):
            open_volume(label, [wanted])


def test_a_value_that_several_layers_have_names_no_segment(tmp_path):
    one, two = masks()
    label = slicer_segmentation(tmp_path / "a.seg.nrrd", [one, two], [("Zone A", 0, 1), ("SAH", 1, 1)])
    with pytest.raises(ScanProblem, match="number 1 stands for 2 of 2 segments; name those that are blood"):
        open_volume(label, [1])
    assert np.array_equal(np.asarray(open_volume(label, ["Zone A"]).dataobj), one)


def test_blood_with_the_value_of_another_segment_of_its_layer_is_refused(tmp_path):
    one, two = masks()
    label = slicer_segmentation(tmp_path / "a.seg.nrrd", [one | two], [("ICH", 0, 1), ("oedema", 0, 1)])
    item = check_case(Case("bern-0003", a_scan(tmp_path), label, "p"))
    text = (
        "a segment that is blood and another one have the same value in one layer; give each segment a value of its own"
    )
    assert [(found.rule, found.text) for found in item.findings] == [("seg_segments", f"case bern-0003: {text}")]
    both = slicer_segmentation(tmp_path / "b.seg.nrrd", [one | two], [("ICH", 0, 1), ("SAH", 0, 1)])
    assert np.array_equal(blood_of(tmp_path, both)[0], one | two)


@pytest.mark.parametrize("values", [(255,), (1, 2)], ids=["all-voxels", "some-voxels"])
def test_a_value_of_no_segment_is_refused_and_a_segment_for_it_is_the_remedy(tmp_path, values):
    one, _ = masks()
    layer = one * np.uint8(values[0])
    layer[20:22, 15:18, 5] = values[-1]
    item = check_case(
        Case("bern-0003", a_scan(tmp_path), slicer_segmentation(tmp_path / "a.seg.nrrd", [layer], [("ICH", 0, 1)]), "p")
    )
    text = f"case bern-0003: the label holds value {values[-1]}, and its segments have 1"
    assert [(found.rule, found.text) for found in item.findings] == [("label_undeclared", text)]
    named = slicer_segmentation(tmp_path / "b.seg.nrrd", [layer], [("ICH", 0, 1), ("SAH", 0, values[-1])])
    assert np.array_equal(blood_of(tmp_path, named)[0], layer > 0)


NO_BLOOD = {
    "another-structure": [("brain", 0, 1)],
    "two-without-names": [("Segment_1", 0, 1), ("Segment_2", 0, 2)],
    "around-blood": [("perihematomal edema", 0, 1)],
}


@pytest.mark.parametrize("segments", NO_BLOOD.values(), ids=NO_BLOOD.keys())
def test_a_segmentation_without_a_segment_named_as_blood_is_refused_and_naming_it_is_the_remedy(tmp_path, segments):
    one, _ = masks()
    label = slicer_segmentation(tmp_path / "a.seg.nrrd", [one], segments)
    with pytest.raises(
        ScanProblem, match=f"none of {len(segments)} segment.* is named as blood; name it, such as"
    ) as e:
        blood_of(tmp_path, label)
    assert e.value.rule == "seg_segments"
    assert segments[0][0] not in str(e.value)
    slicer_segmentation(tmp_path / "a.seg.nrrd", [one], [("hemorrhage", 0, 1), *segments[1:]])
    assert blood_of(tmp_path, label)[0].any()
