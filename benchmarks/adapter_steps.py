"""How far do the first steps of the adapters move a kernel, and which steps train best?

    python benchmarks/adapter_steps.py                                # sizes of steps, for each form and rank; a minute
    python benchmarks/adapter_steps.py --dice --seeds 5               # and Dice after training, federated and alone
    python benchmarks/adapter_steps.py --dice --methods cp_lora-r8 --rates 0.003 0.01 0.03

The first number of a row is the relative change of a kernel by one step at the full learning rate, the median over the
layers. Two recipes are compared: ``rank``, alpha / rank with one learning rate for all factors, as in LoRA; and
``steps``, which is sahfl's: equal steps for all forms and ranks, and inner factors that move relative to their size.
Dice is that of each site's own held-out patients, the mean over sites, with one network for all sites (federated) or
one for each (alone). The base was pretrained on trauma patients of other scanners. Within a seed everything is shared
but the recipe; the interval is Student's, of the paired differences between seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from aggregation import interval
from machine import machine
from small_study import Federation, SmallSite, read_base

from sahfl.adapters import AdapterState, Scaling
from sahfl.adapters.steps import rate_of
from sahfl.aggregation.mean import mean
from sahfl.aggregation.update import SiteUpdate
from sahfl.config import AdapterTuning
from sahfl.training import Schedule

SITES = (SmallSite("turin", "smooth", 8), SmallSite("graz", "noisy", 7), SmallSite("lyon", "tilted", 5))
BASE_PROFILES = ("standard", "sharp", "low_dose", "offset")
"""Scanners of the base: other ones than those of the sites."""
BASE_CASES, N_HELD_OUT = 12, 12
ROUNDS, STEPS = 4, 12
METHODS = {
    f"{form}-r{rank}": AdapterTuning(method=form, rank=rank)
    for form in ("lora_c", "conv_lora", "cp_lora")
    for rank in (1, 8, 128)
}


@dataclass(frozen=True)
class Recipe:
    """How an adapter's steps are sized."""

    scaling: Scaling
    alpha: float
    learning_rate: float
    relative: bool
    """Whether inner factors move relative to their size."""

    def federation(self, method: AdapterTuning, seed: int, base: AdapterState, steps: int = STEPS) -> Federation:
        """The sites of a seed, with this recipe."""
        settings = {"scaling": self.scaling, "alpha": self.alpha, "learning_rate": self.learning_rate}
        return Federation(
            method.model_copy(update=settings),
            seed,
            sites=SITES,
            base=base,
            steps=steps,
            n_held_out=N_HELD_OUT,
            rates=rate_of if self.relative else lambda net: lambda name: 1.0,
        )


def recipes(rates: Sequence[float]) -> dict[str, Recipe]:
    """LoRA's recipe, and sahfl's own at each of the learning rates, its default if none is given."""
    usual = AdapterTuning(method="cp_lora")
    own = Recipe("steps", usual.alpha, usual.learning_rate, relative=True)
    found = {"rank": Recipe("rank", 16.0, 5e-3, relative=False)}
    return found | {f"steps, {rate:g}": replace(own, learning_rate=rate) for rate in rates or [own.learning_rate]}


@dataclass
class Result:
    """One method with one recipe: a number for each seed."""

    first_step: float
    federated: list[float]
    alone: list[float]


def first_step(method: AdapterTuning, recipe: Recipe, base: AdapterState) -> float:
    """Relative change of a kernel in one step at the full learning rate: the median over the layers."""
    sites = recipe.federation(method, 0, base, steps=1)
    after = sites.train(SITES[0].name, sites.start, round_=1, rounds=1)
    warm_up = Schedule(1.0, 0.0, 1, 1, 1).rate(0)
    return float(np.median(sites.changes(after))) / warm_up


def federated(sites: Federation) -> float:
    """Dice after all rounds of averaging, each site with the same network."""
    state = sites.start
    for round_ in range(1, ROUNDS + 1):
        trained = {name: sites.train(name, state, round_=round_, rounds=ROUNDS) for name in sites.sites}
        updates = [SiteUpdate(name, sites.sites[name].n_training, sent) for name, sent in trained.items()]
        state = mean(updates, like=state)
    return float(np.mean([sites.dice(state, [name]) for name in sites.sites]))


def alone(sites: Federation) -> float:
    """Dice of as many rounds without averaging, each site with its own network."""
    found = []
    for name in sites.sites:
        state = sites.start
        for round_ in range(1, ROUNDS + 1):
            state = sites.train(name, state, round_=round_, rounds=ROUNDS)
        found.append(sites.dice(state, [name]))
    return float(np.mean(found))


def compare(methods: Sequence[str], chosen: dict[str, Recipe], seeds: int) -> dict[str, dict[str, Result]]:
    """The results of every method with every recipe."""
    base = read_base(BASE_PROFILES, BASE_CASES)
    results: dict[str, dict[str, Result]] = {method: {} for method in methods}
    for method, (name, recipe) in itertools.product(methods, chosen.items()):
        results[method][name] = Result(first_step(METHODS[method], recipe, base), [], [])
    for seed, method, (name, recipe) in itertools.product(range(seeds), methods, chosen.items()):
        sites, found = recipe.federation(METHODS[method], seed, base), results[method][name]
        found.federated.append(federated(sites))
        found.alone.append(alone(sites))
        dice = f"{found.federated[-1]:.3f} federated, {found.alone[-1]:.3f} alone"
        print(f"{method}, {name}, seed {seed}: {dice}", file=sys.stderr)
    return results


def as_table(results: dict[str, dict[str, Result]]) -> str:
    """A row for each method and recipe, in Markdown; differences are those to ``rank``."""
    lines = [
        "| method | recipe | first step | Dice, federated | difference (95 %) | Dice, alone | difference (95 %) |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, rows in results.items():
        for name, row in rows.items():
            cells = [method, name, f"{100 * row.first_step:.2g} %"]
            for dice, usual in ((row.federated, rows["rank"].federated), (row.alone, rows["rank"].alone)):
                cells += [f"{np.mean(dice):.3f}", gap(dice, usual)] if dice else ["", ""]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def gap(dice: Sequence[float], usual: Sequence[float]) -> str:
    """Mean and interval of the paired differences; nothing where both are the same runs."""
    if dice is usual:
        return ""
    middle, low, high = interval([one - other for one, other in zip(dice, usual, strict=True)])
    return f"{middle:+.3f} ({low:+.3f} to {high:+.3f})"


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rates", nargs="*", type=float, default=[], help="learning rates of the recipe steps")
    parser.add_argument("--dice", action="store_true", help="also train: half a minute for each recipe and seed")
    parser.add_argument("--seeds", type=int, default=5, help="patients, starts and batches (default 5)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    results = compare(options.methods, recipes(options.rates), options.seeds if options.dice else 0)
    if options.json:
        rows = {method: {name: asdict(row) for name, row in found.items()} for method, found in results.items()}
        print(json.dumps({"machine": machine(), "methods": rows}, indent=2))
        return
    print(as_table(results))
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes on {machine()}")


if __name__ == "__main__":
    main()
