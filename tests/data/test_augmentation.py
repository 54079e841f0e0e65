"""Augmentation of a batch: what moves, by how much, and what stays."""

import math

import numpy as np
import pytest
import torch

from sahfl.data.augmentation import Augmentation

STRENGTHS = ("usual", "strong")


def batch(n=32, size=(64, 48), hu=35.0):
    """Equal slices with a patch of blood in a corner."""
    image, label = torch.full((n, 2, *size), hu), torch.zeros(n, 1, *size)
    label[:, :, 10:26, 8:20] = 1
    return image + 60 * label, label


def augment(strength, *, seed=0, mirror=True, spacing_mm=3.0, **more):
    return Augmentation(spacing_mm=spacing_mm, strength=strength, seed=seed)(*batch(**more), mirror=mirror)


def middle_of(label):
    """Mean position of the blood of a slice (height, width), in pixels."""
    return np.argwhere(label.numpy()).mean(axis=0)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_shapes_types_and_the_given_batch_stay_and_blood_stays_0_or_1(strength):
    image, label = batch()
    given = image.clone(), label.clone()
    moved, blood = Augmentation(spacing_mm=3.0, strength=strength, seed=0)(image, label, mirror=True)
    assert (moved.shape, blood.shape, moved.dtype, blood.dtype) == (
        image.shape,
        label.shape,
        torch.float32,
        torch.float32,
    )
    assert set(blood.unique().tolist()) == {0.0, 1.0}
    assert torch.isfinite(moved).all()
    assert torch.equal(image, given[0])
    assert torch.equal(label, given[1])


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_seed_decides_all_whatever_pytorch_s_state_which_stays(strength):
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.random.get_rng_state()
        found.append(augment(strength, seed=7))
        assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][0], augment(strength, seed=8)[0])


def test_two_batches_of_one_augmentation_differ():
    augmentation = Augmentation(spacing_mm=3.0, seed=0)
    first, second = (augmentation(*batch(), mirror=True) for _ in range(2))
    assert not torch.equal(first[0], second[0])


def test_left_and_right_are_exchanged_in_half_of_the_slices_or_in_none():
    def flipped(*, mirror):
        _, label = augment("usual", mirror=mirror, n=400)
        return np.mean([middle_of(one[0])[0] > 32 for one in label])

    assert flipped(mirror=True) == pytest.approx(0.5, abs=0.08)  # three standard deviations
    assert flipped(mirror=False) == 0


@pytest.mark.parametrize("strength", STRENGTHS)
def test_blood_moves_with_its_picture(strength, monkeypatch):
    monkeypatch.setattr(Augmentation, "_age_of_blood", lambda self, label: 0.0)
    monkeypatch.setattr(Augmentation, "_tissue", lambda self, image: image)
    image, label = augment(strength, n=60)
    for picture, blood in zip(image[:, 0], label[:, 0] > 0, strict=True):
        bright = picture > (picture.min() + picture.max()) / 2
        assert 2 * (bright & blood).sum() / (bright.sum() + blood.sum()) > 0.8


def test_a_turn_of_a_slice_that_is_not_square_is_a_turn_in_mm(monkeypatch):
    def quarter(self, strong):
        return np.array([[0.0, -1.0], [1.0, 0.0]]), np.zeros(2)

    monkeypatch.setattr(Augmentation, "_affine", quarter)
    _, label = augment("usual", mirror=False, n=40)
    # From the new slice to the old one: the old place (y, x) about the middle is at (x, -y) in the new one.
    y, x = middle_of(batch()[1][0, 0]) - [31.5, 23.5]
    turned = [middle_of(one[0]) - [31.5, 23.5] for one in label if not torch.equal(one, batch()[1][0])]
    assert len(turned) > 5
    for middle in turned:
        np.testing.assert_allclose(middle, [x, -y], atol=0.6)


def test_a_shift_is_as_long_in_mm_whatever_the_pixels(monkeypatch):
    monkeypatch.setattr(Augmentation, "_affine", lambda self, strong: (np.eye(2), np.array([-9.0, 6.0])))
    for spacing_mm in (1.5, 3.0):
        _, label = augment("usual", mirror=False, n=40, spacing_mm=spacing_mm)
        moved = [middle_of(one[0]) for one in label if not torch.equal(one, batch()[1][0])]
        shift = (np.mean(moved, axis=0) - middle_of(batch()[1][0, 0])) * spacing_mm
        np.testing.assert_allclose(shift, [9.0, -6.0], atol=0.6 * spacing_mm)


@pytest.mark.parametrize(("strength", "share"), [("usual", 0.3), ("strong", 0.5)])
def test_so_many_slices_are_moved(strength, share):
    _, label = augment(strength, mirror=False, n=600)
    still = np.mean([torch.equal(one, batch()[1][0]) for one in label])
    assert 1 - still == pytest.approx(share, abs=0.07)


def test_the_usual_changes_of_intensity_are_mild_and_the_strong_ones_make_blood_as_dense_as_brain():
    def of_blood(strength):
        image, label = augment(strength, n=300)
        return np.array([one[0][blood[0] > 0].mean() for one, blood in zip(image, label, strict=True)])

    usual, strong = of_blood("usual"), of_blood("strong")
    assert (usual.min() > 95 * 0.9 - 8, usual.max() < 95 * 1.1 + 8) == (True, True)
    assert strong.min() < 65
    assert strong.std() > 2 * usual.std()


def test_air_stays_air_and_bone_stays_bone_in_strong_changes_of_tissue():
    augmentation = Augmentation(spacing_mm=3.0, strength="strong", seed=0)
    for hu in (-1000.0, 900.0):
        flat = torch.full((1, 16, 16), hu)
        assert torch.equal(augmentation._tissue(flat), flat)
        assert torch.equal(augmentation._gamma(flat), flat)


def test_a_blur_keeps_the_mean_and_narrows_the_noise():
    augmentation = Augmentation(spacing_mm=1.0, seed=0)
    noise = torch.randn(3, 64, 48, generator=torch.Generator().manual_seed(0))
    blurred = augmentation._blurred(noise)
    assert blurred.shape == noise.shape
    assert blurred.std() < 0.6 * noise.std()
    assert math.isclose(float(blurred.mean()), float(noise.mean()), abs_tol=0.02)
    flat = torch.full((1, 20, 30), 40.0)
    torch.testing.assert_close(augmentation._blurred(flat), flat)
