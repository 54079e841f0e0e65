import numpy as np
import pytest
import torch

from sahfl.config import ViewsConfig
from sahfl.data.ct import Scan
from sahfl.data.views import MIN_SLICES, SliceStack, fuse, make_views, n_channels, slab, windows
from sahfl.errors import DataError

CONFIG = ViewsConfig(spacing_mm=4.0, size=(48, 64, 32))


def head(shape=(48, 56, 20), spacing=(3.5, 3.5, 6.0)):
    """Skull, brain, and blood as an ellipsoid off the centre; the volume a scanner would give."""
    places = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"
    )

    def ellipsoid(centre, radii):
        return sum(((p - c) / r) ** 2 for p, c, r in zip(places, centre, radii, strict=True)) < 1

    image = np.full(shape, -1000.0, np.float32)
    image[ellipsoid((0, 0, -5), (70, 85, 52))] = 900
    image[ellipsoid((0, 0, -5), (63, 78, 46))] = 30
    blood = ellipsoid((20, -25, 5), (22, 30, 24))
    image[blood] = 70
    return Scan(image, blood, np.diag([*spacing, 1.0]))


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


# --- from volume to slices ------------------------------------------------------------------------------------------


def test_every_view_has_the_size_of_its_plane():
    stacks = make_views(head(), CONFIG).stacks
    assert {view: stack.image.shape for view, stack in stacks.items()} == {
        "axial": (20, 48, 64),
        "coronal": (64, 48, 32),
        "sagittal": (48, 64, 32),
    }
    for stack in stacks.values():
        assert stack.label.shape == stack.image.shape
        assert (stack.image.dtype, stack.label.dtype) == (np.int16, np.bool_)


def test_only_the_configured_views_are_made():
    assert list(make_views(head(), CONFIG.model_copy(update={"weights": {"sagittal": 1.0}})).stacks) == ["sagittal"]


def test_a_voxel_lies_where_its_axes_say():
    """One bright voxel at even spacing: (x, y) axial, (x, z) coronal, (y, z) sagittal."""
    image = np.full((48, 64, 32), 0.0, np.float32)
    image[10, 20, 25] = 1000
    config = ViewsConfig(spacing_mm=4.0, size=(48, 64, 32))
    stacks = make_views(Scan(image, image > 500, np.diag([4.0, 4, 4, 1])), config).stacks
    places = {"axial": (25, 10, 20), "coronal": (20, 10, 25), "sagittal": (10, 20, 25)}
    for view, place in places.items():
        assert tuple(np.argwhere(stacks[view].image == 1000)[0]) == place
        assert tuple(np.argwhere(stacks[view].label)[0]) == place
        assert list(stacks[view].with_blood) == [place[0]]


def test_slices_with_blood_are_listed():
    for stack in make_views(head(), CONFIG).stacks.values():
        assert 0 < len(stack.with_blood) < len(stack.label)
        assert stack.label[stack.with_blood].any(axis=(1, 2)).all()
        assert not np.delete(stack.label, stack.with_blood, axis=0).any()


def test_views_across_slices_have_even_spacing():
    """The blood is 48 mm high, so 12 pixels of 4 mm, whatever the distance of the slices."""
    for depth, spacing in ((20, 6.0), (40, 3.0), (60, 2.0)):
        stack = make_views(head((48, 56, depth), (3.5, 3.5, spacing)), CONFIG).stacks["coronal"]
        assert stack.label.any(axis=(0, 1)).sum() == pytest.approx(12, abs=2)


def test_a_pixel_across_slices_shows_what_lies_at_its_height():
    """The image says ten times each voxel's height in mm; 120 mm are 30 of the field's 32 pixels of 4 mm."""
    heights = 10 * (np.arange(20) + 0.5) * 6.0
    image = np.broadcast_to(heights, (48, 64, 20)).astype(np.float32)
    stacks = make_views(Scan(image, image < 0, np.diag([4.0, 4.0, 6.0, 1.0])), CONFIG).stacks
    for view in ("coronal", "sagittal"):
        column = stacks[view].image[20, 20]
        np.testing.assert_allclose(column[2:-2], (10 * (np.arange(30) + 0.5) * 4.0)[1:-1], atol=1)
        assert (column[[0, -1]] == -1000).all()


