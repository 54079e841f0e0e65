"""The dry run: a text that lists what would leave a site under its policy in a study. Nothing is received or sent.

Every kind of message lists its tasks, which are those that the server sends (``requests``). The tensors are counted on
the networks that a training builds, and the bytes on messages with these tensors.
"""

from __future__ import annotations

from collections.abc import Iterator

from sahfl.config import SiteConfig, SitePolicy, Study
from sahfl.errors import PolicyRefused
from sahfl.federation.requests import Requests
from sahfl.federation.site.kinds.kind import Planned
from sahfl.federation.site.kinds.table import KINDS
from sahfl.federation.site.ledger import Ledger
from sahfl.federation.site.policy import check_request
from sahfl.payload import Header
from sahfl.task import Task


def dry_run(config: SiteConfig, study: Study | None = None) -> str:
    """List every message that could leave, one paragraph for each kind: with a study, exactly those of the study.

    Without a study, methods have their default settings, and the network has its default size.
    """
    policy, lines = config.policy, [f"What leaves site {config.name} under its policy"]
    requests = Requests(study, study.fingerprint()) if study else None
    if requests is None:
        lines += ["No study is given: sizes are those of each method's defaults on the smallest network."]
    else:
        lines += [
            f"Study {requests.study.name}, fingerprint {requests.fingerprint}",
            _role(config.name, requests.study),
            _uses(config, requests),
        ]
    if policy.require_signature and config.kit is None:
        lines += [
            "As it is, nothing leaves: signatures are required, and no kit names the signer (kit in the site file)."
        ]
    lines += [""]
    for message_type, kind in KINDS.items():
        found = [
            line for planned in kind.plan(config, requests) for line in _lines(config, message_type, planned, requests)
        ]
        lines += [*found, ""] if found else []
    return "\n".join([*lines, *_always(policy)])


def policy_lines(policy: SitePolicy) -> list[str]:
    """Every setting of a policy with its value."""
    return list(_setting_lines("policy", policy.model_dump(mode="json")))


def _setting_lines(name: str, value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _setting_lines(f"{name}.{key}", part)
    else:
        yield f"{name}: {_value(value)}"


def _value(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if value is None or isinstance(value, bool):
        return "any" if value is None else "yes" if value else "no"
    return f"{value:,}"


def _role(site: str, study: Study) -> str:
    pretraining = study.pretrain.sites if study.pretrain else ()
    roles = {"pretraining": pretraining, "fine-tuning and evaluation": study.finetune.sites}
    role = [name for name, sites in roles.items() if site in sites]
    return f"The study asks this site for {' and '.join(role) or 'nothing: it is not among its sites'}."


def _uses(config: SiteConfig, requests: Requests) -> str:
    """How often a study uses a scan that is held out in one fold, and what is left of the budgets."""
    folds, left = requests.study.finetune.folds, Ledger(config).left()
    trained = [task.rounds * (1 if task.stage == "pretrain" else folds - 1) for task in requests.trainings(config.name)]
    rounds = sum(trained) + (folds - 1) * len(list(requests.local_phases(config.name)))
    evaluations = len(requests.evaluations(config.name))
    return (
        f"It uses each scan in {rounds:,} rounds and {evaluations:,} evaluations at most; left to the scan used most: "
        f"{left['rounds']:,} and {left['evaluations']:,}."
    )


def _lines(config: SiteConfig, message_type: str, planned: Planned, requests: Requests | None) -> Iterator[str]:
    study = requests.fingerprint if requests else (config.policy.studies or ("",))[0]
    problems = [line for task in planned.tasks for line in _refusal(config, message_type, task, study)]
    if problems:
        yield f"{planned.name}: refused, nothing leaves"
        yield from (f"  {line}" for line in dict.fromkeys(problems))
    else:
        yield from planned.lines


def _refusal(config: SiteConfig, message_type: str, task: Task, study: str) -> list[str]:
    """The reasons for which the policy would refuse a request; empty if the request is allowed."""
    header = Header(study, stage=task.stage, method=task.cell, fold=task.fold, round=task.round, base="")
    try:
        check_request(config, message_type, task, header)
    except PolicyRefused as error:
        return [line.strip() for line in str(error).splitlines()[1:]]
    return []


def _always(policy: SitePolicy) -> Iterator[str]:
    yield "with every answer: its header, as the server sent it: study, stage, method, fold, round, base, versions"
    yield "on an error: the name of its class; the text stays in the site's log"
    yield f"no message above {policy.most_bytes:,} bytes leaves; each is in the site's audit log before it does"
    yield "never: scans, annotations, predictions, results per case, names or ids of patients, names of files"
