"""The request to describe a site's data: the site prepares and checks them, and answers with counts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from flwr.app import RecordDict

from sahfl.config import SiteConfig, SitePolicy
from sahfl.data.rules import BY_ID
from sahfl.events import SiteStep, emit
from sahfl.federation import protocol
from sahfl.federation.requests import Requests, question
from sahfl.federation.site.kinds.kind import Kind, Planned
from sahfl.federation.site.site import Site
from sahfl.federation.tensors import config_record
from sahfl.log_lines import LogLine
from sahfl.run.software import LIBRARIES, software_hash
from sahfl.task import SiteDescription, Task

log = logging.getLogger(__name__)


def describe(site: Site, content: RecordDict) -> RecordDict:
    """Prepare and check the data, and answer with counts."""
    task = protocol.read_task(content)
    site.prepare(lambda done, total: emit(SiteStep(site.config.name, protocol.DESCRIBE, done, total)))
    description = coarse(site.describe(n_folds=task.folds, seed=task.seed), site.config.policy, task)
    log.info(LogLine("described", **{name: str(value) for name, value in description.model_dump().items()}))
    return protocol.description_reply(description)


def coarse(description: SiteDescription, policy: SitePolicy, task: Task) -> SiteDescription:
    """Remove the values of a description that describe fewer patients than the policy's smallest group.

    This concerns the mL of blood and the number of cases that break a rule (a contrast agent, for example). Numbers of
    patients stay exact, because every result needs them and they are no property of a single patient. In a study with
    masks, and at a site that demands them, both are left out whole.
    """
    if task.masking is not None or not policy.unmasked:
        return description.model_copy(update={"volume_ml": None, "findings": {}})
    few = 0 < sum(description.fold_positive) < policy.smallest_group
    findings = {
        rule: None if n is not None and 0 < n < policy.smallest_group else n for rule, n in description.findings.items()
    }
    volume_ml = None if few else description.volume_ml
    return description.model_copy(update={"volume_ml": volume_ml, "findings": findings})


def _refuses(policy: SitePolicy, task: Task) -> Iterator[str]:
    yield from ()


def _leaks(policy: SitePolicy, task: Task, answer: RecordDict) -> Iterator[str]:
    if set(config_record(answer, "description")) != {"json"}:
        yield "got other values than the description's text"
    description = protocol.read_description(answer)
    if description != coarse(description, policy, task):
        yield f"got values over fewer than {policy.smallest_group} patients or cases (policy.smallest_group)"
    if unknown := sorted(set(description.findings) - set(BY_ID)):
        yield f"got {len(unknown)} finding(s) of no rule of the data checks"
    if description.software != software_hash():
        yield "got something else than the hash of this site's software"


def _audit(task: Task, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    return "counts of patients, scans and findings of the data check, and a hash of the software", {}


def _plan(config: SiteConfig, requests: Requests | None) -> Iterator[Planned]:
    if requests is None or config.name in requests.study.sites:
        task = question(requests)
        yield Planned("describe", (task,), _lines(config.policy, masked=task.masking is not None))


def _lines(policy: SitePolicy, *, masked: bool) -> Iterator[str]:
    few = f"fewer than {policy.smallest_group}"
    yield "once, when a study begins (describe):"
    yield "  leaves: the site's name; kind of its files; numbers of usable scans, of patients, of scans with blood,"
    yield "    of patients and of patients with blood per fold, and of cases that cannot be used;"
    if not masked and policy.unmasked:
        yield f"    cases per broken rule of the data check ('some' if {few});"
        yield f"    mL of blood in all, unless {few} patients bleed;"
    yield "    one salted hash that changes when the data do; one hash of the software that computes here:"
    yield f"    sahfl's code and the versions of {', '.join(LIBRARIES)}; one hash of the secret that draws its batches"


DESCRIBE = Kind(
    type=protocol.DESCRIBE,
    records=frozenset({"description"}),
    asked="a description of the data",
    doing="preparing data",
    answer=describe,
    refuses=_refuses,
    leaks=_leaks,
    audit=_audit,
    needs_base=False,
    once=False,
    plan=_plan,
)
