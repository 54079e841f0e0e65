"""A whole deployment on this machine: keys, a server, three hospitals, a study, and a server that is killed.

    make deploy-demo
    python examples/deployment/demo.py --out runs/deploy-demo

Everything happens through the commands that a consortium uses: ``sahfl provision`` makes keys, ``sahfl-server`` runs
the study, three ``sahfl-client`` train on their own scans (phantoms), over mutual TLS 1.3 on loopback.
The hospitals accept the base network by its hash (``sahfl-client accept-base``), under the policy of their kits.
In the second round of fine-tuning the server is killed (SIGKILL) and started again; the sites are told nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
SITES = {"sah_a": "smooth", "sah_b": "noisy", "sah_c": "tilted"}
"""The hospitals and their scanners."""
KILL_AFTER = ("cp_lora-r8", 0, 1)
"""Method, fold and round after whose commit the server is killed."""
MOST_S = 600


def settings(folder: Path, port: int) -> None:
    """Write what a coordinating centre and three data managers would write by hand."""
    server = {"host": "localhost", "port": port, "also": ["127.0.0.1"]}
    _write(folder / "consortium.yaml", {"name": "deploy_demo", "server": server, "sites": list(SITES)})
    kit = {"kit": "consortium/server", "folder": "server", "host": "127.0.0.1", "port": port, "resume_wait_s": 20}
    _write(folder / "server.yaml", kit)
    for site, profile in SITES.items():
        patients = {"kind": "sah", "n_cases": 14, "profile": profile}
        scans = {"source": "phantom", "seed": 11, "shape": [64, 72, 13], "spacing_mm": [3.0, 3.0, 9.0]}
        site_file = {"name": site, "kit": f"consortium/sites/{site}", "folder": f"hospitals/{site}", "threads": 1}
        _write(folder / f"{site}.yaml", site_file | {"data": scans | {"patients": patients}})


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def accept_base(folder: Path, sha256: str) -> None:
    """Accept the base network at each hospital, as its people would after they compared the hash with its card."""
    run_all([(command("sahfl-client"), "accept-base", folder / f"{site}.yaml", sha256) for site in SITES])


def command(name: str) -> str:
    """Path of one of our commands, beside this Python."""
    return str(Path(sys.executable).with_name(name))


def run(*arguments: str | Path) -> None:
    """Run a command to its end, and show it."""
    run_all([arguments])


def run_all(commands: Sequence[Sequence[str | Path]]) -> None:
    """Run commands of several hospitals at a time, each to its end, and show them with what they print."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    running = [subprocess.Popen([*map(str, one)], text=True, **pipes) for one in commands]  # type: ignore[call-overload]
    for one, process in zip(commands, running, strict=True):
        printed, _ = process.communicate()
        say(f"$ {Path(one[0]).name} {' '.join(map(str, one[1:]))}")
        print(printed, end="", flush=True)
        if process.returncode:
            raise SystemExit(f"it ended with exit code {process.returncode}")


def say(text: str) -> None:
    """A line of the demo's own, with the time."""
    print(f"\n[{datetime.now():%H:%M:%S}] {text}", flush=True)


class Process:
    """A command in the background, its output in a file."""

    def __init__(self, log: Path, *arguments: str | Path) -> None:
        say(f"$ {Path(arguments[0]).name} {' '.join(map(str, arguments[1:]))}   (log: {log})")
        self.log = log
        with log.open("ab") as stream:
            self.child = subprocess.Popen([*map(str, arguments)], stdout=stream, stderr=stream, start_new_session=True)

    def check(self) -> None:
        """End the demo if the command ended before its time."""
        if self.child.poll() not in (None, 0):
            raise SystemExit(f"a command ended with exit code {self.child.returncode}; see {self.log}")

    def stop(self) -> int:
        """End it as systemd would, and give its exit code."""
        if self.child.poll() is None:
            self.child.terminate()
        return self.child.wait(timeout=30)

    def kill(self) -> None:
        """End it and its children at once, as a power cut would."""
        if self.child.poll() is None:
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()


