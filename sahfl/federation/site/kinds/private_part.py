"""The question whether a site still has the network of an earlier training; if so, it counts for this training too.

A study takes the results of a finished cell from an earlier run. What stayed at the sites must then still be there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from flwr.app import RecordDict

from sahfl.config import SiteConfig, SitePolicy
from sahfl.errors import PayloadError
from sahfl.federation import protocol
from sahfl.federation.requests import Requests
from sahfl.federation.site.kinds.kind import Kind, Planned
from sahfl.federation.site.kinds.limits import outside_stages
from sahfl.federation.site.kinds.received import task_and_header
from sahfl.federation.site.private import PrivatePart
from sahfl.federation.site.site import Site
from sahfl.federation.tensors import config_record
from sahfl.task import Task


def private_part(site: Site, content: RecordDict) -> RecordDict:
    """Answer with the mark of the stored network of this training, or of the earlier one that the request names."""
    task, header = task_and_header(content)
    earlier, mark = protocol.read_earlier(content)
    part = PrivatePart(site.config.folder, task, header, ())
    if earlier:
        part.adopt(replace(header, study=earlier), mark)
    return protocol.private_part_reply(header, part.mark())


def _leaks(policy: SitePolicy, task: Task, answer: RecordDict) -> Iterator[str]:
    try:
        protocol.read_private_part(answer, header=None)
    except PayloadError as error:
        yield str(error)


def _audit(task: Task, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    return "16 hex digits of a hash of a network that stays here", {
        "there": bool(config_record(answer, "mark")["mark"])
    }


def _plan(config: SiteConfig, requests: Requests | None) -> Iterator[Planned]:
    if requests is not None and (tasks := tuple(requests.private_parts(config.name))):
        lines = [
            "once a fold of each method of which a part stays here (private_part):",
            "  leaves: 16 hex digits, a hash of the network that this site keeps",
        ]
        yield Planned("private_part", tasks, lines)


PRIVATE_PART = Kind(
    type=protocol.PRIVATE_PART,
    records=frozenset({"header", "mark"}),
    asked="the mark of a network that stays here",
    doing="looking for a network",
    answer=private_part,
    refuses=outside_stages,
    leaks=_leaks,
    audit=_audit,
    needs_base=True,
    once=False,
    plan=_plan,
)
