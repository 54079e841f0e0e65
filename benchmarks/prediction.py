"""Segmenting a whole volume, against MONAI's sliding window over the same network: seconds and Dice of both.

    python benchmarks/prediction.py                    # trains a small network on phantoms first
    python benchmarks/prediction.py --run runs/demo    # the first adapter of a run
    python benchmarks/prediction.py --json
    SAHFL_REALCT=FOLDER python benchmarks/prediction.py    # its datalist.json's scans too (axial view)

Both start with a scan in HU on its own voxels and end with probabilities there. Ours cuts the field around the head and
gives the network whole slices, only those that show a part of the head, in a form of the network that is faster on a
processor. MONAI's ``SliceInferer`` slides over every slice of the whole resampled volume, with its default overlap
(0.25) and mode (constant), once with a window of the training field, once with patches of 96 x 96 pixels, 4 windows at
a time. The contestants take turns on every scan, so that a busy machine slows all; a ratio compares the sums over the
scans of each contestant's fastest turn.
"""

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as sahfl predict does, for all contestants; read by torch

import torch
from machine import machine
from monai.inferers import SliceInferer

from sahfl.config import View, ViewsConfig, load_study
from sahfl.data.ct import Scan, read_scan
from sahfl.data.manifest import datalist_sites, read_datalist
from sahfl.data.phantom import PROFILES, make_case
from sahfl.data.sampler import SliceSampler
from sahfl.data.views import fuse, make_views, slab, windows
from sahfl.evaluation import predict
from sahfl.networks import whole_network
from sahfl.prediction.networks import read_trained
from sahfl.training import Schedule, train

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"
PATCH, AT_ONCE = 96, 4
TARGET = 2.0


@dataclass(frozen=True)
class Row:
    """One way to segment the scans of a kind."""

    scans: str
    n: int
    way: str
    seconds_per_scan: float
    dice: float
    times_ours: float
    """How many times longer than ours."""


def by_monai(net: torch.nn.Module, scan: Scan, config: ViewsConfig, *, patch: int | None) -> np.ndarray:
    """Probability of blood (X, Y, Z), by a sliding window over the whole resampled volume."""
    whole = config.model_copy(update={"size": _whole_size(scan, config)})
    case = make_views(scan, whole)
    x, y, z = config.size
    field: dict[View, tuple[int, int]] = {"axial": (x, y), "coronal": (x, z), "sagittal": (y, z)}
    probabilities = {}
    for view, stack in case.stacks.items():
        roi = (patch, patch) if patch else field[view]
        slabs = np.stack([slab(stack, index, config.neighbours) for index in range(stack.image.shape[0])])
        volume = windows(torch.from_numpy(slabs), config.windows_hu).permute(1, 2, 3, 0)[None]
        inferer = SliceInferer(roi_size=roi, spatial_dim=2, sw_batch_size=AT_ONCE, overlap=0.25)
        with torch.inference_mode():
            logits = inferer(volume, net, view)
        probabilities[view] = torch.sigmoid(logits)[0, 0].permute(2, 0, 1).numpy()
    return fuse(probabilities, case, whole)


