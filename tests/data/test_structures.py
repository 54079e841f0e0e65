"""Contours (RTSTRUCT) as an annotation: known areas and volumes, holes, names, and what is refused."""

import numpy as np
import pydicom
import pytest
from harness.contours import write_structures
from harness.dicom_files import CANARIES, uid, write_series

from sahfl.data.ct import read_scan
from sahfl.data.dicom.structures import inside, series_of
from sahfl.data.manifest import Case
from sahfl.errors import ScanProblem

SPACING = (0.5, 0.75, 5.0)
SHAPE = (40, 32, 6)
TURN = np.radians(15)
PLACES = {
    "axial": np.array([[-0.5, 0, 0, 9.5], [0, -0.75, 0, 11.5], [0, 0, 5.0, -7], [0, 0, 0, 1]]),
    "gantry-tilt": np.array(
        [[-0.5, 0, 0, 9.5], [0, -0.75 * np.cos(TURN), 0, 11.5], [0, -0.75 * np.sin(TURN), 5.0, -7], [0, 0, 0, 1]]
    ),
}


def box(left, top, right, bottom):
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def case_of(folder, contours, place=PLACES["axial"], **options):
    """A series with a set of contours: (structure, slice, corners in pixels)."""
    write_series(folder, np.full(SHAPE, 40, np.int16), place)
    write_structures(folder / "rs.dcm", contours, place, **options)
    return Case("bern-0003", folder, folder, "p")


def mask_of(case):
    """The mask (columns, rows, slices), in the order of the series."""
    return read_scan(case).label[::-1, ::-1]


# --- which pixels ---------------------------------------------------------------------------------------------------


def test_a_rectangle_along_the_edges_of_pixels_has_exactly_these_pixels():
    found = inside(np.array(box(2.5, 3.5, 7.5, 5.5)), (12, 10))
    assert found.sum() == 5 * 2
    assert found[3:8, 4:6].all()


def test_two_rectangles_with_a_common_edge_through_centres_share_no_pixel():
    one, other = (inside(np.array(box(*sides)), (12, 10)) for sides in ((2, 3, 5, 7), (5, 3, 9, 7)))
    assert not (one & other).any()
    assert (one | other).sum() == (9 - 2) * (7 - 3)


def test_the_order_of_the_corners_does_not_matter():
    corners = np.array([(1.2, 2.1), (9.7, 3.3), (7.4, 8.8), (4.0, 5.1)])
    found = inside(corners, (12, 10))
    assert found.any()
    assert np.array_equal(inside(corners[::-1], (12, 10)), found)
    assert np.array_equal(inside(np.roll(corners, 2, axis=0), (12, 10)), found)


def test_the_area_of_a_circle_is_that_of_its_contour():
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    found = inside(np.column_stack([200.3 + 90 * np.cos(angles), 150.6 + 90 * np.sin(angles)]), (400, 300))
    assert found.sum() == pytest.approx(np.pi * 90**2, rel=2e-3)


def test_what_lies_outside_the_image_is_cut_off():
    assert inside(np.array(box(-50.5, -20.5, 2.5, 100.5)), (12, 10)).sum() == 3 * 10
    assert not inside(np.array(box(50, 50, 60, 60)), (12, 10)).any()


# --- as an annotation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_the_volume_of_a_structure_is_known_and_a_contour_within_is_a_hole(tmp_path, place):
    contours = [("Hematoma", 2, box(9.5, 9.5, 19.5, 21.5)), ("Hematoma", 2, box(12.5, 12.5, 14.5, 15.5))]
    contours += [("Hematoma", 3, box(11.5, 9.5, 15.5, 11.5)), ("Hematoma", 3, box(25.5, 9.5, 27.5, 10.5))]
    case = case_of(tmp_path, contours, place)
    mask = mask_of(case)
    assert mask.sum(axis=(0, 1)).tolist() == [0, 0, 120 - 6, 8 + 2, 0, 0]
    assert mask[10:20, 10:22, 2].sum() == 114
    assert not mask[13:15, 13:16, 2].any()
    assert mask[12:16, 10:12, 3].all()
    scan = read_scan(case)
    assert scan.volume_ml == pytest.approx(124 * abs(np.linalg.det(place[:3, :3])) / 1000)
    assert scan.notes == ()


