"""Evaluation at a site: every held-out case is segmented and scored; none is left out silently."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sahfl.config import View, ViewsConfig
from sahfl.data.ct import HEAD_HU, Scan
from sahfl.data.views import CaseViews, fuse, slab, windows
from sahfl.model import device_of
from sahfl.statistics import CaseResult

BATCH_SLICES = 8


@torch.no_grad()
def predict(net: nn.Module, case: CaseViews, config: ViewsConfig) -> NDArray[np.float32]:
    """Probability of blood on the scan's own voxels, (X, Y, Z): every slice of every view, fused.

    Slices of a view have one size, so the network sees them whole; there is no sliding window. Slices that show no
    part of the head keep probability 0. The network computes on the device of its parameters.

    Args:
        net: called with a batch of slices and the name of their view; logits (batch, 1, height, width) out.
        case: the volume's slices.
        config: windows, neighbours and weights of the views.
    """
    net.eval()
    device = device_of(net)
    probabilities: dict[View, NDArray[np.float32]] = {}
    for view, stack in case.stacks.items():
        probabilities[view] = np.zeros(stack.image.shape, np.float32)
        shown = np.flatnonzero((stack.image[:] > HEAD_HU).any(axis=(1, 2)))
        for start in range(0, len(shown), BATCH_SLICES):
            indices = shown[start : start + BATCH_SLICES]
            slabs = torch.from_numpy(np.stack([slab(stack, index, config.neighbours) for index in indices]))
            logits = net(windows(slabs, config.windows_hu).to(device), view)
            probabilities[view][indices] = torch.sigmoid(logits)[:, 0].cpu().numpy()
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
