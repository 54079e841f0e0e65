"""Step 1 of a masked round: the site makes two keys for this round alone, and signs them with that of its certificate.

What it signs names the round, the attempt, the start, all settings of the task and the volumes of every site (in an
evaluation, the patients that each holds out), so that masks cancel only between sites that were told the same.
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
from sahfl.federation.site.kinds.masked_step import evaluated, masked_round, plan_step, refuses_step
from sahfl.federation.site.kinds.received import which_cell
from sahfl.federation.site.site import Site
from sahfl.masking.site_list import SignedAdvert
from sahfl.task import Task

WHAT = "two public keys for a masked round, and this site's signature on them with its certificate"


def give_keys(site: Site, content: RecordDict) -> RecordDict:
    """Begin the sum, if what its terms have of this site is right, and answer with the signed keys."""
    here, task, header = masked_round(site, content)
    if task.evaluation is None:
        here.require_own(len(site.cases()), "volumes")
    else:
        here.require_own(len({item.case.patient for item in evaluated(site, task)}), "held-out patients")
    with here.step(first=True) as party:
        advert = party.advertise()
        return masked_messages.keys_reply(header, SignedAdvert(advert, here.sign(advert.document(here.context))))


def _refuses(policy: SitePolicy, task: Task) -> Iterator[str]:
    yield from refuses_step(policy, task)


def _leaks(policy: SitePolicy, task: Task, answer: RecordDict) -> Iterator[str]:
    try:
        masked_messages.read_keys_reply(answer, None, "")
    except PayloadError as error:
        yield str(error)


def _audit(task: Task, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    return WHAT, which_cell(task)


def _plan(config: SiteConfig, requests: Requests | None) -> Iterator[Planned]:
    yield from plan_step(config, requests, "masking_keys", WHAT)


MASKING_KEYS = Kind(
    type=masked_messages.KEYS,
    records=frozenset({"header", "keys"}),
    asked="keys for a masked round",
    doing="making keys",
    answer=give_keys,
    refuses=_refuses,
    leaks=_leaks,
    audit=_audit,
    needs_base=True,
    once=False,
    plan=_plan,
)
