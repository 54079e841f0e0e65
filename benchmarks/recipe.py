"""Which changes of the training find lesions that are missed now? Each change against the usual training, on phantoms.

    python benchmarks/recipe.py                                  # all changes, three seeds; hours on one core
    python benchmarks/recipe.py --changes usual strong --seeds 0 1 --steps 1350
    python benchmarks/recipe.py --table                          # of what lies in the folder; trains nothing

A network is trained on phantoms of its seed, and measured on the held-out phantoms of ``phantom_to_real.py``, by kind
of blood; iso-dense subdural blood, below 50 HU in the mean, is what is missed most. Real scans are never opened. Each
training is kept in a file (``runs/recipe``), so that an interrupted call goes on, and two calls with other seeds share
the work. A change is worth keeping if it finds more in every seed and its Dice is not lower.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from machine import machine
from phantom_to_real import (
    BATCH_SIZE,
    FOREGROUND_SHARE,
    ISO_DENSE,
    LEARNING_RATE,
    VIEWS,
    WEIGHT_DECAY,
    Annotated,
    Score,
    evaluate,
    held_out_phantoms,
    make_phantoms,
)
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

import sahfl.training
from sahfl.data.ct import Scan
from sahfl.data.sampler import SliceSampler
from sahfl.data.view_settings import Strength, View
from sahfl.data.views import CaseViews, n_channels
from sahfl.model import MultiViewUNet
from sahfl.training import Schedule, train

DENSITY_EDGES_HU = (45.0, 55.0, 65.0)
"""Between the classes of density from which the change "density" draws equally often."""


class BesideItsMirror(nn.Module):
    """A network that sees each slice beside its mirror image: asymmetry shows what brightness does not."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.net = MultiViewUNet(2 * n_channels(VIEWS), size="tiny", seed=seed)

    def forward(self, slices: Tensor, view: str | None = None) -> Any:
        """(batch, channels, height, width) -> logits; height is x."""
        return self.net(torch.cat([slices, slices.flip(2)], dim=1), view)


class ByDensity(SliceSampler):
    """Slices with blood are drawn equally often from classes of density, and not from every patient."""

    def __init__(self, cases: Sequence[CaseViews], *arguments: Any, **more: Any) -> None:
        super().__init__(cases, *arguments, **more)
        self._classes: dict[int, list[tuple[int, int]]] = {}
        for number, case in enumerate(cases):
            stack = case.stacks["axial"]
            for index in stack.with_blood.tolist():
                density = float(stack.image[index : index + 1][stack.label[index : index + 1]].mean())
                kind = int(np.searchsorted(DENSITY_EDGES_HU, density))
                self._classes.setdefault(kind, []).append((number, index))

    def _choose(self, view: View, *, foreground: bool) -> tuple[Any, int]:
        if not foreground:
            return super()._choose(view, foreground=False)
        kinds = sorted(self._classes)
        chosen = self._classes[kinds[self._random.integers(len(kinds))]]
        number, index = chosen[self._random.integers(len(chosen))]
        return self._by_view[view][number].stacks[view], index


@dataclass(frozen=True)
class Change:
    """What differs from the usual training."""

    augmentation: Strength = "usual"
    network: Callable[[int], nn.Module] = lambda seed: MultiViewUNet(n_channels(VIEWS), size="tiny", seed=seed)
    sampler: type[SliceSampler] = SliceSampler
    coarse_targets: Callable[..., Tensor] | None = None


def deep(seed: int) -> nn.Module:
    """The network with outputs at half and quarter size."""
    return MultiViewUNet(n_channels(VIEWS), size="tiny", seed=seed, deep_supervision=True)


CHANGES = {
    "usual": Change(),
    "strong": Change(augmentation="strong"),
    "mirror": Change(network=BesideItsMirror),
    "density": Change(sampler=ByDensity),
    "strong, mirror": Change(augmentation="strong", network=BesideItsMirror),
    "strong, mirror, density": Change(augmentation="strong", network=BesideItsMirror, sampler=ByDensity),
    "deep": Change(network=deep),
    "deep, averaged": Change(network=deep, coarse_targets=avg_pool2d),
}


