"""The site's policy at work: what a request may ask, and what an answer may hold. Whatever is not allowed is refused.

``check_request`` judges the settings before any work is done, ``check_outgoing`` the finished answer before it leaves.
The second does not trust the first, nor the code between them: it works out by itself which tensors a training may
send, reads sums and counts again as the server will, and takes no record, name, string or list that it does not know.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, TypeGuard

from flwr.app import MetricRecord, RecordDict

from sahfl.config import AdapterTuning, SiteConfig, SitePolicy, ZeroShot
from sahfl.data.rules import BY_ID
from sahfl.errors import PolicyRefused
from sahfl.federation import protocol
from sahfl.federation.tensors import config_record, flat_array
from sahfl.networks import exchanged_shapes
from sahfl.payload import DTYPES, Header
from sahfl.run.software import software_hash
from sahfl.statistics import EvaluationSums
from sahfl.task import SiteDescription, Task

METRICS = ("n_volumes", "loss", "seconds")
RECORDS = {
    protocol.DESCRIBE: {"description"},
    protocol.SCAN_KEYS: {"header", "scan_keys"},
    protocol.INSTALL_BASE: {"header"},
    protocol.TRAIN: {"header", "layout", "metrics", "state"},
    protocol.EVALUATE: {"header", "sums"},
}
"""Records of the answer to each kind of request; no other kind is answered."""


def check_request(config: SiteConfig, kind: str, task: Task, header: Header) -> None:
    """Refuse what the policy does not allow.

    Raises:
        PolicyRefused: with every setting that is not allowed, its value and what the policy says.
    """
    if problems := list(_problems(config.policy, kind, task, header)):
        asked = f"site {config.name}: study {header.study[:12]} asks for what the policy does not allow"
        raise PolicyRefused("\n".join([f"{asked}:", *(f"  policy.{problem}" for problem in problems)]))


def _problems(policy: SitePolicy, kind: str, task: Task, header: Header) -> Iterator[str]:
    if kind not in RECORDS:
        yield f"requests: got {kind[:40]!r}, expected one of {', '.join(RECORDS)}"
    if policy.studies is not None and header.study not in policy.studies:
        yield f"studies: got {header.study[:64]}, expected one of {len(policy.studies)} listed"
    if kind == protocol.SCAN_KEYS and not policy.share_scan_keys:
        yield "share_scan_keys: got a request for keys of scans, expected none"
    if kind in (protocol.INSTALL_BASE, protocol.TRAIN) and task.stage not in policy.stages:
        yield f"stages: got {task.stage}, expected {' or '.join(policy.stages) or 'no stage'}"
    if kind == protocol.TRAIN:
        yield from _training_problems(policy, task)
    if kind == protocol.EVALUATE:
        if not policy.evaluation:
            yield "evaluation: got a request to evaluate, expected none"
        if task.evaluation is not None:
            yield from _above(policy, "most_replicates", task.evaluation.replicates)


def _training_problems(policy: SitePolicy, task: Task) -> Iterator[str]:
    method = task.own_method
    if task.stage == "finetune" and (method is None or method.method not in policy.methods):
        name = "no method" if method is None else method.method
        yield f"methods: got {name}, expected {', '.join(policy.methods) or 'none, nothing is trained here'}"
        return
    found = [
        *_above(policy, "most_rounds", max(task.round, task.rounds)),
        *_above(policy, "most_learning_rate", task.learning_rate),
        *_above(policy, "most_steps", task.local.steps if task.local else 0),
    ]
    if isinstance(method, AdapterTuning):
        found += _above(policy, "most_rank", method.rank)
        if more := [name for name in method.also_train if name not in policy.also_train]:
            found.append(f"also_train: got {', '.join(more)}, expected {', '.join(policy.also_train) or 'none'}")
    yield from found
    if not found:  # only now: these need the network, which a refused setting may make huge
        yield from _tensor_problems(policy, task)


def _tensor_problems(policy: SitePolicy, task: Task) -> Iterator[str]:
    tensors = declared(task)
    if policy.norms_stay and len(tensors) > len(declared(task, local_norms=True)):
        yield "norms_stay: got training whose weights of norms would leave, expected local_norms: true"
    n_bytes = int(DTYPES[task.payload][-1]) * sum(math.prod(shape) for shape in tensors.values())
    yield from _above(policy, "most_bytes", n_bytes)


def _above(policy: SitePolicy, name: str, value: float) -> list[str]:
    most = getattr(policy, name)
    return [] if value <= most else [f"{name}: got {value:g}, expected at most {most:g}"]


def declared(task: Task, *, local_norms: bool | None = None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that the answer to a training request may hold."""
    method = task.own_method if task.stage == "finetune" else None
    if isinstance(method, ZeroShot):
        return {}
    stay = task.local is not None and task.local.local_norms if local_norms is None else local_norms
    return exchanged_shapes(task.views, task.model, method, norms=not stay)


def coarse(description: SiteDescription, policy: SitePolicy) -> SiteDescription:
    """A description without what would tell of few patients.

    How many patients there are, in all, per fold and with blood, is told exactly: without that, no result would have an
    honest number behind it, and it is no property of any of them. Their mL of blood are, and so is which rule a
    case breaks (a contrast agent, for example).
    """
    few = 0 < sum(description.fold_positive) < policy.smallest_group
    findings = {
        rule: None if n is not None and 0 < n < policy.smallest_group else n for rule, n in description.findings.items()
    }
    volume_ml = None if few else description.volume_ml
    return description.model_copy(update={"volume_ml": volume_ml, "findings": findings})


