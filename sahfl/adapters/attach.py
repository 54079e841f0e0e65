"""Putting a method on a network and taking it off: which tensors train and travel; all others are frozen."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import partial

from torch import Generator, Tensor, nn

from sahfl.adapters import exchanged, scale_of
from sahfl.adapters.adapted import AdaptedConv
from sahfl.adapters.norms import normed_convolutions
from sahfl.adapters.updates.geometry import CONVOLUTIONS, Convolution, is_plain, kernel_of
from sahfl.config import AdapterTuning, Section, TrainedMethod, WeightTuning
from sahfl.config.methods import TrainedMethodSetting
from sahfl.errors import AdapterError
from sahfl.log_lines import LogLine
from sahfl.seeds import derive_seed

log = logging.getLogger(__name__)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm)
Parts = Mapping[str, tuple[str, ...]]


class Attached(Section):
    """What a method did to a network."""

    method: TrainedMethodSetting
    """The fine-tuning method with all its settings."""
    adapted: tuple[str, ...]
    """Paths of the convolutions with an adapter."""
    over_full_rank: tuple[str, ...]
    """Those of them with more terms than their kernel needs, which is legal."""
    without_magnitude: tuple[str, ...]
    """Those of them without a DoRA magnitude, because the norm that follows would cancel it."""
    weights: tuple[str, ...]
    """Names of the network's own tensors that are trained."""


def attach(
    net: nn.Module, method: TrainedMethod, *, seed: int, parts: Parts | None = None, example: Tensor | None = None
) -> Attached:
    """Freeze a network and put a fine-tuning method on it, in place.

    Guarantees: afterwards exactly the tensors that ``exchanged.parameters`` lists are trainable. The network computes
    what it computed before, bit for bit. The same seed gives the same start.

    Args:
        net: any network with convolutions.
        method: the method with its settings.
        seed: seed of the adapters' random factors; a layer's own seed also depends on its name.
        parts: the paths of the modules in each part that the method may name; ``encoder`` is every ``encoder.*``.
        example: an input of the network, (batch, channels, *space), to find the convolutions whose scale a following
            norm cancels; without it there are none, and every layer keeps its DoRA magnitude.

    Raises:
        AdapterError: a convolution cannot be adapted (the message names the layer), there is none, a part is unknown,
            or the network carries an adapter already. The network still computes the same, but may be frozen.
    """
    parts = parts or {}
    exchanged.forget(net)
    net.requires_grad_(False)
    if isinstance(method, WeightTuning):
        _declare_all(_tuned_modules(net, method, parts), only_bias=False)
        if method.method == "norm_bias":
            _declare_all(net.modules(), only_bias=True)
    else:
        _put_adapters(net, method, seed, parts, example)
    if "norm" in method.stays:
        _declare_all((module for module in net.modules() if isinstance(module, NORMS)), only_bias=False)
    _make_trainable(net)
    attached = inspect(net, method)
    _log(attached)
    return attached


def inspect(net: nn.Module, method: TrainedMethod) -> Attached:
    """What ``method`` did to a network."""
    layers = {path: module for path, module in net.named_modules() if isinstance(module, AdaptedConv)}
    factors = {
        f"{path}.{prefix}{name}"
        for path, layer in layers.items()
        for prefix, names in _factors(layer)
        for name in names
    }
    decomposed = any(layer.magnitude is not None for layer in layers.values())
    return Attached(
        method=method,
        adapted=tuple(layers),
        over_full_rank=tuple(path for path, layer in layers.items() if layer.update.rank > layer.update.full_rank),
        without_magnitude=tuple(path for path, layer in layers.items() if decomposed and layer.magnitude is None),
        weights=tuple(name for name in exchanged.parameters(net) if name not in factors),
    )


def _factors(layer: AdaptedConv) -> list[tuple[str, tuple[str, ...]]]:
    """The names of a layer's own tensors, each group with its prefix."""
    private = [("private.", layer.private.exchanged)] if layer.private is not None else []
    return [("", layer.exchanged), ("update.", layer.update.exchanged), *private]