@pytest.mark.parametrize("depth", [1, MIN_SLICES - 1])
def test_a_volume_of_few_slices_has_an_axial_view_only(depth):
    assert list(make_views(head((48, 56, depth)), CONFIG).stacks) == ["axial"]


def test_a_volume_of_enough_slices_has_all_views():
    assert list(make_views(head((48, 56, MIN_SLICES)), CONFIG).stacks) == ["axial", "coronal", "sagittal"]


def test_a_volume_that_has_none_of_the_configured_views_is_refused():
    config = CONFIG.model_copy(update={"weights": {"coronal": 1.0, "sagittal": 0.5}})
    with pytest.raises(DataError, match="a scan with 5 slices has only an axial view, the study uses coronal, sagit"):
        make_views(head((48, 56, 5)), config)


# --- from slices to the network's input -----------------------------------------------------------------------------


def numbered_stack(n=5):
    image = np.arange(n, dtype=np.int16)[:, None, None] + np.zeros((1, 2, 3), np.int16)
    return SliceStack(image, image > 99, np.array([], int))


@pytest.mark.parametrize(
    ("index", "neighbours", "expected"),
    [(2, 1, [1, 2, 3]), (0, 1, [0, 0, 1]), (4, 2, [2, 3, 4, 4, 4]), (0, 3, [0, 0, 0, 0, 1, 2, 3]), (3, 0, [3])],
)
def test_a_slab_holds_the_neighbours_and_repeats_the_ends(index, neighbours, expected):
    got = slab(numbered_stack(), index, neighbours)
    assert (got.shape, got.dtype) == ((2 * neighbours + 1, 2, 3), np.float32)
    assert list(got[:, 0, 0]) == expected


def test_the_only_slice_of_a_volume_is_its_own_neighbour():
    assert list(slab(numbered_stack(1), 0, 2)[:, 1, 1]) == [0, 0, 0, 0, 0]


def test_windows_scale_hounsfield_units_to_one_channel_per_window_and_slice():
    slabs = torch.tensor([-1000.0, 20.0, 60.0]).reshape(1, 3, 1, 1)
    got = windows(slabs, ((0.0, 80.0), (-20.0, 180.0)))
    assert got.shape == (1, 6, 1, 1)
    torch.testing.assert_close(got.flatten(), torch.tensor([0.0, 0.25, 0.75, 0.0, 0.2, 0.4]))


def test_windows_clip_to_zero_and_one():
    got = windows(torch.tensor([[[[-1000.0, 3000.0]]]]), ViewsConfig().windows_hu)
    assert (got.min(), got.max()) == (0, 1)


def test_the_networks_channels_are_windows_times_slices():
    config = ViewsConfig(neighbours=2, windows_hu=((0.0, 80.0), (-20.0, 180.0)))
    slabs = torch.zeros(1, 5, 2, 2)
    assert n_channels(config) == windows(slabs, config.windows_hu).shape[1] == 10


# --- from slices back to the volume ---------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["axial", "coronal", "sagittal"])
def test_each_views_own_labels_give_the_label_back(view):
    scan = head()
    case = make_views(scan, CONFIG)
    fused = fuse({view: case.stacks[view].label.astype(np.float32)}, case, CONFIG)
    assert fused.shape == scan.label.shape
    assert dice(fused > 0.5, scan.label) > 0.9


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((48, 56, 20), (3.5, 3.5, 6.0)), ((160, 200, 30), (1.0, 0.9, 4.0)), ((48, 56, 90), (3.5, 3.5, 2.0))],
    ids=["coarse", "fine-in-plane", "taller-than-the-field"],
)
def test_all_views_labels_together_give_the_label_back(shape, spacing):
    scan = head(shape, spacing)
    case = make_views(scan, CONFIG)
    fused = fuse({view: stack.label.astype(np.float32) for view, stack in case.stacks.items()}, case, CONFIG)
    assert dice(fused > 0.5, scan.label) > 0.9
    assert fused.min() >= 0
    assert fused.max() <= 1 + 1e-6


