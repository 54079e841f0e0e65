"""What trains in a round, and at which rates; some aggregation rules train the factors in turns."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from sahfl.adapters import exchanged
from sahfl.adapters.exchanged import factored_layers
from sahfl.aggregation.rules import RULES
from sahfl.config import AdapterTuning, LocalTraining, Method
from sahfl.task import Task
from sahfl.training import Schedule


def schedule_of(task: Task, local: LocalTraining, round_: int) -> Schedule:
    """The schedule of a round of a training; the last phase at the site is the round after the rounds."""
    method = task.training
    return Schedule(
        task.learning_rate,
        local.weight_decay,
        local.steps,
        round_,
        task.rounds,
        proximal=local.proximal,
        local_steps=method.local_steps if method else 0,
    )


def take_turn(net: nn.Module, method: Method | None, round_: int, *, staying: Collection[str] = ()) -> tuple[str, ...]:
    """Freeze the parameters that do not train in a round; returns the names of the others.

    With a rule without turns, all exchanged parameters train in every round, and so do those of a layer of which a
    tensor stays at the site (``staying``).
    """
    trainable = exchanged.parameters(net)
    if not isinstance(method, AdapterTuning) or RULES[method.aggregation].turn is None:
        return tuple(trainable)
    names = RULES[method.aggregation].names_of_turn(
        factored_layers(net, method, without=staying), tuple(trainable), round_
    )
    for name, parameter in trainable.items():
        parameter.requires_grad_(name in names)
    return names
