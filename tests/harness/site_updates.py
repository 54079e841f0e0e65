"""Updates of sites for tests of the aggregation: adapters on every kind of layer, and the kernels that they mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sahfl.adapters import AdapterState, FactoredLayer, exchanged
from sahfl.adapters.attach import attach, merge
from sahfl.adapters.exchanged import factored_layers
from sahfl.adapters.updates.geometry import kernel_of
from sahfl.aggregation.update import SiteUpdate
from sahfl.config import AdapterTuning

METHODS = {
    name + ("-joint" if joint else ""): AdapterTuning(
        method=name, rank=3, alpha=5.0, joint_kernel=joint, all_magnitudes="dora" in name
    )
    for name in ("lora_c", "conv_lora", "cp_lora", "dora_c", "conv_dora", "cp_dora")
    for joint in (False, True)
    if not joint or name.startswith("cp_")
}
Kernels = dict[str, NDArray[np.float64]]


def a_net() -> nn.ModuleDict:
    """Plain, transposed, uneven in three dimensions, and 1 x 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = {
            "plain": nn.Conv2d(6, 8, 3),
            "transposed": nn.ConvTranspose2d(5, 4, 2, stride=2),
            "volume": nn.Conv3d(3, 4, (3, 1, 2)),
            "pointwise": nn.Conv2d(7, 3, 1),
        }
        return nn.ModuleDict(layers).double()


def with_rank(method: AdapterTuning, rank: int) -> AdapterTuning:
    return method.model_copy(update={"rank": rank})


def adapted(method: AdapterTuning) -> nn.ModuleDict:
    net = a_net()
    attach(net, method, seed=1)
    return net


def start_of(method: AdapterTuning) -> tuple[AdapterState, tuple[FactoredLayer, ...]]:
    """The state sent out, and its layers."""
    net = adapted(method)
    return exchanged.read(net), factored_layers(net, method)


def kernels(method: AdapterTuning, adapter: AdapterState, rank: int | None = None) -> Kernels:
    """Every merged kernel, (out, in, *kernel), in double precision."""
    net = adapted(with_rank(method, rank or method.rank))
    exchanged.load(net, adapter)
    merge(net)
    return {name: kernel_of(layer).detach().numpy() for name, layer in net.items()}


def base_kernels() -> Kernels:
    return {name: kernel_of(layer).detach().numpy() for name, layer in a_net().items()}


def trained(
    method: AdapterTuning, seed: int, rank: int | None = None, only: Any = None, size: float = 0.2
) -> AdapterState:
    """The start, moved at random; ``only`` says which tensors by name."""
    rng = np.random.default_rng(seed)
    start, _ = start_of(with_rank(method, rank or method.rank))
    moved = {name: rng.standard_normal(value.shape) * size for name, value in start.items()}
    return {
        name: (value + moved[name] * (only is None or only(name))).astype(np.float32) for name, value in start.items()
    }


def mean_kernels(method: AdapterTuning, updates: list[SiteUpdate], ranks: list[int] | None = None) -> Kernels:
    """What exact aggregation has to give: the weighted mean of the merged kernels."""
    total = sum(update.n_volumes for update in updates)
    each = [
        {name: update.n_volumes / total * kernel for name, kernel in kernels(method, update.state, rank).items()}
        for update, rank in zip(updates, ranks or [method.rank] * len(updates), strict=True)
    ]
    return {name: sum(kernel[name] for kernel in each) for name in each[0]}


def distance(one: Kernels, other: Kernels) -> float:
    """Root of the summed squares of all differences."""
    return float(np.sqrt(sum(np.square(one[name] - other[name]).sum() for name in one)))


def as_matrix(method, name, kernel):
    """The matrix whose rank a method bounds: (out, in * kernel), or (out * others, width * in) for LoRA-C."""
    if method.method in ("conv_lora", "conv_dora"):
        return kernel.reshape(len(kernel), -1)
    return np.moveaxis(kernel, 1, -2).reshape(-1, kernel.shape[1] * kernel.shape[-1])


def dead_terms(state, layers):
    """Terms whose factors are zero on the out-side and on another: no gradient would move them again."""
    found = 0
    for layer in layers:
        alive = None
        for name, axis in layer.form.rank_axes(layer).items():
            moved = np.moveaxis(state[name], axis, 0).reshape(state[name].shape[axis], -1).any(axis=1)
            if name != layer.up:
                alive = moved if alive is None else alive & moved
        up = np.moveaxis(state[layer.up], 1, 0).reshape(state[layer.up].shape[1], -1).any(axis=1)
        found += int((~alive & ~up).sum())
    return found
