"""Speed at which the loader delivers batches, against the speed of the training step, on one core each.

    python benchmarks/loader.py            # a table
    python benchmarks/loader.py --json     # the same for machines

Blocks of loading and of training alternate in one process on one core, so that a busy machine slows both; the ratio is
that of their median times. The step is ``training.train`` with prepared batches, on the study's own network.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from machine import machine

from sahfl.adapters import exchanged
from sahfl.atomic import write_atomic
from sahfl.config import Study, load_study
from sahfl.data import phantom
from sahfl.data.cache import SliceCache
from sahfl.data.checks import CheckedCase, check_cases
from sahfl.data.ct import read_scan
from sahfl.data.manifest import Case
from sahfl.data.phantom.cohort import encode_nifti
from sahfl.data.sampler import SliceSampler
from sahfl.evaluation import predict
from sahfl.networks import base_network, fine_tuned_network, whole_network
from sahfl.training import Schedule, train

CONFIGS = Path(__file__).parents[1] / "configs"
SCANS = {"demo": ((96, 112, 24), (2.0, 2.0, 5.0), 1), "real": ((128, 128, 32), (1.8, 1.8, 5.0), 4)}
"""Phantom grid, and repetitions of each pixel in-plane; 512 x 512 x 32 is the size of a real scanner's image."""
TARGET = 5.0


@dataclass(frozen=True)
class Row:
    """One study: seconds, and each loader's speed divided by that of the faster of the two training steps."""

    study: str
    field: str
    step_full_ms: float
    step_cp_lora_ms: float
    batch_in_memory_ms: float
    batch_from_disk_ms: float
    first_round_ms: float
    """Per batch of a site's first round, in which its entries are made."""
    ratio_in_memory: float
    ratio_from_disk: float
    ratio_first_round: float
    make_entry_ms: float
    entry_mb: float
    annotation_ms: float
    """Reading a case's scan and annotation at full resolution from their source, for scoring."""
    predict_ms: float
    """Segmenting that case."""


class Ready:
    """A sampler with batches that were drawn before the measurement."""

    def __init__(self, sampler: SliceSampler, n: int) -> None:
        self._batches = [sampler.batch() for _ in range(n)]
        self._next = 0
        self.seed = sampler.seed

    def batch(self):
        """The next batch."""
        self._next += 1
        return self._batches[self._next % len(self._batches)]


