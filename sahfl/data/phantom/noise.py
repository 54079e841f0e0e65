"""Smooth random fields that are independent of the voxel grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sahfl.data.phantom.space import Field, Grid

LENGTHS_MM = (4.5, 7.0, 10.5, 16.0, 24.0, 50.0)
"""Correlation lengths kept in the bank; a request gets the nearest one."""

EXTENT_MM = 280.0
"""Edge of the cube that carries noise (mm); beyond it the outermost values are repeated."""


class NoiseBank:
    """Random fields of unit variance, one per correlation length, each reused in its eight mirror images.

    Guarantees: the sequence of fields depends only on the seed and the order of requests. A place in the head gets the
    same value (up to rounding) on every voxel grid, so a case keeps its shape when it is resampled.
    """

    def __init__(self, seed: np.random.SeedSequence, grid: Grid) -> None:
        self._seeds = dict(zip(LENGTHS_MM, seed.spawn(len(LENGTHS_MM)), strict=True))
        self._grid = grid
        self._fields: dict[float, Field] = {}
        self._uses = dict.fromkeys(LENGTHS_MM, 0)

    def sample(self, length_mm: float, indices: NDArray[np.intp]) -> Field:
        """The next field with about this correlation length, at the flat layer indices ``indices``: shape (n,)."""
        length = min(LENGTHS_MM, key=lambda known: abs(np.log(known / length_mm)))
        field = self._full(length)
        use = self._uses[length]
        self._uses[length] += 1
        # Mirroring is free; a new field for each request would cost a third of a case's time.
        flips = tuple(slice(None, None, -1 if use >> axis & 1 else 1) for axis in range(3))
        values: Field = field[flips].take(indices)
        return -values if use & 8 else values

    def volume(self, length_mm: float) -> Field:
        """The unmirrored field of the nearest correlation length on all layers, shape (X, Y, Z * n_sub)."""
        return self._full(min(LENGTHS_MM, key=lambda known: abs(np.log(known / length_mm))))

    def _full(self, length: float) -> Field:
        if length not in self._fields:
            rng = np.random.default_rng(self._seeds[length])
            n_knots = int(np.ceil(EXTENT_MM / length)) + 4
            field = rng.standard_normal((n_knots, n_knots, n_knots), dtype=np.float32)
            for axis in self._grid.axes_mm():
                # Each step contracts the first axis and appends a new last one; three steps restore the order x, y, z.
                field = np.tensordot(field, _spline_matrix(axis, length, n_knots, rng.random()), (0, 1))
            self._fields[length] = np.ascontiguousarray(field)
        return self._fields[length]


def _spline_matrix(axis_mm: Field, length_mm: float, n_knots: int, phase: float) -> Field:
    """Cubic B-spline weights (axis, knots); rows are scaled so that white noise on the knots gives unit variance."""
    position = np.clip((axis_mm + EXTENT_MM / 2) / length_mm + 1 + phase, 1.0, n_knots - 2.001)
    knot = np.floor(position).astype(int)
    t = position - knot
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    matrix = np.zeros((axis_mm.size, n_knots), np.float32)
    for offset, weight in enumerate(weights, start=-1):
        matrix[np.arange(axis_mm.size), knot + offset] = weight
    return matrix / np.sqrt((matrix**2).sum(axis=1, keepdims=True))
