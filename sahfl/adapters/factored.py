"""How the exchanged tensors of a network make up its kernels, as plain values for the aggregation."""

from __future__ import annotations

from typing import Literal

from torch import nn

from sahfl.adapters import FactoredLayer
from sahfl.adapters.adapted import AdaptedConv
from sahfl.adapters.conv_lora import ConvLoRA
from sahfl.adapters.geometry import kernel_of
from sahfl.adapters.lora_c import LoRAC
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
    form: Literal["lora_c", "conv_lora", "cp"] = "cp"
    if isinstance(update, LoRAC):
        form = "lora_c"
    elif isinstance(update, ConvLoRA):
        form = "conv_lora"
    (up,) = set(update.exchanged) - set(update.inner_factors)
    decomposed = layer.magnitude is not None
    return FactoredLayer(
        form=form,
        shape=tuple(kernel.shape),
        up=f"{path}.update.{up}",
        inner=tuple(f"{path}.update.{name}" for name in update.inner_factors),
        alpha=method.alpha,
        scaling=method.scaling,
        terms_per_rank=kernel.shape[-1] if form == "lora_c" else 1,
        magnitude=f"{path}.magnitude" if decomposed else None,
        kernel=kernel.cpu().float().numpy() if decomposed else None,
    )
