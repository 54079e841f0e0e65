"""Reading a request for training or evaluation: its task, its header, and the network that they describe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flwr.app import RecordDict

from sahfl.adapters import AdapterState, exchanged
from sahfl.adapters.attach import staying
from sahfl.errors import PayloadError
from sahfl.federation import protocol
from sahfl.federation.site.device import choose_device
from sahfl.federation.site.private import PrivatePart
from sahfl.federation.site.site import Site
from sahfl.federation.site.starts import Starts, require_own_start
from sahfl.federation.tensors import read_state
from sahfl.model import Network
from sahfl.networks import base_network, fine_tuned_network, whole_network
from sahfl.payload import Header
from sahfl.task import Task


def task_and_header(content: RecordDict) -> tuple[Task, Header]:
    """Read the task and the header of a request, which must name the same stage, method, fold and round.

    Raises:
        PayloadError: task and header differ, or one of them cannot be read.
    """
    task, header = protocol.read_request(content)
    asked = (task.stage, task.cell, task.fold, task.round)
    if asked != (header.stage, header.method, header.fold, header.round):
        raise PayloadError("header: names another stage, method, fold or round than the task")
    return task, header


def network_of(site: Site, task: Task, header: Header) -> Network:
    """Build the network of a task before any received state is loaded, on the site's device.

    Raises:
        AdapterError: the base that the header names is not installed at this site, or is damaged.
        ConfigError: this machine has no such device.
    """
    return _fresh_network(site, task, header).to(choose_device(site.config.device))


@dataclass(frozen=True)
class OwnNetwork:
    """The network of a training at this site, with the part of it that stays here."""

    net: Network
    staying: tuple[str, ...]
    """Names of the tensors that stay in the rounds."""
    part: PrivatePart

    def load(self, content: RecordDict, *, after_round: int, starts: Starts | None = None) -> AdapterState:
        """Load the received state, and the site's own part of the last round up to ``after_round``.

        Before the first round, nothing received is used: the site starts from what it derives itself. ``starts``, of a
        round of which something leaves, refuses a later start that the policy does not allow.

        Returns all trained tensors as they were received, with those of the training's start where the part stays.

        Raises:
            PayloadError: the state does not fit the network.
            PolicyRefused: before the first round, the state is another one than this site derives; later, no round can
                have reached it, or too few other sites confirmed it.
            PrivatePartLost: the site's own part is missing or damaged.
        """
        whole = exchanged.read(self.net)
        received = read_state(content, like={name: whole[name] for name in whole if name not in self.staying})
        if after_round == 0:
            require_own_start(received, whole)
        if starts is not None:
            starts.require_confirmed(content)
            starts.require_near(received, whole, self.net)
        if after_round == 0:
            received = {}
        start = {name: received.get(name, value) for name, value in whole.items()}
        exchanged.load(self.net, start | self.part.read(whole, after_round=after_round))
        return start


def open_network(site: Site, task: Task, header: Header) -> OwnNetwork:
    """Build the network of a training, before any state is loaded."""
    if (task.fold < 0) != (task.stage == "pretrain"):
        raise PayloadError(
            f"task: got fold {task.fold} in stage {task.stage}, expected a held-out fold in finetune only"
        )
    net = network_of(site, task, header)
    names = () if task.training is None else staying(net, task.training, net.parts)
    return OwnNetwork(net, names, PrivatePart(site.config.folder, task, header, names))


def _fresh_network(site: Site, task: Task, header: Header) -> Network:
    if task.stage == "pretrain":
        return whole_network(task.views, task.model, task.seed)
    base = site.base(header.base)
    if task.training is None:
        return base_network(task.views, task.model, base)
    return fine_tuned_network(task.views, task.model, base, task.training, task.seed)


def which_cell(task: Task) -> dict[str, Any]:
    """Stage, method, fold and round of a task, for the audit log."""
    method = task.method.id if task.method else None
    return {"stage": task.stage, "method": method, "fold": task.fold, "round": task.round}
