"""How well does training on phantoms transfer? A network trained on phantoms only, evaluated on real annotated scans.

    python benchmarks/phantom_to_real.py PATH/datalist.json
    python benchmarks/phantom_to_real.py --phantoms-only --steps 1350     # held-out phantoms alone

For each seed, this trains the project's own network (axial view, one slice, no neighbours: the real scans may be single
slices) on trauma, aneurysm and normal phantoms of every scanner profile, and only then opens the real scans. Nothing is
chosen on the real scans: steps, learning rate and the threshold of 0.5 are fixed here. The real scans were stored in an
8-bit grey scale that keeps 0 to 300 HU (below is black, above is white), so phantoms and real scans are both cut to
this range. The result is one figure: the Dice of all blood, pooled over all voxels of all scans, with the share of each
kind's voxels that was found. The same is measured on phantoms that no seed was trained on, which are the same for all
seeds. A change of the recipe is judged on these (``--phantoms-only``), so that nothing is ever chosen on real scans.
Subdural blood below 50 HU in the mean, which is as dense as brain, has a row of its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

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
from sahfl.data.view_settings import Strength
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


HELD_OUT: dict[PhantomKind, int] = {"tbi": 4, "sah": 1}
"""Held-out phantoms of each profile."""
ISO_DENSE_HU = 50.0
ISO_DENSE = "SDH below 50 HU"


@dataclass(frozen=True)
class Annotated:
    """A scan with the kinds of its blood."""

    scan: Scan
    classes: NDArray[np.uint8]
    """(X, Y, Z), values of ``LABELS``."""

    def kinds(self) -> dict[str, NDArray[np.bool_]]:
        """The voxels of each kind; subdural blood as dense as brain also by itself."""
        found = {kind: self.classes == value for kind, value in LABELS.items()}
        subdural = found["SDH"]
        iso_dense = subdural.any() and self.scan.image[subdural].mean() < ISO_DENSE_HU
        return found | {ISO_DENSE: subdural if iso_dense else np.zeros_like(subdural)}


@dataclass(frozen=True)
class Score:
    """Sums over the scans of one seed, in voxels."""

    seed: int
    loss: float
    common: int
    predicted: int
    annotated: int
    far: int
    """Predicted voxels further than ``NEAR_MM`` from any annotated blood."""
    by_kind: dict[str, tuple[int, int, int]]
    """Kind -> voxels found, voxels annotated, scans."""
    dice_per_scan: tuple[float, ...]

    @property
    def dice(self) -> float:
        """Dice pooled over all voxels of all scans."""
        return 2 * self.common / (self.predicted + self.annotated)


def main() -> None:
    """Parse, train, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datalist", type=Path, nargs="?", help="datalist.json of real scans, labels as in the phantom")
    parser.add_argument("--phantoms-only", action="store_true", help="measure on held-out phantoms alone")
    parser.add_argument("--seeds", type=int, default=3, help="networks to train")
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps of each")
    parser.add_argument("--augmentation", choices=get_args(Strength), default="usual", help="(default usual)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    if options.seeds < 1 or options.steps < 1:
        parser.error(f"--seeds and --steps must be 1 or more, got {options.seeds} and {options.steps}")
    if (options.datalist is None) != options.phantoms_only:
        parser.error("name the list of real scans, or --phantoms-only")
    torch.set_num_threads(1)
    sets: dict[str, Callable[[], list[Annotated]]] = {"held-out phantoms": held_out_phantoms}
    try:
        if options.datalist:
            datalist_sites(options.datalist)  # report a wrong path before the training, not after it
            sets["real scans"] = partial(real_scans, options.datalist)
        train = partial(train_on_phantoms, steps=options.steps, augmentation=options.augmentation)
        result = {"steps": options.steps, "augmentation": options.augmentation}
        result |= measure(sets, train, seeds=options.seeds)
    except SahflError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(result, indent=2) if options.json else as_text(result))


def measure(
    sets: Mapping[str, Callable[[], list[Annotated]]],
    train: Callable[[int], tuple[MultiViewUNet, float]],
    *,
    seeds: int,
) -> dict[str, Any]:
    """Train a network for each seed, and only then open each set of scans and segment it."""
    began, scores = time.perf_counter(), dict[str, list[Score]]()
    for seed in range(seeds):
        net, loss = train(seed)
        for name, scans in sets.items():
            score = evaluate(net, loss, scans(), seed)
            scores.setdefault(name, []).append(score)
            # An interrupted run still prints the finished seeds, which take minutes each.
            print(f"seed {seed}, {name}: {json.dumps({**asdict(score), 'dice': score.dice})}", file=sys.stderr)
    return {
        "sets": {name: summarise(found) for name, found in scores.items()},
        "phantoms_per_seed": len(PROFILES) * sum(CASES_PER_PROFILE.values()),
        "threshold": THRESHOLD,
        "machine": f"{platform.machine()}, {platform.system()}, one thread, torch {torch.__version__}",
        "minutes": round((time.perf_counter() - began) / 60, 1),
    }


