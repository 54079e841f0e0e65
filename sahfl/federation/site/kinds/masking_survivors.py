"""Step 4 of a masked round: the site signs whose vectors are in the sum, once.

Nobody reveals anything before enough sites signed the same names, so that the server cannot show each site another sum.
All sums of evaluations that a held-out scan is in must be over the same sites.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flwr.app import RecordDict

from sahfl.config import SiteConfig, SitePolicy
from sahfl.errors import PayloadError
from sahfl.federation import masked_messages
from sahfl.federation.masked_terms import purpose_of
from sahfl.federation.requests import Requests
from sahfl.federation.site.kinds.kind import Kind, Planned
from sahfl.federation.site.kinds.masked_step import masked_round, plan_step, refuses_step, scans_of
from sahfl.federation.site.kinds.received import which_cell
from sahfl.federation.site.masked_once import note_summed
from sahfl.federation.site.site import Site
from sahfl.task import Task

WHAT = "this site's signature on the names of the sites whose masked vectors are in a sum"


def sign_survivors(site: Site, content: RecordDict) -> RecordDict:
    """Answer with the signature, on one set of names only."""
    here, task, header = masked_round(site, content)
    survivors = masked_messages.read_survivors(content)
    with here.step() as party:
        document = party.confirm(survivors)
        here.require_patients(survivors)
        if task.evaluation is not None:
            note_summed(site.config, here.context, header, sites=survivors, scans=scans_of(site, task))
        return masked_messages.survivors_reply(header, here.sign(document))


def _refuses(policy: SitePolicy, task: Task) -> Iterator[str]:
    yield from refuses_step(policy, task)


def _leaks(policy: SitePolicy, task: Task, answer: RecordDict) -> Iterator[str]:
    try:
        masked_messages.read_survivors_reply(answer, None)
    except PayloadError as error:
        yield str(error)


def _audit(task: Task, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    return WHAT, which_cell(task) | {"sum": purpose_of(task)}


def _plan(config: SiteConfig, requests: Requests | None) -> Iterator[Planned]:
    yield from plan_step(config, requests, "masking_survivors", WHAT)


MASKING_SURVIVORS = Kind(
    type=masked_messages.SURVIVORS,
    records=frozenset({"header", "survivors"}),
    asked="a signature on the sites of a masked sum",
    doing="confirming a sum",
    answer=sign_survivors,
    refuses=_refuses,
    leaks=_leaks,
    audit=_audit,
    needs_base=True,
    once=False,
    plan=_plan,
)
