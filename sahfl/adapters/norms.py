"""The convolutions that feed a norm which cancels their scale, so that a DoRA magnitude would do nothing there."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from sahfl.adapters.updates.geometry import CONVOLUTIONS

INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def normed_convolutions(net: nn.Module, example: Tensor) -> frozenset[str]:
    """Paths of the convolutions whose output goes into a norm of each channel over its own voxels, and nowhere else.

    Such a norm (instance norm, or group norm with a group per channel) cancels the layer's scale, up to its epsilon.
    One run of the network on ``example`` (batch, channels, *space) finds them from autograd's graph.
    """
    outputs: dict[str, list[Any]] = {}
    normed: list[Any] = []
    hooks = []
    for path, module in net.named_modules():
        if isinstance(module, CONVOLUTIONS):
            # Keep the graph's node: an operation in place gives the tensor another one.
            calls = outputs.setdefault(path, [])
            hooks.append(module.register_forward_hook(lambda _, __, y, calls=calls: calls.append(y.grad_fn)))
        elif _is_per_channel(module):
            hooks.append(module.register_forward_pre_hook(lambda _, inputs: normed.append(inputs[0].grad_fn)))
    was_training = {module: module.training for module in net.modules()}
    try:
        # torch records the computation of a frozen network only if the input requires a gradient.
        with torch.enable_grad():
            result = net.eval()(example.detach().clone().requires_grad_())
    finally:
        for module, training in was_training.items():
            module.training = training
        for hook in hooks:
            hook.remove()
    uses = _count_uses(_tensors(result))
    return frozenset(
        path
        for path, calls in outputs.items()
        if calls and all(uses[node] == 1 and any(node is norm for norm in normed) for node in calls)
    )


def _is_per_channel(module: nn.Module) -> bool:
    if isinstance(module, nn.GroupNorm):
        return module.num_groups == module.num_channels
    return isinstance(module, INSTANCE_NORMS) and not module.track_running_stats


def _tensors(result: Any) -> list[Tensor]:
    match result:
        case Tensor():
            return [result]
        case list() | tuple():
            return [tensor for part in result for tensor in _tensors(part)]
        case dict():
            return _tensors(list(result.values()))
    return []


def _count_uses(results: list[Tensor]) -> Counter[Any]:
    waiting = [tensor.grad_fn for tensor in results if tensor.grad_fn is not None]
    seen, uses = set(waiting), Counter(waiting)
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None:
                uses[node] += 1
                if node not in seen:
                    seen.add(node)
                    waiting.append(node)
    return uses