def test_structures_that_are_not_named_as_blood_are_left_out_and_counted(tmp_path):
    contours = [("External", 1, box(0.5, 0.5, 30.5, 30.5)), ("SDH left", 2, box(9.5, 9.5, 19.5, 21.5))]
    contours += [("SDH right", 2, box(15.5, 9.5, 22.5, 21.5)), ("Brain", 3, box(0.5, 0.5, 30.5, 30.5))]
    case = case_of(tmp_path, contours)
    assert mask_of(case).sum(axis=(0, 1)).tolist() == [0, 0, (22 - 9) * 12, 0, 0, 0]  # both, not one without the other
    assert read_scan(case).notes == (("seg_counted", "2 of 4 segments are named as blood and count"),)


REFUSED = {
    "no-blood": ({"contours": [("Brain", 1, box(1, 1, 5, 5))]}, "seg_segments", "none of 1 segment.* named as blood"),
    "nothing-drawn": ({"contours": []}, "seg_segments", "no structure with contours"),
    "between-slices": ({"contours": [("ICH", 1.4, box(1, 1, 5, 5))]}, "seg_geometry", "does not lie on a slice"),
    "above": ({"contours": [("ICH", 9, box(1, 1, 5, 5))]}, "seg_geometry", "does not lie on a slice"),
    "another-frame": ({"frame": uid("elsewhere")}, "seg_frame_of_reference", "another frame of reference"),
    "no-points": ({"contours": [("ICH", 1, [(1, 1), (1, float("nan")), (4, 4)])]}, "seg_geometry", "no list of points"),
}


@pytest.mark.parametrize(("options", "rule", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_contours_of_another_kind_are_refused_without_their_names(tmp_path, options, rule, message):
    options = {"contours": [("ICH", 1, box(1, 1, 5, 5))]} | options
    with pytest.raises(ScanProblem, match=message) as caught:
        read_scan(case_of(tmp_path, **options))
    assert caught.value.rule == rule
    assert not [word for word in (*CANARIES, "Brain") if word in str(caught.value)]


def test_the_header_names_the_series_of_the_contours(tmp_path):
    case_of(tmp_path, [("ICH", 1, box(1, 1, 5, 5))])
    assert series_of(tmp_path / "rs.dcm") == {uid("ct")}


def test_a_contour_that_was_rounded_lies_on_its_slice(tmp_path):
    assert mask_of(case_of(tmp_path, [("ICH", 1.02, box(9.5, 9.5, 19.5, 21.5))])).sum() == 120


def typed(path, kind):
    """The same contours with another geometric type; None: without one."""
    data = pydicom.dcmread(path)
    for structure in data.ROIContourSequence:
        for contour in structure.ContourSequence:
            contour.ContourGeometricType = kind
            if kind is None:
                del contour.ContourGeometricType
    data.save_as(path)


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR", None])
def test_every_type_of_closed_contour_encloses_blood(tmp_path, kind):
    case = case_of(tmp_path, [("ICH", 1, box(9.5, 9.5, 19.5, 21.5)), ("ICH", 1, box(11.5, 11.5, 13.5, 13.5))])
    typed(tmp_path / "rs.dcm", kind)
    assert mask_of(case).sum() == 120 - 4


@pytest.mark.parametrize("kind", ["POINT", "OPEN_PLANAR", "OPEN_NONPLANAR"])
def test_a_structure_without_a_closed_contour_is_no_empty_mask(tmp_path, kind):
    case = case_of(tmp_path, [("ICH", 1, box(9.5, 9.5, 19.5, 21.5))])
    typed(tmp_path / "rs.dcm", kind)
    with pytest.raises(ScanProblem, match="points or open lines only, which enclose no area") as caught:
        read_scan(case)
    assert caught.value.rule == "seg_geometry"


def test_contours_on_a_series_without_a_frame_of_reference_are_placed_by_their_positions(tmp_path):
    case = case_of(tmp_path, [("ICH", 1, box(9.5, 9.5, 19.5, 21.5))])

    def without(data, index):
        del data.FrameOfReferenceUID

    write_series(tmp_path, np.full(SHAPE, 40, np.int16), PLACES["axial"], change=without)
    assert mask_of(case)[:, :, 1].sum() == 120
    assert "no_frame" in dict(read_scan(case).notes)
