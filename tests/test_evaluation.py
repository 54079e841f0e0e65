"""A case is segmented whole and scored with every metric; surfaces as MONAI measures them."""

import warnings

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage
from torch import nn

from sahfl.config import ViewsConfig
from sahfl.data.ct import Scan
from sahfl.data.views import make_views, n_channels
from sahfl.evaluation import (
    BATCH_SLICES,
    predict,
    predict_mean,
    score,
    score_lesions,
    surface_metrics,
)
from sahfl.model import MultiViewUNet, for_inference

VIEWS = ViewsConfig(spacing_mm=4.0, size=(48, 48, 32))
AXIAL = VIEWS.model_copy(update={"weights": {"axial": 1.0}})


def a_scan(n_slices=18, shape=(44, 40)):
    """A box of tissue with a smaller box of blood, off the centre in every direction; air above and below."""
    image = np.full((*shape, n_slices), -1000.0, np.float32)
    image[4:40, 4:36, 2:-4] = 30
    label = np.zeros(image.shape, bool)
    label[8:20, 10:28, 3:10] = True
    image[label] = 75
    return Scan(image, label, np.diag([4.0, 4.0, 6.0, 1.0]))


class Brightness(nn.Module):
    """Calls a pixel blood where the middle slice is above 50 HU in the first window (0 to 80 HU)."""

    def __init__(self, neighbours):
        super().__init__()
        self.middle = neighbours

    def forward(self, slices, view):
        return 200 * (slices[:, self.middle : self.middle + 1] - 50 / 80)


@pytest.mark.parametrize("weights", [{"axial": 1.0}, {"coronal": 1.0}, {"sagittal": 1.0}, VIEWS.weights], ids=str)
@pytest.mark.parametrize("neighbours", [0, 1])
def test_what_a_network_finds_on_slices_lies_at_its_place_in_the_scan(weights, neighbours):
    views = VIEWS.model_copy(update={"weights": weights, "neighbours": neighbours})
    scan = a_scan()
    probability = predict(Brightness(neighbours), make_views(scan, views), views)
    assert (probability.shape, probability.dtype) == (scan.image.shape, np.float32)
    found = probability > 0.5
    assert 2 * (found & scan.label).sum() / (found.sum() + scan.label.sum()) > 0.9


def test_a_prediction_is_a_probability_for_every_voxel():
    scan = a_scan()
    net = MultiViewUNet(n_channels(VIEWS), size="tiny", seed=0)
    probability = predict(net, make_views(scan, VIEWS), VIEWS)
    assert probability.shape == scan.image.shape
    assert probability.min() >= 0
    assert probability.max() <= 1 + 1e-6
    assert probability[scan.label].min() > 0


def test_every_slice_of_the_head_is_predicted_and_slices_without_it_stay_zero():
    scan = a_scan(n_slices=2 * BATCH_SLICES + 9)  # 19 slices of head: two full batches and a part
    net = MultiViewUNet(n_channels(AXIAL), size="tiny", seed=0)
    shown = (predict(net, make_views(scan, AXIAL), AXIAL) > 0).any(axis=(0, 1))
    np.testing.assert_array_equal(shown, (scan.image > -300).any(axis=(0, 1)))
    assert shown.sum() == 19


def test_a_scan_without_a_head_has_no_blood():
    empty = Scan(np.full((44, 40, 10), -1000.0, np.float32), np.zeros((44, 40, 10), bool), np.diag([4.0, 4, 6, 1]))
    net = MultiViewUNet(n_channels(VIEWS), size="tiny", seed=0)
    assert (predict(net, make_views(empty, VIEWS), VIEWS) == 0).all()


def test_a_prediction_does_not_depend_on_how_slices_are_batched():
    scan = a_scan()
    net = MultiViewUNet(n_channels(AXIAL), size="tiny", seed=0)
    whole = predict(net, make_views(scan, AXIAL), AXIAL)
    later = Scan(scan.image[:, :, 1:], scan.label[:, :, 1:], scan.affine)  # the same head starts one slice earlier
    np.testing.assert_allclose(predict(net, make_views(later, AXIAL), AXIAL), whole[:, :, 1:], atol=1e-5)


