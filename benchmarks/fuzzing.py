"""A million fuzzed inputs: is each accepted or refused by an error of ours, in bounded time and memory?

    python benchmarks/fuzzing.py                             # a million inputs; a table
    python benchmarks/fuzzing.py --inputs 20000 --only nifti dicom
    python benchmarks/fuzzing.py --first 1000000             # other seeds
    python benchmarks/fuzzing.py --again nifti:1234          # one input again, with the traceback of its fault

Each target (``tests/harness/fuzz/targets.py``) has valid inputs: messages, requests of HTTP, settings, notes, scans,
tensors. A seed decides which of them is changed and how; so a target's name and a seed are enough to make an input
again. Only keys, signatures and the time in them are new in each process. Inputs are read in processes of their own,
one for each core, so that one that dies or hangs is found. A fault is any other exception than ``SahflError`` (of a
request: a status of 500 or more), a warning, more than 5 s of processor time, more than 128 MiB of memory, or the end
of the process. ``runs/fuzzing`` gets the inputs with faults, and the seeds and counts of the run (``run.json``).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from machine import machine

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from harness.fuzz.batch import Batch, run_batch
from harness.fuzz.outcome import outcome
from harness.fuzz.targets import SHARES, TARGETS

BATCH = 20_000
"""Inputs of one process."""
FAULTS = Path("runs") / "fuzzing"


def main() -> None:
    """Read the inputs and print; exit code 1 if one of them has a fault."""
    options = read_options()
    if options.again:
        read_again(*options.again.split(":"))
        return
    began = time.monotonic()
    counts = numbers_of(options.inputs, options.only)
    found = run(counts, options.first, options.processes)
    minutes = (time.monotonic() - began) / 60
    keep(found, options.first)
    print(f"{machine()}; {options.processes} processes, {minutes:.1f} minutes")
    print_table(counts, found, minutes)
    sys.exit(any(batch.faults for batch in found.values()))


def read_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of all targets (default 1000000)")
    parser.add_argument("--first", type=int, default=0, help="first seed of each target (default 0)")
    parser.add_argument("--only", nargs="+", choices=list(TARGETS), default=list(TARGETS), help="targets (default all)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="at a time (default one per core)")
    parser.add_argument("--again", metavar="TARGET:SEED", help="read one input again")
    return parser.parse_args()


def numbers_of(inputs: int, only: list[str]) -> dict[str, int]:
    """The number of inputs of each target, by its share."""
    whole = sum(SHARES[name] for name in only)
    counts = {name: inputs * SHARES[name] // whole for name in only}
    counts[only[0]] += inputs - sum(counts.values())
    return counts


def run(counts: dict[str, int], first: int, processes: int) -> dict[str, Batch]:
    """Read the inputs, several batches at a time."""
    found: dict[str, Batch] = {name: Batch() for name in counts}
    jobs = [
        (name, first + start, min(BATCH, count - start))
        for name, count in counts.items()
        for start in range(0, count, BATCH)
    ]
    with ThreadPoolExecutor(processes) as pool:
        for (name, start, count), batch in zip(jobs, pool.map(lambda job: run_batch(*job), jobs), strict=True):
            found[name].add(batch)
            print(f"{name}:{start} to {start + count - 1}: {len(batch.faults)} faults", file=sys.stderr, flush=True)
    return found


def keep(found: dict[str, Batch], first: int) -> None:
    """Write the inputs with faults, and what the run did."""
    FAULTS.mkdir(parents=True, exist_ok=True)
    (FAULTS / "run.json").write_text(
        json.dumps({"first": first} | {name: vars(batch) for name, batch in found.items()})
    )
    for target, batch in found.items():
        with tempfile.TemporaryDirectory() as folder:
            reader = TARGETS[target](Path(folder)) if batch.faults else None
            for fault in batch.faults if reader else ():
                name, content = reader.input(target, fault["seed"])
                (FAULTS / f"{target}-{fault['seed']}-{Path(name).name}").write_bytes(content)


def print_table(counts: dict[str, int], found: dict[str, Batch], minutes: float) -> None:
    """A row for each target, and a line for each kind of fault."""
    print("| target | inputs | accepted | ms each | peak MiB | faults |\n|---|---|---|---|---|---|")
    for name, batch in found.items():
        n = counts[name]
        numbers = f"{batch.accepted / n:.0%} | {1000 * batch.cpu_s / n:.2f} | {batch.peak_mib} | {len(batch.faults)}"
        print(f"| {name} | {n} | {numbers} |")
    whole = sum(counts.values())
    print(f"{whole} inputs, {whole / 60 / minutes:.0f} a second, {sum(len(b.faults) for b in found.values())} faults")
    for name, batch in found.items():
        kinds = defaultdict(list)
        for fault in batch.faults:
            kinds[fault["fault"]].append(fault["seed"])
        for kind, seeds in kinds.items():
            print(f"{name}: {kind}: {len(seeds)} times; again: python benchmarks/fuzzing.py --again {name}:{seeds[0]}")


def read_again(target: str, seed: str) -> None:
    """Read one input in this process, and print what it did."""
    with tempfile.TemporaryDirectory() as folder:
        reader = TARGETS[target](Path(folder))
        name, content = reader.input(target, int(seed))
        print(f"{target}:{seed}: {name}, {len(content)} bytes: {outcome(reader, name, content)}")
        try:
            reader.read(name, content)
        except Exception:  # whatever it is, it is what was asked for
            traceback.print_exc(file=sys.stdout)


if __name__ == "__main__":
    main()
