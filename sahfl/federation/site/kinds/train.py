"""A round of training: the site trains on its own cases from the state received, and sends the new state."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from flwr.app import MetricRecord, RecordDict

from sahfl.adapters import exchanged
from sahfl.config import AdapterTuning, SiteConfig, SitePolicy, TrainedMethod, WeightTuning, ZeroShot
from sahfl.config.methods import method_at_defaults
from sahfl.data.sampler import SliceSampler
from sahfl.errors import PayloadError
from sahfl.events import SiteStep, emit
from sahfl.federation import protocol
from sahfl.federation.requests import Requests, plain_task
from sahfl.federation.site.declared import declared, tensor_leaks
from sahfl.federation.site.feedback import with_feedback
from sahfl.federation.site.kinds.kind import Kind, Planned
from sahfl.federation.site.kinds.limits import above, outside_stages
from sahfl.federation.site.kinds.received import network_of, task_and_header, which_cell
from sahfl.federation.site.local_norms import keep_own, put_own
from sahfl.federation.site.site import Site
from sahfl.federation.tensors import config_record, read_state
from sahfl.federation.turns import take_turn
from sahfl.networks import staying
from sahfl.payload import Header, payload_size
from sahfl.seeds import derive_seed
from sahfl.task import Task
from sahfl.training import Schedule, train

log = logging.getLogger(__name__)
METRICS = ("n_volumes", "loss", "seconds")


# ------------------------------------------------------------------------------------------------------- the work


def train_round(site: Site, content: RecordDict) -> RecordDict:
    """Load the received state, train it on the site's own cases, and answer with the new state."""
    began = time.monotonic()
    task, header = task_and_header(content)
    if task.local is None or not 1 <= task.round <= task.rounds:
        raise PayloadError(f"task: got round {task.round} of {task.rounds}, expected settings of a training round")
    if (task.fold < 0) != (task.stage == "pretrain"):
        raise PayloadError(
            f"task: got fold {task.fold} in stage {task.stage}, expected a held-out fold in finetune only"
        )
    net = network_of(site, task, header)
    start = read_state(content, like=exchanged.read(net))
    exchanged.load(net, start)
    put_own(net, task, site.config.folder, header, after_round=task.round - 1)
    names = take_turn(net, task.method, task.round)
    cases = site.training_cases(fold=task.fold, n_folds=task.folds, seed=task.seed, turn=task.round)
    sampler = SliceSampler(
        site.load_views(cases, task.views),
        task.views,
        batch_size=task.local.batch_size,
        foreground_share=task.local.foreground_share,
        seed=derive_seed(task.seed, task.stage, _batches_of(task, header), task.fold, task.round, site.config.name),
    )
    local = task.local
    schedule = Schedule(
        task.learning_rate, local.weight_decay, local.steps, task.round, task.rounds, proximal=local.proximal
    )
    loss = train(
        net,
        sampler,
        schedule,
        precision=local.precision,
        on_step=lambda done, total, loss: emit(SiteStep(site.config.name, protocol.TRAIN, done, total, loss)),
    )
    log.info(
        "event=trained stage=%s method=%s fold=%d round=%d n_volumes=%d loss=%.4f",
        *(task.stage, header.method, task.fold, task.round, len(cases), loss),
    )
    trained, at_home = exchanged.read(net), staying(net, task)
    keep_own(site.config.folder, header, {name: trained[name] for name in at_home})
    sent = {name: trained[name] for name in names if name not in at_home}
    if task.payload != "float32":
        change = {name: value - start[name] for name, value in sent.items()}
        sent = with_feedback(site.config.folder, header, change, task.payload)
    seconds = time.monotonic() - began
    return protocol.train_reply(header, sent, n_volumes=len(cases), loss=loss, seconds=seconds, encoding=task.payload)


def _batches_of(task: Task, header: Header) -> str:
    """What the batches of a round depend on beside fold, round and site: the method, or its repeat alone."""
    if task.common_random_numbers and task.method is not None and not isinstance(task.method, ZeroShot):
        return f"repeat {task.method.repeat}"
    return header.method


# ----------------------------------------------------------------------------------------------------- the policy


