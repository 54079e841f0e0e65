"""How much of a patient's slice can whoever holds the signing key rebuild from what a hospital sends?

    python benchmarks/inversion.py
    python benchmarks/inversion.py --quick --rows floors gate thumbnails

Each row is an attack on a hospital of phantom patients, through the app that answers its requests. Names of rows:

- ``open``: the first attack, every floor opened by the policy, and any start of a later round;
- ``floors``: the same request under the default policy; prints each door's refusal;
- ``gate``, ``thumbnails``: a crafted base that a hospital accepted (``crafted_base``), all floors kept but the check of
  updates, which counts: every pixel of one slice in 64; coarse slices, in 7 or 63 gates at once;
- ``start``: crafted base and crafted start of a later round, with ``bounded_starts: false``;
- ``decoy``, ``loud``: the gate, hidden from checks of norms; and with gradients as large as honest ones;
- ``honest``: an honest base; gradient matching of 64 slices from one round, the mean of many, and a crafted start.

Residual r is the correlation of the rebuilt and the true slice after the mean slice of other patients was taken from
both; the prior's r is that mean slice's plain correlation with the true one. Identification is among 100 slices, 99 of
them of other patients. The truth of a gate is the slice that opened it widest.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from crafted_base import MODEL, PIXELS, WIDTHS, Design
from inversion_matching import METHOD, TINY, honest_base, match, pairs, starting_slices
from inversion_readout import (
    Floats,
    Population,
    Reader,
    Score,
    gates_of,
    openness,
    score,
    undone,
)
from inversion_site import ACCEPTED, ROUNDS, SHAPE, SPACING_MM, Answer, Hospital, Request, attack_round
from inversion_statistics import honest_round, statistics
from inversion_table import Row, as_tables
from machine import machine
from numpy.typing import NDArray

from sahfl.adapters import AdapterState, digest
from sahfl.config import AdapterTuning, SitePolicy
from sahfl.config.policy import AdapterLimits
from sahfl.federation.site.app import SiteFailure
from sahfl.federation.site.known_bases import accept_base
from sahfl.training import Schedule

ANY_START = ACCEPTED.model_copy(update={"bounded_starts": False})
OPEN = ANY_START.model_copy(
    update={"adapters": AdapterLimits(least_steps=1, least_batch=1, least_patients=1, least_effective_steps=0)}
)


class Bench:
    """The attacker, the one who scores him, and a hospital for each attack."""

    def __init__(self, folder: Path, *, quick: bool, out: Path | None) -> None:
        self.folder, self.quick, self.out, self.random = folder, quick, out, np.random.default_rng(0)
        self.own = Population.of("attacker", 256 if quick else 1024, shape=SHAPE, spacing=SPACING_MM)
        self.others = Population.of("candidates", 300, shape=SHAPE, spacing=SPACING_MM).flat
        self.mean = self.own.flat.mean(0)
        self._readers: dict[tuple[int, float], Reader] = {}

    def hospital(self, policy: SitePolicy | None = None) -> Hospital:
        """A new hospital."""
        return Hospital(Path(tempfile.mkdtemp(dir=self.folder)), policy)

    def reader(self, depth: int, share: float = 1 / 64, **changes: float) -> Reader:
        """A crafted base, its gates set by the attacker's own patients, and what reads it."""
        if (depth, share) not in self._readers:
            self._readers[depth, share] = Reader(gates_of(Design(depth), self.own, share), self.own)
        plain = self._readers[depth, share]
        return Reader(replace(plain.design, **changes), self.own) if changes else plain  # type: ignore[arg-type]

    def score(self, rebuilt: Floats, truth: Floats, seen: slice | NDArray[np.bool_] = slice(None)) -> Score:
        """The score of a rebuilt slice, on the pixels that were sought."""
        return score(rebuilt[seen], truth[seen], self.mean[seen], self.others[:, seen], self.random)

    def note(self, row: Row, asked: Request, answer: Answer, *, opened: bool = True) -> None:
        """Count a round; of the first in which a gate opened also the statistics, and its numbers for ``--out``."""
        row.rounds, row.n_bytes, row.seconds = row.rounds + 1, answer.n_bytes, row.seconds + answer.seconds
        row.opened, row.held = row.opened + opened, row.held + (opened and answer.held)
        if opened and not row.statistics:
            row.statistics = statistics(asked, answer)
            if self.out is not None:
                norms = {f"norm {n}": np.array([np.linalg.norm(g[n]) for g in answer.gradients]) for n in answer.sent}
                np.savez(self.out / f"{row.name}.npz", **answer.sent, **norms)  # type: ignore[arg-type]


def crafted_request(reader: Reader, number: int, start: AdapterState | None, rate: float = 1e-8) -> Request:
    """A request for a round on a crafted base, as the default policy allows."""
    layers = (f"decoder.{reader.design.depth}",)
    method = AdapterTuning.model_validate({"method": "conv_lora", "rank": 32, "alpha": 1.0, "layers": layers})
    return Request(method, MODEL, reader.base, learning_rate=rate, round=number, start=start)