def restore(net: nn.Module, attached: Attached) -> None:
    """Repeat on a network, in place, what ``attach`` did to another network of the same architecture.

    Raises:
        AdapterError: the network lacks a layer or tensor, or carries an adapter already.
    """
    exchanged.forget(net)
    method = attached.method
    layers = {path: module for path, module in net.named_modules() if isinstance(module, CONVOLUTIONS)}
    if odd := [path for path in attached.adapted if path not in layers]:
        raise AdapterError(f"{type(net).__name__}: has no convolution {odd[0]!r}, the adapter is of another network")
    net.requires_grad_(False)
    if isinstance(method, AdapterTuning):
        chosen = {path: layers[path] for path in attached.adapted}
        _adapt_all(net, chosen, method, cancelled=frozenset(attached.without_magnitude), seed=0)
    tensors = dict(net.named_parameters())
    if odd := [name for name in attached.weights if name not in tensors]:
        raise AdapterError(f"{type(net).__name__}: has no tensor {odd[0]!r}, the adapter is of another network")
    for name in attached.weights:
        path, _, own = name.rpartition(".")
        module = net.get_submodule(path)
        exchanged.declare(module, (*getattr(module, "exchanged", ()), own))
    _make_trainable(net)


def _make_trainable(net: nn.Module) -> None:
    for parameter in exchanged.parameters(net).values():
        parameter.requires_grad_(True)


def norm_tensors(net: nn.Module) -> tuple[str, ...]:
    """Names of the exchanged tensors that belong to norms, in alphabetical order."""
    norms = {path for path, module in net.named_modules() if isinstance(module, NORMS)}
    return tuple(name for name in exchanged.parameters(net) if name.rpartition(".")[0] in norms)


def staying(net: nn.Module, method: TrainedMethod, parts: Parts) -> tuple[str, ...]:
    """Names of the exchanged tensors that stay at a site while a method trains, in alphabetical order.

    All of them stay where one site trains alone, and none in a pooled training.

    Raises:
        AdapterError: the method names something that stays, but nothing of it trains.
    """
    names = tuple(exchanged.parameters(net))
    if method.trained_at is not None:
        return names if method.is_alone else ()
    layers = {path: module for path, module in net.named_modules() if isinstance(module, AdaptedConv)}
    found = {f"{path}.private.{name}" for path, one in layers.items() if one.private for name in one.private.exchanged}
    for stay in method.stays:
        if not (chosen := _staying(net, stay, layers, parts, names)):
            raise AdapterError(f"stays: got {stay}, but {method.id} trains nothing there; name what it trains")
        found |= chosen
    return tuple(name for name in names if name in found)


def _staying(
    net: nn.Module, stay: str, layers: Mapping[str, AdaptedConv], parts: Parts, names: tuple[str, ...]
) -> set[str]:
    if stay == "norm":
        return set(norm_tensors(net))
    if stay in ("out", "inner"):
        inner = {f"{path}.update.{name}" for path, layer in layers.items() for name in layer.update.inner_factors}
        own = {
            f"{path}.{prefix}{name}" for path, one in layers.items() for prefix, all_ in _factors(one) for name in all_
        }
        return inner if stay == "inner" else own - inner
    inside = {id(module) for module in _within(net, [stay], parts)}
    return {name for name in names if id(_owner(net, name)) in inside}


def _owner(net: nn.Module, name: str) -> nn.Module:
    return net.get_submodule(name.rpartition(".")[0])


def attach_everything(net: nn.Module) -> None:
    """Make every parameter of a network trainable and exchanged, in place; AdapterError if it carries an adapter."""
    exchanged.forget(net)
    net.requires_grad_(True)
    _declare_all(net.modules(), only_bias=False)


def merge(net: nn.Module) -> None:
    """Replace every adapted convolution by a plain one that computes the same, in place."""
    places = net.named_modules(remove_duplicate=False)
    adapted = {path: module for path, module in places if isinstance(module, AdaptedConv)}
    plain = {module: module.merged() for module in adapted.values()}
    for path, module in adapted.items():
        net.set_submodule(path, plain[module])


def detach(net: nn.Module) -> None:
    """Take the adapters off, in place: the base is then what it was before ``attach``, bit for bit."""
    for path, module in list(net.named_modules(remove_duplicate=False)):
        if isinstance(module, AdaptedConv):
            net.set_submodule(path, module.base)
    exchanged.forget(net)


