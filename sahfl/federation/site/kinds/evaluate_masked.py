"""A masked evaluation: the site masks the sums over its held-out cases, and the server learns the sum over the sites.

It is the third step of a masked sum, as ``train`` is in a round. What is small is withheld in the total of all sites.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from flwr.app import RecordDict

from sahfl.config import SiteConfig, SitePolicy
from sahfl.errors import PayloadError
from sahfl.federation import protocol
from sahfl.federation.masked_vectors import masked_evaluation_reply, read_masked_evaluation_reply
from sahfl.federation.requests import Requests
from sahfl.federation.site.kinds.evaluate import (
    evaluated_cases,
    named,
    refuses_evaluation,
    what_of,
    what_sums_have,
)
from sahfl.federation.site.kinds.kind import Kind, Planned
from sahfl.federation.site.kinds.received import task_and_header, which_cell
from sahfl.federation.site.masked import MaskedRound
from sahfl.federation.site.site import Site
from sahfl.federation.tensors import hash_of_tensors
from sahfl.masking.ring import encode_exact
from sahfl.payload import Header
from sahfl.statistics.consortium import Thresholds, site_part, total_length
from sahfl.task import Task


def evaluate_masked(site: Site, content: RecordDict) -> RecordDict:
    """Segment and score the held-out cases, and answer with masked sums."""
    began = time.monotonic()
    task, header = task_and_header(content)
    if task.evaluation is None or task.sums_stay:
        raise PayloadError("task: expected an evaluation of what several sites trained")
    masked = MaskedRound(site.config, task, header, content)
    masked.require_begun(hash_of_tensors(content))
    cases, policy = evaluated_cases(site, content, protocol.EVALUATE_MASKED), site.config.policy
    part = site_part(cases, task.evaluation, seed=task.seed)
    numbers = encode_exact(part, n_sites=len(masked.terms.volumes))
    least = Thresholds(policy.smallest_group, policy.smallest_bootstrap)
    vector = masked.mask(content, numbers)
    return masked_evaluation_reply(header, vector, thresholds=least, seconds=time.monotonic() - began)


def _leaks(policy: SitePolicy, task: Task, answer: RecordDict) -> Iterator[str]:
    if task.evaluation is None:
        yield "got sums, expected none without settings of an evaluation"
        return
    header, n_numbers = Header(**protocol.read_header(answer)), total_length(task.evaluation)
    try:
        read_masked_evaluation_reply(answer, header=header, n_numbers=n_numbers)
    except PayloadError as error:
        yield str(error)


def _audit(task: Task, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    assert task.evaluation is not None  # _leaks refuses such an answer
    assert task.masking is not None  # evaluate_masked refuses anything else
    what = f"masked, of which the server learns the sum over the sites alone: sums over scans ({what_of(task)})"
    masked = {"threshold": task.masking.threshold, "numbers": total_length(task.evaluation)}
    return what, which_cell(task) | {"masked": masked}


def _plan(config: SiteConfig, requests: Requests | None) -> Iterator[Planned]:
    asked = requests.evaluations(config.name) if requests else ()
    if tasks := tuple(task for task in asked if task.masking and not task.sums_stay):
        yield Planned("masked evaluation", tasks, _lines(tasks[0], named(tasks)))


def _lines(task: Task, which: str) -> Iterator[str]:
    assert task.evaluation is not None
    numbers = total_length(task.evaluation)
    yield f"masked evaluation{which}, each fold:"
    yield f"  leaves: masked, in a sum over the sites: {numbers:,} numbers, {16 * numbers:,} bytes:"
    yield from what_sums_have(task.evaluation)
    yield "    and how many patients these are by stratum and extent"
    yield "  leaves in the clear: policy.smallest_group and policy.smallest_bootstrap, which the total has to meet"


EVALUATE_MASKED = Kind(
    type=protocol.EVALUATE_MASKED,
    records=frozenset({"header", "metrics", "sums"}),
    asked="a masked evaluation",
    doing="evaluating",
    answer=evaluate_masked,
    refuses=refuses_evaluation,
    leaks=_leaks,
    audit=_audit,
    needs_base=True,
    once=False,
    plan=_plan,
)
