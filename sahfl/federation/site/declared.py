"""The tensors that a training may send, worked out from its settings alone, and an answer held against them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, TypeGuard

from flwr.app import RecordDict

from sahfl.config import ZeroShot
from sahfl.federation.tensors import config_record, flat_array
from sahfl.networks import exchanged_shapes
from sahfl.task import Task


def declared(task: Task, *, local_norms: bool | None = None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that the answer to a training request may hold."""
    method = task.own_method if task.stage == "finetune" else None
    if isinstance(method, ZeroShot):
        return {}
    stay = task.local is not None and task.local.local_norms if local_norms is None else local_norms
    return exchanged_shapes(task.views, task.model, method, norms=not stay)


def tensor_leaks(task: Task, answer: RecordDict) -> Iterator[str]:
    """Every tensor is one of those that the training's settings declare, once, in its shape, and the array is these."""
    may_leave = declared(task)
    array, sent = flat_array(answer, "state", dtype=task.payload), config_record(answer, "layout")
    names, shapes = _as_strings(sent.get("names")), _as_strings(sent.get("shapes"))
    known = {name: ",".join(map(str, shape)) for name, shape in may_leave.items()}
    for name, shape in zip_longest(names, shapes, fillvalue=""):
        if known.get(name) != shape:
            yield f"got tensor {name[:80]!r} of shape ({shape[:40]}), which this training does not declare"
    if len(set(names)) < len(names):
        yield "got a tensor twice"
    if array.shape != (sum(math.prod(may_leave.get(name, ())) for name in names),):
        yield "got more numbers than the tensors have"
    steps = {"steps"} if task.payload == "int8" else set()
    if set(sent) != {"names", "shapes"} | steps or len(_as_floats(sent.get("steps", []))) != len(names) * len(steps):
        yield "got more in the layout than names, shapes and, for int8, a step for each tensor"


def _as_strings(value: object) -> list[str]:
    """A list of texts; nothing else in a record passes for one."""
    return [str(part) for part in value] if _is_list_of(value, str) else []


def _as_floats(value: object) -> list[float]:
    """A list of numbers; nothing else in a record passes for one."""
    return list(value) if _is_list_of(value, float) else []


def _is_list_of(value: object, kind: type) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and all(type(part) is kind for part in value)
