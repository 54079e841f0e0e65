"""A thousand sites that wait for work: what do they cost one server, and how long do they wait for an answer?

    python benchmarks/polling.py                            # 100 sites, then 1000; a table
    python benchmarks/polling.py --sites 10 50 --seconds 20 --json

A sahfl-server runs as a process on loopback, with mutual TLS 1.3, a key and a certificate of its own for each site,
and no study. The sites are the connections of real sites, all in the process of this benchmark: each holds a poll
open, which the server answers after 10 s, and sends a sign of life every 10 s over a second connection. Sites join at
15 a second, as after a restart of the server; then the windows of ``--seconds`` count. ``late`` is how much later
than after its 10 s a poll comes back, ``sign of life`` the time to its answer; both contain the work of this process,
which signs the requests of all sites. The processor's share is that of the server's process, of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import yaml
from machine import machine

from sahfl.errors import NotConnected
from sahfl.federation.flower.handshake import request_headers
from sahfl.federation.flower.supernode import HOLD_S, FleetLink, SessionLost
from sahfl.trust.kit import SiteKit

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from harness.deployed import Command
from harness.trust_kits import Paths, make_consortium

BEAT_S, BEATERS = 10.0, 8
"""Seconds between two signs of life of a site, and threads of this process that send them."""
PAUSE_S = 1 / 15
"""Seconds between two sites that join."""
TRIES = 10
"""Times that a site tries to join."""
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Waits:
    """Seconds that sites waited, as their threads append them."""

    late: list[float] = field(default_factory=list)
    beat: list[float] = field(default_factory=list)
    lost: int = 0
    """Calls that failed."""


@dataclass(frozen=True)
class Row:
    """One window."""

    sites: int
    cpu_percent: float
    memory_mib: float
    polls: int
    late_ms: tuple[float, float]
    """Median and 99th percentile."""
    beat_ms: tuple[float, float]
    """The same of the signs of life."""
    lost: int


def main() -> None:
    """Measure and print."""
    options = read_options()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), sorted(options.sites), options.seconds)
    if options.json:
        print(json.dumps([asdict(item) for item in rows], indent=1))
        return
    print(f"{machine()}; windows of {options.seconds:g} s")
    print("| sites | server's share of a core | server's memory | polls | late, median and p99 | sign of life | lost |")
    print("|---|---|---|---|---|---|---|")
    for item in rows:
        late, beat = (f"{times[0]:.0f} ms, {times[1]:.0f} ms" for times in (item.late_ms, item.beat_ms))
        numbers = f"{item.cpu_percent:.1f} % | {item.memory_mib:.0f} MiB | {item.polls} | {late} | {beat} | {item.lost}"
        print(f"| {item.sites} | {numbers} |")
    first, last = rows[0], rows[-1]
    if first is not last:
        more = last.sites - first.sites
        print(f"each further site: {(last.cpu_percent - first.cpu_percent) / more:.3f} % of a core, ", end="")
        print(f"{(last.memory_mib - first.memory_mib) * 1024 / more:.0f} KiB")


def read_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", nargs="+", type=int, default=[100, 1000], help="(default 100 1000)")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a window (default 60)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def measure(folder: Path, numbers: Sequence[int], seconds: float) -> list[Row]:
    """A window for each number of sites; those of the last window stay."""
    paths = make_consortium(folder / "consortium", sites=[f"site_{number:04d}" for number in range(numbers[-1])])
    stop, waits = threading.Event(), Waits()
    links: list[FleetLink] = []
    rows: list[Row] = []
    with server(folder, paths) as pid:
        for place in range(BEATERS):
            threading.Thread(target=beat, args=(links, place, waits, stop), daemon=True).start()
        for number in numbers:
            for name in list(paths.sites)[len(links) : number]:
                links.append(join(paths, name))
                threading.Thread(target=poll, args=(links[-1], waits, stop), daemon=True).start()
                time.sleep(PAUSE_S)
            time.sleep(HOLD_S)  # the polls of those that joined last are under way
            rows.append(window(pid, number, waits, seconds))
        stop.set()
    return rows


@contextmanager
def server(folder: Path, paths: Paths) -> Iterator[int]:
    """A server's process without a study, until the block ends."""
    settings = {"kit": str(paths.server), "folder": str(folder / "state"), "host": "127.0.0.1", "port": paths.port}
    (folder / "server.yaml").write_text(yaml.safe_dump(settings))
    running = Command(folder / "server.log", "sahfl_server", folder / "server.yaml")
    try:
        running.wait_for_line("event=listening", timeout_s=300)
        yield running.process.pid
    finally:
        running.kill()


def join(paths: Paths, site: str) -> FleetLink:
    """The connection of a site."""
    kit = SiteKit.load(paths.sites[site])
    link = FleetLink("localhost", paths.port, tls=kit.tls(), node_key=kit.node_key, headers=request_headers(site))
    for _ in range(TRIES):
        with suppress(NotConnected):  # as a site does: it tries again
            link.activate()
            return link
    raise SystemExit(f"{site}: the server took it in at none of {TRIES} tries")


def poll(link: FleetLink, waits: Waits, stop: threading.Event) -> None:
    """Ask for work until the end."""
    while not stop.is_set():
        began = time.monotonic()
        try:
            link.pull()
            waits.late.append(time.monotonic() - began - HOLD_S)
        except (NotConnected, SessionLost):
            waits.lost += not stop.is_set()
            stop.wait(1.0)


def beat(links: list[FleetLink], place: int, waits: Waits, stop: threading.Event) -> None:
    """Send the signs of life of every eighth site, spread over the time between two of the same site."""
    while not stop.is_set():
        end = time.monotonic() + BEAT_S
        mine = links[place::BEATERS]
        for left in range(len(mine), 0, -1):
            began = time.monotonic()
            try:
                mine[-left].heartbeat()
                waits.beat.append(time.monotonic() - began)
            except (NotConnected, SessionLost):
                waits.lost += not stop.is_set()
            stop.wait(max(0.0, (end - time.monotonic()) / left))
        stop.wait(max(0.0, end - time.monotonic()))


def window(pid: int, sites: int, waits: Waits, seconds: float) -> Row:
    """What the server and its sites did in some seconds."""
    waits.late, waits.beat, waits.lost = [], [], 0
    cpu, began = cpu_s(pid), time.monotonic()
    time.sleep(seconds)
    share = 100 * (cpu_s(pid) - cpu) / (time.monotonic() - began)
    memory = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    late, beats = (tuple(1000 * float(x) for x in np.percentile(each, (50, 99))) for each in (waits.late, waits.beat))
    return Row(sites, share, memory, len(waits.late), late, beats, waits.lost)


def cpu_s(pid: int) -> float:
    """Processor seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


if __name__ == "__main__":
    main()
