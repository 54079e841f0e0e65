"""The networks that both ends build for a task; server and sites must agree on every tensor."""

from __future__ import annotations

import torch

from sahfl.adapters import AdapterState, state
from sahfl.adapters.attach import attach, attach_everything
from sahfl.config import ModelConfig, TrainedMethod, ViewsConfig
from sahfl.data.views import n_channels
from sahfl.model import MultiViewUNet
from sahfl.seeds import derive_seed


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
