"""Reading a request for training or evaluation: its task, its header, and the network that they describe."""

from __future__ import annotations

from typing import Any

from flwr.app import RecordDict

from sahfl.config import ZeroShot
from sahfl.errors import PayloadError
from sahfl.federation import protocol
from sahfl.federation.site.device import choose_device
from sahfl.federation.site.site import Site
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
    asked = (task.stage, task.method.id if task.method else "pretrain", task.fold, task.round)
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


def _fresh_network(site: Site, task: Task, header: Header) -> Network:
    if task.stage == "pretrain":
        return whole_network(task.views, task.model, task.seed)
    base = site.base(header.base)
    method = task.own_method
    if method is None or isinstance(method, ZeroShot):
        return base_network(task.views, task.model, base)
    return fine_tuned_network(task.views, task.model, base, method, task.seed)


def which_cell(task: Task) -> dict[str, Any]:
    """Stage, method, fold and round of a task, for the audit log."""
    method = task.method.id if task.method else None
    return {"stage": task.stage, "method": method, "fold": task.fold, "round": task.round}
