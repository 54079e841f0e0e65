"""What four kinds of messages of a masked sum have in common, beside the work (``train``, ``evaluate_masked``)."""

from __future__ import annotations

from collections.abc import Iterator

from flwr.app import RecordDict

from sahfl.config import SiteConfig, SitePolicy
from sahfl.data.checks import CheckedCase
from sahfl.federation.requests import Requests
from sahfl.federation.site.answered import Trainings
from sahfl.federation.site.kinds.evaluate_masked import EVALUATE_MASKED
from sahfl.federation.site.kinds.kind import Planned
from sahfl.federation.site.kinds.received import task_and_header
from sahfl.federation.site.kinds.train import TRAIN
from sahfl.federation.site.masked import MaskedRound
from sahfl.federation.site.site import Site
from sahfl.payload import Header
from sahfl.task import Task


def masked_round(site: Site, content: RecordDict) -> tuple[MaskedRound, Task, Header]:
    """The sum that a step belongs to; a training that goes on with other settings is refused, as by ``train``."""
    task, header = task_and_header(content)
    if task.evaluation is None:
        Trainings(site.config, header.study).require_same(header, task)
    return MaskedRound(site.config, task, header, content), task, header


def evaluated(site: Site, task: Task) -> tuple[CheckedCase, ...]:
    """The cases that an evaluation is about, without a look at their files."""
    return site.cases_of_fold(fold=task.evaluated_fold, n_folds=task.folds, seed=task.seed)


def scans_of(site: Site, task: Task) -> set[str]:
    """Hash of the voxels of each scan that an evaluation is about; a new annotation makes no new scan."""
    return {item.voxels or item.content for item in evaluated(site, task)}


def refuses_step(policy: SitePolicy, task: Task) -> Iterator[str]:
    """What the work is refused for, so that a site takes part in the steps of a sum only if it will do the work."""
    yield from (TRAIN if task.evaluation is None else EVALUATE_MASKED).refuses(policy, task)


def plan_step(config: SiteConfig, requests: Requests | None, name: str, leaves: str) -> Iterator[Planned]:
    """The step of each masked sum of a study, in one line for all of them; nothing without a study."""
    asked = (*requests.trainings(config.name), *requests.evaluations(config.name)) if requests else ()
    if tasks := tuple(task for task in asked if task.masking and not task.sums_stay):
        yield Planned(name, tasks, [f"each masked round, and each evaluation ({name}):", f"  leaves: {leaves}"])
