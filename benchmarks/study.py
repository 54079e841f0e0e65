"""Gain of working on several cells at a time, in a grid with single-site trainings.

    python benchmarks/study.py            # some minutes: the same study by one lane and by several, in turns
    python benchmarks/study.py --json     # for machines

One study of phantoms: three sites fine-tune the tiny network by CP-LoRA, each alone and all together, in two folds.
Seconds are those from the first cell of fine-tuning to the report, without pretraining and data. Both ways must end in
bit-identical adapters; each has the same number of worker processes.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from sahfl.adapters import digest
from sahfl.adapters.files import load_tensors
from sahfl.config import Study, parse
from sahfl.events import CellStageBegun, Event, StageBegun, listening
from sahfl.run.folder import RunFolder
from sahfl.simulation.simulate import simulate


def main() -> None:
    """Measure and print."""
    options = read_options()
    study = parse(Study, settings(options.steps), where="benchmark")
    ways = {"one lane": 1, "lanes": options.workers + 1}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    adapters = set()
    for _ in range(options.repeats):
        for way, lanes in ways.items():
            with tempfile.TemporaryDirectory() as path:
                took, found = run(study, Path(path) / "run", lanes=lanes, workers=options.workers)
            seconds[way].append(took)
            adapters.add(found)
    if len(adapters) > 1:
        raise SystemExit("the ways ended in different adapters")
    one, many = (statistics.median(seconds[way]) for way in ways)
    machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "workers": options.workers}
    result = machine | {"seconds": seconds, "ratio": one / many}
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{os.cpu_count()} cores, load {machine['load']:.1f}, {options.workers} workers; adapters bit-identical")
    for way, took in seconds.items():
        print(f"{way:9} median {statistics.median(took):6.1f} s of {', '.join(f'{each:.1f}' for each in took)}")
    print(f"ratio {one / many:.2f}")


def read_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="training steps a round (default 12)")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each way (default 1)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default one per core)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def settings(steps: int) -> dict[str, Any]:
    """A study with an untrained base, and a grid in which two of three cells train at one site."""
    local = {"steps": steps, "batch_size": 8}
    sites = {name: {"kind": "sah", "n_cases": 4} for name in ("sah_a", "sah_b", "sah_c")}
    return {
        "name": "lanes",
        "seed": 5,
        "data": {
            "source": "phantom",
            "shape": [48, 56, 10],
            "spacing_mm": [4.0, 4.0, 12.0],
            "sites": sites | {"tbi": {"kind": "tbi", "n_cases": 2}},
        },
        "views": {"spacing_mm": 4.0, "size": [48, 64, 48], "weights": {"axial": 1.0}},
        "pretrain": {"sites": ["tbi"], "rounds": 1, "local": {"steps": 1, "batch_size": 2}},
        "finetune": {
            "sites": list(sites),
            "folds": 2,
            "rounds": 2,
            "local": local,
            "methods": [{"method": "cp_lora", "trained_at": site} for site in (None, *sites)],
        },
    }


def run(study: Study, path: Path, *, lanes: int, workers: int) -> tuple[float, tuple[str, ...]]:
    """Seconds of fine-tuning and evaluation, and the hashes of all adapters."""
    times: dict[str, float] = {}

    def record(event: Event) -> None:
        if isinstance(event, StageBegun | CellStageBegun):
            times.setdefault(event.stage, time.monotonic())

    with listening(record):
        simulate(RunFolder.create(path, study), workers=workers, lanes=lanes)
    files = sorted((path / "adapters").glob("*/*/*.safetensors"))
    hashes = tuple(digest(load_tensors(file)[0]) for file in files)
    return times["writing the report"] - times["fine-tuning"], hashes


if __name__ == "__main__":
    main()
