"""What should a hospital start from that was not in the study: what the sites share, or this with the mean of the rest?

    sahfl study configs/what-stays.yaml --out runs/what-stays
    python benchmarks/new_hospital.py --run runs/what-stays

The run must have a method with a part at each site and its mean (``share_private_at_end``), and the same method without
such a part, each trained several times. The new hospitals are phantoms of the scanner profiles that no fine-tuning site
of the study has. Dice is the mean over their patients and the study's folds; the interval is Student's, over trainings.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from aggregation import interval
from machine import machine
from torch import nn

from sahfl.adapters.adapted import AdaptedConv
from sahfl.adapters.attach import merge
from sahfl.config import AdapterTuning, Study, ViewsConfig, ZeroShot
from sahfl.config.methods import Method
from sahfl.data.ct import Scan
from sahfl.data.phantom import PROFILES, make_case
from sahfl.data.sources.phantom import StudyScansPhantom
from sahfl.data.views import CaseViews, make_views
from sahfl.evaluation import predict
from sahfl.model import Network
from sahfl.prediction.networks import adapted_network, read_study
from sahfl.seeds import derive_seed

Patient = tuple[CaseViews, Scan]


def new_patients(study: Study, n: int) -> list[Patient]:
    """``n`` patients of each new hospital."""
    data = study.data
    assert isinstance(data, StudyScansPhantom)
    known = {data.sites[site].profile for site in study.finetune.sites}
    found = []
    for profile, number in itertools.product([name for name in PROFILES if name not in known], range(n)):
        seed = derive_seed(study.seed, "new hospital", profile, number)
        case = make_case(seed, kind="sah", profile=PROFILES[profile], shape=data.shape, spacing_mm=data.spacing_mm)
        scan = Scan(case.image.astype(np.float32), case.label > 0, case.affine)
        found.append((make_views(scan, study.views), scan))
    return found


def without_private(net: Network) -> Network:
    """The network without its private terms."""
    for module in net.modules():
        if isinstance(module, AdaptedConv):
            module.private = None
    return net


def dice(net: nn.Module, patients: Sequence[Patient], views: ViewsConfig, threshold: float) -> float:
    """Mean Dice over patients."""
    values = []
    for case, scan in patients:
        guess = predict(net, case, views) >= threshold
        values.append(2 * int((guess & scan.label).sum()) / max(1, int(guess.sum()) + int(scan.label.sum())))
    return float(np.mean(values))


def trainings(study: Study, id_: str) -> Iterator[Method]:
    """The method with this id, and its repeats."""
    for method in study.finetune.methods:
        if not isinstance(method, ZeroShot) and method.model_copy(update={"repeat": 1}).id == id_:
            yield method


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of the finished study")
    parser.add_argument("--method", default="cp_lora-r8-private4", help="method with a part at each site and its mean")
    parser.add_argument("--patients", type=int, default=10, help="patients of each new hospital (default 10)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, study = time.perf_counter(), read_study(options.run)
    patients = new_patients(study, options.patients)
    (first, *_) = trainings(study, options.method)
    assert isinstance(first, AdapterTuning)
    plain = first.shared_alone().id
    found: dict[str, list[float]] = {"plain": [], "shared": [], "mean": []}
    for method, other in zip(trainings(study, options.method), trainings(study, plain), strict=True):
        for name, one in (("plain", other), ("shared", method), ("mean", method)):
            values = []
            for fold in range(study.finetune.folds):
                net, _ = adapted_network(options.run, study, one, fold)
                net = without_private(net) if name == "shared" else net
                merge(net)
                values.append(dice(net, patients, study.views, study.evaluation.threshold))
            found[name].append(float(np.mean(values)))
    base, _ = adapted_network(options.run, study, ZeroShot(method="zero_shot"), -1)
    print(f"{len(patients)} patients of new hospitals; {len(found['plain'])} trainings of each method")
    print(f"base: {dice(base, patients, study.views, study.evaluation.threshold):.3f}")
    for name, values in found.items():
        middle, low, high = interval([ours - theirs for ours, theirs in zip(values, found["plain"], strict=True)])
        against = "" if name == "plain" else f"; against plain {middle:+.3f} ({low:+.3f} to {high:+.3f})"
        print(f"{name}: {np.mean(values):.3f}{against}")
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes on {machine()}")


if __name__ == "__main__":
    main()
