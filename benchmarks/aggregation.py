"""Which aggregation rule is best at equal bytes? Compares all rules on a small study of four different SAH sites.

    python benchmarks/aggregation.py                       # a table for each method
    python benchmarks/aggregation.py --seeds 2 --rules project --json

Equal bytes: under no rule does a site send more than under ``mean`` in its rounds. ``alternate`` sends one factor per
round, so it gets more rounds and more training steps; the row ``mean, more rounds`` shows the effect of these steps
alone, at more bytes. float16 and int8 keep the number of rounds, so they send a half and a quarter. Within a seed,
rules share patients, starts and batches; the interval is Student's, of the paired differences to ``mean``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from machine import machine
from scipy import stats
from small_study import SITES, Federation, read_base

from sahfl.adapters import AdapterState
from sahfl.aggregation.rules import names_of_turn
from sahfl.aggregation.update import SiteUpdate
from sahfl.config import AdapterTuning, RoundsConfig
from sahfl.errors import RunFailed
from sahfl.federation.server.aggregate import aggregate
from sahfl.federation.site.feedback import with_feedback
from sahfl.payload import Encoding, Header, layout, pack, steps, unpack

METHODS = {
    "cp_lora-r8": AdapterTuning(method="cp_lora", rank=8),
    "conv_lora-r4": AdapterTuning(method="conv_lora", rank=4),
}
MEAN_ROUNDS, LOCAL_STEPS = 3, 6
BASE = "base alone"


@dataclass(frozen=True)
class Setting:
    """One way to aggregate."""

    rule: str = "mean"
    payload: Encoding = "float32"
    rounds_of: str = "mean"
    """The rule whose number of rounds at equal bytes it gets."""


SETTINGS = {
    "mean": Setting(),
    "project": Setting("project"),
    "alternate": Setting("alternate", rounds_of="alternate"),
    "mean, more rounds": Setting(rounds_of="alternate"),
    "median": Setting("median"),
    "trimmed_mean": Setting("trimmed_mean"),
    "mean, float16": Setting(payload="float16"),
    "mean, int8": Setting(payload="int8"),
}


@dataclass(frozen=True)
class Run:
    """One setting on one seed."""

    dice: float
    errors: tuple[float, ...]
    """Aggregation error of each round, as a share of its change."""
    bytes_up: int
    """Numbers that a site sent in all rounds, in bytes, without headers."""
    rounds: int
    failed: str = ""


Runs = dict[str, list[Run]]
"""Of every setting, one for each seed."""


def run(federation: Federation, setting: Setting, folder: Path) -> Run:
    """All rounds of a setting; a run whose loss is no longer a number has Dice 0."""
    rounds = n_rounds(federation, setting.rounds_of)
    config = RoundsConfig(payload=setting.payload)
    global_state, errors, n_bytes = federation.start, [], 0
    for round_ in range(1, rounds + 1):
        updates, sent = [], 0
        try:
            for name, site in federation.sites.items():
                trained = federation.train(
                    name, global_state, round_=round_, rounds=rounds, turns=setting.rule == "alternate"
                )
                arrived, sent = send(trained, global_state, setting.payload, folder / name, round_)
                updates.append(SiteUpdate(name, site.n_training, global_state | arrived))
        except RunFailed as error:
            return Run(0.0, tuple(errors), n_bytes, rounds, str(error))
        found = aggregate(updates, like=global_state, rule=setting.rule, layers=federation.layers, config=config)
        global_state, n_bytes = found.state, n_bytes + sent
        errors.append(found.notes["aggregation_error"])
    return Run(federation.dice(global_state), tuple(errors), n_bytes, rounds)


def n_rounds(federation: Federation, rule: str) -> int:
    """Number of rounds in which a site sends at most as many bytes under this rule as under ``mean``."""
    start = federation.start
    left, rounds = MEAN_ROUNDS * sum(value.size for value in start.values()), 0
    if rule != "alternate":
        return MEAN_ROUNDS
    while left >= 0:
        rounds += 1
        left -= sum(start[name].size for name in names_of_turn(federation.layers, tuple(start), rounds))
    return rounds - 1


def send(
    trained: AdapterState, received: AdapterState, encoding: Encoding, folder: Path, round_: int
) -> tuple[AdapterState, int]:
    """A site's tensors as received, and their bytes; they are rounded as in messages, with error feedback."""
    if encoding == "float32":
        return trained, pack(trained).nbytes
    change = {name: value - received[name] for name, value in trained.items()}
    wanted = with_feedback(folder, Header("small", "finetune", encoding, 0, round_, ""), change, encoding)
    packed = pack(wanted, encoding)
    change = unpack(packed.tobytes(), layout(wanted), like=wanted, encoding=encoding, tensor_steps=steps(wanted))
    return {name: received[name] + value for name, value in change.items()}, packed.nbytes