def real_scans(datalist: Path) -> list[Annotated]:
    """The scans of a list with the kinds of their blood."""
    cases = [case for site in datalist_sites(datalist) for case in read_datalist(datalist, site)]
    return [Annotated(read_scan(case), read_classes(case)) for case in cases]


def held_out_phantoms() -> list[Annotated]:
    """Patients of every profile that no seed trains on."""
    made = []
    for name, profile in PROFILES.items():
        for kind, n_cases in HELD_OUT.items():
            for index in range(n_cases):
                seed = derive_seed(PHANTOM_SEED, "held out", name, kind, index)
                case = make_case(seed, kind=kind, profile=profile, shape=SHAPE, spacing_mm=SPACING_MM)
                made.append(Annotated(Scan(case.image.astype(np.float32), case.label > 0, case.affine), case.label))
    return made


def train_on_phantoms(seed: int, *, steps: int, augmentation: Strength) -> tuple[MultiViewUNet, float]:
    """Train one network on phantoms only, and return it with its mean loss; every seed has its own patients."""
    cases = [view for view in make_phantoms(seed)]
    sampler = SliceSampler(
        cases, VIEWS, batch_size=BATCH_SIZE, foreground_share=FOREGROUND_SHARE, seed=seed, augmentation=augmentation
    )
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


def evaluate(net: MultiViewUNet, loss: float, scans: Sequence[Annotated], seed: int) -> Score:
    """Segment every scan at the fixed threshold and add up the voxels."""
    common = predicted = annotated = far = 0
    found, in_scans = defaultdict[str, list[int]](lambda: [0, 0]), Counter[str]()
    dice = []
    for item in scans:
        scan = item.scan
        guess = predict(net, make_views(as_grey(scan), VIEWS), VIEWS) > THRESHOLD
        hits, drawn = int((guess & scan.label).sum()), int(guess.sum())
        common, predicted, annotated = common + hits, predicted + drawn, annotated + int(scan.label.sum())
        far += int((guess & ~_near(scan)).sum())
        dice.append(2 * hits / max(drawn + int(scan.label.sum()), 1))
        for kind, voxels in item.kinds().items():
            found[kind][0] += int((guess & voxels).sum())
            found[kind][1] += int(voxels.sum())
            in_scans[kind] += bool(voxels.any())
    by_kind = {kind: (hits, n, in_scans[kind]) for kind, (hits, n) in found.items()}
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


def summarise(scores: Sequence[Score]) -> dict[str, Any]:
    """All reported numbers of a set of scans, per seed and over the seeds."""
    kinds = {
        kind: {
            "voxels": n,
            "scans": n_scans,
            "sensitivity": _spread([score.by_kind[kind][0] / max(n, 1) for score in scores]),
        }
        for kind, (_, n, n_scans) in scores[0].by_kind.items()
    }
    return {
        "scans": len(scores[0].dice_per_scan),
        "annotated_voxels": scores[0].annotated,
        "pooled_dice": _spread([score.dice for score in scores]),
        "precision": _spread([score.common / max(score.predicted, 1) for score in scores]),
        "sensitivity": _spread([score.common / score.annotated for score in scores]),
        "far_false_share": _spread([score.far / max(score.predicted, 1) for score in scores]),
        "median_dice_per_scan": _spread([float(np.median(score.dice_per_scan)) for score in scores]),
        "mean_dice_per_scan": _spread([float(np.mean(score.dice_per_scan)) for score in scores]),
        "kinds": kinds,
        "seeds": [{**asdict(score), "dice": score.dice} for score in scores],
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "low": min(values), "high": max(values)}


def as_text(result: dict[str, Any]) -> str:
    """The result as text."""

    def show(spread: dict[str, float]) -> str:
        return f"{spread['mean']:.3f} ({spread['low']:.3f} to {spread['high']:.3f})"

    lines = [
        f"{result['steps']} steps on {result['phantoms_per_seed']} phantoms of each seed, {result['augmentation']} "
        f"augmentation; mean (lowest to highest seed); threshold {result['threshold']}"
    ]
    for name, found in result["sets"].items():
        lines += [
            f"{found['scans']} {name}, {found['annotated_voxels']} annotated voxels, {len(found['seeds'])} seeds",
            f"  pooled Dice, all blood    {show(found['pooled_dice'])}",
            f"  precision                 {show(found['precision'])}",
            f"  sensitivity               {show(found['sensitivity'])}",
            f"  predicted, but over {NEAR_MM:.0f} mm from blood  {show(found['far_false_share'])}",
            f"  median Dice of a scan     {show(found['median_dice_per_scan'])}",
            f"  mean Dice of a scan       {show(found['mean_dice_per_scan'])}",
            "  sensitivity by kind:",
        ]
        lines += [
            f"    {kind:16} {show(row['sensitivity'])}   {row['voxels']} voxels in {row['scans']} scans"
            for kind, row in found["kinds"].items()
        ]
        lines += [
            f"  seed {seed['seed']}: Dice {seed['dice']:.3f}, training loss {seed['loss']:.3f}"
            for seed in found["seeds"]
        ]
    return "\n".join([*lines, f"{result['minutes']} minutes on {result['machine']}"])


if __name__ == "__main__":
    main()
