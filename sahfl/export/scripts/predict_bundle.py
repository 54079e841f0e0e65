"""Segment a head CT with the networks of this bundle; configs/inference.json calls ``predict``.

For research use only; not a medical device. Needs torch, MONAI, nibabel and safetensors. README.md explains each step.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from sahfl.export.scripts.head_ct import HeadCT, Volume, windows


def predict(scan: str, mask: str, network: nn.Module, bundle_root: str) -> float:
    """Write the mask of a scan, and return its volume in mL; the weights are loaded into ``network``."""
    settings = json.loads((Path(bundle_root) / "configs" / "preprocessing.json").read_text(encoding="utf-8"))
    device = next(network.parameters()).device

    def run(slabs: Volume) -> Volume:
        channels = torch.from_numpy(windows(slabs, settings["windows_hu"]))  # each slice in each HU window
        return network(channels.to(device)).cpu().numpy()

    head = HeadCT(Path(scan), settings)  # reads, resamples, and cuts into slices
    probabilities: dict[str, Volume] = {}
    for view in head.stacks:
        folds = []
        for file in settings["networks"][view]:  # one network per fold
            network.load_state_dict(load_file(Path(bundle_root) / file))
            with torch.inference_mode():
                folds.append(head.segment(view, run))
        probabilities[view] = np.mean(folds, axis=0)  # mean of the folds, in each view
    fused = head.fuse(probabilities)  # weighted mean of the views, on the scan's own voxels
    return head.write(Path(mask), fused >= settings["threshold"])
