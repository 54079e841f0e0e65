"""A batch of fuzzed inputs of one target, in a process of its own, which may die or hang without ending the run.

python -m harness.fuzz.batch TARGET FIRST COUNT FOLDER    # the batch's process; the folder is empty
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.fuzz.outcome import Reader, outcome

STUCK_S = 600.0
"""Seconds without the next input after which a batch's process counts as hanging."""
SEED = "seed"
"""File in a batch's folder with the seed that is read."""


@dataclass
class Batch:
    """What a batch of inputs did."""

    accepted: int = 0
    refused: int = 0
    cpu_s: float = 0.0
    peak_mib: int = 0
    """Most memory that a process of the batch had."""
    faults: list[dict[str, Any]] = field(default_factory=list)
    """``seed`` and ``fault`` of each."""

    def add(self, other: Batch) -> None:
        """Add what further inputs did."""
        self.accepted, self.refused = self.accepted + other.accepted, self.refused + other.refused
        self.cpu_s, self.peak_mib = self.cpu_s + other.cpu_s, max(self.peak_mib, other.peak_mib)
        self.faults += other.faults


def run_batch(target: str, first: int, count: int, *, command: Sequence[str] = (), stuck_s: float = STUCK_S) -> Batch:
    """Read the inputs of the seeds ``first`` to ``first + count - 1`` in processes, a new one after each that died.

    ``command`` is what runs instead of this module, without the four arguments.
    """
    whole, seeds = Batch(), range(first, first + count)
    while seeds:
        with tempfile.TemporaryDirectory() as folder:
            arguments = [target, str(seeds.start), str(len(seeds)), folder]
            program = command or (sys.executable, "-m", __name__)
            found, done = _watch([*program, *arguments], Path(folder), seeds, stuck_s)
            whole.add(found)
        seeds = seeds[done:]
    return whole


def _watch(command: Sequence[str], folder: Path, seeds: range, stuck_s: float) -> tuple[Batch, int]:
    """Run a batch's process to its end; returns its report or the fault that ended it, and how many seeds are done."""
    seed, since = seeds.start, time.monotonic()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # the tests' folder is on no path of its own
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        while True:
            with suppress(subprocess.TimeoutExpired):
                out, err = process.communicate(timeout=1)
                break
            if (now := read_seed(folder, seeds.start)) != seed or not (folder / SEED).exists():
                seed, since = now, time.monotonic()
            if (folder / SEED).exists() and time.monotonic() - since > stuck_s:
                process.kill()
                process.communicate()
                return Batch(faults=[{"seed": seed, "fault": f"no end after {stuck_s:g} s"}]), seeds.index(seed) + 1
    if process.returncode == 0:
        return Batch(**json.loads(out.splitlines()[-1])), len(seeds)
    if not (folder / SEED).exists():
        raise RuntimeError(f"{' '.join(command)}: ended before the first input\n{err}")
    seed, last = read_seed(folder, seeds.start), (err.strip().splitlines() or [""])[-1][:200]
    return Batch(faults=[{"seed": seed, "fault": f"the process ended with {process.returncode}: {last}"}]), seeds.index(
        seed
    ) + 1


def read_seed(folder: Path, first: int) -> int:
    """The seed that a batch's process reads; ``first`` before it reads one."""
    path = folder / SEED
    content = path.read_bytes() if path.exists() else b""
    return int(struct.unpack("<q", content)[0]) if len(content) == 8 else first


def read_inputs(make: Callable[[Path], Reader], target: str, first: int, count: int, folder: Path) -> None:
    """Read the inputs of some seeds in this process, and print a report as JSON."""
    (folder / "files").mkdir()
    reader, batch, began = make(folder / "files"), Batch(), time.process_time()
    for name in sorted(reader.corpus):
        if not (valid := outcome(reader, name, reader.corpus[name])).accepted:  # of now: the gate's are new after each
            raise RuntimeError(f"{target}: the valid input {name} is refused ({valid.fault})")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    (folder / SEED).write_bytes(struct.pack("<q", first))
    with (folder / SEED).open("r+b") as stream, mmap.mmap(stream.fileno(), 8) as now:
        for seed in range(first, first + count):
            now[:] = struct.pack("<q", seed)
            found = outcome(reader, *reader.input(target, seed))
            batch.accepted, batch.refused = batch.accepted + found.accepted, batch.refused + (not found.accepted)
            if found.fault:
                batch.faults.append({"seed": seed, "fault": found.fault})
    batch.cpu_s = time.process_time() - began
    batch.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    reader.close()
    print(json.dumps(vars(batch)), flush=True)


if __name__ == "__main__":
    from harness.fuzz.targets import TARGETS

    name, first_, count_, folder_ = sys.argv[1:]
    read_inputs(TARGETS[name], name, int(first_), int(count_), Path(folder_))
