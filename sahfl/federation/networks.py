"""The networks that both ends build for a task; server and sites must agree on every tensor."""

from __future__ import annotations

import json
from functools import lru_cache

import torch
from pydantic import TypeAdapter

from sahfl.adapters import AdapterState, state
from sahfl.adapters.attach import attach, attach_everything, norm_tensors
from sahfl.config import ModelConfig, TrainedMethod, ViewsConfig
from sahfl.data.views import n_channels
from sahfl.model import MultiViewUNet
from sahfl.seeds import derive_seed


def exchanged(
    views: ViewsConfig, model: ModelConfig, method: TrainedMethod | None, *, norms: bool = True
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that a training may send, worked out from its settings alone.

    Args:
        views: of the task.
        model: of the task.
        method: as the site trains it; none in pretraining.
        norms: whether the weights of norms are among them.
    """
    names = json.dumps([part and part.model_dump(mode="json") for part in (views, model, method)], sort_keys=True)
    shapes, of_norms = _exchanged(names)
    return {name: shape for name, shape in shapes if norms or name not in of_norms}


@lru_cache(maxsize=64)
def _exchanged(settings: str) -> tuple[tuple[tuple[str, tuple[int, ...]], ...], frozenset[str]]:
    """Building the network takes longer than anything else here, and every round asks."""
    views, model, method = json.loads(settings)
    views, model = ViewsConfig.model_validate_json(json.dumps(views)), ModelConfig.model_validate(model)
    net = whole_network(views, model, seed=0)
    if method is not None:
        trained: TrainedMethod = TypeAdapter(TrainedMethod).validate_json(json.dumps(method))
        net = fine_tuned_network(views, model, state.read(net), trained, seed=0)
    shapes = tuple((name, tuple(value.shape)) for name, value in state.parameters(net).items())
    return shapes, frozenset(norm_tensors(net))


def whole_network(views: ViewsConfig, model: ModelConfig, seed: int) -> MultiViewUNet:
    """The network at the start of pretraining: every tensor trains and travels."""
    net = MultiViewUNet(
        n_channels(views),
        size=model.size,
        seed=derive_seed(seed, "network"),
        views=tuple(views.weights) if model.planes == "per_view" else (),
        deep_supervision=model.deep_supervision,
    )
    attach_everything(net)
    return net


def base_network(views: ViewsConfig, model: ModelConfig, base: AdapterState) -> MultiViewUNet:
    """The pretrained network.

    Raises:
        AdapterError: the base belongs to another network.
    """
    net = whole_network(views, model, seed=0)
    state.load(net, base)
    return net


def fine_tuned_network(
    views: ViewsConfig, model: ModelConfig, base: AdapterState, method: TrainedMethod, seed: int
) -> MultiViewUNet:
    """The base with a fine-tuning method put on it, at its start; ``seed`` is the study's."""
    net = base_network(views, model, base)
    example = torch.zeros(1, n_channels(views), 32, 32)
    attach(net, method, seed=derive_seed(seed, "adapter", method.id), parts=net.parts, example=example)
    return net
