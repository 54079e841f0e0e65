"""A server with real sockets and TLS in this process, and sites as real processes, for tests of a deployment."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import yaml

from harness.trust_kits import make_consortium
from sahfl.adapters import exchanged
from sahfl.config import Study, parse
from sahfl.federation import protocol
from sahfl.federation.flower.doorway import open_port
from sahfl.federation.flower.fleet import Fleet
from sahfl.federation.flower.gate import Gate
from sahfl.federation.flower.link import Link
from sahfl.federation.flower.listener import Listener
from sahfl.federation.flower.superlink import StateGrid
from sahfl.networks import whole_network
from sahfl.payload import Header
from sahfl.simulation.simulate import site_configs
from sahfl.task import Task
from sahfl.trust.kit import ServerKit

CLIENT = [sys.executable, "-c", "from sahfl_client.main import main; main()"]
"""The command ``sahfl-client``, also where it is not installed."""


class Server:
    """A server's port, without its study: tests send messages by ``grid`` themselves."""

    def __init__(self, consortium, *, port=None, kit=None):
        kit = ServerKit.load(kit or consortium.server)
        self.link, self.fleet = Link(), Fleet()
        self.fleet.register(kit.sites(), self.link.enroll, revoked=kit.revoked())
        gate = Gate(self.link, self.fleet)
        self.listener = Listener(
            gate, open_port("127.0.0.1", port or consortium.port), tls=kit.tls(), closing=gate.close
        )
        self.grid = StateGrid(self.link, self.fleet, wake=gate.wake, give_up_s=600)

    def __enter__(self):
        self.listener.__enter__()
        return self

    def __exit__(self, *error):
        self.listener.__exit__(*error)
        with warnings.catch_warnings():  # TLS connections that the other side left open when this side stopped
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()

    def node_of(self, site):
        return next(seat.node_id for seat in self.fleet.seats() if seat.site == site)

    def connected(self, site):
        return any(seat.site == site and self.fleet.connected(seat) for seat in self.fleet.seats())

    def send(self, site, content, kind):
        (id_,) = self.grid.push_messages([self.grid.create_message(content, kind, self.node_of(site), "")])
        return id_

    def reply_to(self, id_, timeout_s=120):
        return wait_until(lambda: self.grid.pull_messages([id_]), timeout_s=timeout_s)[0]

    def ask(self, site, content, kind, timeout_s=120):
        return self.reply_to(self.send(site, content, kind), timeout_s)


class Client:
    """A ``sahfl-client`` process, what it logs and what its status file says."""

    def __init__(self, site_file, *, wrapper=(), **environment):
        self.folder = Path(yaml.safe_load(site_file.read_text())["folder"])
        self.log = site_file.with_suffix(".log")
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*wrapper, *CLIENT, str(site_file)],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            )

    def status(self):
        try:
            return json.loads((self.folder / "status.json").read_text())
        except FileNotFoundError:
            return {}

    def lines(self, event=None):
        return [line for line in self.log.read_text().splitlines() if event is None or f"event={event}" in line]

    def wait_for(self, event, times=1, timeout_s=60):
        return wait_until(lambda: len(found := self.lines(event)) >= times and found, timeout_s=timeout_s, why=self)[-1]

    def trainer(self):
        """Process id of the child that does the work."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        children = {int(pid) for task in tasks for pid in task.read_text().split()}
        return next((pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()), None)

    def stop(self, number=signal.SIGTERM, timeout_s=15):
        self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def __str__(self):
        return self.log.read_text()


@contextmanager
def client(site_file, **options):
    """A client that ends with the block, however that ends."""
    running = Client(site_file, **options)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait(10)


def consortium_of(folder, sites, **options):
    """Keys for some sites and a server on a free port of this machine."""
    return make_consortium(folder, sites=sites, **options)


def write_site(folder, study, site, consortium, **changes):
    """A site's file: its phantom patients of a study, its folder, its kit."""
    (config,) = [item for item in site_configs(parse(Study, study, where="test"), folder) if item.name == site]
    settings = json.loads(config.model_dump_json(by_alias=True, exclude={"simulated"}))
    settings |= {"kit": str(consortium.sites[site])}
    path = folder / f"{site}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings | {"threads": 1, "device": "cpu"} | changes))
    return path


def wait_until(condition, timeout_s=60, why=""):
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, f"waited in vain\n{why}"
        time.sleep(0.01)
    return found


def describe_request(study):
    """What a server asks first."""
    study = parse(Study, study, where="test")
    task = Task(stage="finetune", seed=study.seed, views=study.views, model=study.model, folds=2)
    header = Header(study.fingerprint(), stage="finetune", method="describe", fold=-1, round=0, base="")
    return protocol.request(task, header, {})


def train_request(study, *, steps=2, round_=1):
    """A round of pretraining: every weight of the network goes up and down."""
    study = parse(Study, study, where="test")
    config = study.pretrain
    local = config.local.model_copy(update={"steps": steps})
    task = Task(
        stage="pretrain", seed=study.seed, views=study.views, model=study.model, folds=2, round=round_,
        rounds=max(config.rounds, round_), learning_rate=config.learning_rate, local=local,
    )  # fmt: skip
    header = Header(study.fingerprint(), stage="pretrain", method="pretrain", fold=-1, round=round_, base="")
    return protocol.request(task, header, exchanged.read(whole_network(study.views, study.model, study.seed)))
