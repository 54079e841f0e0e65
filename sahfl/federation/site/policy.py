"""The site's policy applied to requests and to answers. Anything that is not allowed is refused.

``check_request`` checks the settings before any work is done, and ``check_outgoing`` the finished answer before it
leaves. The second trusts neither the first nor the code between them: it computes which tensors a training may send,
reads sums and counts with the server's functions, and refuses every record, name, text or list that is not expected.
Each kind of message has its own checks (``kinds``).
"""

from __future__ import annotations

from collections.abc import Iterator

from flwr.app import RecordDict

from sahfl.config import POOLS, SiteConfig, SitePolicy
from sahfl.errors import PolicyRefused
from sahfl.federation import masked_messages, protocol
from sahfl.federation.site.gain import refuse_loss
from sahfl.federation.site.kinds.table import KINDS, find_kind, unknown_kind
from sahfl.payload import Header
from sahfl.task import Task


def check_request(config: SiteConfig, message_type: str, task: Task, header: Header) -> None:
    """Refuse a request that the policy does not allow.

    Raises:
        PolicyRefused: lists every setting that is not allowed, with its value and the policy's.
        NoGain: the method makes this site lose, and its policy requires a gain.
    """
    problems = [f"policy.{problem}" for problem in _problems(config.policy, message_type, task, header)]
    problems += [] if config.simulated else _only_simulated(task)
    if problems:
        asked = f"site {config.name}: study {header.study[:12]} asks for what the policy does not allow"
        raise PolicyRefused("\n".join([f"{asked}:", *(f"  {problem}" for problem in problems)]))
    if message_type in (protocol.TRAIN, masked_messages.KEYS) and task.evaluation is None:
        refuse_loss(config, task)


def _problems(policy: SitePolicy, message_type: str, task: Task, header: Header) -> Iterator[str]:
    if message_type not in KINDS:
        yield unknown_kind(message_type)
    if policy.studies is not None and header.study not in policy.studies:
        yield f"studies: got {header.study[:64]}, expected one of {len(policy.studies)} listed"
    if message_type in KINDS:
        yield from KINDS[message_type].refuses(policy, task)


def _only_simulated(task: Task) -> Iterator[str]:
    """Report what a study may ask of simulated sites only; no setting of a policy allows it."""
    if task.pretrain_at is not None:
        yield "pretrain_at: got pretraining at one site alone, expected none; no average would hide its network"
    if task.training is not None and task.training.left_out is not None:
        yield "method.left_out: got a training without one site, expected none; its difference is one site's update"
    if task.training is not None and task.training.most_patients is not None:
        yield "method.most_patients: got a training on few patients, expected all; two such differ by single patients"
    if task.training is not None and task.training.trained_at in POOLS:
        yield f"method.trained_at: got {task.training.trained_at}, expected a site; no hospital has all patients"
    if task.inner:
        yield "method.inner: got a trial of a learning rate, expected none; each trial is one more update that leaves"


def check_outgoing(config: SiteConfig, message_type: str, task: Task, header: Header, answer: RecordDict) -> None:
    """Refuse an answer with any content that its kind of message does not allow.

    Raises:
        PolicyRefused: names the first content that must not leave; nothing of the answer leaves.
    """
    if problem := next(_leaks(config.policy, message_type, task, header, answer), None):
        raise PolicyRefused(f"site {config.name}: the answer to {message_type[:40]!r} is kept back: {problem}")


def _leaks(policy: SitePolicy, message_type: str, task: Task, header: Header, answer: RecordDict) -> Iterator[str]:
    kind = find_kind(message_type)
    if set(answer) != kind.records:
        yield f"got records {sorted(answer)}, expected {sorted(kind.records)}"
    if "header" in kind.records and protocol.read_header(answer) != header.as_dict():
        yield "the header is not that of the request"
    yield from kind.leaks(policy, task, answer)
    if (n_bytes := protocol.n_bytes(answer)) > policy.most_bytes:
        yield f"got {n_bytes} bytes, expected at most {policy.most_bytes} (policy.most_bytes)"
