"""A kind of message that asks how many usable scans a site has, for the test that adds a kind to sahfl."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from sahfl.config import SiteConfig, SitePolicy
from sahfl.federation import protocol
from sahfl.federation.requests import Requests, question
from sahfl.federation.site.kinds.kind import Kind, Planned
from sahfl.federation.site.site import Site
from sahfl.federation.tensors import config_record
from sahfl.task import Task


def count_scans(site: Site, content: RecordDict) -> RecordDict:
    """Answer with the number of usable scans."""
    _, header = protocol.read_request(content)
    count = ConfigRecord({"n": len(site.cases())})
    return RecordDict({"header": ConfigRecord(header.as_dict()), "count": count})


def _refuses(policy: SitePolicy, task: Task) -> Iterator[str]:
    if not policy.evaluation:
        yield "evaluation: got a request to count scans, expected none"


def _leaks(policy: SitePolicy, task: Task, answer: RecordDict) -> Iterator[str]:
    record = config_record(answer, "count")
    n = record.get("n")
    if set(record) != {"n"} or type(n) is not int:
        yield "got something else than one number"
    elif 0 < n < policy.smallest_group:
        yield f"got a count of {n} scans, expected {policy.smallest_group} (policy.smallest_group)"


def _audit(task: Task, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    return "the number of usable scans", {"n": config_record(answer, "count")["n"]}


def _plan(config: SiteConfig, requests: Requests | None) -> Iterator[Planned]:
    yield Planned("count of scans", (question(requests),), ["once (toy):", "  leaves: the number of usable scans"])


TOY = Kind(
    type="query.toy",
    records=frozenset({"header", "count"}),
    asked="the number of usable scans",
    doing="counting scans",
    answer=count_scans,
    refuses=_refuses,
    leaks=_leaks,
    audit=_audit,
    needs_base=False,
    once=False,
    plan=_plan,
)
