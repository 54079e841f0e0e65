"""sahfl's network and training beside nnU-Net 2d, on the same phantoms, with equal steps of equal batches.

    python -m venv NNUNET && NNUNET/bin/pip install nnunetv2
    python benchmarks/nnunet.py --env NNUNET                # a table; hours on one core
    python benchmarks/nnunet.py --env NNUNET --steps 260 --seeds 1 --json

nnU-Net plans, loads, augments, trains and predicts with its own code (``nnunet_side.py``); its plans are changed in the
batch size, and in the row "small" also in the widths, so that it has as many parameters as sahfl's network. Each seed
has its own start and batches; the phantoms are the same. Each side has one thread. Nothing of nnU-Net is installed
with sahfl.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from machine import machine
from nnunet_side import NAME

from sahfl.config import ViewsConfig
from sahfl.data.ct import Scan
from sahfl.data.phantom import PROFILES, PhantomKind, make_case
from sahfl.data.sampler import SliceSampler
from sahfl.data.views import CaseViews, make_views, n_channels
from sahfl.evaluation import predict
from sahfl.model import MultiViewUNet, for_inference
from sahfl.seeds import derive_seed
from sahfl.training import Schedule, train

SEED = 20_261_201
SHAPE, SPACING_MM = (96, 112, 24), (2.0, 2.0, 5.0)
KINDS: tuple[PhantomKind, ...] = ("tbi", "sah")
TRAINING, TEST = ("standard", "sharp", "low_dose", "offset"), ("noisy", "tilted")
"""Scanner profiles; those of the test are not in the training."""
PATIENTS = {"training": 6, "test": 10}
"""Patients of each kind and profile."""
VIEWS = ViewsConfig(weights={"axial": 1.0}, size=(96, 112, 64))
BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY, FOREGROUND_SHARE = 8, 2e-3, 1e-4, 0.5
STEPS = (260, 780, 2000)


@dataclass(frozen=True)
class Patient:
    """A phantom, and its name in nnU-Net's folders."""

    name: str
    kind: PhantomKind
    scan: Scan


@dataclass(frozen=True)
class Row:
    """One training."""

    side: str
    steps: int
    seed: int
    parameters: int
    dice: dict[str, float]
    """Mean over the test patients of a kind."""
    minutes: float
    """Of the processor, for the training."""


