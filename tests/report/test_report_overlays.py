"""Overlays: which slices are shown, where the contours lie, and what stands in the picture."""

import io

import numpy as np
from PIL import Image

from sahfl.report.overlays import (
    ANNOTATED,
    PREDICTED,
    Contour,
    draw_overlay,
    fullest_slices,
    neighbouring_slices,
)


def mask_of(areas):
    mask = np.zeros((20, 20, len(areas)), bool)
    for index, area in enumerate(areas):
        mask.reshape(-1, len(areas))[:area, index] = True
    return mask


def picture(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def places(png, colour):
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return np.argwhere(np.abs(picture(png) - wanted).sum(-1) < 60)


def test_slices_stand_for_equal_parts_of_the_volume_and_the_fullest_is_there():
    chosen = fullest_slices(mask_of([0, 0, 10, 10, 10, 100, 10, 10, 10, 0]), most=3)
    assert chosen == tuple(sorted(chosen))
    assert 5 in chosen
    assert set(chosen) <= {2, 3, 4, 5, 6, 7, 8}


def test_every_slice_with_blood_is_shown_where_there_are_few():
    assert fullest_slices(mask_of([0, 5, 0, 9, 0])) == (1, 3)
    assert fullest_slices(mask_of([0, 5, 0, 0])) == (1,)


def test_slices_of_an_empty_mask_are_spread_over_the_scan():
    assert fullest_slices(mask_of([0] * 30), most=4) == (6, 12, 17, 23)
    assert len(fullest_slices(mask_of([0]))) == 1


def test_neighbours_end_at_the_ends_of_the_scan():
    assert neighbouring_slices(mask_of([0, 1, 7, 2])) == (1, 2, 3)
    assert neighbouring_slices(mask_of([9, 1, 7, 2])) == (0, 1)
    assert neighbouring_slices(mask_of([9])) == (0,)


def test_a_contour_on_the_patient_s_right_lies_on_the_left_of_the_picture():
    image = np.zeros((40, 40, 1), np.float32)
    right, left = np.zeros(image.shape, bool), np.zeros(image.shape, bool)
    right[30:36, 28:34], left[4:10, 28:34] = True, True  # x grows to the right, y to the front
    contours = [Contour("annotated", ANNOTATED, right), Contour("predicted", PREDICTED, left)]
    png = draw_overlay(image, [0], contours, pixel_aspect=1.0, title="one", notice="research use only")
    width = picture(png).shape[1]
    slices = slice(0, int(picture(png).shape[0] * 0.6))  # the legend is below
    on_left, on_right = (np.array([p for p in places(png, c) if p[0] < slices.stop]) for c in (ANNOTATED, PREDICTED))
    assert on_left[:, 1].max() < width / 2 < on_right[:, 1].min()


def test_a_picture_is_png_without_texts_of_its_own_and_the_same_each_time():
    image, mask = np.zeros((30, 40, 4), np.float32), mask_of([0, 0, 0, 0])
    mask = np.zeros(image.shape, bool)
    pngs = [
        draw_overlay(image, [0, 1, 2, 3], [Contour("predicted", PREDICTED, mask)], pixel_aspect=1.0, title="none")
        for _ in range(2)
    ]
    assert pngs[0] == pngs[1]
    assert Image.open(io.BytesIO(pngs[0])).text == {}
    height, width, _ = picture(pngs[0]).shape
    assert height > width * 0.8  # two rows of three
