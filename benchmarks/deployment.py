"""Cost of a round in addition to the training, for each way to carry the messages.

    python benchmarks/deployment.py                                    # a table; some minutes
    python benchmarks/deployment.py --ways simulation --json           # a part, for machines

Each way runs the same study of phantoms: three sites fine-tune the tiny network by CP-LoRA of rank 8, one step in each
round. ``simulation`` is ``sahfl simulate`` with a worker for each site. ``sahfl`` is a sahfl-server and a sahfl-client
for each site on loopback, with mutual TLS 1.3, signed requests, policy and audit. ``stock`` is a flower-superlink with
a flower-supernode for each site and ``flwr run``, over HTTP without TLS. Each site has one thread. Seconds come from
the run's journal, from the first request of a round to its last reply; ``work`` is the time that the slowest site
reports for its answer, and the rest is overhead. One cell is worked on at a time.
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
from sahfl.run.folder import RunFolder
from sahfl.simulation.simulate import simulate

TESTS = Path(__file__).parents[1] / "tests"


@dataclass(frozen=True)
class Row:
    """The rounds of one way, without the first, which warms up."""

    way: str
    rounds: int
    median_s: float
    fastest_s: float
    slowest_s: float
    work_s: float
    overhead_s: float
    """Median over the rounds of what the slowest site's work leaves of their seconds."""
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
        shares = f"work {item.work_s:.3f}, overhead {item.overhead_s:.3f}"
        print(f"{item.way:12} {times}; {shares} ({item.rounds} rounds)")


def read_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="(default all)")
    parser.add_argument("--sites", type=int, default=3, help="(default 3)")
    parser.add_argument("--rounds", type=int, default=6, help="rounds, the first of which does not count (default 6)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def study(n_sites: int, rounds: int) -> dict[str, Any]:
    """A study whose rounds of fine-tuning are one step at each site; only these rounds are measured."""
    names = [f"site_{index}" for index in range(n_sites)]
    return {
        "name": "deployment",
        "seed": 3,
        "data": {
            "source": "phantom",
            "shape": [48, 56, 10],
            "spacing_mm": [4.0, 4.0, 12.0],
            "sites": {"first": {"kind": "tbi", "n_cases": 2}} | {name: {"kind": "sah", "n_cases": 4} for name in names},
        },
        "views": {"spacing_mm": 4.0, "size": [48, 64, 48], "weights": {"axial": 1.0}},
        "pretrain": {"sites": ["first"], "rounds": 1, "local": {"steps": 1, "batch_size": 1}},
        "finetune": {
            "sites": names,
            "folds": 2,
            "rounds": rounds,
            "local": {"steps": 1, "batch_size": 1},
            "methods": [{"method": "cp_lora", "rank": 8}],
        },
        "evaluation": {"replicates": 100},
        "rounds": {"deadline_s": 600.0},
    }


def simulated(settings: dict[str, Any], folder: Path) -> RunFolder:
    """The study by ``sahfl simulate``."""
    run = RunFolder.create(folder / "run", parse(Study, settings, where="benchmark"))
    simulate(run, workers=len(settings["finetune"]["sites"]), lanes=1)
    return run


def stock(settings: dict[str, Any], folder: Path) -> RunFolder:
    """The study by stock Flower, until the measured rounds are finished."""
    sys.path.append(str(TESTS))
    from harness.stock_flower import StockFlower, wait_until, write_site

    (folder / "study.yaml").write_text(yaml.safe_dump(settings))
    run = RunFolder(folder / "run")
    with StockFlower(folder) as flower:
        nodes = {}
        for site in settings["data"]["sites"]:
            nodes[str(flower.join(site, write_site(folder / f"{site}.yaml", site, settings)))] = site
        paths = {"run-folder": str(run.path), "study": str(folder / "study.yaml")}
        flower.run(paths | {"nodes": json.dumps(nodes)})
        rounds = settings["finetune"]["rounds"]
        wait_until(lambda: len(committed(run)) == rounds, timeout_s=120 * rounds, what=f"{rounds} rounds", every_s=1)
    return run


def deployed(settings: dict[str, Any], folder: Path) -> RunFolder:
    """The study by ``sahfl-server`` and ``sahfl-client``."""
    sys.path.append(str(TESTS))
    from harness.deployed import Deployment

    with Deployment(folder, sites=tuple(settings["data"]["sites"]), study=settings, lanes=1) as deployment:
        run = deployment.submit()
        server = deployment.server("--until-done")
        for site in settings["data"]["sites"]:
            deployment.site(site)
        if server.process.wait(600):
            raise SystemExit(server.log)
    return RunFolder(run)


WAYS: dict[str, Callable[[dict[str, Any], Path], RunFolder]] = {
    "simulation": simulated,
    "sahfl": deployed,
    "stock": stock,
}


def committed(run: RunFolder) -> list[dict[str, Any]]:
    """The journal's lines of the committed rounds of fine-tuning on the first fold."""
    rounds = [line for line in run.journal() if line["event"] == "round" and line["committed"]]
    return [line for line in rounds if line["fold"] == 0]


def row(way: str, run: RunFolder) -> Row:
    """Measurements of the rounds in a run's journal."""
    lines = committed(run)[1:]
    seconds = [line["seconds"] for line in lines]
    work = [max(site["seconds"] for site in line["used"]) for line in lines]
    overhead = statistics.median(total - longest for total, longest in zip(seconds, work, strict=True))
    down = sum(site["bytes_down"] for site in lines[0]["used"])
    return Row(
        way, len(lines), statistics.median(seconds), min(seconds), max(seconds), statistics.median(work), overhead, down
    )


if __name__ == "__main__":
    main()
