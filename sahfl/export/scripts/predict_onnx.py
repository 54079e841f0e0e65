"""Segment a head CT with the networks of this folder: ``python predict.py SCAN.nii.gz MASK.nii.gz``.

For research use only; not a medical device. Needs onnxruntime, numpy and nibabel. README.md explains each step.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from sahfl.export.scripts.head_ct import HeadCT, Volume, command

FOLDER = Path(__file__).parent


def logits(session: Any, slabs: Volume) -> Volume:
    """Slices with their neighbours go in as HU: the file applies the windows itself."""
    return session.run(["logits"], {"slices_hu": slabs})[0]


def predict(scan: Path, mask: Path, folder: Path = FOLDER) -> float:
    """Write the mask of a scan, and return its volume in mL."""
    settings = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
    head = HeadCT(scan, settings)  # reads, resamples, and cuts into slices
    probabilities: dict[str, Volume] = {}
    for view in head.stacks:
        folds = []
        for file in settings["networks"][view]:  # one network per fold
            session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
            folds.append(head.segment(view, partial(logits, session)))
        probabilities[view] = np.mean(folds, axis=0)  # mean of the folds, in each view
    fused = head.fuse(probabilities)  # weighted mean of the views, on the scan's own voxels
    return head.write(mask, fused >= settings["threshold"])


if __name__ == "__main__":
    command(predict)
