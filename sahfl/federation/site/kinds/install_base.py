"""The request to store the base network, which later tasks name by its hash; the answer is a receipt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from sahfl.adapters import exchanged
from sahfl.config import SiteConfig, SitePolicy
from sahfl.federation import protocol
from sahfl.federation.requests import Requests, question
from sahfl.federation.site.kinds.kind import Kind, Planned
from sahfl.federation.site.kinds.limits import outside_stages
from sahfl.federation.site.site import Site
from sahfl.federation.tensors import read_state
from sahfl.networks import whole_network
from sahfl.task import Task


def install_base(site: Site, content: RecordDict) -> RecordDict:
    """Store the base network, which later tasks name by its hash."""
    task, header = protocol.read_request(content)
    like = exchanged.read(whole_network(task.views, task.model, task.seed))
    site.install_base(read_state(content, like=like), header.base)
    return RecordDict({"header": ConfigRecord(header.as_dict())})


def _leaks(policy: SitePolicy, task: Task, answer: RecordDict) -> Iterator[str]:
    yield from ()  # the answer is only the header, which every answer is checked for


def _audit(task: Task, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    return "nothing but that the base network arrived", {}


def _plan(config: SiteConfig, requests: Requests | None) -> Iterator[Planned]:
    if requests is None or config.name in requests.study.finetune.sites:
        lines = ["once (install_base): the base network comes in; leaves: nothing but a receipt"]
        yield Planned("install_base", (question(requests),), lines)


INSTALL_BASE = Kind(
    type=protocol.INSTALL_BASE,
    records=frozenset({"header"}),
    asked="the storing of a base network",
    doing="storing the base",
    answer=install_base,
    refuses=outside_stages,
    leaks=_leaks,
    audit=_audit,
    needs_base=True,
    once=False,
    plan=_plan,
)
