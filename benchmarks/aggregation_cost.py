"""Cost of aggregation at the server, by the number of sites.

    python benchmarks/aggregation_cost.py                              # a table; about a minute on one core
    python benchmarks/aggregation_cost.py --sites 10 100 --json        # a part, for machines

The updates are CP-LoRA's of rank 8 on the study's own network (``MultiViewUNet``, size ``base``, 9 channels in), made
one at a time as they would arrive. ``alternate`` is the plain mean of a stream (``mean_of_stream``), exact if one
factor trains per round; ``project`` needs all updates at once and is measured up to ``--most`` sites.
Time is processor time of the rule alone: the time of making the updates is measured separately and subtracted. Peak
memory is the maximum of Python's tracemalloc in a second, untimed run.
"""

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from machine import machine

from sahfl.adapters import AdapterState, FactoredLayer, exchanged
from sahfl.adapters.attach import attach
from sahfl.adapters.exchanged import factored_layers
from sahfl.aggregation.lowrank import project
from sahfl.aggregation.mean import mean_of_stream
from sahfl.aggregation.update import SiteUpdate
from sahfl.config import AdapterTuning
from sahfl.model import MultiViewUNet

CHANNELS = 9
AIM_S = 1.0
"""Seconds for the mean of 1000 sites."""
Rule = Callable[[Iterator[SiteUpdate]], object]


@dataclass(frozen=True)
class Row:
    """One rule with one number of sites."""

    rule: str
    sites: int
    seconds: float
    peak_mib: float


def main() -> None:
    """Measure and print."""
    options = parse()
    torch.set_num_threads(1)
    like, layers = adapters(options.size, options.rank)
    rows = [row for name, rule in rules(like, layers).items() for row in measure(name, rule, like, options)]
    slope, start = fit([row for row in rows if row.rule == "alternate"])
    result = {
        "machine": machine(),
        "numbers": sum(value.size for value in like.values()),
        "rows": [asdict(row) for row in rows],
        "alternate": {"seconds_per_site": slope, "seconds_at_0": start, "aim_s_for_1000": AIM_S},
    }
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['machine']}\n{result['numbers']} numbers per site\n")
    for row in rows:
        print(f"{row.rule:10} {row.sites:6} sites {row.seconds:9.4f} s {row.peak_mib:8.1f} MiB")
    print(f"\nalternate: {1e3 * slope:.4f} ms per site (linear fit), 1000 sites {start + 1000 * slope:.2f} s")


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", nargs="+", type=int, default=[10, 100, 1000, 10_000], help="(default 10 to 10000)")
    parser.add_argument("--most", type=int, default=100, help="most sites of project (default 100)")
    parser.add_argument("--size", choices=["tiny", "base", "large"], default="base", help="network (default base)")
    parser.add_argument("--rank", type=int, default=8, help="(default 8)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def adapters(size: str, rank: int) -> tuple[AdapterState, tuple[FactoredLayer, ...]]:
    """The initial state, and its layers."""
    net, method = MultiViewUNet(CHANNELS, size=size, seed=0), AdapterTuning(method="cp_lora", rank=rank)
    attach(net, method, seed=1, parts=net.parts)
    return exchanged.read(net), factored_layers(net, method)


def rules(like: AdapterState, layers: tuple[FactoredLayer, ...]) -> dict[str, Rule]:
    """The measured rules, by name."""
    return {
        "alternate": lambda updates: mean_of_stream(updates, like=like),
        "project": lambda updates: project(list(updates), like=like, layers=layers),
    }


def updates_of(like: AdapterState, n_sites: int) -> Iterator[SiteUpdate]:
    """Updates of one site after another, each with its own numbers in its own array."""
    noise = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
    for index in range(n_sites):
        found, start = {}, 997 * index % 100_000
        for name, value in like.items():
            own = noise[start : start + value.size].reshape(value.shape)
            found[name], start = value + np.float32(0.01) * own, start + value.size
        yield SiteUpdate(f"site{index:06d}", 1 + index % 300, found)


def measure(name: str, rule: Rule, like: AdapterState, options: argparse.Namespace) -> Iterator[Row]:
    """Measure one rule at all its numbers of sites."""
    for n_sites in options.sites:
        if name != "alternate" and n_sites > options.most:
            continue
        making = clock(lambda n=n_sites: sum(update.n_volumes for update in updates_of(like, n)))
        seconds = clock(lambda n=n_sites: rule(updates_of(like, n))) - making
        tracemalloc.start()
        rule(updates_of(like, n_sites))
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        yield Row(name, n_sites, max(seconds, 0.0), peak)


def clock(run: Callable[[], object]) -> float:
    """Seconds of processor time, the smaller of two runs."""
    found = []
    for _ in range(2):
        began = time.process_time()
        run()
        found.append(time.process_time() - began)
    return min(found)


def fit(rows: list[Row]) -> tuple[float, float]:
    """Seconds per site, and seconds at no site, by least squares."""
    if len(rows) < 2:
        return rows[0].seconds / rows[0].sites, 0.0
    slope, start = np.polyfit([row.sites for row in rows], [row.seconds for row in rows], 1)
    return float(slope), float(start)


if __name__ == "__main__":
    main()