def main() -> None:
    """Train what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", nargs="+", choices=CHANGES, default=list(CHANGES), help="(default all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(default 0 1 2)")
    parser.add_argument("--steps", type=int, default=1350, help="optimiser steps of each training (default 1350)")
    parser.add_argument("--folder", type=Path, default=Path("runs/recipe"), help="(default runs/recipe)")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds if not options.table else ():
        missing = [name for name in options.changes if not _file(options, name, seed).exists()]
        if missing:
            cases, held_out = make_phantoms(seed), kept(options.folder / "held-out.npz")
            for name in missing:
                score = measure(CHANGES[name], cases, held_out, seed=seed, steps=options.steps)
                _file(options, name, seed).write_text(json.dumps(asdict(score) | {"dice": score.dice}))
                print(f"{name}, seed {seed}: Dice {score.dice:.3f}", file=sys.stderr, flush=True)
    print("\n".join(table(options)))
    print(machine())


def _file(options: argparse.Namespace, name: str, seed: int) -> Path:
    return options.folder / f"{options.steps}-{name.replace(', ', '-')}-{seed}.json"


def kept(path: Path) -> list[Annotated]:
    """The held-out phantoms, made once."""
    if not path.exists():
        made = held_out_phantoms()
        arrays = {f"{i} {name}": value for i, item in enumerate(made) for name, value in _arrays(item).items()}
        np.savez_compressed(path.with_suffix(".new.npz"), **arrays)
        path.with_suffix(".new.npz").rename(path)
    with np.load(path) as found:
        n = len(found.files) // 3
        parts = [[found[f"{i} {name}"] for name in ("image", "classes", "affine")] for i in range(n)]
    return [Annotated(Scan(image, classes > 0, affine), classes) for image, classes, affine in parts]


def _arrays(item: Annotated) -> dict[str, np.ndarray]:
    return {"image": item.scan.image, "classes": item.classes, "affine": item.scan.affine}


def measure(change: Change, cases: list[CaseViews], held_out: list[Annotated], *, seed: int, steps: int) -> Score:
    """Train with a change, and segment the held-out phantoms."""
    sampler = change.sampler(
        cases,
        VIEWS,
        batch_size=BATCH_SIZE,
        foreground_share=FOREGROUND_SHARE,
        seed=seed,
        augmentation=change.augmentation,
    )
    net = change.network(seed)
    coarse = change.coarse_targets or sahfl.training.max_pool2d
    with mock.patch.object(sahfl.training, "max_pool2d", coarse):
        loss = train(net, sampler, Schedule(LEARNING_RATE, WEIGHT_DECAY, steps=steps, round=1, rounds=1))
    return evaluate(net, loss, held_out, seed)


def table(options: argparse.Namespace) -> Iterator[str]:
    """A row for each change: Dice, precision and the share that was found of each kind, means over its seeds."""
    kinds: list[str] = []
    for name in CHANGES:
        files = [path for seed in range(100) if (path := _file(options, name, seed)).exists()]
        found = [json.loads(path.read_text()) for path in files]
        if not found:
            continue
        if not kinds:
            kinds = [ISO_DENSE, *(kind for kind in found[0]["by_kind"] if kind != ISO_DENSE)]
            yield f"| change, {options.steps} steps | seeds | Dice | mean of scans | precision | {' | '.join(kinds)} |"
            yield "|---" * (5 + len(kinds)) + "|"
        columns = [
            [row["dice"] for row in found],
            [float(np.mean(row["dice_per_scan"])) for row in found],
            [row["common"] / max(row["predicted"], 1) for row in found],
            *([row["by_kind"][kind][0] / max(row["by_kind"][kind][1], 1) for row in found] for kind in kinds),
        ]
        cells = [f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" for values in columns]
        yield f"| {name} | {len(found)} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
