"""What an attacker with a site's certificate costs the server and the honest sites of a running study.

    python benchmarks/door.py                  # a table; about ten minutes
    python benchmarks/door.py --json

A server and two sites run a study as processes on loopback, in the shortest rounds that a site's default policy allows:
8 steps of 8 slices, with the smallest network. A third registered site, which is not in the study, attacks in every
second window of 40 seconds with one thread for each kind of attack, from an address of its own (127.0.0.66). Its
processor is not the consortium's: the server has one core of the machine for itself, and the attack has the lowest
priority on the others, with the sites. In the windows without it, a process that only computes has its place there,
because on two cores even this slows the sites. The rounds that end in both kinds of windows are compared, and the
processor time and the memory of the server's process.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx

from sahfl.federation.flower.handshake import request_headers
from sahfl.federation.flower.supernode import FleetLink
from sahfl.run.folder import RunFolder
from sahfl.trust.kit import SiteKit

sys.path.append(str(Path(__file__).parents[1] / "tests"))
WINDOW_S = 40.0
SOURCE = "127.0.0.66"
LINE = b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: x\r\n"
COMPUTES = "print('begun', flush=True)\nwhile True: pass"
PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=12, help="windows, every second with the attack (default 12)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--attack", nargs=2, metavar=("KIT", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        attack(SiteKit.load(Path(options.attack[0])), int(options.attack[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options.windows)
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['cores']} cores, load {result['load']:.1f}; {result['rounds']} rounds")
    for name, quiet, attacked in result["rows"]:
        print(f"{name:38} {quiet:9.2f} {attacked:9.2f}")
    print("the attack, each second: " + ", ".join(f"{name} {rate:.1f}" for name, rate in result["rates"].items()))


def measure(folder: Path, windows: int) -> dict[str, Any]:
    """Run the study and the attack, and compare the windows."""
    from deployment import study
    from harness.deployed import Deployment, wait_for

    settings = study(2, rounds=windows * 40)
    settings["finetune"]["local"] = {"steps": 8, "batch_size": 8}
    sites = (*settings["data"]["sites"], "spare")
    settings["data"]["sites"]["spare"] = {"kind": "sah", "n_cases": 1}
    samples: list[tuple[float, bool, float, float, float, float]] = []
    with Deployment(folder, sites=sites, study=settings, lanes=1) as deployment, ExitStack() as stack:
        del settings["data"]["sites"]["spare"]
        run = RunFolder(deployment.submit())
        first, *others = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {first})  # what begins from here on is there too
        server = deployment.server()
        os.sched_setaffinity(0, set(others or [first]))
        for site in settings["data"]["sites"]:
            deployment.site(site)
        wait_for(lambda: len(rounds_of(run)) > 3, 300, lambda: server.log)
        kit = deployment.consortium.sites["spare"]
        command = [sys.executable, __file__, "--attack", str(kit), str(deployment.port)]
        rates: dict[str, list[float]] = {}
        pid = server.process.pid
        for window in range(windows):
            hostile = window % 2 == 1
            what = command if hostile else [sys.executable, "-c", COMPUTES]
            process = subprocess.Popen(["nice", "-n", "19", *what], stdout=subprocess.PIPE, text=True)
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()  # it has begun
            before, cpu, began = len(rounds_of(run)), cpu_s(pid), time.monotonic()
            peak = 0.0
            while (spent := time.monotonic() - began) < WINDOW_S:
                peak = max(peak, rss_mb(pid))
                time.sleep(0.2)
            rounds = rounds_of(run)[before:]
            work = statistics.median(max(site["seconds"] for site in line["used"]) for line in rounds)
            rest = spent / len(rounds) - work
            samples.append((len(rounds), hostile, (cpu_s(pid) - cpu) / spent, peak, work, rest))
            process.terminate()
            if hostile:
                for name, n in json.loads(process.communicate(timeout=60)[0] or "{}").items():
                    rates.setdefault(name, []).append(n / spent)
                time.sleep(5)  # what the attack left behind is closed
        assert server.process.poll() is None, server.log
        line_count = server.log.count("event=refused") + server.log.count("event=tls_refused")
    rows = [
        (name, *(by(sample[index] for sample in samples if sample[1] is hostile) for hostile in (False, True)))
        for name, index, by in (
            ("rounds in 40 s, median", 0, statistics.median),
            ("rounds in 40 s, fewest", 0, min),
            ("seconds of a round: the sites' work", 4, statistics.median),
            ("seconds of a round: all else", 5, statistics.median),
            ("server: processor, share of a core", 2, statistics.median),
            ("server: memory in MB, largest", 3, max),
        )
    ]
    rows.append(("log lines on refusals", 0.0, float(line_count)))
    return {
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "rounds": sum(int(sample[0]) for sample in samples),
        "rows": rows,
        "rates": {name: statistics.median(values) for name, values in rates.items()},
    }


def rounds_of(run: RunFolder) -> list[dict[str, Any]]:
    """The journal's committed rounds of fine-tuning."""
    return [line for line in run.journal() if line["event"] == "round" and line["committed"]]


