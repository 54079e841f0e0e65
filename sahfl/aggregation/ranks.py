"""One adapter at another rank: what a site gets that cannot hold, or wants more than, the terms of the global state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sahfl.adapters import AdapterState, FactoredLayer
from sahfl.aggregation.lowrank import project
from sahfl.aggregation.update import SiteUpdate


def at_rank_of(state: AdapterState, *, like: AdapterState, layers: Sequence[FactoredLayer]) -> AdapterState:
    """A state with the ranks of ``like``.

    To a higher rank: the same terms, then those of ``like`` with an out-side factor of zeros, which training can move.
    The out-side factor is multiplied by the ratio of the scales (alpha / rank of both), and magnitudes stay. To a lower
    rank: what ``project`` makes of the one state, that is the nearest kernels (for the CP form near ones, by least
    squares from its first terms, which all sites then share).

    Guarantees: names, shapes and dtypes of ``like``; to a higher rank the same kernels up to the rounding of the
    out-side factor, to the same rank the same bits; tensors of no layer stay as they are; a pure function, so a round
    that is asked again starts from the same bits.

    Args:
        state: the global state.
        like: the start of a site of the wanted rank, of the same tensors but for the rank.
        layers: the adapted layers; alpha and scaling are those of both ranks.

    Source: Cho et al. 2024, arXiv 2401.06432, section 3 (HetLoRA: ranks of sites, truncation to the first terms); the
    nearest kernels instead of a truncation, here. The way back is ``project``: Wang et al. 2024, arXiv 2409.05976
    (FLoRA) for the exact mean over unlike ranks.
    """
    if any(state[layer.up].shape[1] > like[layer.up].shape[1] for layer in layers):
        return project([SiteUpdate("server", 1, state)], like=like, layers=layers)
    found = dict(state)
    for layer in layers:
        n_terms, wanted = state[layer.up].shape[1], like[layer.up].shape[1]
        ratio = layer.scale(n_terms) / layer.scale(wanted)
        up = (ratio * state[layer.up].astype(np.float64)).astype(state[layer.up].dtype)
        spare = {layer.up: np.zeros_like(like[layer.up])} | {name: like[name] for name in layer.inner}
        for name, axis in layer.rank_axes.items():
            own = up if name == layer.up else state[name]
            found[name] = np.concatenate([own, spare[name].take(range(n_terms, wanted), axis)], axis)
    return found
