"""The networks that server and sites build for a task, with the same tensors at both ends."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter

from sahfl.adapters import AdapterState, digest, exchanged
from sahfl.adapters.adapted import AdaptedConv
from sahfl.adapters.attach import attach, attach_everything, norm_tensors, staying
from sahfl.adapters.files import load_tensors
from sahfl.config import AdapterTuning, LoadedBase, ModelConfig, Study, TrainedMethod, ViewsConfig, WeightTuning
from sahfl.config.network import NETWORKS
from sahfl.data.views import n_channels
from sahfl.errors import AdapterError
from sahfl.model import Network
from sahfl.seeds import derive_seed

Shapes = dict[str, tuple[int, ...]]
"""Names and shapes of tensors."""


@dataclass(frozen=True)
class Trained:
    """The tensors that a training trains, from its settings alone."""

    shared: Shapes
    """Those that travel between the sites and the server."""
    staying: Shapes
    """Those that never leave a site during the rounds."""
    norms: frozenset[str]
    """Names, among all of them, of weights of norms."""
    n_adapted: int = 0
    """Number of layers with an adapter."""
    n_magnitudes: int = 0
    """Number of those in which DoRA's magnitudes train."""


def trained_tensors(views: ViewsConfig, model: ModelConfig, method: TrainedMethod | None) -> Trained:
    """The tensors that a training trains; ``method`` is as the site trains it, None in pretraining."""
    return _trained_tensors(
        json.dumps([part and part.model_dump(mode="json") for part in (views, model, method)], sort_keys=True)
    )


@lru_cache(maxsize=64)
def _trained_tensors(settings: str) -> Trained:
    views, model, method = json.loads(settings)
    views, model = ViewsConfig.model_validate_json(json.dumps(views)), ModelConfig.model_validate(model)
    net = whole_network(views, model, seed=0)
    stays: tuple[str, ...] = ()
    if method is not None:
        trained: TrainedMethod = TypeAdapter(TrainedMethod).validate_json(json.dumps(method))
        net = fine_tuned_network(views, model, exchanged.read(net), trained, seed=0)
        stays = staying(net, trained, net.parts)
    shapes = {name: tuple(value.shape) for name, value in exchanged.parameters(net).items()}
    return Trained(
        {name: shape for name, shape in shapes.items() if name not in stays},
        {name: shapes[name] for name in stays},
        frozenset(norm_tensors(net)),
        n_adapted=sum(isinstance(layer, AdaptedConv) for layer in net.modules()),
        n_magnitudes=sum(isinstance(layer, AdaptedConv) and layer.magnitude is not None for layer in net.modules()),
    )


def whole_network(views: ViewsConfig, model: ModelConfig, seed: int) -> Network:
    """The network at the start of pretraining, where every tensor trains and travels."""
    net = plain_network(views, model, derive_seed(seed, "network"))
    attach_everything(net)
    return net


def plain_network(views: ViewsConfig, model: ModelConfig, seed: int) -> Network:
    """The network without a method; ``seed`` is that of its first weights."""
    return NETWORKS[model.size].load()(
        n_channels(views),
        size=model.size,
        seed=seed,
        views=tuple(views.weights) if model.planes == "per_view" else (),
        deep_supervision=model.deep_supervision,
    )


def base_network(views: ViewsConfig, model: ModelConfig, base: AdapterState) -> Network:
    """The pretrained network; AdapterError if ``base`` belongs to another network."""
    net = whole_network(views, model, seed=0)
    exchanged.load(net, base)
    return net


def read_base(study: Study, *, copy: Path | None = None) -> AdapterState:
    """The base network that a study names in the place of pretraining; random weights for ``base: none``.

    The run's own copy takes the place of the file once it exists.

    Raises:
        AdapterError: the file is missing or damaged, or holds another base or a base of another network.
    """
    if not isinstance(study.base, LoadedBase):
        return exchanged.read(whole_network(study.views, study.model, study.seed))
    path = copy if copy and copy.exists() else study.base.path
    base, _ = load_tensors(path)
    expected = study.base.content_sha256
    if expected is not None and (found := digest(base)) != expected:
        raise AdapterError(f"{path}: got a base with hash {found}, expected base.content_sha256 {expected}")
    if odd := [name for name, value in base.items() if not np.isfinite(value).all()]:
        raise AdapterError(f"{path}: tensor {odd[0]!r} contains NaN or inf")
    try:
        base_network(study.views, study.model, base)
    except AdapterError as error:
        raise AdapterError(f"{path}: is no base of this study's network (model, views): {error}") from error
    return base


def fine_tuned_network(
    views: ViewsConfig, model: ModelConfig, base: AdapterState, method: TrainedMethod, seed: int
) -> Network:
    """The network of a fine-tuning method at the start of training: the base with the method on it.

    A method that starts from scratch has random weights in the place of the base. ``seed`` is the study's.
    """
    scratch = isinstance(method, WeightTuning) and method.start == "scratch"
    net = (
        whole_network(views, model, derive_seed(seed, "scratch", method.repeat))
        if scratch
        else base_network(views, model, base)
    )
    example = torch.zeros(1, n_channels(views), 32, 32)
    attach(net, method, seed=_adapter_seed(method, seed), parts=net.parts, example=example)
    return net


def _adapter_seed(method: TrainedMethod, seed: int) -> int:
    """Seed of an adapter's start: methods of one form, rank and repeat begin with the same numbers.

    Rows that differ in aggregation, magnitudes or place of training then do not differ by their starts.
    """
    if not isinstance(method, AdapterTuning):
        return seed  # nothing is drawn
    form = method.record.update().__name__
    return derive_seed(seed, "adapter", form, method.rank, method.repeat)
