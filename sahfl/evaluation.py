"""Evaluation at a site: every held-out case is segmented and scored; no case is skipped silently."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from sahfl.config import View, ViewsConfig
from sahfl.data.ct import HEAD_HU, Scan
from sahfl.data.views import CaseViews, fuse, slab, windows
from sahfl.model import device_of, for_inference
from sahfl.monai_parts import get_surface_distance
from sahfl.statistics.cases import CaseResult

BATCH_SLICES = 8
"""Slices that all threads together process at a time; it limits the memory for activations."""
Batch = tuple[View, NDArray[np.intp]]
"""A view, and the indices of some of its slices."""
EVERY_NEIGHBOUR = np.ones((3, 3, 3), bool)


def predict(net: nn.Module, case: CaseViews, config: ViewsConfig) -> NDArray[np.float32]:
    """``predict_mean`` of one network, float32 (X, Y, Z)."""
    return predict_mean([net], case, config)


def predict_mean(
    nets: Sequence[nn.Module],
    case: CaseViews,
    config: ViewsConfig,
    *,
    on_slice: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float32]:
    """Probability of blood on the scan's own voxels, float32 (X, Y, Z): the networks' mean in each view, views fused.

    The networks receive whole slices, without a sliding window, because all slices of a view have one size. Slices that
    show no part of the head keep probability 0.

    Args:
        nets: at least one, all on one device. They take a batch of slices, (batch, channels, height, width), and the
            name of the view, and return logits (batch, 1, height, width).
        case: the volume's slices.
        config: windows, neighbours and weights of the views.
        on_slice: called with (slices done, slices to do) after each batch.
    """
    device = device_of(nets[0])
    nets = [for_inference(net) for net in nets]
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    size = max(1, BATCH_SLICES // threads)
    shown = {view: np.flatnonzero((stack.image[:] > HEAD_HU).any(axis=(1, 2))) for view, stack in case.stacks.items()}
    batches: list[Batch] = [
        (view, indices[start : start + size])
        for view, indices in shown.items()
        for start in range(0, len(indices), size)
    ]

    @torch.inference_mode()
    def segment(batch: Batch) -> NDArray[np.float32]:
        view, indices = batch
        slabs = torch.from_numpy(np.stack([slab(case.stacks[view], index, config.neighbours) for index in indices]))
        inputs = windows(slabs.to(device), config.windows_hu)
        found = torch.stack([torch.sigmoid(net(inputs, view))[:, 0] for net in nets]).mean(0)
        return found.cpu().numpy()

    done, total = 0, sum(map(len, shown.values()))
    probabilities = {view: np.zeros(stack.image.shape, np.float32) for view, stack in case.stacks.items()}
    for (view, indices), found in zip(batches, _each(segment, batches, threads), strict=True):
        probabilities[view][indices] = found
        done += len(indices)
        on_slice(done, total)
    return fuse(probabilities, case, config)


def _each(
    work: Callable[[Batch], NDArray[np.float32]], batches: Sequence[Batch], threads: int
) -> Iterator[NDArray[np.float32]]:
    """Results of the batches, in order; each batch has one thread, which is faster than all threads on one batch."""
    if threads == 1:
        yield from map(work, batches)
        return
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(work, batches)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # the pool's threads changed this process-wide setting


def score(predicted: NDArray[np.bool_], scan: Scan, *, key: str, tolerance_mm: float) -> CaseResult:
    """Compare a predicted mask with the annotation, both (X, Y, Z) on the scan's own voxels.

    Dice is 2 |A and B| / (|A| + |B|), and None if both are empty. All other metrics are for cases with blood: a missed
    hemorrhage has surface Dice and lesion F1 0, and no HD95. The extent (mm) is that
    of the annotated slices along axis 2 (foot to head), from the lowest to the highest, gaps included.
    """
    annotated = scan.label
    size, n_predicted = int(annotated.sum()), int(predicted.sum())
    common = int((predicted & annotated).sum())
    surface_dice = lesion_f1 = 0.0 if size else None
    hd95_mm: float | None = None
    if size and n_predicted:
        box = _box(predicted | annotated)
        both = predicted[box], annotated[box]
        surface_dice, hd95_mm = surface_metrics(*both, scan.spacing_mm, tolerance_mm=tolerance_mm)
        lesion_f1 = score_lesions(*both)
    return CaseResult(
        key=key,
        volume_ml=scan.volume_ml,
        predicted_ml=float(n_predicted) * scan.voxel_ml,
        dice=2 * common / (size + n_predicted) if size + n_predicted else None,
        surface_dice=surface_dice,
        hd95_mm=hd95_mm,
        lesion_f1=lesion_f1,
        extent_mm=_extent_mm(scan) if size else 0.0,
    )


def surface_metrics(
    predicted: NDArray[np.bool_],
    annotated: NDArray[np.bool_],
    spacing_mm: tuple[float, float, float],
    *,
    tolerance_mm: float,
) -> tuple[float, float]:
    """Surface Dice and HD95 (mm) of two masks (X, Y, Z) of one shape, neither of them empty.

    Surfaces are the voxels that an erosion removes. The result equals MONAI's ``compute_surface_dice`` and
    ``compute_hausdorff_distance`` (percentile 95, both with the spacing), which compute distances twice.
    """
    ours, theirs = _surface(predicted), _surface(annotated)
    there, back = (
        np.asarray(get_surface_distance(a, b, spacing=spacing_mm), np.float64)
        for a, b in ((ours, theirs), (theirs, ours))
    )
    near = int((there <= tolerance_mm).sum() + (back <= tolerance_mm).sum())
    return near / (there.size + back.size), float(max(np.quantile(there, 0.95), np.quantile(back, 0.95)))


def score_lesions(predicted: NDArray[np.bool_], annotated: NDArray[np.bool_]) -> float:
    """F1 over connected components (3-D, 26 neighbours) of two masks (X, Y, Z), of which one at most is empty.

    ``2 TP / (2 TP + FP + FN)``: TP are annotated components that the prediction touches, FN those that it misses, FP
    predicted components that touch no annotation. (MONAI's panoptic quality matches components one to one, which does
    not suit blood that is spread over cisterns.)

    Source: Hernandez Petzsche et al. 2022, Sci. Data 9:762 (ISLES 2022), lesion-wise F1.
    """
    ours, n_ours = ndimage.label(predicted, EVERY_NEIGHBOUR)
    theirs, n_theirs = ndimage.label(annotated, EVERY_NEIGHBOUR)
    both = predicted & annotated
    found, true = np.unique(theirs[both]).size, np.unique(ours[both]).size
    return 2 * found / (2 * found + (n_ours - true) + (n_theirs - found))


def _extent_mm(scan: Scan) -> float:
    slices = np.flatnonzero(scan.label.any(axis=(0, 1)))
    return float(slices[-1] - slices[0] + 1) * scan.spacing_mm[2]


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(mask, 1)  # so that a mask at the border has a surface there
    return padded & ~ndimage.binary_erosion(padded)


def _box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    used = (np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    return tuple(slice(int(places[0]), int(places[-1]) + 1) for places in used)
