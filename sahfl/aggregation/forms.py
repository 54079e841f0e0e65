"""The forms of the adapter methods: a layer's tensors as the terms of its update, its kernel, and back; float64.

Terms are one matrix (size of the axis, terms) for each factor, the out-side factor first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sahfl.adapters import AdapterState, FactoredLayer, Floats, Form, WeightedState
from sahfl.aggregation.nearest import nearest_cp, nearest_matrix

# ------------------------------------------------------------------------------------------------------ all forms


def terms_of(layer: FactoredLayer, state: Mapping[str, Floats]) -> list[Floats]:
    """Terms of a layer's update, (size of the axis, terms) each, the scale folded into the first."""
    up, *inner = layer.form.terms(layer, state)
    return [layer.scale(up.shape[1]) * up, *inner]


def scale_rows(up: Floats, rows: Floats | float) -> Floats:
    """The first of a layer's terms, (out * n, terms), times one number or one for each output channel, (out,)."""
    if isinstance(rows, float):
        return up * rows
    return up * np.repeat(rows, up.shape[0] // len(rows))[:, None]


def channel_lengths(layer: FactoredLayer, terms: list[Floats]) -> Floats:
    """Length of every output channel's kernel W + D, (out,), from the terms of D; 1 for a kernel of zeros."""
    return _row_lengths(_direction(layer, terms))


def _direction(layer: FactoredLayer, terms: list[Floats]) -> Floats:
    assert layer.kernel is not None
    return layer.kernel.astype(np.float64) + layer.form.dense(layer, terms)


def _row_lengths(direction: Floats) -> Floats:
    lengths = np.sqrt(np.square(direction.reshape(len(direction), -1)).sum(axis=1))
    return np.where(lengths > 0, lengths, 1)


def ratio_of(layer: FactoredLayer, state: Mapping[str, Floats]) -> Floats:
    """DoRA's d = m / ||W + scale * D|| of every output channel, (out,)."""
    assert layer.magnitude is not None
    return state[layer.magnitude] / channel_lengths(layer, terms_of(layer, state))


def kernel_of(layer: FactoredLayer, state: Mapping[str, Floats]) -> Floats:
    """The layer's kernel, (out, in, *kernel); only with magnitudes does it include the frozen part."""
    terms = terms_of(layer, state)
    if layer.magnitude is None:
        return layer.form.dense(layer, terms)
    direction = _direction(layer, terms)
    return along_rows(state[layer.magnitude] / _row_lengths(direction), direction)


def written(layer: FactoredLayer, terms: list[Floats], ratio: Floats | None, like: AdapterState) -> AdapterState:
    """The inverse of ``terms_of``: a layer's tensors, with the shapes (but for the rank) and dtypes of ``like``.

    ``ratio`` is DoRA's d of every output channel, (out,).
    """
    up, *inner = terms
    found = layer.form.factors(layer, [up / layer.scale(up.shape[1]), *inner], like)
    if layer.magnitude is not None and ratio is not None:
        found[layer.magnitude] = ratio * channel_lengths(layer, terms)
    return {name: value.astype(like[name].dtype) for name, value in found.items()}


def inverse(values: Floats) -> Floats:
    """One over every number, in the same shape; 1 for zeros."""
    return 1 / np.where(values == 0, 1, values)


def along_rows(values: Floats, factor: Floats) -> Floats:
    """A tensor (out, ...) times one number for each entry of its first axis, (out,)."""
    return factor * values.reshape(-1, *(1,) * (factor.ndim - 1))


# ------------------------------------------------------------------------------------------ products of two matrices


def matrix_axes(layer: FactoredLayer) -> dict[str, int]:
    """Axis of the terms: 1 in ``up`` (out, terms, ...), 0 in the one other factor (terms, ...)."""
    return {layer.up: 1, layer.inner[0]: 0}


def down_rows(layer: FactoredLayer, state: Mapping[str, Floats]) -> Floats:
    """The in-side factor (terms, ...) as a matrix (numbers of a term, terms)."""
    down = state[layer.inner[0]]
    return down.reshape(down.shape[0], -1).T.copy()


def matrix_terms(layer: FactoredLayer, state: Mapping[str, Floats]) -> list[Floats]:
    """``up`` (out, terms, *rows) and the in-side factor (terms, ...) as matrices (out * rows, terms), (size, terms)."""
    up = state[layer.up]
    return [np.moveaxis(up, 1, -1).reshape(-1, up.shape[1]), down_rows(layer, state)]


def matrix_factors(layer: FactoredLayer, terms: Sequence[Floats], like: AdapterState) -> dict[str, Floats]:
    """The inverse of ``matrix_terms``, with the shapes of ``like`` but for the rank."""
    (n_out, _, *rows), (_, *rest) = like[layer.up].shape, like[layer.inner[0]].shape
    up, down = terms
    up = np.moveaxis(up.reshape(n_out, *rows, up.shape[1]), -1, 1)
    return {layer.up: up, layer.inner[0]: down.T.reshape(-1, *rest)}


def matrix_nearest(
    layer: FactoredLayer, terms: list[Floats], sites: Sequence[WeightedState], like: AdapterState
) -> list[Floats]:
    """The product of two matrices (size, rank) that is nearest to that of ``terms`` (size, n), by singular values.

    The in-side factor gets the root mean square of the sites' ones, so that training goes on as before.
    """
    spare = layer.form.terms(layer, {name: like[name].astype(np.float64) for name in layer.names})[1]
    size = float(np.sqrt(np.mean([np.square(site.state[layer.inner[0]]).mean() for site in sites]))) or 1.0
    return nearest_matrix(terms, spare, size=size)


def _conv_dense(layer: FactoredLayer, terms: Sequence[Floats]) -> Floats:
    return (terms[0] @ terms[1].T).reshape(layer.shape)


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
    """Least squares from the mean of the sites' factors, in which columns of ``like`` replace columns of zeros."""
    ready = []
    for site in sites:
        up = site.state[layer.up]
        if layer.magnitude is not None:
            up = along_rows(ratio_of(layer, site.state), up)
        ready.append(WeightedState(site.weight, site.state | {layer.up: layer.scale(up.shape[1]) * up}))
    # In-side factors keep their lengths; otherwise the terms that only some sites have would fade over the rounds.
    start = [_mean_factor(n, ready, like[n].shape, missing=n == layer.up) for n in (layer.up, *layer.inner)]
    for name, factor in zip(layer.inner, start[1:], strict=True):
        np.copyto(factor, like[name].reshape(factor.shape), where=~factor.any(axis=0))
    return nearest_cp(terms, start)


def _mean_factor(name: str, sites: Sequence[WeightedState], shape: tuple[int, ...], *, missing: bool) -> Floats:
    """Mean of a CP factor, (size, rank), over the sites' first terms; ``missing`` terms count as zero or not at all."""
    rank = shape[-1]
    total, weights = np.zeros((int(np.prod(shape[:-1])), rank)), np.zeros(rank)
    for site in sites:
        factor = site.state[name].reshape(total.shape[0], -1)[:, :rank]
        total[:, : factor.shape[1]] += site.weight * factor
        weights[: factor.shape[1]] += site.weight
    lacking = (weights > 0) & (weights < weights.max())
    return total if missing else total / np.where(lacking, weights, 1)


CONV_LORA = Form(matrix_terms, matrix_factors, _conv_dense, matrix_nearest, matrix_axes)
"""``up`` (out, terms) times ``down`` (terms, in, *kernel)."""
LORA_C = Form(
    matrix_terms,
    matrix_factors,
    _lora_c_dense,
    matrix_nearest,
    matrix_axes,
    terms_per_rank=lambda shape: shape[-1],
    numbers_per_term=lambda shape: math.prod(shape[2:-1]),
)
"""``up`` (out, terms, *others, 1) times ``down`` (terms, in, *ones, width); one rank has ``width`` terms."""
CP = Form(_cp_terms, _cp_factors, _cp_dense, _cp_nearest, _cp_axes)
"""Sums of outer products of a column of each factor: (out, terms), (in, terms) and (*sizes, terms) of the kernel."""
