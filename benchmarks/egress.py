"""Would a hospital hold back an honest update? What its check measures in every kind of training.

    python benchmarks/egress.py

Two small simulated studies, one with float32 and one with int8 replies, train every kind of method for some rounds of
the fewest steps and slices that a hospital's policy allows. Each site logs what it measured of each update
(``sahfl/federation/site/sanity.py``): in how many steps, counted by size, a row got its gradient, how often rows were
silent, and the size of gradients, each in the tensor where it is worst. The table has the worst value of each method,
and the number of updates that the default policy would hold back. What attacks give is in that of ``inversion.py``.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from machine import machine

from sahfl.config import SitePolicy, Study, parse
from sahfl.federation.site.sanity import Measured
from sahfl.run.folder import RunFolder
from sahfl.simulation.simulate import simulate

MEASURED = re.compile(
    r"event=measured stage=(\w+) method=(\S+) fold=-?\d+ round=(\d+) "
    r"effective_steps=(\S+) share=(\S+) silent=(\S+) size=(\S+)"
)
FORMS = ("lora_c", "conv_lora", "cp_lora", "dora_c", "conv_dora", "cp_dora")
METHODS: list[dict[str, Any]] = [
    *({"method": form, "rank": 8} for form in FORMS),
    *({"method": "cp_lora", "rank": rank} for rank in (1, 32)),
    *({"method": "cp_lora", "rank": 8, "aggregation": rule} for rule in ("alternate", "project", "median")),
    *({"method": "cp_lora", "rank": 8, "stays": [stay]} for stay in ("norm", "out", "inner", "encoder", "decoder")),
    {"method": "cp_lora", "rank": 8, "private_rank": 4},
    {"method": "cp_lora", "rank": 8, "also_train": ["norm"]},
    {"method": "conv_lora", "rank": 8, "layers": ["decoder.1"]},
    *({"method": method} for method in ("full", "encoder", "decoder", "norm_bias")),
]


def study_of(payload: str, n_cases: int) -> Study:
    """A study with every kind of method, its rounds at the floors of a hospital's policy."""
    policy = SitePolicy()
    local = {"steps": policy.adapters.least_steps, "batch_size": policy.adapters.least_batch}
    whole = {"steps": policy.weights.least_steps, "batch_size": policy.weights.least_batch}
    profiles = {"tbi_a": "standard", "tbi_b": "sharp", "sah_a": "smooth", "sah_b": "noisy"}
    sites = {name: {"kind": name[:3], "n_cases": n_cases, "profile": profiles[name]} for name in profiles}
    settings = {
        "name": f"egress-{payload}",
        "seed": 53,
        "data": {"source": "phantom", "shape": [48, 56, 12], "spacing_mm": [4.0, 4.0, 10.0], "sites": sites},
        "views": {"spacing_mm": 4.0, "size": [48, 64, 32]},
        "model": {"size": "tiny"},
        "pretrain": {"sites": ["tbi_a", "tbi_b"], "rounds": 4, "local": whole},
        "finetune": {"sites": ["sah_a", "sah_b"], "folds": 2, "rounds": 3, "local": local, "methods": METHODS},
        "rounds": {"payload": payload},
    }
    return parse(Study, settings, where="egress")


class Update(NamedTuple):
    """What a site measured of one update."""

    round: int
    steps: float
    share: float
    silent: float
    size: float

    @property
    def held(self) -> bool:
        """Whether the default policy holds it back."""
        least = SitePolicy().adapters.least_effective_steps
        return bool(Measured(self.steps, self.share, self.silent, self.size).problems(least))


def measured(folder: Path) -> Iterator[tuple[str, Update]]:
    """The method of each update in the logs of a run, and what was measured."""
    for path in sorted((folder / "logs").glob("*.log")):
        for stage, method, round_, *numbers in MEASURED.findall(path.read_text(encoding="utf-8")):
            yield method if stage == "finetune" else "pretraining", Update(int(round_), *map(float, numbers))


def main() -> None:
    """Run both studies, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=12, help="patients of each site (default 12)")
    n_cases = parser.parse_args().cases
    found: dict[tuple[str, str], list[Update]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for payload in ("float32", "int8"):
            run = RunFolder.create(Path(folder) / payload, study_of(payload, n_cases))
            simulate(run)
            for method, update in measured(run.path):
                found[method, payload].append(update)
    every = [update for updates in found.values() for update in updates]
    print(f"{machine()}\n")
    print("| method | payload | updates | fewest steps, first round, later | most silent | least gradient | held |")
    print("|---|---|---|---|---|---|---|")
    for (method, payload), updates in found.items():
        first, later = ([one.steps for one in updates if (one.round == 1) == is_first] for is_first in (True, False))
        steps = f"{min(first):.2f}, {min(later):.2f}"
        silent, size = max(one.silent for one in updates), min(one.size for one in updates)
        held = sum(one.held for one in updates)
        print(f"| {method} | {payload} | {len(updates)} | {steps} | {silent:.2f} | {size:.2g} | {held} |")
    print(f"\n{len(every)} updates, {sum(one.held for one in every)} of them held back; ", end="")
    print(f"median {np.median([one.steps for one in every]):.1f} effective steps")


if __name__ == "__main__":
    main()