def main() -> None:
    """Measure each study and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", choices=SCANS, default=list(SCANS))
    parser.add_argument("--cases", type=int, default=10, help="cases of the site (default 10)")
    parser.add_argument("--repeats", type=int, default=5, help="blocks of each kind (default 5)")
    parser.add_argument("--steps", type=int, default=8, help="steps or batches in a block (default 8)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    rows = []
    for name in options.studies:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, Path(folder), options.cases, options.repeats, options.steps))
    if options.json:
        print(json.dumps({"machine": machine(), "target": TARGET, "rows": [asdict(row) for row in rows]}, indent=1))
    else:
        print_table(rows)


def measure(name: str, folder: Path, n_cases: int, repeats: int, steps: int) -> Row:
    """All numbers of one study."""
    study = load_study(CONFIGS / f"{name}.yaml")
    items = write_site(name, folder, n_cases)
    first_round, cases = first_round_s(study, SliceCache(folder / "cache"), items)
    sampler = new_sampler(study, cases)
    ready, nets = Ready(sampler, 6), networks(study)
    for net in nets:
        train(net, ready, schedule(2))
    seconds: dict[str, list[float]] = {}
    for _ in range(repeats):
        seconds.setdefault("memory", []).append(clock(lambda: [sampler.batch() for _ in range(steps)]) / steps)
        seconds.setdefault("full", []).append(clock(lambda: train(nets[0], ready, schedule(steps))) / steps)
        drop_from_memory(folder)
        seconds.setdefault("disk", []).append(clock(lambda: [sampler.batch() for _ in range(steps)]) / steps)
        seconds.setdefault("cp_lora", []).append(clock(lambda: train(nets[1], ready, schedule(steps))) / steps)
    times = {key: median(values) for key, values in seconds.items()}
    step = min(times["full"], times["cp_lora"])
    made = [clock(lambda k=k: SliceCache(folder / f"again-{k}").load(items[:1], study.views)) for k in range(repeats)]
    base = base_network(study.views, study.model, exchanged.read(whole_network(study.views, study.model, study.seed)))
    return Row(
        study=name,
        field="x".join(map(str, study.views.size)),
        step_full_ms=1e3 * times["full"],
        step_cp_lora_ms=1e3 * times["cp_lora"],
        batch_in_memory_ms=1e3 * times["memory"],
        batch_from_disk_ms=1e3 * times["disk"],
        first_round_ms=1e3 * first_round,
        ratio_in_memory=step / times["memory"],
        ratio_from_disk=step / times["disk"],
        ratio_first_round=step / first_round,
        make_entry_ms=1e3 * median(made),
        entry_mb=next((folder / "cache").glob("*/*.slices")).stat().st_size / 1e6,
        annotation_ms=1e3 * median(clock(lambda: read_scan(items[0].case)) for _ in range(3)),
        predict_ms=1e3 * clock(lambda: predict(base, cases[0], study.views)),
    )


def write_site(name: str, folder: Path, n_cases: int) -> tuple[CheckedCase, ...]:
    """Two phantoms, each written ``n_cases / 2`` times with a voxel changed, so that contents differ."""
    shape, spacing, factor = SCANS[name]
    profile, cases = phantom.PROFILES["standard"], []
    made = [phantom.make_case(s, kind="sah", profile=profile, shape=shape, spacing_mm=spacing) for s in range(2)]
    for index in range(n_cases):
        source = made[index % 2]
        image, label = (np.repeat(np.repeat(v, factor, 0), factor, 1) for v in (source.image, source.label))
        image[0, 0, 0] = -900 - index
        affine = source.affine @ np.diag([1 / factor, 1 / factor, 1, 1])
        paths = folder / f"{index}.nii.gz", folder / f"{index}-label.nii.gz"
        for path, volume in zip(paths, (image, label), strict=True):
            write_atomic(path, encode_nifti(volume, affine))
        cases.append(Case(f"site-{index:04d}", *paths, f"p{index}"))
    return check_cases(cases)


def first_round_s(study: Study, cache: SliceCache, items: tuple[CheckedCase, ...]):
    """Seconds per batch of a site's first round, which includes making its entries; and the cases."""
    began = time.perf_counter()
    cases = cache.load(items, study.views)
    sampler = new_sampler(study, cases)
    for _ in range(study.pretrain.local.steps):
        sampler.batch()
    return (time.perf_counter() - began) / study.pretrain.local.steps, cases


def new_sampler(study: Study, cases) -> SliceSampler:
    """The sampler of a site's round."""
    local = study.pretrain.local
    return SliceSampler(
        cases, study.views, batch_size=local.batch_size, foreground_share=local.foreground_share, seed=0
    )


def networks(study: Study):
    """The networks of pretraining and of CP-LoRA fine-tuning."""
    whole = whole_network(study.views, study.model, study.seed)
    method = next(method for method in study.finetune.methods if method.method == "cp_lora")
    return whole, fine_tuned_network(study.views, study.model, exchanged.read(whole), method, study.seed)


def schedule(steps: int) -> Schedule:
    """A block of steps."""
    return Schedule(learning_rate=1e-3, weight_decay=1e-4, steps=steps, round=1, rounds=1)


def drop_from_memory(folder: Path) -> None:
    """Advise the operating system to drop the entries from memory, so that the next reads come from the disk."""
    for path in folder.glob("cache/*/*.slices"):
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def clock(work) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def print_table(rows: list[Row]) -> None:
    """A column for each study."""
    print(machine())
    for label, key, unit in (
        ("field of the slices (x, y, z)", "field", ""),
        ("training step, whole network", "step_full_ms", "ms"),
        ("training step, CP-LoRA", "step_cp_lora_ms", "ms"),
        ("batch, cache in memory", "batch_in_memory_ms", "ms"),
        ("batch, cache on disk", "batch_from_disk_ms", "ms"),
        ("batch, first round (cache made)", "first_round_ms", "ms"),
        ("loader : step, cache in memory", "ratio_in_memory", "x"),
        ("loader : step, cache on disk", "ratio_from_disk", "x"),
        ("loader : step, first round", "ratio_first_round", "x"),
        ("making an entry", "make_entry_ms", "ms"),
        ("size of an entry", "entry_mb", "MB"),
        ("scan and annotation from source", "annotation_ms", "ms"),
        ("segmenting a case", "predict_ms", "ms"),
    ):
        values = (getattr(row, key) for row in rows)
        print(f"{label:34}", *(f"{v if isinstance(v, str) else round(v, 1):>12} {unit:2}" for v in values))


if __name__ == "__main__":
    main()
