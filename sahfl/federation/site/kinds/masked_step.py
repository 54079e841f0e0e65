"""What the four kinds of messages of a masked round have in common, beside the training itself (``train``)."""

from __future__ import annotations

from collections.abc import Iterator

from flwr.app import RecordDict

from sahfl.config import SiteConfig, SitePolicy
from sahfl.federation.requests import Requests
from sahfl.federation.site.answered import Trainings
from sahfl.federation.site.kinds.kind import Planned
from sahfl.federation.site.kinds.received import task_and_header
from sahfl.federation.site.kinds.train import TRAIN
from sahfl.federation.site.masked import MaskedRound
from sahfl.federation.site.site import Site
from sahfl.payload import Header
from sahfl.task import Task


def masked_round(site: Site, content: RecordDict) -> tuple[MaskedRound, Task, Header]:
    """The round that a step belongs to; a training that goes on with other settings is refused, as by ``train``."""
    task, header = task_and_header(content)
    Trainings(site.config, header.study).require_same(header, task)
    return MaskedRound(site.config, task, header, content), task, header


def refuses_step(policy: SitePolicy, task: Task) -> Iterator[str]:
    """What ``train`` refuses, so that a site takes part in the steps of a round only if it will train in it."""
    yield from TRAIN.refuses(policy, task)


def plan_step(config: SiteConfig, requests: Requests | None, name: str, leaves: str) -> Iterator[Planned]:
    """The step of each masked training of a study, in one line for all of them; nothing without a study."""
    tasks = tuple(task for task in requests.trainings(config.name) if task.masking) if requests else ()
    if tasks:
        yield Planned(name, tasks, [f"each masked round of each training ({name}):", f"  leaves: {leaves}"])
