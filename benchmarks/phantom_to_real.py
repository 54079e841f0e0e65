"""How well does training on phantoms transfer? A network trained on phantoms only, evaluated on real annotated scans.

    python benchmarks/phantom_to_real.py PATH/datalist.json

For each seed, this trains the project's own network (axial view, one slice, no neighbours: the real scans may be single
slices) on trauma, aneurysm and normal phantoms of every scanner profile, and only then opens the real scans. Nothing is
chosen on the real scans: steps, learning rate and the threshold of 0.5 are fixed here. The real scans were stored in an
8-bit grey scale that keeps 0 to 300 HU (below is black, above is white), so phantoms and real scans are both cut to
this range. The result is one figure: the Dice of all blood, pooled over all voxels of all scans, with the share of each
kind's voxels that was found.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from sahfl.config import ViewsConfig
from sahfl.data.ct import AIR_HU, Scan, read_scan
from sahfl.data.manifest import Case, datalist_sites, read_datalist
from sahfl.data.phantom import LABELS, PROFILES, PhantomKind, make_case
from sahfl.data.sampler import SliceSampler
from sahfl.data.views import CaseViews, make_views, n_channels
from sahfl.errors import SahflError
from sahfl.evaluation import predict
from sahfl.model import MultiViewUNet
from sahfl.seeds import derive_seed
from sahfl.training import Schedule, train

GREY_HU = (0.0, 300.0)
"""What the grey scale of the real scans keeps."""
VIEWS = ViewsConfig(
    weights={"axial": 1.0},
    spacing_mm=1.4,
    size=(128, 160, 32),
    neighbours=0,
    windows_hu=((0.0, 80.0), (0.0, 180.0), GREY_HU),
)
CASES_PER_PROFILE: dict[PhantomKind, int] = {"tbi": 8, "sah": 4, "normal": 2}
SHAPE, SPACING_MM = (136, 176, 32), (1.4, 1.4, 5.0)
LEARNING_RATE, WEIGHT_DECAY, BATCH_SIZE, FOREGROUND_SHARE = 2e-3, 1e-4, 4, 0.5
THRESHOLD = 0.5
NEAR_MM = 3.0
"""False alarms closer than this to annotated blood are differences of outlines; the others are false findings."""
PHANTOM_SEED = 20_261_122


@dataclass(frozen=True)
class Score:
    """Sums over the real scans of one seed, in voxels."""

    seed: int
    loss: float
    common: int
    predicted: int
    annotated: int
    far: int
    """Predicted voxels further than ``NEAR_MM`` from any annotated blood."""
    by_kind: dict[str, tuple[int, int]]
    """Kind -> voxels found, voxels annotated."""
    dice_per_scan: tuple[float, ...]

    @property
    def dice(self) -> float:
        """Dice pooled over all voxels of all scans."""
        return 2 * self.common / (self.predicted + self.annotated)


def main() -> None:
    """Parse, train, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datalist", type=Path, help="datalist.json of the real scans, labels as in the phantom")
    parser.add_argument("--seeds", type=int, default=3, help="networks to train")
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps of each")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    if options.seeds < 1 or options.steps < 1:
        parser.error(f"--seeds and --steps must be 1 or more, got {options.seeds} and {options.steps}")
    torch.set_num_threads(1)
    try:
        datalist_sites(options.datalist)  # report a wrong path before the training, not after it
        began = time.perf_counter()
        scores = []
        for seed in range(options.seeds):
            net, loss = train_on_phantoms(seed, options.steps)
            sites = datalist_sites(options.datalist)
            cases = [case for site in sites for case in read_datalist(options.datalist, site)]
            scores.append(evaluate(net, loss, cases, seed))
            # An interrupted run still prints the finished seeds, which take minutes each.
            print(f"seed {seed}: {json.dumps({**asdict(scores[-1]), 'dice': scores[-1].dice})}", file=sys.stderr)
    except SahflError as error:
        sys.exit(f"error: {error}")
    result = summarise(scores, cases, steps=options.steps, minutes=(time.perf_counter() - began) / 60)
    print(json.dumps(result, indent=2) if options.json else as_text(result))


def train_on_phantoms(seed: int, steps: int) -> tuple[MultiViewUNet, float]:
    """Train one network on phantoms only, and return it with its mean loss; every seed has its own patients."""
    cases = [view for view in make_phantoms(seed)]
    sampler = SliceSampler(cases, VIEWS, batch_size=BATCH_SIZE, foreground_share=FOREGROUND_SHARE, seed=seed)
    net = MultiViewUNet(n_channels(VIEWS), size="tiny", seed=seed)
    schedule = Schedule(LEARNING_RATE, WEIGHT_DECAY, steps=steps, round=1, rounds=1)

    def print_progress(done: int, total: int, loss: float) -> None:
        if done % 50 == 0 or done == total:
            print(f"seed {seed}: step {done} of {total}, mean loss {loss:.3f}", file=sys.stderr, flush=True)

    return net, train(net, sampler, schedule, on_step=print_progress)


def make_phantoms(seed: int) -> list[CaseViews]:
    """Patients of every profile and kind, as slices."""
    made = []
    for name, profile in PROFILES.items():
        for kind, n_cases in CASES_PER_PROFILE.items():
            for index in range(n_cases):
                case_seed = derive_seed(PHANTOM_SEED, seed, name, kind, index)
                case = make_case(case_seed, kind=kind, profile=profile, shape=SHAPE, spacing_mm=SPACING_MM)
                made.append(
                    make_views(as_grey(Scan(case.image.astype(np.float32), case.label > 0, case.affine)), VIEWS)
                )
        print(f"seed {seed}: {len(made)} phantoms, profile {name} done", file=sys.stderr, flush=True)
    return made


