"""What do the defences cost, and what do they prevent? One hostile site of five, on the small study.

    python benchmarks/attacks.py                                  # two tables
    python benchmarks/attacks.py --seeds 2 --attacks sign_flip --json

Attacks are those of a simulation's hostile sites (``sahfl.simulation.hostile``): pure functions of a site's received
and trained state; label flipping trains on inverted annotations. Every update first passes the payload checks, which
refuse NaN under every defence. Dice is that of the honest sites' held-out patients. The median and the trimmed mean
work within the default bounds, as in a study.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from aggregation import METHODS, interval
from machine import machine
from small_study import SITES, Federation, read_base

from sahfl.adapters import AdapterState
from sahfl.aggregation.update import SiteUpdate
from sahfl.config import RoundsConfig
from sahfl.errors import PayloadError, RunFailed
from sahfl.federation.server.aggregate import aggregate
from sahfl.payload import layout, pack, unpack
from sahfl.seeds import derive_seed
from sahfl.simulation.hostile import ATTACKS, Attack, as_trained

HOSTILE = "graz"
"""Second largest site: 6 of 26 volumes."""
ROUNDS, LOCAL_STEPS = 3, 6
METHOD = METHODS["cp_lora-r8"].model_copy(update={"learning_rate": 2e-2})
"""Four times the default rate, so that the few steps learn something that an attack can destroy."""
NONE, BASE = "no attacker", "base alone"
ACTS: dict[str, Attack] = {NONE: as_trained, **ATTACKS}
IDLE = {"nan", "random", "free_rider", "noisy_free_rider"}
"""Attacks that need no training."""
UNBOUNDED = RoundsConfig(most_share=1.0, most_norm=1e300)
DEFENCES: dict[str, tuple[str, RoundsConfig]] = {
    "mean without bounds": ("mean", UNBOUNDED),
    "bounded mean (default)": ("mean", RoundsConfig()),
    "median": ("median", RoundsConfig()),
    "trimmed mean": ("trimmed_mean", RoundsConfig()),
}


@dataclass(frozen=True)
class Run:
    """One attack on one defence with one seed."""

    dice: float
    """Of the honest sites' held-out patients; 0 if the network was destroyed."""
    refused: int = 0
    """Rounds in which the payload checks refused the hostile site."""
    shortened: int = 0
    """Rounds in which its change was shortened."""
    failed: str = ""


def run(federation: Federation, attack: str, defence: str, *, seed: int) -> Run:
    """All rounds of one attack on one defence."""
    rule, config = DEFENCES[defence]
    global_state, refused, shortened = federation.start, 0, 0
    for round_ in range(1, ROUNDS + 1):
        updates = []
        try:
            for name, site in federation.sites.items():
                hostile, sent = name == HOSTILE, global_state
                if not (hostile and attack in IDLE):
                    flipped = hostile and attack == "label_flip"
                    sent = federation.train(name, global_state, round_=round_, rounds=ROUNDS, flipped=flipped)
                if hostile:
                    random = np.random.default_rng(derive_seed(seed, attack, round_))
                    sent = ACTS[attack](global_state, sent, random)
                try:
                    arrived = unpack(pack(sent).tobytes(), layout(sent), like=global_state)
                except PayloadError:
                    refused += 1
                    continue
                updates.append(SiteUpdate(name, site.n_training, arrived))
            found = aggregate(updates, like=global_state, rule=rule, layers=federation.layers, config=config)
        except (RunFailed, PayloadError) as error:  # the loss or the aggregate is not finite
            return Run(0.0, refused, shortened, str(error))
        global_state, shortened = found.state, shortened + (HOSTILE in found.notes["shortened"])
    return Run(honest_dice(federation, global_state), refused, shortened)


def honest_dice(federation: Federation, state: AdapterState) -> float:
    """Dice of the honest sites' held-out patients."""
    return federation.dice(state, [name for name in federation.sites if name != HOSTILE])


def compare(attacks: Iterable[str], seeds: int) -> dict[str, dict[str, list[Run]]]:
    """The runs of every attack on every defence over the seeds."""
    base, attacks = read_base(), [name for name in ACTS if name in {NONE, *attacks}]
    runs: dict[str, dict[str, list[Run]]] = {attack: {name: [] for name in DEFENCES} for attack in [BASE, *attacks]}
    for seed in range(seeds):
        federation = Federation(METHOD, seed, sites=SITES, base=base, steps=LOCAL_STEPS)
        for attack, found in runs.items():
            began = time.perf_counter()
            for defence in DEFENCES:
                alone = Run(honest_dice(federation, federation.start)) if attack == BASE else None
                found[defence].append(alone or run(federation, attack, defence, seed=seed))
            values = ", ".join(f"{one[-1].dice:.3f}" for one in found.values())
            print(f"seed {seed} {attack}: {values} in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return runs


def as_tables(runs: dict[str, dict[str, list[Run]]]) -> str:
    """Dice of each attack and defence, and what each costs, in Markdown."""
    head, rule = " | ".join(DEFENCES), "|---" * (len(DEFENCES) + 1) + "|"
    lines = [f"| Dice (lowest to highest) | {head} |", rule]
    lines += [f"| {attack} | {' | '.join(map(_spread, found.values()))} |" for attack, found in runs.items()]
    lines += ["", f"| difference (95 %) | {head} |", rule]
    plain = next(iter(DEFENCES))
    costs = [_difference(one, runs[NONE][plain]) for one in runs[NONE].values()]
    lines.append(f"| no attacker, to {plain} | {' | '.join(costs)} |")
    for attack, found in runs.items():
        if attack != NONE:
            harm = [_difference(one, runs[NONE][defence]) for defence, one in found.items()]
            lines.append(f"| {attack}, to no attacker | {' | '.join(harm)} |")
    return "\n".join(lines)


def _spread(found: list[Run]) -> str:
    dice = [one.dice for one in found]
    notes = [
        f"{n} of {ROUNDS * len(found)} rounds {what}"
        for n, what in ((sum(r.refused for r in found), "refused"), (sum(r.shortened for r in found), "shortened"))
        if n
    ]
    notes += [f"{n} of {len(found)} destroyed" for n in [sum(bool(one.failed) for one in found)] if n]
    return f"{np.mean(dice):.3f} ({min(dice):.3f} to {max(dice):.3f}){''.join(f'; {note}' for note in notes)}"


def _difference(found: list[Run], reference: list[Run]) -> str:
    mean, low, high = interval([one.dice - other.dice for one, other in zip(found, reference, strict=True)])
    return "0" if found is reference else f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attacks", nargs="*", choices=ACTS, default=list(ACTS), help="beside no attacker")
    parser.add_argument("--seeds", type=int, default=3, help="patients, starts and batches (default 3)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    runs = compare(options.attacks, options.seeds)
    if options.json:
        rows = {a: {d: [asdict(one) for one in found] for d, found in by.items()} for a, by in runs.items()}
        print(json.dumps({"machine": machine(), "rounds": ROUNDS, "attacks": rows}, indent=2))
        return
    print(as_tables(runs))
    print(f"\n{(time.perf_counter() - began) / 60:.1f} minutes on {machine()}")


if __name__ == "__main__":
    main()
