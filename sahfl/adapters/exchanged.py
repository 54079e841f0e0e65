"""The exchanged tensors of a network: those that train, travel, lie in checkpoints and make up the byte count.

Each module of a network names its own exchanged parameters in its attribute ``exchanged``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from sahfl.adapters import AdapterState, FactoredLayer, scale_of
from sahfl.adapters.adapted import AdaptedConv
from sahfl.adapters.updates.geometry import kernel_of
from sahfl.adapters.updates.update import Update
from sahfl.config import AdapterTuning, TrainedMethod
from sahfl.errors import AdapterError


def declare(module: nn.Module, names: tuple[str, ...]) -> None:
    """Declare some of a module's own parameters as exchanged."""
    module.exchanged = names  # type: ignore[assignment]


def forget(net: nn.Module) -> None:
    """Take back what ``declare`` declared in a network.

    Raises:
        AdapterError: the network carries an adapter; nothing is changed then.
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
    """Copy every parameter out of a network without adapters, float32; a base's digest is that of these tensors."""
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
        more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
        raise AdapterError(f"state has missing or unexpected tensors: {', '.join(odd[:5])}{more}")
    for name, parameter in wanted.items():
        if state[name].shape != tuple(parameter.shape):
            raise AdapterError(f"tensor {name!r}: got shape {state[name].shape}, expected {tuple(parameter.shape)}")
    for name, parameter in wanted.items():
        parameter.copy_(torch.from_numpy(np.array(state[name], np.float32, order="C")))  # torch wants it writable


def factored_layers(
    net: nn.Module, method: TrainedMethod, *, without: Collection[str] = ()
) -> tuple[FactoredLayer, ...]:
    """The adapted layers of a network as plain values for the aggregation; none for standard fine-tuning.

    Layers with a tensor among ``without`` are left out.
    """
    if not isinstance(method, AdapterTuning):
        return ()
    layers = [_describe(path, layer, layer.update, "update", method) for path, layer in _adapted(net)]
    return tuple(layer for layer in layers if not set(layer.names) & set(without))


def private_layers(net: nn.Module, method: TrainedMethod) -> tuple[FactoredLayer, ...]:
    """The private terms of the adapted layers, as ``factored_layers`` gives the others; none without private terms.

    They have no magnitude, and the scale of the other terms.
    """
    if not isinstance(method, AdapterTuning):
        return ()
    found = []
    for path, layer in _adapted(net):
        if layer.private is not None:
            numbers, shape = layer.private.up[0].numel(), kernel_of(layer.base).shape
            alone = scale_of(1.0, method.scaling, rank=method.private_rank, numbers=numbers, shape=shape)
            described = _describe(path, layer, layer.private, "private", method)
            found.append(replace(described, alpha=layer.scale / alone, magnitude=None, kernel=None))
    return tuple(found)


def _adapted(net: nn.Module) -> list[tuple[str, AdaptedConv]]:
    return [(path, layer) for path, layer in net.named_modules() if isinstance(layer, AdaptedConv)]


def _describe(path: str, layer: AdaptedConv, update: Update, prefix: str, method: AdapterTuning) -> FactoredLayer:
    kernel = kernel_of(layer.base).detach()
    (up,) = set(update.exchanged) - set(update.inner_factors)
    decomposed = layer.magnitude is not None
    return FactoredLayer(
        form=method.record.form,
        shape=tuple(kernel.shape),
        up=f"{path}.{prefix}.{up}",
        inner=tuple(f"{path}.{prefix}.{name}" for name in update.inner_factors),
        alpha=method.alpha,
        scaling=method.scaling,
        magnitude=f"{path}.magnitude" if decomposed else None,
        kernel=kernel.cpu().float().numpy() if decomposed else None,
    )


def _copied(found: dict[str, nn.Parameter]) -> AdapterState:
    return {name: value.detach().to("cpu", torch.float32).numpy().copy() for name, value in found.items()}
