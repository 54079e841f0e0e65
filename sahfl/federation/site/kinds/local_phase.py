"""The last phase of a training at the site by itself: all that the method trains goes on training, and stays here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from flwr.app import MetricRecord, RecordDict

from sahfl.adapters import exchanged
from sahfl.config import SiteConfig, SitePolicy
from sahfl.errors import PayloadError
from sahfl.federation import protocol
from sahfl.federation.requests import Requests
from sahfl.federation.site.kinds.kind import Kind, Planned
from sahfl.federation.site.kinds.limits import above, below, bounds_of, steps_of_each_network
from sahfl.federation.site.kinds.local_training import (
    batch_seed,
    require_patients,
    reserve,
    train_locally,
    training_cases,
)
from sahfl.federation.site.kinds.received import open_network, task_and_header, which_cell
from sahfl.federation.site.kinds.train import TRAIN, metric_leaks, metrics_of
from sahfl.federation.site.site import Site
from sahfl.federation.tensors import hash_of_tensors
from sahfl.task import Task


def local_phase(site: Site, content: RecordDict) -> RecordDict:
    """Train the received state with the site's own part for some more steps, and keep the whole result here."""
    began = time.monotonic()
    task, header = task_and_header(content)
    if task.local is None or task.training is None or task.round != task.rounds + 1 or not task.training.local_steps:
        raise PayloadError(f"task: got round {task.round} of {task.rounds}, expected the phase after the last round")
    cases = training_cases(site, task)
    require_patients(site, task, cases)
    own = open_network(site, task, header)
    own.load(content, after_round=task.rounds)
    reserve(site, "round", protocol.LOCAL_PHASE, content, header, cases)
    drawn = batch_seed(site, task, header, hash_of_tensors(content))
    loss, n_volumes = train_locally(site, task, header, own, cases, drawn=drawn)
    own.part.keep(exchanged.read(own.net), n_volumes=n_volumes)
    told, seconds = loss if "loss" in metrics_of(site.config.policy, task) else None, time.monotonic() - began
    return protocol.local_phase_reply(header, n_volumes=n_volumes, loss=told, seconds=seconds)


def _refuses(policy: SitePolicy, task: Task) -> Iterator[str]:
    steps = task.training.local_steps if task.training else 0
    yield from TRAIN.refuses(policy, task.model_copy(update={"round": task.rounds}))
    yield from above(policy, "most_steps", steps)
    yield from below(bounds_of(policy, task).steps, steps_of_each_network(task, steps))


def _leaks(policy: SitePolicy, task: Task, answer: RecordDict) -> Iterator[str]:
    yield from metric_leaks(policy, task, answer.metric_records.get("metrics", MetricRecord()))


def _audit(task: Task, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    metrics = sorted(answer.metric_records["metrics"])
    loss = ", the mean loss" if "loss" in metrics else ""
    what = f"the number of scans{loss} and the seconds of the last phase at this site, and no tensor"
    return what, which_cell(task) | {"metrics": metrics}


def _plan(config: SiteConfig, requests: Requests | None) -> Iterator[Planned]:
    for task in requests.local_phases(config.name) if requests else ():
        assert task.training is not None
        loss = ", loss (mean of the phase)" if "loss" in metrics_of(config.policy, task) else ""
        lines = [
            f"the last phase of {task.training.id} at this site, each fold ({task.training.local_steps} steps):",
            f"  leaves: metrics n_volumes (scans trained on){loss}, seconds",
            "  stays: all that the method trains",
        ]
        yield Planned(f"the last phase of {task.training.id}", (task,), lines)


LOCAL_PHASE = Kind(
    type=protocol.LOCAL_PHASE,
    records=frozenset({"header", "metrics"}),
    asked="a last phase of training at this site",
    doing="training",
    answer=local_phase,
    refuses=_refuses,
    leaks=_leaks,
    audit=_audit,
    needs_base=True,
    once=True,
    plan=_plan,
)