def crafted_start(asked: Request, reader: Reader) -> AdapterState:
    """Row k of ``up`` starts as term k alone, and ``down`` at zero but where the base's maps are zero."""
    start = {name: np.zeros_like(value) for name, value in asked.own_start.items()}
    up, down = (start[f"{reader.design.layer}.update.{name}"] for name in ("up", "down"))
    for row in range(len(down) - 1):
        up[row, row] = 1
    up[len(reader.design.rows), len(down) - 1] = 1  # the closed row
    down[:, WIDTHS["1"] - 1] = 0.1
    return start


def gates(
    bench: Bench, row: Row, reader: Reader, rounds: int, *, policy: SitePolicy | None = None, one: bool = False
) -> Row:
    """Ask for rounds on a crafted base, and score what passed each gate; ``one`` is a single step of a single slice."""
    hospital, start = bench.hospital(policy), None
    seen = reader.covered(31) if row.start == "crafted" else slice(None)
    for number in range(1 + (row.start == "crafted"), rounds + 1):
        asked = crafted_request(reader, number, start)
        if row.start == "crafted":
            asked = replace(asked, start=crafted_start(asked, reader), learning_rate=1e-4)
        if one:
            asked = replace(asked, steps=1, batch=1)
        answer = attack_round(hospital, asked)
        start = answer.sent  # as an honest centre would send it, were this the only site
        slices = read(reader, asked, answer, loud=row.name == "loud")
        truth = answer.images.reshape(-1, PIXELS**2).astype(np.float64)
        opened = openness(reader.design, torch.from_numpy(answer.images).reshape(-1, 1, PIXELS, PIXELS))
        bench.note(row, asked, answer, opened=bool(opened.max() > 0.6))
        for gate, guess in enumerate(slices):
            if opened[:, gate].max() > 0.6:
                row.found += bench.score(guess, truth[int(opened[:, gate].argmax())], seen)
                row.alone.append(int((opened[:, gate] > 0.5).sum()) == 1)
    return row


def read(reader: Reader, asked: Request, answer: Answer, *, loud: bool) -> Floats:
    """What passed each gate, (gates, pixels)."""
    name = f"{reader.design.layer}.update."
    if asked.start is not None and asked.start[name + "up"].max() == 1:
        return reader.from_down(answer.change(name + "down"))[0]
    change = answer.change(name + "up")
    if not loud:
        return reader.from_up(answer.start, change)[0]
    schedule = Schedule(asked.learning_rate, 0.0, asked.steps, asked.round, ROUNDS)
    rates = [schedule.rate(step) for step in range(asked.steps)]
    tried = [reader.from_up(answer.start, undone(change, rates, step)) for step in range(asked.steps)]
    return min(tried, key=lambda found: float(found[1].std() / max(found[1].mean(), 1e-300)))[0]


def refusals(bench: Bench) -> Iterator[str]:
    """What the default policy answers to the first attack, door by door."""
    reader, other = bench.reader(1), bench.reader(3)
    asked = crafted_request(reader, 1, None)
    crafted = replace(asked, start=crafted_start(asked, reader))
    tiny = {"kind": "sah", "n_cases": 5, "profile": "standard"}
    small, new = (Hospital(Path(tempfile.mkdtemp(dir=bench.folder)), patients=tiny), bench.hospital(SitePolicy()))
    hospital, alone = bench.hospital(SitePolicy()), bench.hospital(SitePolicy(confirmations=0))
    for place, base in ((hospital, reader.base), (hospital, other.base), (alone, reader.base)):
        accept_base(place.config, digest(base))
    later = replace(crafted, round=2, learning_rate=1e-4)
    for door, where, request in (
        ("crafted base", new, asked),
        ("base accepted: one step of one slice", hospital, replace(crafted, steps=1, batch=1)),
        ("start of its choice", hospital, crafted),
        ("later start of its choice", alone, later),
        ("later start that nobody confirmed", hospital, replace(later, start=None)),
        ("gate", hospital, asked),
        ("round asked again", hospital, replace(asked, learning_rate=2e-8)),
        ("five patients, one held out", small, asked),
        ("second base in a study", hospital, replace(asked, base=other.base, round=2)),
    ):
        try:
            attack_round(where, request)
            yield f"{door}: ANSWERED"
        except SiteFailure as error:
            line = where.last_line()
            reason = " ".join(str(line["details"].get("reason", "")).split())
            yield f"- {door}: `{error}`. {line['words']} {reason[:300]}"