def constant(case, **values):
    return {view: np.full(case.stacks[view].image.shape, value, np.float32) for view, value in values.items()}


@pytest.mark.parametrize(
    ("weights", "values", "expected"),
    [
        ({"axial": 1.0, "coronal": 0.5, "sagittal": 0.5}, {"axial": 1, "coronal": 0, "sagittal": 0}, 0.5),
        ({"axial": 1.0, "coronal": 0.5, "sagittal": 0.5}, {"axial": 0, "coronal": 1, "sagittal": 0}, 0.25),
        ({"axial": 0.3, "coronal": 0.1}, {"axial": 1, "coronal": 0}, 0.75),
        ({"axial": 0.3, "coronal": 0.1}, {"axial": 0.8, "coronal": 0.4}, 0.7),
        ({"sagittal": 0.2}, {"sagittal": 0.6}, 0.6),
    ],
)
def test_views_are_averaged_by_their_normalised_weights(weights, values, expected):
    config = CONFIG.model_copy(update={"weights": weights})
    scan = head()
    case = make_views(scan, config)
    np.testing.assert_allclose(fuse(constant(case, **values), case, config)[scan.label], expected, rtol=1e-5)


def test_weights_are_normalised_over_the_views_that_a_volume_has():
    scan = head((48, 56, 5))
    case = make_views(scan, CONFIG)
    np.testing.assert_allclose(fuse(constant(case, axial=0.8), case, CONFIG)[24, 28], 0.8, rtol=1e-6)


def test_slices_beyond_the_field_are_judged_by_the_axial_view_alone():
    """180 mm of slices, a field of 128 mm: what only the axial view shows can still be called blood."""
    scan = head((48, 56, 30), (3.5, 3.5, 6.0))
    case = make_views(scan, CONFIG)
    column = fuse(constant(case, axial=0.9, coronal=0.5, sagittal=0.5), case, CONFIG)[24, 28]
    np.testing.assert_allclose(column[[0, 1, 2, -2, -1]], 0.9, rtol=1e-5)
    np.testing.assert_allclose(column[7:-7], 0.7, rtol=1e-5)


def test_thin_blood_between_thin_slices_fades_but_does_not_vanish_in_coronal_views():
    # 0.5 mm slices onto 2 mm pixels: every fourth would be looked at without averaging.
    image = np.full((32, 32, 64), 30.0, np.float32)
    for z in range(64):
        scan_image = image.copy()
        scan_image[10:20, 10:20, z] = 90.0
        scan = Scan(scan_image, scan_image > 60, np.diag([2.0, 2.0, 0.5, 1.0]))
        config = ViewsConfig(weights={"coronal": 1.0}, spacing_mm=2.0, size=(32, 32, 32))
        stack = make_views(scan, config).stacks["coronal"]
        assert stack.image[15].max() >= 35


# --- the field along z ----------------------------------------------------------------------------------------------

TALL = ViewsConfig(spacing_mm=4.0, size=(48, 64, 48))
"""The field is 192 mm high."""