class Rounds:
    """The committed rounds of a run, printed as they come."""

    def __init__(self, journal: Path) -> None:
        self._journal, self._shown = journal, 0

    def committed(self) -> list[dict[str, Any]]:
        """All so far; new ones are printed."""
        rounds = [line for line in self._lines() if line["event"] == "round" and line["committed"]]
        for line in rounds[self._shown :]:
            training = "pretraining" if line["method"] is None else f"{line['method']}, fold {line['fold']}"
            sites = ", ".join(f"{site['site']} {site['bytes_up'] / 1000:.0f} kB" for site in line["used"])
            print(f"  {training}, round {line['round']}: {line['seconds']:.1f} s; sent up: {sites}", flush=True)
        self._shown = len(rounds)
        return rounds

    def _lines(self) -> list[dict[str, Any]]:
        lines = self._journal.read_text().splitlines() if self._journal.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def base_that_waits(self) -> str:
        """Hash of the base network that the sites have to accept; empty before they were asked."""
        waits = [line["base"] for line in self._lines() if line["event"] == "base_waits"]
        return waits[-1] if waits else ""

    def reached(self, method: str, fold: int, round_: int) -> bool:
        """Whether a round of a training is committed."""
        wanted = (method, fold, round_)
        return any((line["method"], line["fold"], line["round"]) == wanted for line in self.committed())


def wait_for(what: str, found: Callable[[], bool], processes: Sequence[Process]) -> float:
    """Wait until something is the case, and nobody died; the seconds that it took."""
    began = time.monotonic()
    while not found():
        for process in processes:
            process.check()
        if time.monotonic() - began > MOST_S:
            raise SystemExit(f"waited {MOST_S} s for {what}")
        time.sleep(0.1)
    return time.monotonic() - began


def play(folder: Path) -> Path:
    """Run the whole demo in a new folder, and give the report's path."""
    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        settings(folder, free.getsockname()[1])
    sahfl, sahfl_server, sahfl_client = map(command, ("sahfl", "sahfl-server", "sahfl-client"))
    run(sahfl, "provision", folder / "consortium.yaml", "--out", folder / "consortium")
    run(sahfl_server, folder / "server.yaml", "--submit", HERE / "study.yaml")
    run_folder = folder / "server" / "runs" / "deploy-demo"
    rounds = Rounds(run_folder / "journal.jsonl")
    serve = (folder / "server.log", sahfl_server, folder / "server.yaml", "--until-done")
    with ExitStack() as started:

        def start(*arguments: Any) -> Process:
            process = Process(*arguments)
            started.callback(process.kill)
            return process

        server = start(*serve)
        run(sahfl_client, folder / "sah_a.yaml", "--dry-run", "--study", HERE / "study.yaml")
        sites = [start(folder / f"{site}.log", sahfl_client, folder / f"{site}.yaml") for site in SITES]
        wait_for("the base network", lambda: bool(rounds.base_that_waits()), [server, *sites])
        say("the hospitals compare the hash of the base network with the one on its card (sahfl/bases/phantom.md)")
        accept_base(folder, rounds.base_that_waits())
        wait_for("the first rounds", lambda: rounds.reached(*KILL_AFTER), [server, *sites])
        server.kill()
        say("the server was killed (SIGKILL); it is started again, the sites are told nothing")
        before, server = len(rounds.committed()), start(*serve)
        seconds = wait_for("the next round", lambda: len(rounds.committed()) > before, [server, *sites])
        say(f"{seconds:.1f} s after its start the server had committed the next round; no round was trained again")
        subprocess.run([sahfl, "status", str(folder / "server.yaml")], check=False)
        wait_for("the end", lambda: server.child.poll() is not None, [server, *sites])
        rounds.committed()
        codes = [site.stop() for site in sites]
    say(f"the server ended with exit code {server.child.returncode}, the sites, on SIGTERM, with {codes}")
    run_all([(sahfl, "audit", "verify", folder / f"{site}.yaml") for site in SITES])
    if any(codes):
        raise SystemExit(1)
    n = len(rounds.committed())
    say(f"it worked: {n} rounds were committed, the server was killed once, and nothing was lost. The report:")
    return run_folder / "report.html"


def main() -> None:
    """Parse, play, print the report's path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path("runs") / f"deploy-demo-{datetime.now():%Y%m%d-%H%M%S}"
    parser.add_argument("--out", type=Path, default=default, help=f"a new folder (default {default})")
    print(play(parser.parse_args().out.resolve()))


if __name__ == "__main__":
    main()
