"""A whole deployment as processes on this machine: one server, its sites, their folders; for tests that kill them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from harness.tiny_study import TINY, changed
from harness.trust_kits import free_port, make_consortium
from sahfl.simulation.simulate import open_policy, simulated_secret

ROOT = Path(__file__).parents[2]
SITES = ("tbi_a", "tbi_b", "sah_a", "sah_b", "sah_c")
POLICY = open_policy().model_copy(update={"require_signature": True}).model_dump(mode="json")
SMALL = changed(TINY, pretrain__rounds=2, finetune__methods=[{"method": "cp_lora", "rank": 2}])

STARTED = "import sys; from {0}.main import main; sys.argv[0] = {0!r}; main()"


def environment(**more):
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "server", ROOT / "client", ROOT / "tests")))
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | more


class Command:
    """A process of ours in a session of its own, with its log in a file."""

    def __init__(self, log, program, *arguments, **more):
        self.log_file = log
        with log.open("a") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-c", STARTED.format(program), *map(str, arguments)],
                stdout=stream,
                stderr=stream,
                env=environment(**more),
                start_new_session=True,
            )

    @property
    def log(self):
        return self.log_file.read_text()

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self, timeout_s=30):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def wait_for_line(self, text, *, timeout_s=60, count=1):
        wait_for(lambda: self.log.count(text) >= count or self.process.poll() is not None, timeout_s, lambda: self.log)
        assert self.log.count(text) >= count, self.log


def sahfl_command(*arguments, timeout_s=120):
    """The command ``sahfl``, run to its end: its exit code, what it printed and what it complained of."""
    command = [sys.executable, "-c", STARTED.format("sahfl").replace("sahfl.main", "sahfl.cli"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=timeout_s)


def wait_for(condition, timeout_s=60, say=lambda: ""):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, say()
        time.sleep(0.05)


class Deployment:
    """A consortium in a folder; every process that it starts ends with the block."""

    def __init__(self, folder, /, *, sites=SITES, study=SMALL, **server):
        self.folder, self.commands, self.settings = folder, [], study
        self.port = free_port()
        self.consortium = make_consortium(folder / "consortium", sites=sites, port=self.port)
        self.state = folder / "state"
        self.server_file = folder / "server.yaml"
        settings = {"kit": str(self.consortium.server), "folder": str(self.state), "host": "127.0.0.1"}
        self.server_file.write_text(yaml.safe_dump(settings | {"port": self.port} | server))
        for site in sites:
            self.write_site(site)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for command in self.commands:
            command.kill()

    def write_site(self, site, **more):
        data = self.settings["data"]
        cohort = {"source": "phantom", "seed": self.settings["seed"], "shape": data["shape"]}
        cohort |= {"spacing_mm": data["spacing_mm"], "patients": data["sites"][site]}
        settings = {"name": site, "folder": str(self.folder / "sites" / site), "data": cohort, "policy": POLICY}
        settings |= {"secret": simulated_secret(self.settings["seed"], site)}  # batches as in a simulation
        settings |= {"max_refused_share": 1.0, "kit": str(self.consortium.sites[site]), "device": "cpu", "threads": 1}
        path = self.folder / f"{site}.yaml"
        path.write_text(yaml.safe_dump(settings | more))
        return path

    def submit(self, name=None, *, agreed=True, **changes):
        """Put the study into the queue; ``agreed``: few sites may send what is not masked."""
        unmasked = {"rounds__unmasked": True} if agreed else {}
        settings = changed(self.settings, data={"source": "sites"}, **unmasked, **changes)
        settings |= {"name": name} if name else {}
        path = self.folder / "study.yaml"
        path.write_text(yaml.safe_dump(settings))
        command = Command(self.folder / "submit.log", "sahfl_server", self.server_file, "--submit", path)
        assert command.process.wait(300) == 0, command.log
        return self.state / "runs" / settings["name"]

    def server(self, *options, **more):
        self.commands.append(Command(self.folder / "server.log", "sahfl_server", self.server_file, *options, **more))
        return self.commands[-1]

    def site(self, name, **more):
        self.commands.append(Command(self.folder / f"{name}.log", "sahfl_client", self.folder / f"{name}.yaml", **more))
        return self.commands[-1]

    def status(self):
        try:
            return json.loads((self.state / "status.json").read_text())
        except FileNotFoundError:
            return {"study": None, "sites": {}, "server": {"listening": None}}
