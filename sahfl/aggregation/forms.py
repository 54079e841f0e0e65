"""The forms of the adapter methods: how their factors make up a kernel, and the nearest update of a given rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sahfl.adapters import AdapterState, FactoredLayer, Floats, Form, WeightedState
from sahfl.aggregation.kernels import along_rows, ratio_of
from sahfl.aggregation.nearest import nearest_cp, nearest_matrix

# ------------------------------------------------------------------------------------------ products of two matrices


def matrix_axes(layer: FactoredLayer) -> dict[str, int]:
    """Axis of the terms in ``up`` (out, terms, ...) and in the one other factor (terms, ...)."""
    return {layer.up: 1, layer.inner[0]: 0}


def down_rows(layer: FactoredLayer, state: Mapping[str, Floats]) -> Floats:
    """The in-side factor (terms, ...) as a matrix (numbers of a term, terms)."""
    down = state[layer.inner[0]]
    return down.reshape(down.shape[0], -1).T.copy()


def matrix_factors(layer: FactoredLayer, terms: Sequence[Floats], like: AdapterState) -> dict[str, Floats]:
    """``up`` (out, terms) and the in-side factor (terms, ...) from two matrices (size, terms)."""
    up, down = terms
    return {layer.up: up, layer.inner[0]: down.T.reshape(-1, *like[layer.inner[0]].shape[1:])}


def matrix_nearest(
    layer: FactoredLayer, terms: list[Floats], sites: Sequence[WeightedState], like: AdapterState
) -> list[Floats]:
    """The nearest product of two matrices (size, rank) to that of ``terms`` (size, n), by singular values.

    The in-side factor gets the root mean square that those of the sites have, to train on as before.
    """
    spare = layer.form.terms(layer, {name: like[name].astype(np.float64) for name in layer.names})[1]
    size = float(np.sqrt(np.mean([np.square(site.state[layer.inner[0]]).mean() for site in sites]))) or 1.0
    return nearest_matrix(terms, spare, size=size)


def _conv_terms(layer: FactoredLayer, state: Mapping[str, Floats]) -> list[Floats]:
    return [state[layer.up], down_rows(layer, state)]


def _conv_dense(layer: FactoredLayer, terms: Sequence[Floats]) -> Floats:
    return (terms[0] @ terms[1].T).reshape(layer.shape)


def _lora_c_terms(layer: FactoredLayer, state: Mapping[str, Floats]) -> list[Floats]:
    up = state[layer.up]
    rows = np.moveaxis(up, 1, -1).reshape(-1, up.shape[1])  # (out * others, terms)
    return [rows, down_rows(layer, state)]


def _lora_c_factors(layer: FactoredLayer, terms: Sequence[Floats], like: AdapterState) -> dict[str, Floats]:
    *others, _ = layer.shape[2:]
    rows = terms[0].reshape(layer.shape[0], *others, 1, terms[0].shape[1])
    return matrix_factors(layer, [np.moveaxis(rows, -1, 1), terms[1]], like)


def _lora_c_dense(layer: FactoredLayer, terms: Sequence[Floats]) -> Floats:
    n_out, n_in, *others, width = layer.shape
    matrix = (terms[0] @ terms[1].T).reshape(n_out, *others, n_in, width)
    return np.moveaxis(matrix, -2, 1)


# ---------------------------------------------------------------------------------------------------- the CP form


def _cp_terms(layer: FactoredLayer, state: Mapping[str, Floats]) -> list[Floats]:
    return [state[layer.up], *(state[name].reshape(-1, state[name].shape[-1]) for name in layer.inner)]


def _cp_factors(layer: FactoredLayer, terms: Sequence[Floats], like: AdapterState) -> dict[str, Floats]:
    pairs = zip(layer.inner, terms[1:], strict=True)
    return {layer.up: terms[0]} | {name: factor.reshape(*like[name].shape[:-1], -1) for name, factor in pairs}


def _cp_dense(layer: FactoredLayer, terms: Sequence[Floats]) -> Floats:
    up, right, *others = terms
    for factor in others:
        right = (right[:, None] * factor[None]).reshape(-1, factor.shape[1])
    return (up @ right.T).reshape(layer.shape)


def _cp_axes(layer: FactoredLayer) -> dict[str, int]:
    last = {name: 1 for name in (layer.up, *layer.inner)}
    return last | ({layer.inner[1]: len(layer.shape) - 2} if len(layer.inner) == 2 else {})


def _cp_nearest(
    layer: FactoredLayer, terms: list[Floats], sites: Sequence[WeightedState], like: AdapterState
) -> list[Floats]:
    return nearest_cp(terms, _start(layer, sites, like))


def _start(layer: FactoredLayer, sites: Sequence[WeightedState], like: AdapterState) -> list[Floats]:
    """The mean of the factors, from which least squares start; columns of zeros are those of ``like``."""
    scaled = [site.state for site in sites]
    if layer.magnitude is not None:
        scaled = [
            site.state | {layer.up: along_rows(ratio_of(layer, site.state), site.state[layer.up])} for site in sites
        ]
    scaled = [state | {layer.up: layer.scale(state[layer.up].shape[1]) * state[layer.up]} for state in scaled]
    ready = [WeightedState(site.weight, state) for site, state in zip(sites, scaled, strict=True)]
    # In-side factors keep their lengths: terms of a few sites would else fade from round to round, untrained.
    start = [_mean_factor(n, ready, like[n].shape, missing=n == layer.up) for n in (layer.up, *layer.inner)]
    for name, factor in zip(layer.inner, start[1:], strict=True):
        np.copyto(factor, like[name].reshape(factor.shape), where=~factor.any(axis=0))
    return start


def _mean_factor(name: str, sites: Sequence[WeightedState], shape: tuple[int, ...], *, missing: bool) -> Floats:
    """Mean of a CP factor, (size, rank), over the sites' first terms.

    Where sites have fewer terms, theirs count as zero if ``missing``; else the mean is over those that have the term.
    """
    rank = shape[-1]
    total, weights = np.zeros((int(np.prod(shape[:-1])), rank)), np.zeros(rank)
    for site in sites:
        factor = site.state[name].reshape(total.shape[0], -1)[:, :rank]
        total[:, : factor.shape[1]] += site.weight * factor
        weights[: factor.shape[1]] += site.weight
    lacking = (weights > 0) & (weights < weights.max())
    return total if missing else total / np.where(lacking, weights, 1)


CONV_LORA = Form(_conv_terms, matrix_factors, _conv_dense, matrix_nearest, matrix_axes)
"""``up`` (out, terms) times ``down`` (terms, in, *kernel)."""
LORA_C = Form(
    _lora_c_terms, _lora_c_factors, _lora_c_dense, matrix_nearest, matrix_axes, terms_per_rank=lambda shape: shape[-1]
)
"""``up`` (out, terms, *others, 1) times ``down`` (terms, in, *ones, width); a rank has as many terms as the width."""
CP = Form(_cp_terms, _cp_factors, _cp_dense, _cp_nearest, _cp_axes)
"""Sums of outer products of a column of each factor: (out, terms), (in, terms) and (*sizes, terms) of the kernel."""
