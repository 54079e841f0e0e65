"""The tensors of a network that train in a round; some aggregation rules train the factors in turns."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from sahfl.adapters import exchanged
from sahfl.adapters.exchanged import factored_layers
from sahfl.aggregation.rules import RULES
from sahfl.config import AdapterTuning, Method


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