def head_on_neck(*, neck_mm, above_mm, spacing_z=5.0, table=True):
    """A head of 160 mm on a neck with its spine, air above, on a table that is as long as the scan."""
    heights = (np.arange(round((neck_mm + 160 + above_mm) / spacing_z)) + 0.5) * spacing_z - neck_mm
    x, y, z = np.meshgrid((np.arange(48) - 23.5) * 4, (np.arange(64) - 31.5) * 4, heights, indexing="ij")
    image = np.full(x.shape, -1000.0, np.float32)
    if table:
        image[(y < -90) & (y > -110) & (abs(x) < 80)] = 120
    image[(x**2 + y**2 < 55**2) & (z < 60)] = 40
    image[(x**2 + (y + 20) ** 2 < 20**2) & (z < 40)] = 700
    head = (x / 70) ** 2 + (y / 85) ** 2 + ((z - 80) / 80) ** 2
    image[head < 1], image[head < 0.8] = 900, 30
    blood = (x - 20) ** 2 + (y - 10) ** 2 + (z - 125) ** 2 < 20**2  # high up, near the vertex
    image[blood] = 70
    return Scan(image, blood, np.diag([4.0, 4.0, spacing_z, 1.0]))


def vertex_of(stack):
    """Highest row of the field that shows the skull."""
    return np.flatnonzero((stack.image > 300).any(axis=(0, 1)))[-1]


@pytest.mark.parametrize("spacing_z", [1.25, 5.0])
@pytest.mark.parametrize(("neck_mm", "above_mm"), [(150, 0), (150, 60), (60, 10), (300, 25)])
@pytest.mark.parametrize("view", ["coronal", "sagittal"])
def test_the_vertex_of_a_head_and_neck_scan_is_at_the_top_of_the_field(view, neck_mm, above_mm, spacing_z):
    scan = head_on_neck(neck_mm=neck_mm, above_mm=above_mm, spacing_z=spacing_z)
    stack = make_views(scan, TALL).stacks[view]
    assert vertex_of(stack) == pytest.approx(46.5, abs=1.5)
    assert stack.label.sum() * 4.0**3 == pytest.approx(scan.label.sum() * 16 * spacing_z, rel=0.1)


@pytest.mark.parametrize("above_mm", [100, 40, 300])
def test_a_head_with_much_air_around_it_is_in_the_middle_of_the_field(above_mm):
    scan = head_on_neck(neck_mm=100, above_mm=above_mm)
    scan.image[:, 12:, :20] = -1000  # no neck, but the table goes on
    rows = np.flatnonzero((make_views(scan, TALL).stacks["sagittal"].image > 300).any(axis=(0, 1)))
    assert len(rows) == pytest.approx(40, abs=2)
    assert (rows[0] + rows[-1]) / 2 == pytest.approx(23.5, abs=1)


@pytest.mark.parametrize("above_mm", [0, 20, 32])
def test_a_volume_that_fits_the_field_is_all_in_it(above_mm):
    scan = head_on_neck(neck_mm=0, above_mm=above_mm)
    stack = make_views(scan, TALL).stacks["coronal"]
    n_rows = round(scan.image.shape[2] * 5.0 / 4.0)
    assert ((stack.image > -1000).any(axis=(0, 1))).sum() == pytest.approx(n_rows, abs=1)  # the table is in each row


def test_without_bone_the_field_is_in_the_middle_of_the_volume():
    scan = head_on_neck(neck_mm=150, above_mm=60)
    scan.image[scan.image > 300] = 40
    assert make_views(scan, TALL).start_z == (round(74 * 5 / 4) - 48) // 2


def test_a_speck_of_metal_above_the_head_does_not_move_the_field():
    scan = head_on_neck(neck_mm=150, above_mm=60)
    expected = make_views(scan, TALL).start_z
    scan.image[20, 6, -1] = 3000
    assert make_views(scan, TALL).start_z == expected


@pytest.mark.parametrize("view", ["coronal", "sagittal"])
def test_labels_of_a_field_that_hangs_from_the_vertex_go_back_to_their_place(view):
    scan = head_on_neck(neck_mm=150, above_mm=60)
    case = make_views(scan, TALL)
    fused = fuse({view: case.stacks[view].label.astype(np.float32)}, case, TALL)
    assert dice(fused > 0.5, scan.label) > 0.9
