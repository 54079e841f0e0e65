"""Do a server and a site grow in a thousand rounds? Memory, open files and seconds a round of the real processes.

    python benchmarks/rounds.py                       # a thousand rounds; a table
    python benchmarks/rounds.py --rounds 200 --json   # a part, for machines

A sahfl-server and two sahfl-clients run a study as processes on loopback, with mutual TLS 1.3, signed requests,
policy, ledger and audit log: one site pretrains the tiny network in a single round, the other fine-tunes it by CP-
LoRA of rank 8, one step in each round, on four phantoms. After every tenth round the resident memory and the open
files of the server, of the site's service and of the service's child are read. The slope is that of a straight line
through what follows the first 200 rounds. Aim: below 1 MB per 100 rounds, for each of the three. Seconds a round of
the last fifth against those of the first fifth after these 200 rounds tell whether the work of a round grows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from deployment import committed, study
from machine import machine

from sahfl.run.folder import RunFolder

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from harness.deployed import POLICY, Deployment

EVERY = 10
"""Rounds between two samples."""
SITE = "site_0"


@dataclass(frozen=True)
class Row:
    """One process over the rounds that count."""

    process: str
    first_mib: float
    last_mib: float
    mb_per_100_rounds: float
    most_files: int
    """Most open files that count."""
    most_files_before: int
    """The same among the rounds that do not count."""


def main() -> None:
    """Measure and print."""
    options = read_options()
    with tempfile.TemporaryDirectory() as folder:
        samples, seconds = measure(Path(folder), options.rounds)
    rows = [row(name, samples, options.warm) for name in samples[0]["processes"]]
    counted = seconds[options.warm :]
    fifth = max(1, len(counted) // 5)
    grown = statistics.median(counted[-fifth:]) / statistics.median(counted[:fifth])
    result = {"rounds": options.rounds, "warm": options.warm, "median_s": statistics.median(counted)}
    result |= {"last_to_first_fifth": grown, "rows": [asdict(item) for item in rows]}
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{machine()}; {options.rounds} rounds of {result['median_s']:.2f} s, last fifth to first fifth {grown:.2f}")
    print("| process | MiB, from and to | MB per 100 rounds | open files, most before and after |\n|---|---|---|---|")
    for item in rows:
        memory = f"{item.first_mib:.1f}, {item.last_mib:.1f} | {item.mb_per_100_rounds:+.3f}"
        print(f"| {item.process} | {memory} | {item.most_files_before}, {item.most_files} |")


def read_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000, help="(default 1000)")
    parser.add_argument("--warm", type=int, default=200, help="first rounds that do not count (default 200)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def measure(folder: Path, rounds: int) -> tuple[list[dict[str, Any]], list[float]]:
    """Samples of the three processes by round, and the seconds of each round."""
    settings = study(1, rounds)
    policy = POLICY | {"most_rounds": max(rounds, POLICY["most_rounds"])}
    with Deployment(folder, sites=tuple(settings["data"]["sites"]), study=settings, lanes=1) as deployment:
        run = RunFolder(deployment.submit())
        server = deployment.server()
        for site in settings["data"]["sites"]:
            deployment.write_site(site, policy=policy)
        clients = {site: deployment.site(site) for site in settings["data"]["sites"]}
        service, samples = clients[SITE].process.pid, []
        for done in every_tenth_round(run, rounds, server.process):
            pids = {"server": server.process.pid, "site's service": service, "its child": child_of(service)}
            samples.append({"round": done, "processes": {name: sample(pid) for name, pid in pids.items() if pid}})
        seconds = [line["seconds"] for line in committed(run)]
    return samples, seconds[:rounds]


def every_tenth_round(run: RunFolder, rounds: int, server: Any) -> Iterator[int]:
    """The number of committed rounds of fine-tuning, after every tenth."""
    journal, done, seen = run.path / "journal.jsonl", 0, 0
    while done < rounds:
        if server.poll() is not None:
            raise SystemExit(f"the server ended with {server.returncode} after {done} rounds")
        time.sleep(0.05)
        if not journal.exists():
            continue
        with journal.open("rb") as stream:
            stream.seek(seen)
            lines = stream.read().rpartition(b"\n")[0].splitlines(keepends=True)
        seen += sum(map(len, lines)) + bool(lines and not lines[-1].endswith(b"\n"))
        for line in map(json.loads, lines):
            if line["event"] == "round" and line["stage"] == "finetune" and line["committed"]:
                done += 1
                if done % EVERY == 0:
                    yield done


def child_of(pid: int) -> int | None:
    """Process id of the child of a site's service that does the work."""
    found = {int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()}
    return next((one for one in found if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()), None)


def sample(pid: int) -> tuple[float, int]:
    """Resident memory in MiB and the number of open files of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir(f"/proc/{pid}/fd"))


def row(process: str, samples: list[dict[str, Any]], warm: int) -> Row:
    """What one process did after the first rounds."""
    of = [(item["round"], *item["processes"][process]) for item in samples if process in item["processes"]]
    counted = [item for item in of if item[0] > warm]
    rounds, mib, files = zip(*counted, strict=True)
    slope = float(np.polyfit(rounds, mib, 1)[0]) * 100 * 2**20 / 1e6
    before = max((item[2] for item in of if item[0] <= warm), default=0)
    return Row(process, mib[0], mib[-1], slope, max(files), before)


if __name__ == "__main__":
    main()