def _put_adapters(net: nn.Module, method: AdapterTuning, seed: int, parts: Parts, example: Tensor | None) -> None:
    trained = _within(net, [name for name in method.also_train if name not in ("norm", "bias")], parts)
    leaves_out = method.has_magnitudes and not method.all_magnitudes
    asked = example is not None and (leaves_out or "unnormed" in method.layers)
    normed = normed_convolutions(net, example) if asked else frozenset()  # type: ignore[arg-type]
    wanted = [module for path, module in net.named_modules() if path not in normed or "all" in method.layers]
    wanted = wanted if {"all", "unnormed"} & set(method.layers) else _within(net, method.layers, parts)
    layers = _adaptable(net, set(wanted) - set(trained))
    cancelled = normed & layers.keys() if leaves_out else frozenset()
    _adapt_all(net, layers, method, cancelled=cancelled, seed=seed)
    _declare_all(trained, only_bias=False)
    if "norm" in method.also_train:
        _declare_all((module for module in net.modules() if isinstance(module, NORMS)), only_bias=False)
    if "bias" in method.also_train:
        _declare_all(net.modules(), only_bias=True)


def _adapt_all(
    net: nn.Module, layers: Mapping[str, Convolution], method: AdapterTuning, *, cancelled: frozenset[str], seed: int
) -> None:
    everywhere = list(net.named_modules(remove_duplicate=False))  # a layer that is used twice stays one layer
    for path, base in layers.items():
        adapted = _adapt(base, method, magnitude=path not in cancelled, seed=derive_seed(seed, path))
        for place in [name for name, module in everywhere if module is base]:
            net.set_submodule(place, adapted)


def _adapt(base: Convolution, method: AdapterTuning, *, magnitude: bool, seed: int) -> AdaptedConv:
    record = method.record
    update = partial(record.update(), base, **{name: getattr(method, name) for name in record.options})
    shared = update(rank=method.rank, generator=Generator().manual_seed(seed))
    drawn = Generator().manual_seed(derive_seed(seed, "private"))
    numbers, shape = shared.up[0].numel(), kernel_of(base).shape
    return AdaptedConv(
        base,
        shared,
        scale=scale_of(method.alpha, method.scaling, rank=method.rank, numbers=numbers, shape=shape),
        magnitude=magnitude and method.has_magnitudes,
        rank_dropout=method.rank_dropout,
        private=update(rank=method.private_rank, generator=drawn) if method.private_rank else None,
    )


def _adaptable(net: nn.Module, wanted: set[nn.Module]) -> dict[str, Convolution]:
    """Every convolution among ``wanted`` by its path; all are checked before the first is changed."""
    found = {
        path: module
        for path, module in net.named_modules()
        if path and module in wanted and isinstance(module, CONVOLUTIONS)
    }
    if not found:
        raise AdapterError(f"{type(net).__name__}: holds no convolution to adapt among the chosen layers")
    for path, module in found.items():
        if module.groups != 1:
            raise AdapterError(f"layer {path!r}: has groups={module.groups}, an adapter needs groups=1")
        if not is_plain(module):
            raise AdapterError(
                f"layer {path!r}: does more than a plain convolution (an own forward, hooks or a kernel "
                "that is computed), which an adapter would leave out; choose other layers"
            )
    return found


def _tuned_modules(net: nn.Module, method: WeightTuning, parts: Parts) -> list[nn.Module]:
    if method.method == "full":
        return list(net.modules())
    if method.method == "norm_bias":
        return [module for module in net.modules() if isinstance(module, NORMS)]
    return _within(net, ["head" if method.method == "last_layer" else method.method], parts)


def _within(net: nn.Module, names: Iterable[str], parts: Parts) -> list[nn.Module]:
    """Every module in the named parts; AdapterError for an unknown part."""
    found = []
    for name in names:
        named = [paths for part, paths in parts.items() if part == name or part.startswith(f"{name}.")]
        if not named:
            known = ", ".join(parts) or "none"
            raise AdapterError(f"{type(net).__name__}: has no part {name!r}; its parts are: {known}")
        found += [module for paths in named for path in paths for module in net.get_submodule(path).modules()]
    return found


def _declare_all(modules: Iterable[nn.Module], *, only_bias: bool) -> None:
    for module in modules:
        if isinstance(module, AdaptedConv) or hasattr(module, "inner_factors"):
            continue  # an adapter declares its own
        names = tuple(name for name, _ in module.named_parameters(recurse=False) if not only_bias or name == "bias")
        declared = getattr(module, "exchanged", ())
        exchanged.declare(module, tuple(dict.fromkeys([*declared, *names])))


def _log(attached: Attached) -> None:
    log.info(LogLine("attached", adapters=len(attached.adapted), weights=len(attached.weights)))
    if attached.over_full_rank:
        log.info(LogLine("over_full_rank", layers=",".join(attached.over_full_rank)))
    if attached.without_magnitude:
        log.info(LogLine("magnitude_left_out", reason="norm_cancels_it", layers=",".join(attached.without_magnitude)))
