"""The nearest update of a given rank: by singular values for products of matrices, by least squares for the CP form."""

from __future__ import annotations

import numpy as np

from sahfl.adapters import Floats

SWEEPS = 4
"""Of alternating least squares, from a warm start; few, so that a round's result stays near the sites' factors."""


def nearest_matrix(terms: list[Floats], spare: Floats, *, size: float) -> list[Floats]:
    """Factors (a, rank) and (b, rank) whose product is nearest to U D^T, for ``terms`` U (a, n) and D (b, n).

    The right factor has orthogonal columns of root mean square ``size``. Columns without a singular value are those of
    ``spare`` (b, rank), because training could not move a pair of columns that are both zero.
    """
    rank = spare.shape[1]
    left, right = (np.linalg.qr(factor) for factor in terms)
    u, values, v = np.linalg.svd(left.R @ right.R.T)
    kept = min(rank, len(values))
    length = size * np.sqrt(len(terms[1]))
    up, down = np.zeros((len(terms[0]), rank)), spare.copy()
    up[:, :kept] = (left.Q @ u[:, :kept]) * values[:kept] / length
    down[:, :kept] = (right.Q @ v[:kept].T) * length
    return [_fix_signs(up, down), _fix_signs(down, down)]


def _fix_signs(factor: Floats, by: Floats) -> Floats:
    """Fix the free signs of singular vectors, so that all machines give the same result."""
    largest = by[np.abs(by).argmax(axis=0), np.arange(by.shape[1])]
    return factor * np.where(largest < 0, -1.0, 1.0)


def nearest_cp(terms: list[Floats], start: list[Floats]) -> list[Floats]:
    """Factors (size, rank) whose sum of outer products is near that of ``terms`` (size, n), one factor per axis.

    Alternating least squares through Gram matrices, from ``start`` (size, rank). The in-side factors keep the lengths
    of their columns; the out-side factor is solved last. The result is never farther from the sum than ``start``.
    """
    factors = [factor.copy() for factor in start]
    lengths = [np.sqrt(np.square(factor).sum(axis=0)) for factor in start]
    for _ in range(SWEEPS):
        for axis in (*range(1, len(terms)), 0):
            gram, cross = np.ones((factors[0].shape[1],) * 2), np.ones((terms[0].shape[1], factors[0].shape[1]))
            for other in range(len(terms)):
                if other != axis:
                    gram *= factors[other].T @ factors[other]
                    cross *= terms[other].T @ factors[other]
            if axis and not gram.any():
                continue  # the out-side factor is still zero: nothing to fit the others to
            solved = terms[axis] @ np.linalg.lstsq(gram, cross.T, rcond=1e-10)[0].T
            if axis:
                found = np.sqrt(np.square(solved).sum(axis=0))
                solved = np.where(found > 0, solved * (lengths[axis] / np.where(found > 0, found, 1)), factors[axis])
            factors[axis] = solved
    return factors if _misfit(factors, terms) <= _misfit(start, terms) else start


def _misfit(factors: list[Floats], terms: list[Floats]) -> float:
    """Squared distance of two sums of outer products, without the square of ``terms``."""
    own, shared = np.ones((factors[0].shape[1],) * 2), np.ones((terms[0].shape[1], factors[0].shape[1]))
    for factor, term in zip(factors, terms, strict=True):
        own *= factor.T @ factor
        shared *= term.T @ factor
    return float(own.sum() - 2 * shared.sum())
