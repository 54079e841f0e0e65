"""Which of two equal ways an adapted convolution is computed: a fixed rule, so that runs are deterministic.

``dense`` makes the updated kernel and lets autograd compute its dense gradient; ``fused`` is ``fused.py``. The rule and
the costs that the updates declare were read off the output of ``python benchmarks/adapters.py --layers``, on one core
of an AMD EPYC with AVX-512.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from sahfl.adapters.updates.geometry import FEW, Convolution
from sahfl.adapters.updates.update import Update

Path = Literal["dense", "fused"]

TRANSPOSED = 2.5
"""How much more the fused way costs in a transposed convolution, whose output is larger than its input."""


def choose_path(base: Convolution, update: Update, x: Tensor) -> Path:
    """The way that took least time on a processor; the order is the same in float32 and bfloat16.

    ``dense`` where nothing is recorded, and on a GPU, for whose libraries its every operation is made; that is not
    measured. ``fused`` where only ``up`` trains: it then keeps a map of few channels instead of the input.

    Args:
        base: the frozen convolution.
        update: of its kernel.
        x: the input, (batch, in, *space).
    """
    if not torch.is_grad_enabled():
        return "dense"
    if not any(update.get_parameter(name).requires_grad for name in update.inner_factors):
        return "fused"
    if x.device.type != "cpu" or base.out_channels < FEW:
        return "dense"
    cost = update.cost * (TRANSPOSED if base.transposed else 1)
    return "fused" if cost < math.prod(base.kernel_size) * base.in_channels * base.out_channels else "dense"
