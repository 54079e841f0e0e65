"""One adapted layer: from its tensors to the terms of its update and its kernel, and back; float64.

Terms are one matrix (size of the axis, terms) for each factor, the out-side factor first; what an axis is, the layer's
form says (``forms``).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sahfl.adapters import AdapterState, FactoredLayer, Floats


def terms_of(layer: FactoredLayer, state: Mapping[str, Floats]) -> list[Floats]:
    """Terms of a layer's update, (size of the axis, terms) each, the scale folded into the first.

    Args:
        layer: which one.
        state: its tensors by name, each in its own shape.
    """
    up, *inner = layer.form.terms(layer, state)
    return [layer.scale(up.shape[1]) * up, *inner]


def scale_rows(up: Floats, rows: Floats | float) -> Floats:
    """The first of a layer's terms, (rows, terms), with every output channel times its own number, (out,)."""
    if isinstance(rows, float):
        return up * rows
    return up * np.repeat(rows, up.shape[0] // len(rows))[:, None]


def channel_lengths(layer: FactoredLayer, terms: list[Floats]) -> Floats:
    """Length of every output channel's kernel W + D, (out,), 1 for a kernel of zeros.

    Args:
        layer: with its frozen kernel W, (out, in, *kernel).
        terms: of D, (size of the axis, terms) each, the scale folded in.
    """
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
    """The layer's kernel, (out, in, *kernel): without the frozen part, or with it where magnitudes scale both."""
    terms = terms_of(layer, state)
    if layer.magnitude is None:
        return layer.form.dense(layer, terms)
    direction = _direction(layer, terms)
    return along_rows(state[layer.magnitude] / _row_lengths(direction), direction)


def written(layer: FactoredLayer, terms: list[Floats], ratio: Floats | None, like: AdapterState) -> AdapterState:
    """Terms back in the layer's own tensors, the scale taken out again.

    Args:
        layer: which one.
        terms: (size of the axis, terms) each, the scale folded in.
        ratio: DoRA's d of every output channel, (out,); None without magnitudes.
        like: the global state, for shapes (but for the number of terms) and dtypes.
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