def honest(bench: Bench, row: Row, *, rounds: int, searched: int, crafted: bool = False) -> Row:
    """Match gradients of an honest base, of one round or the mean of several; ``crafted``: ``up`` starts at random."""
    base, hospital = honest_base(bench.own), bench.hospital(ANY_START if crafted else None)
    asked = Request(METHOD, TINY, base)
    changes: dict[str, Floats] = {}
    truth = []
    start = asked.own_start
    for number in range(1 + crafted, 1 + crafted + rounds):
        if crafted:
            random = np.random.default_rng(1)
            drawn = {n: random.normal(0, 0.1, v.shape).astype(np.float32) for n, v in start.items() if n.endswith("up")}
            asked = replace(asked, start=start | drawn, learning_rate=1e-2)
        answer = attack_round(hospital, asked := replace(asked, round=number))
        bench.note(row, asked, answer)
        changes = {name: changes.get(name, 0.0) + answer.change(name) / rounds for name in start}
        truth.append(answer.images.reshape(-1, PIXELS**2).astype(np.float64))
    found = match(asked, answer.start, changes, bench.own, searched) if searched else None
    guess = starting_slices(asked, bench.own).flatten(1).numpy().astype(np.float64) if found is None else found
    all_ = np.concatenate(truth)
    for mine, theirs in pairs(guess, all_, bench.mean):
        row.found += bench.score(guess[mine], all_[theirs])
    return row


def attacks(bench: Bench) -> dict[str, Callable[[], Iterator[Row]]]:
    """The rows by their names on the command line."""
    few = bench.quick
    floors, crafted = "8 x 8", ("crafted", "derived")

    def gated(row: Row, depth: int, rounds: int, **changes: float) -> Iterator[Row]:
        policy = ANY_START if row.start == "crafted" else None
        yield gates(bench, row, bench.reader(depth, **changes), 2 if few else rounds, policy=policy)

    def opened() -> Iterator[Row]:
        row = Row("open", "the first attack, policy open, half of the pixels", "1 x 1", "crafted", "crafted")
        yield gates(bench, row, bench.reader(1, 2.0), 3 if few else 21, policy=OPEN, one=True)

    def many() -> Iterator[Row]:
        n = 5 if few else 30
        for name, text, rounds, searched in (
            ("prior", "slices of others in the place of rebuilt ones", 1, 0),
            ("match", "gradient matching", 1, n),
            ("random", "gradient matching, later round", 1, n),
            ("priors", "slices of others, for 8 rounds", 8, 0),
            ("mean", "gradient matching, mean of 8 rounds", 8, n),
        ):
            start = "crafted" if name == "random" else "derived"
            row = Row(f"honest-{name}", f"{text}; paired by likeness", floors, "honest", start)
            yield honest(bench, row, rounds=rounds, searched=searched, crafted=name == "random")

    return {
        "open": opened,
        "gate": lambda: gated(Row("gate", "gate for one slice in 64, every pixel", floors, *crafted), 1, 32),
        "thumbnails": lambda: (
            row
            for depth, rounds, text in ((2, 4, "7 gates, pixels of 8 mm"), (3, 2, "63 gates, pixels of 16 mm"))
            for row in gated(Row(f"thumbnails-{depth}", text, floors, *crafted), depth, rounds)
        ),
        "start": lambda: gated(
            Row("start", "gate, half of the pixels, later round", floors, "crafted", "crafted"), 1, 20
        ),
        "decoy": lambda: gated(
            Row("decoy", "gate hidden by a decoy in each slice", floors, *crafted), 1, 14, decoy=True
        ),
        "loud": lambda: gated(Row("loud", "gate, gradients above epsilon", floors, *crafted), 1, 14, weight=1e-5),
        "honest": many,
    }


def main() -> None:
    """Parse, attack, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("open", "floors", "gate", "thumbnails", "start", "decoy", "loud", "honest")
    parser.add_argument("--rows", nargs="*", choices=names, default=list(names), help="attacks (default all)")
    parser.add_argument("--quick", action="store_true", help="few rounds, to see that it runs")
    parser.add_argument("--out", type=Path, help="folder for what left, and the norms of each step, of one round each")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)  # a refusal is what some rows are about
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    began, rows, refused = time.perf_counter(), [], []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), quick=options.quick, out=options.out)
        if "floors" in options.rows:
            refused = list(refusals(bench))
        for name, attack in attacks(bench).items():
            for row in attack() if name in options.rows else ():
                rows.append(row)
                print(f"{(time.perf_counter() - began) / 60:.1f} min: {row.line()}", row.statistics, file=sys.stderr)
        if {"honest", "gate"} & set(options.rows):
            usual = Row("usual", "an honest round", "8 x 8", "honest", "derived")
            bench.note(usual, *honest_round(bench.hospital(), bench.own))
            rows.append(usual)
    if options.json:
        print(json.dumps({"machine": machine(), "refused": refused, "rows": [asdict(row) for row in rows]}, indent=2))
        return
    print("\n".join(refused), *as_tables(rows), sep="\n")
    print(f"\n{(time.perf_counter() - began) / 60:.1f} minutes on {machine()}")


if __name__ == "__main__":
    main()
