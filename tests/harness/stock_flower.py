"""Stock Flower as real processes: one flower-superlink, a flower-supernode per site, and the command flwr."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import yaml

from sahfl.simulation.simulate import open_policy, simulated_secret

PROJECT = Path(__file__).parents[2]
"""What ``flwr run`` makes its bundle of."""
BIN = Path(sys.executable).parent
SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "OMP_NUM_THREADS": "1",  # a site computes the same bits as the simulation's workers, which have one thread each
}
CONNECTION = "consortium"


class StockFlower:
    """A consortium on this machine; leaving the block ends every process, however it is left.

    Args:
        folder: for each process a home and a log.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            host, port = self.address.split(":")
            self._start("superlink", "flower-superlink", "--insecure", "--host", host, "--port", port)
            wait_until(self._is_healthy, timeout_s=60, what="the SuperLink")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes and what they started: politely, then at once."""
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        try:
            wait_until(self._are_gone, timeout_s=20, what="the end of all processes")
        except TimeoutError:
            for pid in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            wait_until(self._are_gone, timeout_s=20, what="the end of all processes")

    def processes(self) -> list[int]:
        """Every process started here or by one of them, by its Flower home: a SuperLink detaches what it starts."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if f"FLWR_HOME={self.folder}{os.sep}".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def _are_gone(self) -> bool:
        return all(process.poll() is not None for process in self._processes) and not self.processes()

    def join(self, name: str, site_file: Path | None) -> int:
        """Start a site's SuperNode; its node id, as it says itself in its log."""
        config = [f'--node-config=site-file="{site_file}"'] if site_file else []
        address = ("--superlink", self.address, "--host", "127.0.0.1", "--port", str(free_port()))
        self._start(name, "flower-supernode", "--insecure", *address, *config)
        wait_until(lambda: "SuperNode ID: " in self.log(name), timeout_s=60, what=name)
        found = re.search(r"SuperNode ID: (\d+)", self.log(name))
        assert found
        return int(found[1])

    def online(self) -> set[int]:
        """Node ids that the SuperLink holds for online."""
        listed = self.flwr("supernode", "list", CONNECTION)
        return {int(node["node-id"]) for node in listed["nodes"] if node["status"] == "online"}

    def run(self, settings: dict[str, str]) -> int:
        """Start a run, without waiting; its id."""
        config = self.folder / "run.toml"
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
        return int(self.flwr("run", PROJECT, CONNECTION, "--run-config", config)["run-id"])

    def outcome(self, run_id: int, *, timeout_s: float = 600) -> str:
        """Wait for the end of a run; its status, such as ``finished:completed``."""
        statuses: list[str] = []

        def has_ended() -> bool:
            (run,) = self.flwr("list", CONNECTION, "--run-id", run_id)["runs"]
            statuses.append(run["status"])
            return run["status"].startswith("finished")

        wait_until(has_ended, timeout_s=timeout_s, what=f"run {run_id}", every_s=1)
        return statuses[-1]

    def printed(self, run_id: int) -> str:
        """What the server's app of a run printed."""
        command = [BIN / "flwr", "log", str(run_id), CONNECTION, "--show"]
        done = subprocess.run(
            command, env=self._environment("coordinator"), capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    def stop_run(self, run_id: int) -> None:
        """Stop a run, as a coordinator does."""
        self.flwr("stop", run_id, CONNECTION)

    def flwr(self, *command: Any) -> dict[str, Any]:
        """What a ``flwr`` command prints as JSON."""
        home = self.folder / "coordinator"
        home.mkdir(exist_ok=True)
        connection = {"address": self.address, "insecure": True}
        lines = [f"[superlink.{CONNECTION}]", *(f"{key} = {json.dumps(value)}" for key, value in connection.items())]
        (home / "config.toml").write_text("\n".join(lines) + "\n")
        result = subprocess.run(
            [BIN / "flwr", *map(str, command), "--format", "json"],
            env=self._environment("coordinator"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return json.loads(result.stdout)

    def log(self, name: str) -> str:
        """All that a process and its children printed."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    [BIN / command[0], *command[1:]],
                    env=self._environment(name),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def _environment(self, name: str) -> dict[str, str]:
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        return os.environ | SWITCHES | {"FLWR_HOME": str(self.folder / name), "PATH": path}

    def _is_healthy(self) -> bool:
        try:
            return httpx.get(f"http://{self.address}/health").is_success
        except httpx.TransportError:
            return False


def write_site(path: Path, name: str, study: dict[str, Any]) -> Path:
    """A hospital's site file, with the phantom patients that the study's simulation has."""
    data = study["data"]
    cohort = {"source": "phantom", "seed": study["seed"], "shape": data["shape"], "spacing_mm": data["spacing_mm"]}
    site = {"name": name, "folder": f"work-{name}", "data": cohort | {"patients": data["sites"][name]}}
    policy = open_policy().model_dump(mode="json")
    site |= {"secret": simulated_secret(study["seed"], name)}  # batches as in a simulation
    path.write_text(yaml.safe_dump(site | {"policy": policy, "device": "cpu", "threads": 1}))
    return path


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Any, *, timeout_s: float, what: str, every_s: float = 0.1) -> None:
    """Look until it is so, or raise TimeoutError."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(every_s)
