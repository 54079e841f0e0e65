"""Which of three equal ways an adapted convolution is computed: a fixed table, so that runs are deterministic.

``dense`` makes the updated kernel and lets autograd compute its dense gradient; ``chain`` adds a second, thin
convolution to the frozen one; ``fused`` is ``fused.py``. The rules were read off the output of
``python benchmarks/adapters.py --layers``, on one core of an AMD EPYC with AVX-512. No rule chooses ``chain``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from sahfl.adapters.geometry import FEW

if TYPE_CHECKING:
    from sahfl.adapters.adapted import AdaptedConv

Path = Literal["dense", "chain", "fused"]

TRANSPOSED = 2.5
"""How much more the fused way costs in a transposed convolution, whose output is larger than its input."""


@dataclass(frozen=True)
class Layer:
    """What the choice depends on."""

    form: str
    """Class of the update: ``LoRAC``, ``ConvLoRA`` or ``CPLoRA``."""
    n_in: int
    n_out: int
    voxels: int
    """Voxels of the kernel."""
    terms: int
    """Channels between the two sides of the update."""
    transposed: bool
    device: str
    """Type of the device."""
    inner_trains: bool = True
    """Else only ``up`` does, and the fused way keeps a map of few channels instead of the input."""


def choose_path(layer: AdaptedConv, x: Tensor) -> Path:
    """How a layer is computed for an input: ``dense`` where nothing is recorded, else by ``fastest``."""
    if not torch.is_grad_enabled():
        return "dense"
    base, update = layer.base, layer.update
    shape = Layer(
        form=type(update).__name__,
        n_in=base.in_channels,
        n_out=base.out_channels,
        voxels=math.prod(base.kernel_size),
        terms=update.up.shape[1],
        transposed=base.transposed,
        device=x.device.type,
        inner_trains=any(update.get_parameter(name).requires_grad for name in update.inner_factors),
    )
    return fastest(shape)


def fastest(layer: Layer) -> Path:
    """The way that took least time where it was measured, a processor; the order is the same in float32 and bfloat16.

    A GPU takes ``dense``, whose every operation is one that GPU libraries are made for; that is not measured.
    """
    if not layer.inner_trains:
        return "fused"
    if layer.device != "cpu" or layer.n_out < FEW:
        return "dense"
    slower = TRANSPOSED if layer.transposed else 1.0
    return "fused" if slower * _extra(layer) < layer.voxels * layer.n_in * layer.n_out else "dense"


def _extra(layer: Layer) -> float:
    """What the fused factor gradients add, in multiplications per voxel of the map in a dense convolution's time.

    The factors say how much slower than those of a dense convolution the multiplications are: products of thin
    matrices wait for memory, and shifts of maps are memory traffic alone.
    """
    terms, voxels, n_in, n_out = layer.terms, layer.voxels, layer.n_in, layer.n_out
    match layer.form:
        case "ConvLoRA":
            return 3 * terms * voxels * n_in + 4.4 * terms * n_out + 30 * terms * voxels
        case "CPLoRA":
            return 4.4 * terms * (n_in + n_out) + 60 * terms * voxels
        case _:  # LoRAC: two convolutions along one axis each
            return terms * round(math.sqrt(voxels)) * (3 * (n_in + n_out) + 30)
