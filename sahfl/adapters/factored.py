"""How the exchanged tensors of a network make up its kernels, as plain values for the aggregation."""

from __future__ import annotations

from torch import nn

from sahfl.adapters import FactoredLayer
from sahfl.adapters.adapted import AdaptedConv
from sahfl.adapters.methods import ADAPTERS
from sahfl.adapters.updates.geometry import kernel_of
from sahfl.config import AdapterTuning, TrainedMethod


def factored_layers(net: nn.Module, method: TrainedMethod) -> tuple[FactoredLayer, ...]:
    """Every adapted layer of a network; none for standard fine-tuning."""
    if not isinstance(method, AdapterTuning):
        return ()
    return tuple(
        _describe(path, layer, method) for path, layer in net.named_modules() if isinstance(layer, AdaptedConv)
    )


def _describe(path: str, layer: AdaptedConv, method: AdapterTuning) -> FactoredLayer:
    kernel, update = kernel_of(layer.base).detach(), layer.update
    (up,) = set(update.exchanged) - set(update.inner_factors)
    decomposed = layer.magnitude is not None
    return FactoredLayer(
        form=ADAPTERS[method.method].form,
        shape=tuple(kernel.shape),
        up=f"{path}.update.{up}",
        inner=tuple(f"{path}.update.{name}" for name in update.inner_factors),
        alpha=method.alpha,
        scaling=method.scaling,
        magnitude=f"{path}.magnitude" if decomposed else None,
        kernel=kernel.cpu().float().numpy() if decomposed else None,
    )
