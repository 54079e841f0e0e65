"""The tensors that a training may send, computed from its settings alone, and the check of an answer against them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, TypeGuard

from flwr.app import RecordDict

from sahfl.config import ZeroShot
from sahfl.federation.tensors import config_record, flat_array
from sahfl.networks import Shapes, Trained, trained_tensors
from sahfl.task import Task


def declared(task: Task) -> Shapes:
    """Names and shapes of the tensors that the answer to a training request may contain."""
    return may_leave(task) if task.is_last_round else _tensors(task).shared


def may_leave(task: Task) -> Shapes:
    """Names and shapes of the tensors that leave in any round of a training."""
    trained = _tensors(task)
    return dict(sorted((trained.shared | (trained.staying if _shares(task) else {})).items()))


def shares_all(task: Task) -> bool:
    """Whether the answer contains what stayed at the site until this round, the last one."""
    return task.is_last_round and _shares(task)


def _shares(task: Task) -> bool:
    return task.training is not None and task.training.share_private_at_end


def _tensors(task: Task) -> Trained:
    if isinstance(task.method, ZeroShot):
        return Trained({}, {}, frozenset())
    return trained_tensors(task.views, task.model, task.training if task.stage == "finetune" else None)


def tensor_leaks(task: Task, answer: RecordDict) -> Iterator[str]:
    """Yield each difference between the tensors of an answer and those that the training declares."""
    tensors = declared(task)
    dtype = "uint32" if task.masking else task.payload
    array, sent = flat_array(answer, "state", dtype=dtype), config_record(answer, "layout")
    names, shapes = _as_strings(sent.get("names")), _as_strings(sent.get("shapes"))
    allowed = {name: ",".join(map(str, shape)) for name, shape in tensors.items()}
    for name, shape in zip_longest(names, shapes, fillvalue=""):
        if allowed.get(name) != shape:
            yield f"got tensor {name[:80]!r} of shape ({shape[:40]}), which this training does not declare"
    if len(set(names)) < len(names):
        yield "got a tensor twice"
    n_more = 1 if task.masking else 0  # the loss, in the sum
    if array.shape != (sum(math.prod(tensors.get(name, ())) for name in names) + n_more,):
        yield "got more numbers than the tensors have"
    steps = {"steps"} if task.payload == "int8" else set()
    if set(sent) != {"names", "shapes"} | steps or len(_as_floats(sent.get("steps", []))) != len(names) * len(steps):
        yield "got more in the layout than names, shapes and, for int8, a step for each tensor"


def _as_strings(value: object) -> list[str]:
    """The value if it is a list of texts, else an empty list."""
    return [str(part) for part in value] if _is_list_of(value, str) else []


def _as_floats(value: object) -> list[float]:
    """The value if it is a list of numbers, else an empty list."""
    return list(value) if _is_list_of(value, float) else []


def _is_list_of(value: object, kind: type) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and all(type(part) is kind for part in value)
