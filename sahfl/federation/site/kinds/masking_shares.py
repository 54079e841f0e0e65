"""Step 2 of a masked round: the site checks the list of all sites' keys, and sends each site a share of its two seeds.

Only the receiver can read its share. With enough shares a site that drops out can be taken out of the sum, or its self
mask be removed, never both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flwr.app import RecordDict

from sahfl.config import SiteConfig, SitePolicy
from sahfl.errors import PayloadError
from sahfl.federation import masked_messages
from sahfl.federation.requests import Requests
from sahfl.federation.site.kinds.kind import Kind, Planned
from sahfl.federation.site.kinds.masked_step import masked_round, plan_step, refuses_step, scans_of
from sahfl.federation.site.kinds.received import which_cell
from sahfl.federation.site.masked_once import require_same_sites
from sahfl.federation.site.site import Site
from sahfl.federation.tensors import config_record
from sahfl.task import Task

WHAT = "encrypted shares of the seeds of this site's masks, one for each other site of a masked round"


def give_shares(site: Site, content: RecordDict) -> RecordDict:
    """Answer with the shares, under one list of sites only."""
    here, task, header = masked_round(site, content)
    listed = masked_messages.read_listed(content)
    with here.step() as party:
        shares = party.share(listed, here.verify)
        sites = {one.advert.site for one in listed}
        here.require_patients(sites)
        if task.evaluation is not None:  # the work would be for nothing: the sites that stay are among these
            require_same_sites(site.config, here.context, sites=sites, scans=scans_of(site, task))
        return masked_messages.shares_reply(header, shares)


def _refuses(policy: SitePolicy, task: Task) -> Iterator[str]:
    yield from refuses_step(policy, task)


def _leaks(policy: SitePolicy, task: Task, answer: RecordDict) -> Iterator[str]:
    try:
        masked_messages.read_shares_reply(answer, None)
    except PayloadError as error:
        yield str(error)


def _audit(task: Task, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    receivers = config_record(answer, "shares").get("receivers")
    return WHAT, which_cell(task) | {"sites": receivers}


def _plan(config: SiteConfig, requests: Requests | None) -> Iterator[Planned]:
    yield from plan_step(config, requests, "masking_shares", WHAT)


MASKING_SHARES = Kind(
    type=masked_messages.SHARES,
    records=frozenset({"header", "shares"}),
    asked="shares of the seeds of this site's masks",
    doing="sharing seeds",
    answer=give_shares,
    refuses=_refuses,
    leaks=_leaks,
    audit=_audit,
    needs_base=True,
    once=False,
    plan=_plan,
)
