"""Names and settings of Hugging Face PEFT, for the adapters that are PEFT's own form."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import torch
from torch import nn

from sahfl.adapters import AdapterState
from sahfl.adapters.adapted import AdaptedConv, lengths
from sahfl.config import AdapterTuning
from sahfl.errors import AdapterError

PREFIX = "base_model.model."
SUFFIXES = {"update.down": "lora_A.weight", "update.up": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


def is_peft_form(net: nn.Module, method: AdapterTuning) -> bool:
    """Whether PEFT computes what this network computes: convLoRA or convDoRA alone, on plain convolutions.

    PEFT 0.21 refuses transposed convolutions, ignores the padding mode and fails on dilated ones.
    """
    adapted = [module for module in net.modules() if isinstance(module, AdaptedConv)]
    plain = all(
        not layer.base.transposed and layer.base.padding_mode == "zeros" and set(layer.base.dilation) == {1}
        for layer in adapted
    )
    return method.record.in_peft and bool(adapted) and plain and not (method.also_train or method.stays)


def peft_settings(net: nn.Module, method: AdapterTuning, base: str) -> dict[str, Any]:
    """PEFT's settings for ``adapter_config.json``; each layer has its own alpha, as its scale depends on its kernel."""
    layers = {path: module for path, module in net.named_modules() if isinstance(module, AdaptedConv)}
    alphas = {f"^{re.escape(path)}": layer.scale * method.rank for path, layer in layers.items()}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": method.rank,
        "lora_alpha": method.alpha,
        "lora_dropout": 0.0,
        "alpha_pattern": alphas,  # regular expressions of whole paths
        "use_dora": method.has_magnitudes,
        "bias": "none",
        "target_modules": list(layers),
    }


def to_peft(net: nn.Module, state: AdapterState, *, decomposed: bool) -> AdapterState:
    """The exchanged tensors under PEFT's names; ``up`` becomes (out, rank, 1, ...), magnitudes (1, out, 1, ...).

    A layer without magnitudes gets the lengths of its adapted kernel, with which PEFT's layer computes the same.
    """
    found: AdapterState = {}
    for path, layer in net.named_modules():
        if not isinstance(layer, AdaptedConv):
            continue
        ones = (1,) * len(layer.base.kernel_size)
        found[f"{PREFIX}{path}.{SUFFIXES['update.down']}"] = state[f"{path}.update.down"]
        up = state[f"{path}.update.up"]
        found[f"{PREFIX}{path}.{SUFFIXES['update.up']}"] = up.reshape(*up.shape, *ones)
        if decomposed:
            magnitude = _lengths(layer) if layer.magnitude is None else state[f"{path}.magnitude"]
            found[f"{PREFIX}{path}.{SUFFIXES['magnitude']}"] = magnitude.reshape(1, -1, *ones)
    return found


def from_peft(tensors: AdapterState, *, without_magnitude: frozenset[str]) -> AdapterState:
    """The inverse of ``to_peft``; other names stay as they are, and ``exchanged.load`` refuses them.

    Raises:
        AdapterError: a tensor of PEFT has another shape than ``to_peft`` gives it.
    """
    found: AdapterState = {}
    for name, value in tensors.items():
        path, ours = _our_name(name)
        if ours == "magnitude" and path in without_magnitude:
            continue
        shape = {"update.up": value.shape[:2], "magnitude": (value.size,)}.get(ours, value.shape)
        if math.prod(shape) != value.size:
            raise AdapterError(f"{name[:120]!r}: has shape {value.shape}, expected (out, rank, 1, ...)")
        found[f"{path}.{ours}" if ours else name] = value.reshape(shape)
    return dict(sorted(found.items()))


def _our_name(name: str) -> tuple[str, str]:
    for ours, theirs in SUFFIXES.items():
        path = name.removeprefix(PREFIX).removesuffix(f".{theirs}")
        if name == f"{PREFIX}{path}.{theirs}":
            return path, ours
    return name, ""


@torch.no_grad()
def _lengths(layer: AdaptedConv) -> np.ndarray[Any, Any]:
    return lengths(layer.direction(layer.whole.up * layer.scale)).cpu().float().numpy()
