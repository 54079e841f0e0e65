import numpy as np
import pytest
import torch

from sahfl.config import ViewsConfig
from sahfl.data.ct import Placement
from sahfl.data.sampler import SliceSampler
from sahfl.data.views import CaseViews, SliceStack, n_channels

CONFIG = ViewsConfig(spacing_mm=4.0, size=(48, 64, 32))
PLANES = {"axial": (48, 64), "coronal": (48, 32), "sagittal": (64, 32)}
WINDOW = ViewsConfig(spacing_mm=4.0, size=(48, 64, 32), neighbours=0, windows_hu=((0.0, 200.0),))


def stack(view, n=20, hu=30, blood=np.s_[:0], bloody=None):
    """Slices of one value, with a patch of blood (90 HU more) on some of them."""
    image = np.full((n, *PLANES[view]), hu, np.int16)
    label = np.zeros(image.shape, bool)
    for index in range(n) if bloody is None else bloody:
        label[index][blood] = True
    image[label] += 90
    return SliceStack(image, label, np.flatnonzero(label.any(axis=(1, 2))))


def case(stacks):
    return CaseViews(stacks, Placement((48, 64, 20), (48, 64), (0, 0)), 4.0, 0)


CENTRE = np.s_[18:30, 12:20]


def all_views(**options):
    return case({view: stack(view, **options) for view in PLANES})


def batches(sampler, n):
    return [sampler.batch() for _ in range(n)]


def sampler_of(cases, views=CONFIG, batch_size=4, foreground_share=0.5, seed=0):
    return SliceSampler(cases, views, batch_size=batch_size, foreground_share=foreground_share, seed=seed)


# --- what a batch is ------------------------------------------------------------------------------------------------


def test_a_batch_shows_one_view_as_network_input_in_0_to_1_with_blood_as_0_or_1_and_its_name():
    seen = set()
    for image, label, view in batches(sampler_of([all_views(blood=CENTRE)]), 20):
        plane = PLANES[view]
        seen.add(plane)
        assert image.shape == (4, n_channels(CONFIG), *plane)
        assert label.shape == (4, 1, *plane)
        assert (image.dtype, label.dtype) == (torch.float32, torch.float32)
        assert 0 <= image.min() <= image.max() <= 1
        assert set(label.unique().tolist()) <= {0.0, 1.0}
    assert seen == set(PLANES.values())


def test_views_are_drawn_by_their_weights():
    config = WINDOW.model_copy(update={"weights": {"axial": 1.0, "sagittal": 0.25}})
    drawn = [image.shape[2] for image, _, _ in batches(sampler_of([all_views()], config, batch_size=1), 300)]
    assert set(drawn) == {48, 64}
    assert drawn.count(64) / 300 == pytest.approx(0.2, abs=0.07)  # three standard deviations


def test_the_label_moves_with_the_image():
    config = WINDOW.model_copy(update={"weights": {"axial": 1.0}})
    corner = np.s_[4:14, 6:20]
    for image, label, _ in batches(sampler_of([all_views(blood=corner)], config), 12):
        for picture, mask in zip(image[:, 0], label[:, 0] > 0, strict=True):
            bright = picture > 0.5 * (picture.min() + picture.max())
            assert 2 * (bright & mask).sum() / (bright.sum() + mask.sum()) > 0.85


# --- the same arguments, the same batches ---------------------------------------------------------------------------


def test_the_same_arguments_give_the_same_batches_whatever_the_global_random_state():
    runs = []
    for seed in (1, 2):
        np.random.seed(seed)
        torch.manual_seed(seed)
        runs.append(batches(sampler_of([all_views(blood=CENTRE)], seed=2**62 + 5), 6))
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_another_seed_gives_other_batches():
    first, second = (batches(sampler_of([all_views(blood=CENTRE)], seed=seed), 4) for seed in (1, 2))
    assert not all(a.shape == b.shape and torch.equal(a, b) for (a, *_), (b, *_) in zip(first, second, strict=True))


