"""Which of three equal ways an adapted convolution is computed: a fixed table, so that runs are deterministic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sahfl.adapters.adapted import AdaptedConv

Path = Literal["dense", "chain", "fused"]


def choose_path(layer: AdaptedConv, x: Tensor) -> Path:
    """How a layer is computed for an input: ``dense`` where nothing trains, ``fused`` elsewhere."""
    if not torch.is_grad_enabled():
        return "dense"
    return "fused"