@pytest.fixture
def threads():
    """Sets how many threads torch computes on, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("n", [2, 5, 40])
def test_a_prediction_does_not_depend_on_threads(threads, n):
    views, net = make_views(a_scan(), VIEWS), MultiViewUNet(n_channels(VIEWS), size="tiny", seed=0)
    threads(1)
    alone = predict(net, views, VIEWS)
    threads(n)
    np.testing.assert_allclose(predict(net, views, VIEWS), alone, atol=1e-5)
    assert torch.get_num_threads() == n


def test_an_interrupt_ends_a_prediction_at_the_next_batch(threads):
    class Counting(MultiViewUNet):
        calls = 0

        def forward(self, slices, view=None):
            Counting.calls += 1
            return super().forward(slices, view)

    def interrupt(done, total):
        raise KeyboardInterrupt

    threads(2)
    net = Counting(n_channels(AXIAL), size="tiny", seed=0)
    with pytest.raises(KeyboardInterrupt):
        predict_mean([net], make_views(a_scan(n_slices=150), AXIAL), AXIAL, on_slice=interrupt)
    assert Counting.calls < 150 / BATCH_SLICES
    assert torch.get_num_threads() == 2


def test_networks_are_averaged_in_each_view():
    views, scan = make_views(a_scan(), VIEWS), a_scan()
    nets = [MultiViewUNet(n_channels(VIEWS), size="tiny", seed=seed) for seed in (0, 1, 2)]
    heard = []
    found = predict_mean(nets, views, VIEWS, on_slice=lambda done, total: heard.append((done, total)))
    np.testing.assert_allclose(found, np.mean([predict(net, views, VIEWS) for net in nets], axis=0), atol=1e-6)
    assert found.shape == scan.image.shape
    assert heard == sorted(heard)
    assert heard[-1][0] == heard[-1][1]


def test_the_form_for_a_processor_computes_the_same_within_rounding():
    net = MultiViewUNet(n_channels(VIEWS), size="tiny", seed=0)
    for parameter in net.parameters():  # norms that do something, too
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fast = for_inference(net)
    slices = torch.rand(3, n_channels(VIEWS), 48, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = net.eval()(slices, "axial")
        torch.testing.assert_close(fast(slices, "axial"), expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.01
    assert for_inference(fast) is fast
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_was_made_for_inference_is_used_again_on_every_device_unless_it_trains(device):
    fast = for_inference(MultiViewUNet(n_channels(AXIAL), size="tiny", seed=0).to(device))
    assert for_inference(fast) is fast
    again = for_inference(fast.train())
    assert (again is fast, again.training) == (False, False)


def test_predicting_leaves_no_gradients():
    net = MultiViewUNet(n_channels(AXIAL), size="tiny", seed=0)
    predict(net, make_views(a_scan(), AXIAL), AXIAL)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.is_grad_enabled()


# --- score ----------------------------------------------------------------------------------------------------------


def mask(*voxels):
    values = np.zeros((4, 3, 2), bool)
    values.flat[list(voxels)] = True
    return values


def labelled(*voxels):
    """2 x 2.5 x 4 mm: a voxel has 0.02 mL."""
    return Scan(np.zeros((4, 3, 2), np.float32), mask(*voxels), np.diag([2.0, 2.5, 4.0, 1.0]))


@pytest.mark.parametrize(
    ("predicted", "annotated", "dice"),
    [
        ((0, 1, 2), (1, 2, 3, 4, 5), 4 / 8),
        ((0, 1, 2), (0, 1, 2), 1.0),
        ((0,), (1,), 0.0),
        ((), (1, 2), 0.0),
        ((1, 2), (), 0.0),
        ((), (), None),
    ],
    ids=["partly", "equal", "apart", "missed", "false-positive", "both-empty"],
)
def test_a_case_is_scored_by_dice_and_volumes(predicted, annotated, dice):
    result = score(mask(*predicted), labelled(*annotated), key="k", tolerance_mm=2.0)
    assert result.dice == dice
    assert result.key == "k"
    assert result.volume_ml == pytest.approx(0.02 * len(annotated))
    assert result.predicted_ml == pytest.approx(0.02 * len(predicted))


def test_the_volume_of_an_oblique_scan_is_scored_by_its_determinant():
    affine = np.diag([2.0, 2.5, 4.0, 1.0])
    affine[1, 2] = 3.0
    scan = Scan(np.zeros((4, 3, 2), np.float32), mask(0, 1), affine)
    assert score(mask(0, 1, 2), scan, key="k", tolerance_mm=2.0).predicted_ml == pytest.approx(0.06)


SPACING_MM = (0.7, 0.8, 5.0)


def blobs(seed, shape=(60, 50, 14), share=0.03):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), (3, 3, 1))
    return noise > np.quantile(noise, 1 - share)


def monai_surface_metrics(predicted, annotated, tolerance_mm):
    """MONAI's own, over the whole scan, its deprecation of itself (1.6.1) aside."""
    pair = [torch.from_numpy(mask)[None, None] for mask in (predicted, annotated)]
    settings = {"include_background": True, "spacing": SPACING_MM}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        dice = compute_surface_dice(*pair, class_thresholds=[tolerance_mm], **settings)
        distance = compute_hausdorff_distance(*pair, percentile=95, **settings)
    return float(dice), float(distance)


