"""Putting a method on a network: which tensors train and travel, all others frozen; and taking it off again."""

from __future__ import annotations

from torch import Generator, nn

from sahfl.adapters import state
from sahfl.adapters.cp_lora import CONVOLUTIONS, CPLoRAConv
from sahfl.config import CpLora, FullFineTuning, TrainedMethod
from sahfl.errors import AdapterError
from sahfl.seeds import derive_seed


def attach(net: nn.Module, method: TrainedMethod, *, seed: int) -> None:
    """Freeze a network and put a fine-tuning method on it, in place.

    Guarantees: afterwards exactly the tensors that ``state.parameters`` lists are trainable. For adapters, the network
    computes what it computed before, bit for bit. The same seed gives the same start.

    Args:
        net: any network with convolutions.
        method: which method, with its rank and scale.
        seed: of the adapters' random factors; a layer's own seed also depends on its name.

    Raises:
        AdapterError: a convolution cannot be adapted (grouped; the layer is named), there is none, or the
            network carries an adapter already. The network computes what it did, but may be frozen.
    """
    state.forget(net)
    net.requires_grad_(False)
    match method:
        case FullFineTuning():
            attach_everything(net)
        case CpLora(rank=rank, alpha=alpha):
            for parent, name, path in _adaptable(net):
                generator = Generator().manual_seed(derive_seed(seed, path))
                adapted = CPLoRAConv(getattr(parent, name), rank=rank, alpha=alpha, generator=generator)
                setattr(parent, name, adapted)
    for parameter in state.parameters(net).values():
        parameter.requires_grad_(True)


def attach_everything(net: nn.Module) -> None:
    """Make every parameter of a network trainable and exchanged: pretraining and full fine-tuning, in place."""
    net.requires_grad_(True)
    for module in net.modules():
        state.declare(module, tuple(name for name, _ in module.named_parameters(recurse=False)))


def merge(net: nn.Module) -> None:
    """Replace every adapted convolution by a plain one that computes the same, in place; for evaluation and export."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, CPLoRAConv):
                setattr(module, name, child.merged())


def _adaptable(net: nn.Module) -> list[tuple[nn.Module, str, str]]:
    """Parent, name and full path of every convolution; all are looked at before the first is changed."""
    found = [
        (module, name, f"{path}.{name}" if path else name)
        for path, module in net.named_modules()
        for name, child in module.named_children()
        if isinstance(child, CONVOLUTIONS)
    ]
    if not found:
        raise AdapterError(f"{type(net).__name__}: holds no convolution to adapt")
    for module, name, path in found:
        if (groups := getattr(module, name).groups) != 1:
            raise AdapterError(f"layer {path!r}: has groups={groups}, CP-LoRA needs groups=1")
    return found