def rss_mb(pid: int) -> float:
    """Memory of a process in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1e6


def cpu_s(pid: int) -> float:
    """Processor time of a process in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


# ------------------------------------------------------------------------------------------------- the attacker


class Attacker:
    """Attacks with the kit of a site until it is terminated; ``counts`` says how often each kind was begun."""

    def __init__(self, kit: SiteKit, port: int) -> None:
        self._kit, self._port, self._tls = kit, port, kit.tls()
        self.counts: dict[str, int] = {}

    def opened(self) -> socket.socket:
        """A TLS connection."""
        plain = socket.create_connection(("127.0.0.1", self._port), timeout=5, source_address=(SOURCE, 0))
        return self._tls.wrap_socket(plain, server_hostname="localhost")

    def flood(self, name: str, begin: bytes, piece: bytes) -> None:
        """Send a request without an end."""
        with self.opened() as connection, suppress(OSError):
            connection.sendall(begin)
            while True:
                connection.sendall(piece)
                self.count(f"{name}, MB", len(piece) / 1e6)

    def count(self, name: str, n: float = 1) -> None:
        """Count an attempt."""
        self.counts[name] = self.counts.get(name, 0) + n

    def half_open(self) -> None:
        """Open connections that begin a request and never end it."""
        with ExitStack() as stack:
            for _ in range(1000):
                connection = stack.enter_context(self.opened())
                connection.sendall(LINE)
                self.count("half-open requests")

    def no_handshake(self) -> None:
        """Open connections that never begin their handshake."""
        with ExitStack() as stack:
            for _ in range(1000):
                plain = socket.create_connection(("127.0.0.1", self._port), timeout=5, source_address=(SOURCE, 0))
                stack.enter_context(plain)
                self.count("connections without a handshake")

    def handshakes(self) -> None:
        """Open and close connections."""
        with self.opened():
            self.count("handshakes")

    def refused(self) -> None:
        """Send requests that are refused."""
        with httpx.Client(
            base_url=f"https://localhost:{self._port}",
            transport=httpx.HTTPTransport(verify=self._tls, local_address=SOURCE),
            timeout=5,
        ) as client:
            while client.post("/v1/fleet/pull-messages%20event=revoked").status_code:
                self.count("refused requests")

    def signed(self) -> None:
        """Connect as the site, then send signs of life and objects of nothing without a pause."""
        headers = request_headers("attack")
        link = FleetLink("localhost", self._port, tls=self._tls, node_key=self._kit.node_key, headers=headers)
        link.activate()
        from flwr.proto import message_pb2

        push = message_pb2.PushObjectRequest(
            node=link._node(), run_id=1, object_id="0" * 64, object_content=os.urandom(60_000), session_id="x"
        )
        while True:
            link.heartbeat()
            self.count("signed requests")
            with suppress(Exception):
                link._client.PushObject(push)
            self.count("objects of no reply")


def attack(kit: SiteKit, port: int) -> None:
    """Attack in every way at once, until terminated; print what was tried."""
    import signal

    attacker = Attacker(kit, port)
    kinds: list[Callable[[], None]] = [
        lambda: attacker.flood("headers", LINE, b"x-a: b\r\n" * 8000),
        lambda: attacker.flood("one header", LINE + b"x: ", b"a" * 100_000),
        lambda: attacker.flood("address", b"POST /", b"a" * 100_000),
        lambda: attacker.flood("body", LINE + b"content-length: 5000000\r\n\r\n", b"a" * 100_000),
        attacker.half_open,
        attacker.no_handshake,
        attacker.handshakes,
        attacker.refused,
        attacker.signed,
    ]

    def again(kind: Callable[[], None]) -> None:
        while True:
            with suppress(Exception):
                kind()
            attacker.count("attempts")
            time.sleep(0.001)

    for kind in kinds:
        threading.Thread(target=again, args=(kind,), daemon=True).start()
    print("begun", flush=True)
    signal.sigwait({signal.SIGTERM})
    print(json.dumps(attacker.counts), flush=True)
    os._exit(0)


if __name__ == "__main__":
    import signal

    if "--attack" in sys.argv:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main()
