"""Pictures of a phantom cohort."""

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from sahfl.data.phantom import LABELS, CohortSpec, PhantomCase, write_sites
from sahfl.report.cohort import (
    AXIAL_SLICES,
    KIND_COLOURS,
    PUBLISHED_MEDIAN_ML,
    SHOWN_CASES,
    draw_cohort,
    draw_montage,
    draw_volumes,
    measure_volumes,
)

SHAPE, SPACING_MM = (40, 44, 10), (5.0, 5.0, 14.0)
SPECS = (
    CohortSpec("bern", "sah", "standard", n_cases=2, seed=4, shape=SHAPE, spacing_mm=SPACING_MM),
    CohortSpec("graz", "normal", "sharp", n_cases=1, seed=4, shape=SHAPE, spacing_mm=SPACING_MM),
)


def asymmetric_case():
    """A bright block with a label on the patient's right, in front, in the third slice; the rest is plain tissue."""
    image, label = np.full((20, 24, 8), 35, np.int16), np.zeros((20, 24, 8), np.uint8)
    image[14:17, 18:21, 2] = 70
    label[14:17, 18:21, 2] = LABELS["SDH"]
    affine = np.diag([2.0, 3.0, 5.0, 1.0])
    affine[:3, 3] = (-19, -34.5, -17.5)
    return PhantomCase(image, label, affine, seed=1, kind="tbi")


def contour_points(axes):
    return np.concatenate([path.vertices for found in axes.collections for path in found.get_paths()])


def test_there_is_a_montage_per_site_and_one_histogram(tmp_path):
    write_sites(tmp_path, SPECS)
    pictures = draw_cohort(tmp_path, SPECS)
    assert [path.name for path in pictures] == ["montage-bern.png", "montage-graz.png", "volumes.png"]
    for path in pictures:
        assert imread(path)[..., :3].std() > 0.05  # something is drawn


@pytest.mark.slow
def test_pictures_are_a_function_of_the_cohort(tmp_path):
    write_sites(tmp_path, SPECS)
    first = [path.read_bytes() for path in draw_cohort(tmp_path, SPECS)]
    assert [path.read_bytes() for path in draw_cohort(tmp_path, SPECS)] == first


def test_drawing_leaves_matplotlib_as_it_was(tmp_path):
    write_sites(tmp_path, SPECS)
    before = dict(matplotlib.rcParams)
    draw_cohort(tmp_path, SPECS)
    assert dict(matplotlib.rcParams) == before


def test_a_montage_shows_axial_slices_and_one_coronal_slice_per_case():
    figure = draw_montage(SPECS[0], [asymmetric_case()] * 2)
    assert len(figure.axes) == 2 * (AXIAL_SLICES + 1)
    assert [axes.texts[0].get_text()[0] for axes in figure.axes[: AXIAL_SLICES + 1]] == ["z"] * AXIAL_SLICES + ["y"]
    assert "2 of 2 cases" in figure.texts[0].get_text()
    assert SHOWN_CASES >= 2


def test_the_slice_with_most_blood_is_among_those_shown():
    figure = draw_montage(SPECS[0], [asymmetric_case()])
    assert "z -8" in [axes.texts[0].get_text() for axes in figure.axes]  # -17.5 + 2 * 5 = -7.5 mm


def test_the_patient_s_right_is_on_the_left_and_the_contour_lies_on_the_blood():
    figure = draw_montage(SPECS[0], [asymmetric_case()])
    marked = [axes for axes in figure.axes if axes.collections]
    assert len(marked) == 2  # one axial slice, the coronal slice
    axes = marked[0]
    left, right = axes.get_xlim()
    assert left > right  # x, which grows to the patient's right, runs leftwards
    x, y = contour_points(axes).T
    assert (x.min(), x.max()) == pytest.approx((28, 34), abs=1)  # columns 14 to 16 of 2 mm
    assert (y.min(), y.max()) == pytest.approx((54, 63), abs=1.5)  # rows 18 to 20 of 3 mm
    (picture,) = axes.images
    assert picture.get_extent() == [0, 40, 0, 72]
    assert np.asarray(picture.get_array())[19, 15] == 70  # row y, column x, the lowest row first


def test_each_kind_has_a_colour_of_its_own_in_the_legend():
    assert set(KIND_COLOURS) == set(LABELS)
    assert len(set(KIND_COLOURS.values())) == len(LABELS)
    (legend,) = draw_montage(SPECS[0], [asymmetric_case()]).legends
    assert [text.get_text() for text in legend.get_texts()] == list(KIND_COLOURS)


def test_volumes_come_from_the_affine():
    assert measure_volumes(asymmetric_case()) == pytest.approx({**dict.fromkeys(LABELS, 0.0), "SDH": 9 * 30 / 1000})


def test_the_histogram_marks_the_medians_and_counts_cases_without_blood():
    none = dict.fromkeys(LABELS, 0.0)
    volumes = {"bern": [{**none, "SAH": 20.0}, {**none, "SAH": 30.0, "IPH": 4.0}], "graz": [none]}
    figure = draw_volumes(SPECS, volumes)
    by_name = {axes.get_ylabel(): axes for axes in figure.get_axes()}
    aneurysm = by_name["SAH, aneurysm"]
    assert aneurysm.get_xscale() == "log"
    assert [line.get_xdata()[0] for line in aneurysm.lines] == [25.0, PUBLISHED_MEDIAN_ML["SAH, aneurysm"][0]]
    assert "in 2 of 2 cases\nmedian 25.0 mL" in aneurysm.texts[0].get_text()
    assert "in 1 of 3 cases" in by_name["IPH"].texts[0].get_text()
    assert by_name["graz"].texts[0].get_text() == "in 0 of 1 cases"
    assert [line.get_xdata()[0] for line in by_name["bern"].lines] == [27.0]
    assert "A lower median of SAH, aneurysm is expected" in figure.get_supxlabel()
