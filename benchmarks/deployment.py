"""What a round costs besides the training, by what carries the messages.

    python benchmarks/deployment.py                                    # a table; some minutes
    python benchmarks/deployment.py --ways simulation --json           # a part, for machines

One study of phantoms on each way: three sites train the whole tiny network for one step in each round. ``simulation``
is ``sahfl simulate`` with a worker for each site, ``stock`` a flower-superlink with a flower-supernode for each site
and ``flwr run``, over HTTP without TLS, each site with one thread. Seconds are those of the run's journal, from the
first request of a round to its last reply; ``work`` is what the slowest site says that its answer took.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from sahfl.config import Study, parse
from sahfl.federation.run_folder import RunFolder
from sahfl.simulation import simulate

TESTS = Path(__file__).parents[1] / "tests"


@dataclass(frozen=True)
class Row:
    """The rounds of one way; the first one warms up and is left out."""

    way: str
    rounds: int
    median_s: float
    fastest_s: float
    slowest_s: float
    work_s: float
    bytes_down: int


def main() -> None:
    """Measure and print."""
    options = read_options()
    settings = study(options.sites, options.rounds)
    rows = []
    for way in options.ways:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(way, WAYS[way](settings, Path(folder))))
    machine = {"load": os.getloadavg()[0], "cores": os.cpu_count(), "sites": options.sites}
    result = machine | {"rows": [asdict(item) for item in rows]}
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{options.sites} sites, {result['cores']} cores, load {result['load']:.1f}; seconds a round")
    for item in rows:
        times = f"median {item.median_s:7.3f}, {item.fastest_s:7.3f} to {item.slowest_s:7.3f}"
        print(f"{item.way:12} {times}, of which work {item.work_s:.3f} ({item.rounds} rounds)")


def read_options() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="(default all)")
    parser.add_argument("--sites", type=int, default=3, help="(default 3)")
    parser.add_argument("--rounds", type=int, default=6, help="rounds, the first of which does not count (default 6)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def study(n_sites: int, rounds: int) -> dict[str, Any]:
    """A study whose rounds of pretraining are one step at each site; what comes after them is not measured."""
    names = [f"site_{index}" for index in range(n_sites)]
    return {
        "name": "deployment",
        "seed": 3,
        "data": {
            "source": "phantom",
            "shape": [48, 56, 10],
            "spacing_mm": [4.0, 4.0, 12.0],
            "sites": {name: {"kind": "tbi", "n_cases": 2} for name in names} | {"last": {"kind": "sah", "n_cases": 2}},
        },
        "views": {"spacing_mm": 4.0, "size": [48, 64, 48], "weights": {"axial": 1.0}},
        "pretrain": {"sites": names, "rounds": rounds, "local": {"steps": 1, "batch_size": 1}},
        "finetune": {
            "sites": ["last"],
            "folds": 2,
            "rounds": 1,
            "local": {"steps": 1, "batch_size": 1},
            "methods": [{"method": "zero_shot"}],
        },
        "evaluation": {"replicates": 100},
        "rounds": {"deadline_s": 600.0},
    }


def simulated(settings: dict[str, Any], folder: Path) -> RunFolder:
    """The study by ``sahfl simulate``."""
    run = RunFolder.create(folder / "run", parse(Study, settings, where="benchmark"))
    simulate(run, workers=len(settings["pretrain"]["sites"]))
    return run


def stock(settings: dict[str, Any], folder: Path) -> RunFolder:
    """The study's pretraining by stock Flower."""
    sys.path.append(str(TESTS))
    from stock_flower import StockFlower, wait_until, write_site

    (folder / "study.yaml").write_text(yaml.safe_dump(settings))
    run = RunFolder(folder / "run")
    with StockFlower(folder) as flower:
        nodes = {}
        for site in settings["data"]["sites"]:
            nodes[str(flower.join(site, write_site(folder / f"{site}.yaml", site, settings)))] = site
        paths = {"run-folder": str(run.path), "study": str(folder / "study.yaml")}
        flower.run(paths | {"nodes": json.dumps(nodes)})
        rounds = settings["pretrain"]["rounds"]
        wait_until(lambda: len(committed(run)) == rounds, timeout_s=120 * rounds, what=f"{rounds} rounds", every_s=1)
    return run


WAYS: dict[str, Callable[[dict[str, Any], Path], RunFolder]] = {"simulation": simulated, "stock": stock}


def committed(run: RunFolder) -> list[dict[str, Any]]:
    """The journal's lines of rounds that were committed."""
    return [line for line in run.journal() if line["event"] == "round" and line["committed"]]


def row(way: str, run: RunFolder) -> Row:
    """What the journal of a run says of its rounds."""
    lines = committed(run)[1:]
    seconds = [line["seconds"] for line in lines]
    work = statistics.median(max(site["seconds"] for site in line["used"]) for line in lines)
    down = sum(site["bytes_down"] for site in lines[0]["used"])
    return Row(way, len(lines), statistics.median(seconds), min(seconds), max(seconds), work, down)


if __name__ == "__main__":
    main()
