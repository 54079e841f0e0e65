"""One adapted layer: from its tensors to the terms of its update and its kernel, and back; float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sahfl.adapters import AdapterState, FactoredLayer

Floats = NDArray[np.float64]


def terms_of(layer: FactoredLayer, state: Mapping[str, Floats]) -> list[Floats]:
    """Terms of a layer's update, one matrix (size of the axis, terms) for each factor, the scale folded into ``up``."""
    up, inner = state[layer.up], [state[name] for name in layer.inner]
    scale = layer.scale(up.shape[1])
    match layer.form:
        case "cp":
            return [scale * up, *(factor.reshape(-1, factor.shape[-1]) for factor in inner)]
        case "conv_lora":
            return [scale * up, inner[0].reshape(up.shape[1], -1).T.copy()]
        case "lora_c":
            rows = np.moveaxis(up, 1, -1).reshape(-1, up.shape[1])  # (out * others, terms)
            return [scale * rows, inner[0].reshape(up.shape[1], -1).T.copy()]


def scale_rows(layer: FactoredLayer, up: Floats, rows: Floats | float) -> Floats:
    """The out-side matrix of ``terms_of`` with every output channel times its own number."""
    if isinstance(rows, float):
        return up * rows
    return up * np.repeat(rows, up.shape[0] // len(rows))[:, None]


def channel_lengths(layer: FactoredLayer, terms: list[Floats]) -> Floats:
    """Length of every output channel's kernel W + D, 1 for a kernel of zeros; D as ``terms``, the scale folded in."""
    return _row_lengths(_direction(layer, terms))


def _direction(layer: FactoredLayer, terms: list[Floats]) -> Floats:
    assert layer.kernel is not None
    return layer.kernel.astype(np.float64) + dense(layer, terms)


def _row_lengths(direction: Floats) -> Floats:
    lengths = np.sqrt(np.square(direction.reshape(len(direction), -1)).sum(axis=1))
    return np.where(lengths > 0, lengths, 1)


def ratio_of(layer: FactoredLayer, state: Mapping[str, Floats]) -> Floats:
    """DoRA's d = m / ||W + scale * D|| of every output channel."""
    assert layer.magnitude is not None
    return state[layer.magnitude] / channel_lengths(layer, terms_of(layer, state))


def kernel_of(layer: FactoredLayer, state: Mapping[str, Floats]) -> Floats:
    """The layer's kernel without the frozen part; with it where magnitudes scale both."""
    terms = terms_of(layer, state)
    if layer.magnitude is None:
        return dense(layer, terms)
    direction = _direction(layer, terms)
    return along_rows(state[layer.magnitude] / _row_lengths(direction), direction)


def dense(layer: FactoredLayer, terms: Sequence[Floats]) -> Floats:
    """The update that terms stand for, (out, in, *kernel)."""
    shape = layer.shape
    if layer.form == "lora_c":
        *others, width = shape[2:]
        matrix = (terms[0] @ terms[1].T).reshape(shape[0], *others, shape[1], width)
        return np.moveaxis(matrix, -2, 1)
    right = terms[1]
    for factor in terms[2:]:
        right = (right[:, None] * factor[None]).reshape(-1, factor.shape[1])
    return (terms[0] @ right.T).reshape(shape)


def written(layer: FactoredLayer, terms: list[Floats], ratio: Floats | None, like: AdapterState) -> AdapterState:
    """Terms back in the layer's own tensors, the scale taken out again."""
    n_terms = terms[0].shape[1]
    found: dict[str, Floats] = {}
    up = terms[0] / layer.scale(n_terms)
    if layer.form == "lora_c":
        *others, _ = layer.shape[2:]
        up = np.moveaxis(up.reshape(layer.shape[0], *others, 1, n_terms), -1, 1)
    found[layer.up] = up
    for name, factor in zip(layer.inner, terms[1:], strict=True):
        shape = like[name].shape
        found[name] = factor.T.reshape(n_terms, *shape[1:]) if layer.form != "cp" else factor.reshape(*shape[:-1], -1)
    if layer.magnitude is not None and ratio is not None:
        found[layer.magnitude] = ratio * channel_lengths(layer, terms)
    return {name: value.astype(like[name].dtype) for name, value in found.items()}


def inverse(values: Floats) -> Floats:
    """One over every number; 1 for zeros."""
    return 1 / np.where(values == 0, 1, values)


def along_rows(values: Floats, factor: Floats) -> Floats:
    """A tensor with one number for each entry of its first axis, times these."""
    return factor * values.reshape(-1, *(1,) * (factor.ndim - 1))