def test_augmentation_differs_between_equal_slices():
    image, _, _ = sampler_of([all_views(blood=CENTRE)], batch_size=16).batch()
    assert len({picture.numpy().tobytes() for picture in image}) > 8


def test_the_scans_themselves_are_left_alone():
    scans = all_views(blood=CENTRE)
    before = {view: (item.image.copy(), item.label.copy()) for view, item in scans.stacks.items()}
    batches(sampler_of([scans]), 10)
    for view, (image, label) in before.items():
        assert (scans.stacks[view].image == image).all()
        assert (scans.stacks[view].label == label).all()


# --- what is drawn --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "wanted"), [(0.0, 0), (0.5, 4), (1.0, 8)])
def test_the_share_of_slices_with_blood_is_kept(share, wanted):
    """One slice of 100 has blood; its patch is so large that no augmentation moves it out of the picture."""
    rare = all_views(n=100, blood=CENTRE, bloody=[50])
    counts = [
        int(label.flatten(1).any(dim=1).sum())
        for _, label, _ in batches(sampler_of([rare], batch_size=8, foreground_share=share), 10)
    ]
    assert min(counts) >= wanted
    assert sum(counts) <= 10 * wanted + 4  # the others are drawn from all slices, one of 100 of which has blood


def test_patients_count_equally_however_many_slices_they_have():
    many, few = (case({"axial": stack("axial", n=n, hu=hu)}) for n, hu in ((200, 30), (10, 150)))
    config = WINDOW.model_copy(update={"weights": {"axial": 1.0}})
    image, _, _ = sampler_of([many, few], config, batch_size=200).batch()
    share_of_few = float((image.mean(dim=(1, 2, 3)) > 90 / 200).float().mean())
    assert share_of_few == pytest.approx(0.5, abs=0.11)  # three standard deviations


def test_cases_without_blood_are_drawn_where_blood_is_asked_for():
    for _, label, _ in batches(sampler_of([all_views()], foreground_share=1.0), 5):
        assert not label.any()


def test_a_view_that_no_case_has_is_never_drawn():
    only_axial = case({"axial": stack("axial", blood=CENTRE)})
    assert {tuple(image.shape[2:]) for image, _, _ in batches(sampler_of([only_axial]), 10)} == {PLANES["axial"]}


def test_only_the_cases_that_have_a_view_are_drawn_in_it():
    thin, whole = case({"axial": stack("axial", hu=150)}), all_views(hu=30)
    config = WINDOW.model_copy(update={"weights": {"coronal": 1.0}})
    image, _, _ = sampler_of([thin, whole], config, batch_size=20).batch()
    assert tuple(image.shape[2:]) == PLANES["coronal"]
    assert (image.mean(dim=(1, 2, 3)) < 90 / 200).all()


# --- mirroring ------------------------------------------------------------------------------------------------------


def sides(view, n_batches=6):
    """On which half of the height and of the width the blood lies, after augmentation; it starts in the low corner."""
    config = WINDOW.model_copy(update={"weights": {view: 1.0}})
    height, width = PLANES[view]
    corner = np.s_[2 : height // 3, 2 : width // 3]
    found = set()
    for _, label, _ in batches(sampler_of([all_views(blood=corner)], config, batch_size=8), n_batches):
        for mask in label[:, 0]:
            y, x = torch.nonzero(mask).float().mean(dim=0)
            found.add(("low" if y < height / 2 else "high", "low" if x < width / 2 else "high"))
    return found


@pytest.mark.parametrize("view", ["axial", "coronal"])
def test_left_and_right_are_mirrored_and_nothing_else(view):
    assert sides(view) == {("low", "low"), ("high", "low")}


def test_a_sagittal_slice_is_never_mirrored():
    assert sides("sagittal") == {("low", "low")}
