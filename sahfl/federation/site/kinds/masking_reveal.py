"""Step 5 of a masked round: of each site, the site reveals one share, of its self mask or of its key, never both.

It does so only for names that enough of the sites in the sum signed (``masking_survivors``). With the shares of enough
sites, the masks of the sum can be removed, and those of no single vector.
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
from sahfl.federation.site.kinds.masked_step import masked_round, plan_step, refuses_step
from sahfl.federation.site.kinds.received import which_cell
from sahfl.federation.site.site import Site
from sahfl.federation.tensors import config_record
from sahfl.task import Task

WHAT = "one share of each site's masks, so that the sum of a masked round can be read"


def reveal(site: Site, content: RecordDict) -> RecordDict:
    """Answer with the shares, if enough sites signed the same names."""
    here, _, header = masked_round(site, content)
    survivors, signed = masked_messages.read_survivors(content), masked_messages.read_confirmations(content)
    with here.step() as party:
        shares = party.reveal(survivors, signed, here.verify)
        here.require_signers(party, survivors, signed)
        return masked_messages.reveal_reply(header, shares)


def _refuses(policy: SitePolicy, task: Task) -> Iterator[str]:
    yield from refuses_step(policy, task)


def _leaks(policy: SitePolicy, task: Task, answer: RecordDict) -> Iterator[str]:
    try:
        masked_messages.read_reveal_reply(answer, None)
    except PayloadError as error:
        yield str(error)


def _audit(task: Task, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    return WHAT, which_cell(task) | {"sites": config_record(answer, "revealed").get("sites")}


def _plan(config: SiteConfig, requests: Requests | None) -> Iterator[Planned]:
    yield from plan_step(config, requests, "masking_reveal", WHAT)


MASKING_REVEAL = Kind(
    type=masked_messages.REVEAL,
    records=frozenset({"header", "revealed"}),
    asked="shares to open a masked sum",
    doing="opening a sum",
    answer=reveal,
    refuses=_refuses,
    leaks=_leaks,
    audit=_audit,
    needs_base=True,
    once=False,
    plan=_plan,
)
