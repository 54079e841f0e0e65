"""An evaluation, in a study with masks, of what the site trained alone: its results stay, as no sum would hide them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flwr.app import RecordDict

from sahfl.config import SiteConfig, SitePolicy
from sahfl.errors import PayloadError
from sahfl.federation import protocol
from sahfl.federation.requests import Requests
from sahfl.federation.site.kinds.evaluate import evaluated_cases, named, refuses_evaluation, what_of
from sahfl.federation.site.kinds.kind import Kind, Planned
from sahfl.federation.site.kinds.received import task_and_header, which_cell
from sahfl.federation.site.site import Site
from sahfl.task import Task


def evaluate_own(site: Site, content: RecordDict) -> RecordDict:
    """Segment and score the held-out cases, keep the results, and answer that it was done."""
    task, header = task_and_header(content)
    if not task.sums_stay:
        raise PayloadError("task: expected an evaluation of what this site trained alone, in a study with masks")
    evaluated_cases(site, content, protocol.EVALUATE_OWN)
    return protocol.stays_reply(header)


def _leaks(policy: SitePolicy, task: Task, answer: RecordDict) -> Iterator[str]:
    yield from ()  # a header and nothing else, as ``records`` has it


def _audit(task: Task, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    return f"that {what_of(task)}, was evaluated; the results stay here", which_cell(task)


def _plan(config: SiteConfig, requests: Requests | None) -> Iterator[Planned]:
    if tasks := tuple(task for task in (requests.evaluations(config.name) if requests else ()) if task.sums_stay):
        lines = [f"evaluation{named(tasks)}, each fold:", "  leaves: that it was done; the results stay here"]
        yield Planned("evaluation of what this site trained alone", tasks, lines)


EVALUATE_OWN = Kind(
    type=protocol.EVALUATE_OWN,
    records=frozenset({"header"}),
    asked="an evaluation of what this site trained alone",
    doing="evaluating",
    answer=evaluate_own,
    refuses=refuses_evaluation,
    leaks=_leaks,
    audit=_audit,
    needs_base=True,
    once=False,
    plan=_plan,
)
