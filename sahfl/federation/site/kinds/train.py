"""A round of training: the site trains on its own cases from the state received, and sends the new state."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from flwr.app import MetricRecord, RecordDict

from sahfl.adapters import exchanged
from sahfl.aggregation.rules import RULES
from sahfl.config import AdapterTuning, SiteConfig, SitePolicy, TrainedMethod, WeightTuning
from sahfl.config.methods import method_at_defaults
from sahfl.errors import PayloadError
from sahfl.federation import protocol
from sahfl.federation.masked_vectors import masked_reply
from sahfl.federation.requests import Requests, plain_task
from sahfl.federation.site.answered import Trainings
from sahfl.federation.site.declared import may_leave, shares_all, tensor_leaks
from sahfl.federation.site.feedback import with_feedback
from sahfl.federation.site.kinds.kind import Kind, Planned
from sahfl.federation.site.kinds.limits import above, below, bounds_of, outside_stages, over, steps_of_each_network
from sahfl.federation.site.kinds.local_training import (
    batch_seed,
    require_patients,
    reserve,
    train_locally,
    training_cases,
)
from sahfl.federation.site.kinds.received import open_network, task_and_header, which_cell
from sahfl.federation.site.masked import MaskedRound
from sahfl.federation.site.sanity import Watch
from sahfl.federation.site.site import Site
from sahfl.federation.site.starts import Starts
from sahfl.federation.tensors import config_record, hash_of_tensors
from sahfl.federation.turns import take_turn
from sahfl.networks import trained_tensors
from sahfl.payload import layout, payload_size
from sahfl.task import Task

log = logging.getLogger(__name__)
METRICS = ("n_volumes", "loss", "seconds")


# ------------------------------------------------------------------------------------------------------- the work


def train_round(site: Site, content: RecordDict) -> RecordDict:
    """Load the received state and the site's own part, train on the site's cases, and answer with what is shared."""
    began = time.monotonic()
    task, header = task_and_header(content)
    if task.local is None or not 1 <= task.round <= task.rounds:
        raise PayloadError(f"task: got round {task.round} of {task.rounds}, expected settings of a training round")
    cases = training_cases(site, task)
    require_patients(site, task, cases)
    Trainings(site.config, header.study).require_same(header, task)
    masked = MaskedRound(site.config, task, header, content) if task.masking else None
    if masked is not None:
        masked.require_begun(hash_of_tensors(content))
    own = open_network(site, task, header)
    start = own.load(content, after_round=task.round - 1, starts=Starts(site.config, task, header))
    reserve(site, "round", protocol.TRAIN, content, header, cases)
    names = take_turn(own.net, task.method, task.round, staying=own.staying)
    drawn = batch_seed(site, task, header, hash_of_tensors(content))
    leaving = tuple(name for name in names if shares_all(task) or name not in own.staying)
    watch = Watch(own.net, leaving)
    loss, n_volumes = train_locally(site, task, header, own, cases, drawn=drawn, on_gradients=watch.note)
    watch.require(bounds_of(site.config.policy, task).effective_steps, where=header.place())
    trained = exchanged.read(own.net)
    own.part.keep({name: trained[name] for name in own.staying}, n_volumes=n_volumes)
    sent = {name: trained[name] for name in names if name not in own.staying}
    if masked is not None:
        change = {name: value - start[name] for name, value in sent.items()}
        vector = masked.mask(content, masked.encode(change, loss, n_volumes))
        seconds = time.monotonic() - began
        return masked_reply(header, layout(change), vector, n_volumes=n_volumes, seconds=seconds)
    if task.payload != "float32":
        change = {name: value - start[name] for name, value in sent.items()}
        sent = with_feedback(site.config.folder, header, change, task.payload)
    if shares_all(task):
        sent |= {name: trained[name] - start[name] * (task.payload != "float32") for name in own.staying}
        sent = dict(sorted(sent.items()))
    seconds = time.monotonic() - began
    told = loss if "loss" in metrics_of(site.config.policy, task) else None
    return protocol.train_reply(header, sent, n_volumes=n_volumes, loss=told, seconds=seconds, encoding=task.payload)


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
    local, bounds = task.local, bounds_of(policy, task)
    own_rate = 0.0 if task.training is None else task.training.private_learning_rate or 0.0
    found = [
        *above(policy, "most_rounds", max(task.round, task.rounds)),
        *over(bounds.learning_rate, max(task.learning_rate, own_rate)),
        *above(policy, "most_steps", local.steps if local else 0),
        *(below(bounds.steps, steps_of_each_network(task, local.steps)) if local else ()),
        *(below(bounds.batch_size, local.batch_size) if local else ()),
    ]
    if isinstance(method, AdapterTuning):
        name = method.record.name
        private = method.private_rank
        rank = method.rank + private if method.share_private_at_end else max(method.rank, private)
        found += over((f"adapters.most_rank.{name}", policy.adapters.most_rank[name]), rank)
        found += over(("adapters.most_alpha", policy.adapters.most_alpha), method.alpha)
        found += _start_problems(policy, method, task)
        if more := [name for name in method.also_train if name not in policy.also_train]:
            found.append(f"also_train: got {', '.join(more)}, expected {', '.join(policy.also_train) or 'none'}")
    yield from found
    if not found:  # these checks build the network, which a refused setting could make huge
        yield from _tensor_problems(policy, task)


def _start_problems(policy: SitePolicy, method: AdapterTuning, task: Task) -> Iterator[str]:
    """Report a method whose later starts cannot be what the policy asks of them."""
    if task.rounds > 1 and policy.bounded_starts and RULES[method.aggregation].remakes_factors:
        usual = ", ".join(name for name, rule in RULES.items() if not rule.remakes_factors)
        yield f"bounded_starts: got aggregation {method.aggregation}, which makes factors anew, expected {usual}"
    if task.rounds > 1 and policy.confirmations and task.rank is not None:
        yield f"confirmations: got rank {task.rank} for this site alone, whose starts no other site has; expected none"


def _tensor_problems(policy: SitePolicy, task: Task) -> Iterator[str]:
    trained, tensors = trained_tensors(task.views, task.model, task.training), may_leave(task)
    if not policy.unmasked and task.masking is None and tensors:
        yield "unmasked: got a training whose update would leave in the clear, expected rounds.masking in the study"
    if policy.norms_stay and trained.norms & tensors.keys():
        yield "norms_stay: got training whose weights of norms would leave, expected a method with stays: [norm]"
    if not policy.private_mean and task.training is not None and task.training.share_private_at_end:
        yield "private_mean: got training whose private part leaves in the last round, expected that it stays here"
    _, n_bytes = payload_size(tensors.values(), task.payload)
    yield from above(policy, "most_bytes", n_bytes)


def _leaks(policy: SitePolicy, task: Task, answer: RecordDict) -> Iterator[str]:
    yield from metric_leaks(policy, task, answer.metric_records.get("metrics", MetricRecord()))
    yield from tensor_leaks(task, answer)


def metrics_of(policy: SitePolicy, task: Task) -> tuple[str, ...]:
    """The metrics of a training that leave: three numbers, without the loss under masks, and where a site demands them
    also without that of what it trains alone.
    """
    return tuple(name for name in METRICS if name != "loss" or (task.masking is None and policy.unmasked))


def metric_leaks(policy: SitePolicy, task: Task, metrics: MetricRecord) -> Iterator[str]:
    """Yield each metric of an answer that is not one of ``metrics_of``."""
    expected = metrics_of(policy, task)
    for name, value in metrics.items():
        if name not in expected:
            yield f"got metric {name[:40]!r}, expected {', '.join(expected)}"
        elif type(value) not in (int, float):
            yield f"metric {name}: got {type(value).__name__}, expected one number"


# -------------------------------------------------------------------------------------------------------- in words


def _audit(task: Task, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    names = config_record(answer, "layout")["names"]
    assert isinstance(names, list)  # tensor_leaks refuses anything else
    numbers = answer.array_records["state"]["flat"].shape[0]
    metrics = sorted(answer.metric_records["metrics"])
    local = task.local
    assert local is not None  # train_round refuses anything else
    where = "all weights, pretraining" if task.method is None else f"{task.method.id}, fold {task.fold}"
    what = f"{len(names)} tensors with {numbers:,} numbers ({where}, round {task.round} of {task.rounds})"
    digest = hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()
    details = {"tensors": len(names), "names_sha256": digest, "numbers": numbers, "metrics": metrics}
    details |= {"steps": local.steps, "batch_size": local.batch_size, "learning_rate": task.learning_rate}
    details |= {"rank": task.own_method.rank if isinstance(task.own_method, AdapterTuning) else None}
    details |= {"n_volumes": answer.metric_records["metrics"].get("n_volumes")}
    details |= {"views": list(task.views.weights), "size": list(task.views.size), "spacing_mm": task.views.spacing_mm}
    if task.masking is not None:
        details["masked"] = {"clip": task.masking.clip, "threshold": task.masking.threshold}
        what = f"masked, of which the server learns the sum over the sites alone: {what}"
    work = f"after {local.steps} steps of {local.batch_size} slices at the rate {task.learning_rate:g}"
    rest = "the number of scans" + (", the mean loss" if "loss" in metrics else "") + " and the seconds"
    return f"{what}, {work}; {rest}", which_cell(task) | details


def _plan(config: SiteConfig, requests: Requests | None) -> Iterator[Planned]:
    for task in requests.trainings(config.name) if requests else _allowed(config.policy):
        alone = " at this site alone" if task.pretrain_at else ""
        name = f"pretraining{alone}" if task.method is None else f"training {task.method.id}"
        yield Planned(name, (task,), _lines(config.policy, name, task))


def _allowed(policy: SitePolicy) -> Iterator[Task]:
    """Yield every training that a policy allows, with default settings."""
    if "pretrain" in policy.stages:
        yield plain_task("pretrain")
    for name in policy.methods if "finetune" in policy.stages else ():
        yield plain_task("finetune", method_at_defaults(name), 0)


def _lines(policy: SitePolicy, name: str, task: Task) -> Iterator[str]:
    method = task.training
    trained = trained_tensors(task.views, task.model, method)
    numbers, n_bytes = payload_size(trained.shared.values(), task.payload)
    yield f"{name}, each round:"
    if trained.shared:
        size = f"{len(trained.shared)} tensors, {numbers:,} numbers, {n_bytes:,} bytes as {task.payload}"
        names = list(trained.shared)
        shown = ", ".join(names[:2]) + (f", ... to {names[-1]}" if len(names) > 2 else "")
        masked = "" if task.masking is None else f"masked, in a sum with the loss (clip {task.masking.clip:g}): "
        yield f"  leaves: {masked}{_what(method)}: {size}"
        yield f"    with their names and shapes ({shown})"
    loss = ", loss (mean of the round)" if "loss" in metrics_of(policy, task) else ""
    yield f"  leaves: metrics n_volumes (scans trained on){loss}, seconds"
    if trained.staying:
        n_stay, _ = payload_size(trained.staying.values(), task.payload)
        yield f"  stays: {what_stays(method)}: {len(trained.staying)} tensors, {n_stay:,} numbers"
    if method is not None and method.share_private_at_end:
        yield "  leaves in the last round, once: what stayed until then, for a mean over the sites"
    if method is not None and method.is_alone:
        yield "  no tensor leaves: this site trains alone, and evaluates the network that it trained"


def what_stays(method: TrainedMethod | None) -> str:
    """The part of a method that stays at a site, in words."""
    if method is None or method.is_alone:
        return "all that the method trains"
    terms = method.private_rank if isinstance(method, AdapterTuning) else 0
    words = {"norm": "weights of all norms", "out": "out-side factors", "inner": "inner factors"}
    parts = [f"{terms} private terms of each adapter"] if terms else []
    return ", ".join([*parts, *(words.get(stay, f"all that trains in {stay}") for stay in method.stays)])


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
    needs_base=True,
    once=True,
    plan=_plan,
)
