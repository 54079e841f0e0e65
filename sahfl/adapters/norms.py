"""Which convolutions feed a norm that divides their scale away: there, a DoRA magnitude would be dead weight."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor, nn

from sahfl.adapters.geometry import CONVOLUTIONS

INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def normed_convolutions(net: nn.Module, example: Tensor) -> frozenset[str]:
    """Paths of the convolutions whose output goes into a norm of each channel over its own voxels, and nowhere else.

    Instance norm, or group norm with a group per channel, makes the network independent of such a layer's scale, up to
    the norm's epsilon. Found by running the network once on ``example``: the output's record of what was computed from
    what tells where every convolution's output went, whatever the modules are called.
    """
    outputs: dict[str, Tensor] = {}
    normed: list[Any] = []
    hooks = []
    for path, module in net.named_modules():
        if isinstance(module, CONVOLUTIONS):
            hooks.append(module.register_forward_hook(lambda _, __, y, path=path: outputs.__setitem__(path, y)))
        elif _is_per_channel(module):
            hooks.append(module.register_forward_pre_hook(lambda _, inputs: normed.append(inputs[0].grad_fn)))
    was_training = net.training
    try:
        # Only an input that requires a gradient makes torch record the computation of a frozen network.
        result = net.eval()(example.detach().clone().requires_grad_())
    finally:
        net.train(was_training)
        for hook in hooks:
            hook.remove()
    uses = _count_uses(result)
    return frozenset(
        path for path, y in outputs.items() if any(y.grad_fn is norm for norm in normed) and uses[y.grad_fn] == 1
    )


def _is_per_channel(module: nn.Module) -> bool:
    if isinstance(module, nn.GroupNorm):
        return module.num_groups == module.num_channels
    return isinstance(module, INSTANCE_NORMS) and not module.track_running_stats


def _count_uses(result: Any) -> Counter[Any]:
    results = result if isinstance(result, list | tuple) else [result]
    waiting = [tensor.grad_fn for tensor in results]
    seen, uses = set(waiting), Counter(waiting)
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None:
                uses[node] += 1
                if node not in seen:
                    seen.add(node)
                    waiting.append(node)
    return uses
