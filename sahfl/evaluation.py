"""Evaluation at a site: every held-out case is segmented and scored; none is left out silently."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sahfl.config import View, ViewsConfig
from sahfl.data.ct import HEAD_HU, Scan
from sahfl.data.views import CaseViews, fuse, slab, windows
from sahfl.model import device_of, for_inference
from sahfl.statistics import CaseResult

BATCH_SLICES = 8


def predict(net: nn.Module, case: CaseViews, config: ViewsConfig) -> NDArray[np.float32]:
    """Probability of blood on the scan's own voxels, (X, Y, Z): every slice of every view, fused.

    Slices of a view have one size, so the network sees them whole; there is no sliding window. Slices that show no
    part of the head keep probability 0. The network computes on the device of its parameters.

    Args:
        net: called with a batch of slices and the name of their view; logits (batch, 1, height, width) out.
        case: the volume's slices.
        config: windows, neighbours and weights of the views.
    """
    return predict_mean([net], case, config)


@torch.inference_mode()
def predict_mean(
    nets: Sequence[nn.Module],
    case: CaseViews,
    config: ViewsConfig,
    *,
    on_slice: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float32]:
    """As ``predict``, with the mean of several networks' probabilities in each view.

    Args:
        nets: at least one, all on one device.
        case: the volume's slices.
        config: windows, neighbours and weights of the views.
        on_slice: hears (slices done, slices to do) after each batch.
    """
    device = device_of(nets[0])
    nets = [for_inference(net) for net in nets]
    shown = {view: np.flatnonzero((stack.image[:] > HEAD_HU).any(axis=(1, 2))) for view, stack in case.stacks.items()}
    done, total = 0, sum(map(len, shown.values()))
    probabilities: dict[View, NDArray[np.float32]] = {}
    for view, stack in case.stacks.items():
        probabilities[view] = np.zeros(stack.image.shape, np.float32)
        for start in range(0, len(shown[view]), BATCH_SLICES):
            indices = shown[view][start : start + BATCH_SLICES]
            slabs = torch.from_numpy(np.stack([slab(stack, index, config.neighbours) for index in indices]))
            inputs = windows(slabs.to(device), config.windows_hu)
            found = torch.stack([torch.sigmoid(net(inputs, view))[:, 0] for net in nets]).mean(0)
            probabilities[view][indices] = found.cpu().numpy()
            done += len(indices)
            on_slice(done, total)
    return fuse(probabilities, case, config)


def score(predicted: NDArray[np.bool_], scan: Scan, *, key: str) -> CaseResult:
    """Compare a predicted mask with the annotation, both (X, Y, Z) on the scan's own voxels.

    Dice is 2 |A and B| / (|A| + |B|); 0 for a prediction on a case without blood, None where both are empty (the
    statistics count that separately).
    """
    common, total = int((predicted & scan.label).sum()), int(predicted.sum()) + int(scan.label.sum())
    return CaseResult(
        key=key,
        volume_ml=scan.volume_ml,
        predicted_ml=float(predicted.sum()) * scan.voxel_ml,
        dice=2 * common / total if total else None,
    )