def as_grey(scan: Scan) -> Scan:
    """A scan reduced to 8-bit grey: black below ``GREY_HU``, white above it, air around the head."""
    low, high = GREY_HU
    head = np.stack([ndimage.binary_fill_holes(plane > low) for plane in np.moveaxis(scan.image, 2, 0)], axis=2)
    return replace(scan, image=np.where(head, np.clip(scan.image, low, high), AIR_HU).astype(np.float32))


def evaluate(net: MultiViewUNet, loss: float, cases: Sequence[Case], seed: int) -> Score:
    """Segment every real scan at the fixed threshold and add up the voxels."""
    common = predicted = annotated = far = 0
    found = {kind: [0, 0] for kind in LABELS}
    dice = []
    for case in cases:
        scan = read_scan(case)
        guess = predict(net, make_views(as_grey(scan), VIEWS), VIEWS) > THRESHOLD
        hits, drawn = int((guess & scan.label).sum()), int(guess.sum())
        common, predicted, annotated = common + hits, predicted + drawn, annotated + int(scan.label.sum())
        far += int((guess & ~_near(scan)).sum())
        dice.append(2 * hits / max(drawn + int(scan.label.sum()), 1))
        classes = read_classes(case)
        for kind, value in LABELS.items():
            found[kind][0] += int((guess & (classes == value)).sum())
            found[kind][1] += int((classes == value).sum())
    by_kind = {kind: (hits, n) for kind, (hits, n) in found.items()}
    return Score(seed, loss, common, predicted, annotated, far, by_kind, tuple(dice))


def _near(scan: Scan) -> NDArray[np.bool_]:
    if not scan.label.any():
        return np.zeros(scan.label.shape, bool)
    near: NDArray[np.bool_] = ndimage.distance_transform_edt(~scan.label, sampling=scan.spacing_mm) <= NEAR_MM
    return near


def read_classes(case: Case) -> NDArray[np.uint8]:
    """The annotation with its kinds, (X, Y, Z), on the same axes as ``read_scan``."""
    image: Any = nibabel.as_closest_canonical(nibabel.load(case.label))
    return np.asarray(image.dataobj, dtype=np.uint8)


def summarise(scores: Sequence[Score], cases: Sequence[Case], *, steps: int, minutes: float) -> dict[str, Any]:
    """All reported numbers, per seed and over the seeds."""
    dice = [score.dice for score in scores]
    kinds = {}
    for kind in LABELS:
        shares = [score.by_kind[kind][0] / max(score.by_kind[kind][1], 1) for score in scores]
        kinds[kind] = {
            "voxels": scores[0].by_kind[kind][1],
            "scans": sum(bool((read_classes(case) == LABELS[kind]).any()) for case in cases),
            "sensitivity": _spread(shares),
        }
    return {
        "scans": len(cases),
        "patients": len({case.patient for case in cases}),
        "annotated_voxels": scores[0].annotated,
        "phantoms_per_seed": len(PROFILES) * sum(CASES_PER_PROFILE.values()),
        "steps": steps,
        "threshold": THRESHOLD,
        "pooled_dice": _spread(dice),
        "precision": _spread([score.common / max(score.predicted, 1) for score in scores]),
        "sensitivity": _spread([score.common / score.annotated for score in scores]),
        "far_false_share": _spread([score.far / max(score.predicted, 1) for score in scores]),
        "median_dice_per_scan": _spread([float(np.median(score.dice_per_scan)) for score in scores]),
        "kinds": kinds,
        "seeds": [{**asdict(score), "dice": score.dice} for score in scores],
        "machine": f"{platform.machine()}, {platform.system()}, one thread, torch {torch.__version__}",
        "minutes": round(minutes, 1),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "low": min(values), "high": max(values)}


def as_text(result: dict[str, Any]) -> str:
    """The result as text."""

    def show(spread: dict[str, float]) -> str:
        return f"{spread['mean']:.3f} ({spread['low']:.3f} to {spread['high']:.3f})"

    n_seeds = len(result["seeds"])
    lines = [
        f"{result['scans']} real scans of {result['patients']} patients, {result['annotated_voxels']} annotated voxels",
        f"{n_seeds} seeds of {result['steps']} steps on {result['phantoms_per_seed']} phantoms each; "
        f"mean (lowest to highest seed); threshold {result['threshold']}",
        f"  pooled Dice, all blood    {show(result['pooled_dice'])}",
        f"  precision                 {show(result['precision'])}",
        f"  sensitivity               {show(result['sensitivity'])}",
        f"  predicted, but over {NEAR_MM:.0f} mm from blood  {show(result['far_false_share'])}",
        f"  median Dice of a scan     {show(result['median_dice_per_scan'])}",
        "  sensitivity by kind:",
    ]
    lines += [
        f"    {kind}  {show(row['sensitivity'])}   {row['voxels']} voxels in {row['scans']} scans"
        for kind, row in result["kinds"].items()
    ]
    lines += [
        f"  seed {seed['seed']}: Dice {seed['dice']:.3f}, training loss {seed['loss']:.3f}" for seed in result["seeds"]
    ]
    return "\n".join([*lines, f"{result['minutes']} minutes on {result['machine']}"])


if __name__ == "__main__":
    main()