def check_outgoing(config: SiteConfig, kind: str, task: Task, header: Header, answer: RecordDict) -> None:
    """Refuse an answer that holds anything but what its kind may hold.

    Raises:
        PolicyRefused: naming the first thing that must not leave; it does not leave.
    """
    if problem := next(_leaks(config.policy, kind, task, header, answer), None):
        raise PolicyRefused(f"site {config.name}: the answer to {kind[:40]!r} is kept back: {problem}")


def _leaks(policy: SitePolicy, kind: str, task: Task, header: Header, answer: RecordDict) -> Iterator[str]:
    expected = RECORDS.get(kind, set())
    if set(answer) != expected:
        yield f"got records {sorted(answer)}, expected {sorted(expected)}"
    if "header" in expected and protocol.read_header(answer) != header.as_dict():
        yield "the header is not that of the request"
    match kind:
        case protocol.DESCRIBE:
            yield from _description_leaks(policy, answer)
        case protocol.SCAN_KEYS:
            yield from _scan_key_leaks(policy, answer)
        case protocol.TRAIN:
            yield from _metric_leaks(answer)
            yield from _tensor_leaks(task, answer)
        case protocol.EVALUATE:
            yield from _sum_leaks(policy, task, answer)
    if (n_bytes := protocol.n_bytes(answer)) > policy.most_bytes:
        yield f"got {n_bytes} bytes, expected at most {policy.most_bytes} (policy.most_bytes)"


def _description_leaks(policy: SitePolicy, answer: RecordDict) -> Iterator[str]:
    if set(config_record(answer, "description")) != {"json"}:
        yield "got other values than the description's text"
    description = protocol.read_description(answer)
    if description != coarse(description, policy):
        yield f"got values over fewer than {policy.smallest_group} patients or cases (policy.smallest_group)"
    if unknown := sorted(set(description.findings) - set(BY_ID)):
        yield f"got {len(unknown)} finding(s) of no rule of the data checks"
    if description.software != software_hash():
        yield "got something else than the hash of this site's software"


def _scan_key_leaks(policy: SitePolicy, answer: RecordDict) -> Iterator[str]:
    record = config_record(answer, "scan_keys")
    keys = record.get("keys")
    fit = isinstance(keys, list) and all(isinstance(key, str) and protocol.KEY.fullmatch(key) for key in keys)
    if not policy.share_scan_keys or set(record) != {"keys"} or not fit:
        yield "got something else than salted keys of scans that the policy lets out"


def _metric_leaks(answer: RecordDict) -> Iterator[str]:
    for name, value in answer.metric_records.get("metrics", MetricRecord()).items():
        if name not in METRICS:
            yield f"got metric {name[:40]!r}, expected {', '.join(METRICS)}"
        elif type(value) not in (int, float):
            yield f"metric {name}: got {type(value).__name__}, expected one number"


def _tensor_leaks(task: Task, answer: RecordDict) -> Iterator[str]:
    """Every tensor is one of those that the training's settings declare, once, in its shape, and the array is these."""
    may_leave = declared(task)
    array, sent = flat_array(answer, "state", dtype=task.payload), config_record(answer, "layout")
    names, shapes = as_strings(sent.get("names")), as_strings(sent.get("shapes"))
    known = {name: ",".join(map(str, shape)) for name, shape in may_leave.items()}
    for name, shape in zip_longest(names, shapes, fillvalue=""):
        if known.get(name) != shape:
            yield f"got tensor {name[:80]!r} of shape ({shape[:40]}), which this training does not declare"
    if len(set(names)) < len(names):
        yield "got a tensor twice"
    if array.shape != (sum(math.prod(may_leave.get(name, ())) for name in names),):
        yield "got more numbers than the tensors have"
    steps = {"steps"} if task.payload == "int8" else set()
    if set(sent) != {"names", "shapes"} | steps or len(as_floats(sent.get("steps", []))) != len(names) * len(steps):
        yield "got more in the layout than names, shapes and, for int8, a step for each tensor"


def _sum_leaks(policy: SitePolicy, task: Task, answer: RecordDict) -> Iterator[str]:
    if task.evaluation is None:
        yield "got sums, expected none without settings of an evaluation"
        return
    array = protocol.read_evaluation_reply(answer, header=Header(**protocol.read_header(answer)))
    sums = EvaluationSums.from_array(array, task.evaluation)
    for part in (sums.overall, *sums.by_volume, *sums.by_extent):
        if 0 < part.n < policy.smallest_group:
            yield f"got results over {part.n} scans, expected {policy.smallest_group} (policy.smallest_group)"
        if 0 < part.n < policy.smallest_bootstrap and not part.bare:
            yield f"got replicates over {part.n} scans, expected {policy.smallest_bootstrap} (smallest_bootstrap)"
    if 0 < sums.n_no_blood < policy.smallest_group:
        yield f"got counts of {sums.n_no_blood} scans, expected {policy.smallest_group} (policy.smallest_group)"


def as_strings(value: object) -> list[str]:
    """A list of texts; nothing else in a record passes for one."""
    return [str(part) for part in value] if _is_list_of(value, str) else []


def as_floats(value: object) -> list[float]:
    """A list of numbers; nothing else in a record passes for one."""
    return list(value) if _is_list_of(value, float) else []


def _is_list_of(value: object, kind: type) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and all(type(part) is kind for part in value)