def main() -> None:
    """Make the phantoms, train each side, print."""
    options = parse()
    torch.set_num_threads(1)
    training, test = list(patients("training", TRAINING)), list(patients("test", TEST))
    write_dataset(options.folder / "raw" / NAME, training, test)
    cases = [make_views(patient.scan, VIEWS) for patient in training]
    rows = []
    for steps in options.steps:
        for seed in range(options.seeds):
            for side in options.sides:
                if side == "sahfl":
                    rows.append(of_sahfl(cases, test, steps=steps, seed=seed))
                else:
                    rows.append(of_nnunet(options, test, side=side, steps=steps, seed=seed))
                print(json.dumps(asdict(rows[-1])), file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=1))
    else:
        print_table(rows)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, required=True, help="virtual environment with nnunetv2")
    parser.add_argument(
        "--steps", nargs="+", type=int, default=list(STEPS), help="multiples of 10 (default 260 780 2000)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row (default 3)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="(default all)")
    parser.add_argument("--folder", type=Path, default=Path("runs/nnunet"), help="work folder (default runs/nnunet)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


SIDES = {"sahfl": "", "nnU-Net, small": "small", "nnU-Net": "nnUNetPlans"}
"""Names of the rows, each with its plans."""


def patients(which: str, profiles: tuple[str, ...]) -> Iterator[Patient]:
    """The phantoms of training or test."""
    for profile in profiles:
        for kind in KINDS:
            for index in range(PATIENTS[which]):
                seed = derive_seed(SEED, which, profile, kind, index)
                case = make_case(seed, kind=kind, profile=PROFILES[profile], shape=SHAPE, spacing_mm=SPACING_MM)
                scan = Scan(case.image.astype(np.float32), case.label > 0, case.affine)
                yield Patient(f"{which}_{profile.replace('_', '')}_{kind}_{index:02d}", kind, scan)


def write_dataset(folder: Path, training: list[Patient], test: list[Patient]) -> None:
    """The phantoms as nnU-Net reads them."""
    for part, people in (("Tr", training), ("Ts", test)):
        for patient in people:
            for kind, volume, ending in (
                ("images", patient.scan.image, "_0000"),
                ("labels", patient.scan.label.astype(np.uint8), ""),
            ):
                path = folder / f"{kind}{part}" / f"{patient.name}{ending}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                nibabel.save(nibabel.Nifti1Image(volume, patient.scan.affine), path)
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "blood": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(about | {"numTraining": len(training)}))


def of_sahfl(cases: list[CaseViews], test: list[Patient], *, steps: int, seed: int) -> Row:
    """Train and test sahfl's network."""
    sampler = SliceSampler(cases, VIEWS, batch_size=BATCH_SIZE, foreground_share=FOREGROUND_SHARE, seed=seed)
    net, began = MultiViewUNet(n_channels(VIEWS), size="tiny", seed=seed), time.process_time()
    train(net, sampler, Schedule(LEARNING_RATE, WEIGHT_DECAY, steps=steps, round=1, rounds=1))
    minutes, ready = (time.process_time() - began) / 60, for_inference(net)
    masks = {patient.name: predict(ready, make_views(patient.scan, VIEWS), VIEWS) >= 0.5 for patient in test}
    return Row("sahfl", steps, seed, sum(p.numel() for p in net.parameters()), dice_of(masks, test), minutes)


def of_nnunet(options: argparse.Namespace, test: list[Patient], *, side: str, steps: int, seed: int) -> Row:
    """Train and test nnU-Net in its own environment."""
    folder = options.folder.resolve()
    out = folder / "predicted" / f"{SIDES[side]}-{steps}-{seed}"
    settings = {"plans": SIDES[side], "steps": steps, "seed": seed, "batch_size": BATCH_SIZE, "out": str(out)}
    folders = {f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}
    more = {"nnUNet_n_proc_DA": "0", "nnUNet_compile": "f", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    path = f"{options.env.resolve() / 'bin'}:{os.environ['PATH']}"
    command = [options.env / "bin" / "python", Path(__file__).with_name("nnunet_side.py"), json.dumps(settings)]
    done = subprocess.run(
        command, env=os.environ | folders | more | {"PATH": path}, stdout=subprocess.PIPE, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    masks = {patient.name: np.asarray(nibabel.load(out / f"{patient.name}.nii.gz").dataobj) > 0 for patient in test}
    return Row(side, steps, seed, found["parameters"], dice_of(masks, test), found["seconds"] / 60)


def dice_of(masks: dict[str, np.ndarray], test: list[Patient]) -> dict[str, float]:
    """Mean Dice over the test patients of each kind; all have blood."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for patient in test:
        mask, label = masks[patient.name], patient.scan.label
        found[patient.kind].append(2 * float((mask & label).sum()) / max(float(mask.sum() + label.sum()), 1.0))
    return {kind: float(np.mean(values)) for kind, values in found.items()}


def print_table(rows: list[Row]) -> None:
    """A line for each side and number of steps: means over the seeds, with the lowest and the highest."""
    print("| steps | side | parameters | Dice TBI | Dice SAH | minutes |\n|---|---|---|---|---|---|")
    for steps, side in dict.fromkeys((row.steps, row.side) for row in rows):
        some = [row for row in rows if (row.steps, row.side) == (steps, side)]
        dice = []
        for kind in KINDS:
            values = [row.dice[kind] for row in some]
            dice.append(f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        minutes = np.mean([row.minutes for row in some])
        print(f"| {steps} | {side} | {some[0].parameters:,} | {' | '.join(dice)} | {minutes:.1f} |")
    print(machine())


if __name__ == "__main__":
    main()
