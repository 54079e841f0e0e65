"""The request to confirm the start of a round: the site signs its hash, and signs no other start of this round.

Only a site that trained in an earlier round signs, so that a server needs a training at several sites for one start.
Other sites train only from a start that some sites confirmed (``policy.confirmations``). A site signs what it is shown:
it sees the hash, and trains from no other start in this round.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flwr.app import RecordDict

from sahfl.config import SiteConfig, SitePolicy
from sahfl.errors import PayloadError, PolicyRefused, TrustError
from sahfl.federation import confirmations, protocol
from sahfl.federation.requests import Requests, question
from sahfl.federation.site.answered import Answered, Confirmed
from sahfl.federation.site.kinds.kind import Kind, Planned
from sahfl.federation.site.kinds.received import task_and_header, which_cell
from sahfl.federation.site.site import Site
from sahfl.task import Task
from sahfl.trust.attestation import attest


def confirm_start(site: Site, content: RecordDict) -> RecordDict:
    """Note the hash of a round's start, and answer with this site's signature on it."""
    _, header = task_and_header(content)
    start = confirmations.read_asked(content)
    if site.config.kit is None:
        raise TrustError(f"site {site.config.name}: has no kit, so it cannot sign the start of a round")
    if not Answered(site.config, header.study).took_part(header):
        found = f"has not trained {header.method}, fold {header.fold}, in an earlier round"
        raise PolicyRefused(f"site {site.config.name}: {found}, so it confirms no start of it")
    Confirmed(site.config, header.study).confirm(header, start)
    return confirmations.reply(header, attest(site.config.kit, confirmations.document(header, start)))


def _refuses(policy: SitePolicy, task: Task) -> Iterator[str]:
    yield from ()  # it says nothing of a patient; the list of allowed studies is checked for every kind


def _leaks(policy: SitePolicy, task: Task, answer: RecordDict) -> Iterator[str]:
    try:
        confirmations.read_reply(answer)
    except PayloadError as error:
        yield str(error)


def _audit(task: Task, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    return "this site's signature on the hash of a round's start", which_cell(task)


def _plan(config: SiteConfig, requests: Requests | None) -> Iterator[Planned]:
    trains = requests is None or any(task.rounds > 1 for task in requests.trainings(config.name))
    if config.policy.confirmations and trains:
        lines = [
            "each round of each training at several sites, from the second on (confirm_start):",
            "  leaves: this site's certificate and its signature on the hash of the round's start",
        ]
        yield Planned("confirm_start", (question(requests),), lines)


CONFIRM_START = Kind(
    type=protocol.CONFIRM_START,
    records=frozenset({"header", "confirmation"}),
    asked="a signature on the start of a round",
    doing="confirming a start",
    answer=confirm_start,
    refuses=_refuses,
    leaks=_leaks,
    audit=_audit,
    needs_base=True,
    once=False,
    plan=_plan,
)