def _whole_size(scan: Scan, config: ViewsConfig) -> tuple[int, int, int]:
    pixels = [n * mm / config.spacing_mm for n, mm in zip(scan.image.shape, scan.spacing_mm, strict=True)]
    x, y, z = (min(512, max(32, 16 * -(-round(n) // 16))) for n in pixels)
    return x, y, z


def small_network(config: ViewsConfig, study, *, steps: int, scans: list[Scan]) -> torch.nn.Module:
    """The study's network after a few steps on phantoms: good enough to compare two ways by their Dice."""
    net = whole_network(config, study.model, seed=0)
    sampler = SliceSampler(
        [make_views(scan, config) for scan in scans], config, batch_size=8, foreground_share=0.5, seed=0
    )
    train(net, sampler, Schedule(2e-3, 1e-4, steps, 1, 1), precision="float32", on_step=lambda *_: None)
    return net


def phantoms(n: int, first: int, *, shape, spacing_mm) -> list[Scan]:
    """Simulated patients with subarachnoid blood."""
    made = (
        make_case(seed, kind="sah", profile=PROFILES["standard"], shape=shape, spacing_mm=spacing_mm)
        for seed in range(first, first + n)
    )
    return [Scan(case.image.astype(np.float32), case.label > 0, case.affine) for case in made]


def real_scans(most: int) -> list[Scan]:
    """Scans of the folder in SAHFL_REALCT; none if it is not set."""
    folder = os.environ.get("SAHFL_REALCT")
    if not folder:
        return []
    datalist = Path(folder) / "datalist.json"
    cases = [case for site in datalist_sites(datalist) for case in read_datalist(datalist, site)]
    return [scan for scan in map(read_scan, cases[:most]) if scan.label.any()]


def measure(name: str, net: torch.nn.Module, scans: list[Scan], config: ViewsConfig, *, turns: int) -> list[Row]:
    """Each way on each scan, in turns."""
    net.eval()
    ways = {
        "sahfl": lambda scan: predict(net, make_views(scan, config), config),
        "MONAI, window of the training field": lambda scan: by_monai(net, scan, config, patch=None),
        f"MONAI, {PATCH} x {PATCH}": lambda scan: by_monai(net, scan, config, patch=PATCH),
    }
    seconds = {way: np.full(len(scans), np.inf) for way in ways}
    common = {way: np.zeros(2) for way in ways}
    for turn in range(turns):
        for index, scan in enumerate(scans):
            for way, segment in ways.items():
                began = time.perf_counter()
                mask = segment(scan) >= 0.5
                seconds[way][index] = min(seconds[way][index], time.perf_counter() - began)
                if not turn:
                    common[way] += 2 * (mask & scan.label).sum(), mask.sum() + scan.label.sum()
    ours = seconds["sahfl"].sum()
    return [
        Row(
            name,
            len(scans),
            way,
            round(seconds[way].sum() / len(scans), 3),
            round(common[way][0] / max(common[way][1], 1), 4),
            round(seconds[way].sum() / ours, 2),
        )
        for way in ways
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="folder of a run, whose first adapter is used")
    parser.add_argument("--steps", type=int, default=150, help="training steps of the network without --run")
    parser.add_argument("--scans", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", choices=["tiny", "base", "large"], default="tiny", help="network without --run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    study = load_study(DEMO)
    study = study.model_copy(update={"model": study.model.model_copy(update={"size": options.size})})
    rows = _rows(options, study)
    slower = min(row.times_ours for row in rows if row.way != "sahfl")
    if options.json:
        print(json.dumps({"machine": machine(), "least_ratio": slower, "rows": [asdict(row) for row in rows]}))
        return
    for row in rows:
        print(
            f"{row.scans:22} {row.way:38} {row.seconds_per_scan:7.3f} s  {row.times_ours:5.2f} x  Dice {row.dice:.4f}"
        )
    print(f"least ratio {slower:.2f}, aim {TARGET:g}; {machine()}")


def _rows(options, study) -> list[Row]:
    rows = []
    grid = {"shape": study.data.shape, "spacing_mm": study.data.spacing_mm}
    wide = {"shape": (128, 128, 24), "spacing_mm": (2.0, 2.0, 5.0)}
    if options.run:
        trained = read_trained(options.run, fold=0)
        net, config = trained.nets[0], trained.views
    else:
        config = study.views
        net = small_network(config, study, steps=options.steps, scans=phantoms(6, 100, **grid))
    for name, made in (("phantom, as the field", grid), ("phantom, 256 mm", wide)):
        rows += measure(name, net, phantoms(options.scans, 500, **made), config, turns=options.turns)
    if scans := real_scans(options.scans):
        axial = config.model_copy(update={"weights": {"axial": 1.0}})
        rows += measure("real", net, scans, axial, turns=options.turns)
    return rows


if __name__ == "__main__":
    main()