def _refuses(policy: SitePolicy, task: Task) -> Iterator[str]:
    yield from outside_stages(policy, task)
    if task.common_random_numbers and not policy.common_random_numbers:
        yield "common_random_numbers: got batches that methods share, expected batches of each method's own"
    method = task.own_method
    if task.stage == "finetune" and (method is None or method.method not in policy.methods):
        name = "no method" if method is None else method.method
        yield f"methods: got {name}, expected {', '.join(policy.methods) or 'none, nothing is trained here'}"
        return
    found = [
        *above(policy, "most_rounds", max(task.round, task.rounds)),
        *above(policy, "most_learning_rate", task.learning_rate),
        *above(policy, "most_steps", task.local.steps if task.local else 0),
    ]
    if isinstance(method, AdapterTuning):
        found += above(policy, "most_rank", method.rank)
        if more := [name for name in method.also_train if name not in policy.also_train]:
            found.append(f"also_train: got {', '.join(more)}, expected {', '.join(policy.also_train) or 'none'}")
    yield from found
    if not found:  # these checks build the network, which a refused setting could make huge
        yield from _tensor_problems(policy, task)


def _tensor_problems(policy: SitePolicy, task: Task) -> Iterator[str]:
    tensors = declared(task)
    if policy.norms_stay and len(tensors) > len(declared(task, local_norms=True)):
        yield "norms_stay: got training whose weights of norms would leave, expected local_norms: true"
    _, n_bytes = payload_size(tensors.values(), task.payload)
    yield from above(policy, "most_bytes", n_bytes)


def _leaks(policy: SitePolicy, task: Task, answer: RecordDict) -> Iterator[str]:
    for name, value in answer.metric_records.get("metrics", MetricRecord()).items():
        if name not in METRICS:
            yield f"got metric {name[:40]!r}, expected {', '.join(METRICS)}"
        elif type(value) not in (int, float):
            yield f"metric {name}: got {type(value).__name__}, expected one number"
    yield from tensor_leaks(task, answer)


# -------------------------------------------------------------------------------------------------------- in words


def _audit(task: Task, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    names = config_record(answer, "layout")["names"]
    assert isinstance(names, list)  # tensor_leaks refuses anything else
    numbers = answer.array_records["state"]["flat"].shape[0]
    metrics = sorted(answer.metric_records["metrics"])
    where = "all weights, pretraining" if task.method is None else f"{task.method.id}, fold {task.fold + 1}"
    what = f"{len(names)} tensors with {numbers:,} numbers ({where}, round {task.round} of {task.rounds})"
    digest = hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()
    details = {"tensors": len(names), "names_sha256": digest, "numbers": numbers, "metrics": metrics}
    return f"{what}, the number of scans, the mean loss and the seconds", which_cell(task) | details


def _plan(config: SiteConfig, requests: Requests | None) -> Iterator[Planned]:
    for task in requests.trainings(config.name) if requests else _allowed(config.policy):
        name = "pretraining" if task.method is None else f"training {task.method.id}"
        yield Planned(name, (task,), _lines(name, task))


def _allowed(policy: SitePolicy) -> Iterator[Task]:
    """Yield every training that a policy allows, with default settings."""
    if "pretrain" in policy.stages:
        yield plain_task("pretrain")
    for name in policy.methods if "finetune" in policy.stages else ():
        yield plain_task("finetune", method_at_defaults(name), 0)


def _lines(name: str, task: Task) -> Iterator[str]:
    method = task.own_method
    trained = None if method is None or isinstance(method, ZeroShot) else method
    shapes = declared(task)
    numbers, n_bytes = payload_size(shapes.values(), task.payload)
    yield f"{name}, each round:"
    yield f"  leaves: {_what(trained)}: {len(shapes)} tensors, {numbers:,} numbers, {n_bytes:,} bytes as {task.payload}"
    names = list(shapes)
    shown = ", ".join(names[:2]) + (f", ... to {names[-1]}" if len(names) > 2 else "")
    yield f"    with their names and shapes ({shown})"
    yield "  leaves: metrics n_volumes (scans trained on), loss (mean of the round), seconds"
    if task.local is not None and task.local.local_norms:
        yield "  stays: the weights of all norms"
    if trained is not None and trained.trained_at:
        yield "  the other sites are sent what this site trained, as it is, to evaluate it; no average hides it"


def _what(method: TrainedMethod | None) -> str:
    if method is None:
        return "ALL weights of the network"
    if isinstance(method, WeightTuning):
        return "ALL weights of the network" if method.method == "full" else f"weights of the network ({method.method})"
    also = f" and weights of the network ({', '.join(method.also_train)})" if method.also_train else ""
    return f"factors of the adapters of rank {method.rank}{also}"


TRAIN = Kind(
    type=protocol.TRAIN,
    records=frozenset({"header", "layout", "metrics", "state"}),
    asked="a round of training",
    doing="training",
    answer=train_round,
    refuses=_refuses,
    leaks=_leaks,
    audit=_audit,
    plan=_plan,
)
