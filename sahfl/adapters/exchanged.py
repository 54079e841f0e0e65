"""The exchanged tensors of a network: what trains, what travels, what a checkpoint holds, what the byte count counts.

A module declares the names of its own exchanged parameters in its attribute ``exchanged``. Everything else in sahfl
asks this module; nothing looks for adapters by a part of a name.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from sahfl.adapters import AdapterState
from sahfl.adapters.adapted import AdaptedConv
from sahfl.errors import AdapterError


def declare(module: nn.Module, names: tuple[str, ...]) -> None:
    """Declare some of a module's own parameters as exchanged."""
    module.exchanged = names  # type: ignore[assignment]


def forget(net: nn.Module) -> None:
    """Take back what ``declare`` declared in a network.

    Raises:
        AdapterError: the network carries an adapter; forgetting its factors would freeze half-trained weights; nothing
            is changed then.
    """
    for path, module in net.named_modules():
        if isinstance(module, AdaptedConv):
            raise AdapterError(f"layer {path!r} carries an adapter already; merge or detach it first")
    for module in net.modules():
        declare(module, ())


def parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """Exchanged parameters by full name, in alphabetical order: the order of states, files and the wire."""
    found = {
        f"{path}.{name}" if path else name: module.get_parameter(name)
        for path, module in net.named_modules()
        for name in getattr(module, "exchanged", ())
    }
    return dict(sorted(found.items()))


def read_all(net: nn.Module) -> AdapterState:
    """Copy every parameter out of a network without adapters, float32: what its digest is taken over."""
    return _copied(dict(sorted(net.named_parameters())))


def read(net: nn.Module) -> AdapterState:
    """Copy the exchanged tensors out of a network, float32."""
    return _copied(parameters(net))


@torch.no_grad()
def load(net: nn.Module, state: AdapterState) -> None:
    """Put exchanged tensors into a network.

    Raises:
        AdapterError: a tensor is missing, unexpected or of another shape; nothing is changed then.
    """
    wanted = parameters(net)
    if odd := sorted(wanted.keys() ^ state.keys()):
        raise AdapterError(f"state has missing or unexpected tensors: {_some(odd)}")
    for name, parameter in wanted.items():
        if state[name].shape != tuple(parameter.shape):
            raise AdapterError(f"tensor {name!r}: got shape {state[name].shape}, expected {tuple(parameter.shape)}")
    for name, parameter in wanted.items():
        parameter.copy_(torch.from_numpy(np.array(state[name], np.float32, order="C")))  # torch wants it writable


def _copied(found: dict[str, nn.Parameter]) -> AdapterState:
    return {name: value.detach().to("cpu", torch.float32).numpy().copy() for name, value in found.items()}


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