def compare(methods: Sequence[str], wanted: Iterable[str], seeds: int, local_steps: int) -> dict[str, Runs]:
    """The runs of every setting over the seeds, ``mean`` among them, for each method."""
    base, settings = read_base(), [name for name in SETTINGS if name in {"mean", *wanted}]
    runs: dict[str, Runs] = {method: {name: [] for name in [BASE, *settings]} for method in methods}
    for seed in range(seeds):
        for method, found in runs.items():
            federation = Federation(METHODS[method], seed, sites=SITES[:4], base=base, steps=local_steps)
            found[BASE].append(Run(federation.dice(federation.start), (), 0, 0))
            for name in settings:
                began = time.perf_counter()
                with tempfile.TemporaryDirectory() as folder:
                    found[name].append(run(federation, SETTINGS[name], Path(folder)))
                seconds = time.perf_counter() - began
                print(f"{method} seed {seed} {name}: {found[name][-1].dice:.3f} in {seconds:.0f} s", file=sys.stderr)
    return runs


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of paired differences (Student); with one pair the interval is infinite."""
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return mean, -np.inf, np.inf
    half = stats.t.ppf(0.975, len(differences) - 1) * np.std(differences, ddof=1) / len(differences) ** 0.5
    return mean, mean - float(half), mean + float(half)


def as_table(method: str, runs: Runs) -> str:
    """A row for each setting, in Markdown."""
    lines = [
        f"| {method} | rounds | kB sent per site | aggregation error, first / mean of rounds "
        "| Dice (lowest to highest) | difference to mean (95 %) |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in runs.items():
        dice = [one.dice for one in found]
        pairs = [one - other.dice for one, other in zip(dice, runs["mean"], strict=True)]
        mean, low, high = interval(pairs)
        errors = [one.errors for one in found if one.errors]
        error = f"{np.mean([e[0] for e in errors]):.2g} / {np.mean([np.mean(e) for e in errors]):.2g}" if errors else ""
        failed = sum(bool(one.failed) for one in found)
        lines.append(
            f"| {name} | {found[0].rounds} | {np.mean([one.bytes_up for one in found]) / 1e3:.0f} "
            f"| {error} | {np.mean(dice):.3f} ({min(dice):.3f} to {max(dice):.3f})"
            f"{f', {failed} failed' if failed else ''} "
            f"| {'' if name == 'mean' else f'{mean:+.3f} ({low:+.3f} to {high:+.3f})'} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rules", nargs="*", choices=SETTINGS, default=list(SETTINGS), help="beside mean")
    parser.add_argument("--seeds", type=int, default=5, help="patients, starts and batches (default 5)")
    parser.add_argument("--steps", type=int, default=LOCAL_STEPS, help=f"of a site in a round (default {LOCAL_STEPS})")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    results = compare(options.methods, options.rules, options.seeds, options.steps)
    if options.json:
        rows = {
            name: {rule: [asdict(one) for one in found] for rule, found in r.items()} for name, r in results.items()
        }
        print(json.dumps({"machine": machine(), "methods": rows}, indent=2))
        return
    for name, runs in results.items():
        print(as_table(name, runs), end="\n\n")
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes on {machine()}")


if __name__ == "__main__":
    main()