BORDER = np.zeros((60, 50, 14), bool)
BORDER[:9, 40:, :2] = True
PAIRS = {
    "blobs": (blobs(1), blobs(2)),
    "small against large": (blobs(3, share=0.005), blobs(3, share=0.1)),
    "at the border of the scan": (BORDER, np.roll(BORDER, 1, axis=1) | BORDER),
    "one voxel each, far apart": tuple((np.arange(42_000) == i).reshape(60, 50, 14) for i in (0, 41_999)),
    "equal": (blobs(4), blobs(4)),
}  # fmt: skip


@pytest.mark.parametrize("tolerance_mm", [0.5, 2.0, 5.0])
@pytest.mark.parametrize(("predicted", "annotated"), PAIRS.values(), ids=PAIRS.keys())
def test_surface_metrics_are_monai_s_on_the_whole_scan(predicted, annotated, tolerance_mm):
    scan = Scan(np.zeros(annotated.shape, np.float32), annotated, np.diag([*SPACING_MM, 1.0]))
    result = score(predicted, scan, key="k", tolerance_mm=tolerance_mm)
    expected = monai_surface_metrics(predicted, annotated, tolerance_mm)
    assert (result.surface_dice, result.hd95_mm) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert surface_metrics(predicted, annotated, SPACING_MM, tolerance_mm=tolerance_mm) == pytest.approx(
        expected, rel=1e-6
    )


def test_a_missed_hemorrhage_has_no_distance():
    result = score(mask(), labelled(1, 2), key="k", tolerance_mm=2.0)
    assert (result.surface_dice, result.lesion_f1, result.hd95_mm) == (0.0, 0.0, None)
    assert result.volume_error_ml == pytest.approx(result.volume_ml)
    assert result.missed
    assert not score(mask(3), labelled(1, 2), key="k", tolerance_mm=2.0).missed


@pytest.mark.parametrize("predicted", [(), (3,)], ids=["both-empty", "false-positive"])
def test_a_case_without_blood_has_no_other_metric(predicted):
    result = score(mask(*predicted), labelled(), key="k", tolerance_mm=2.0)
    assert (result.surface_dice, result.hd95_mm, result.lesion_f1, result.volume_error_ml) == (None,) * 4
    assert result.extent_mm == 0


def test_the_extent_is_counted_in_slices_from_foot_to_head_gaps_included():
    label = np.zeros((5, 6, 9), bool)
    label[1:4, 2, 2] = label[0, 0, 6] = True
    scan = Scan(np.zeros(label.shape, np.float32), label, np.diag([0.5, 0.5, 5.0, 1.0]))
    assert score(label, scan, key="k", tolerance_mm=2.0).extent_mm == 5 * 5.0


def pieces(*starts):
    values = np.zeros((20, 9, 9), bool)
    for x in starts:
        values[x : x + 3, 2:5, 2:5] = True
    return values


@pytest.mark.parametrize(
    ("predicted", "annotated", "f1"),
    [
        (pieces(0, 5), pieces(0, 5), 1.0),
        (pieces(0), pieces(0, 5), 2 / 3),  # 1 found, 1 missed
        (pieces(0, 5, 10), pieces(0), 2 / 4),  # 1 found, 2 false
        (pieces(2, 10), pieces(0, 5), 2 / 4),  # touches one, misses one, one false
        (pieces(10), pieces(0), 0.0),
        (pieces(0, 3, 6), pieces(0, 8), 1.0),  # one piece that touches both
    ],
)
def test_a_piece_is_found_if_any_of_its_voxels_is(predicted, annotated, f1):
    assert score_lesions(predicted, annotated) == pytest.approx(f1)


def test_voxels_that_meet_at_a_corner_are_one_piece():
    annotated = np.zeros((4, 4, 4), bool)
    annotated[0, 0, 0] = annotated[1, 1, 1] = annotated[3, 3, 3] = True
    predicted = np.zeros_like(annotated)
    predicted[0, 0, 0] = True
    assert score_lesions(predicted, annotated) == pytest.approx(2 / 3)
