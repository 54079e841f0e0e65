"""The networks that both ends build for a task; server and sites must agree on every tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sahfl.adapters import AdapterState, digest, state
from sahfl.adapters.attach import attach, attach_everything
from sahfl.adapters.files import load_tensors
from sahfl.config import ModelConfig, Study, TrainedMethod, ViewsConfig
from sahfl.data.views import n_channels
from sahfl.errors import AdapterError
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


def read_base(study: Study, *, copy: Path) -> AdapterState:
    """The base network that a study names by file and hash.

    Args:
        study: a study with ``base``.
        copy: where the run keeps its own; read in the place of the file once it exists.

    Raises:
        AdapterError: the file is missing or damaged, holds another base, or one of another network.
    """
    assert study.base is not None
    path = copy if copy.exists() else study.base.path
    base, _ = load_tensors(path)
    if (found := digest(base)) != study.base.sha256:
        raise AdapterError(f"{path}: got a base with hash {found}, expected base.sha256 {study.base.sha256}")
    if odd := [name for name, value in base.items() if not np.isfinite(value).all()]:
        raise AdapterError(f"{path}: tensor {odd[0]!r} contains NaN or inf")
    try:
        base_network(study.views, study.model, base)
    except AdapterError as error:
        raise AdapterError(f"{path}: is no base of this study's network (model, views): {error}") from error
    return base


def fine_tuned_network(
    views: ViewsConfig, model: ModelConfig, base: AdapterState, method: TrainedMethod, seed: int
) -> MultiViewUNet:
    """The base with a fine-tuning method put on it, at its start; ``seed`` is the study's."""
    net = base_network(views, model, base)
    example = torch.zeros(1, n_channels(views), 32, 32)
    attach(net, method, seed=derive_seed(seed, "adapter", method.id), parts=net.parts, example=example)
    return net
