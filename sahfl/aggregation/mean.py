"""The weighted mean of the sites' tensors, in one pass and in memory that does not grow with the number of sites."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sahfl.adapters import AdapterState
from sahfl.aggregation.update import SiteUpdate, checked, in_order


def mean(updates: Iterable[SiteUpdate], *, like: AdapterState) -> AdapterState:
    """Average the sites' tensors (any shapes, those of ``like``), weighted by their numbers of volumes.

    Guarantees: names, shapes and dtypes of ``like``; finite; float64 sums in the order of the sites' names. Of
    adapters it averages factors, not their products, unless the sites differ in one factor only (``alternate``).

    Raises:
        PayloadError: there are no updates, a site occurs twice, or one cannot be used (``check_update``).

    Source: McMahan et al. 2017, arXiv 1602.05629, algorithm 1; for adapters Zhang et al. 2023, arXiv
    2305.05644 (FedIT).
    """
    return mean_of_stream(in_order(updates), like=like)


def mean_of_stream(updates: Iterable[SiteUpdate], *, like: AdapterState) -> AdapterState:
    """The same bits as ``mean``, from updates that come one by one in the order of the sites' names.

    It needs memory for one update and two states in float64, all of any shapes, those of ``like``.
    """
    total, size = 0, sum(reference.size for reference in like.values())
    sums, weighted = np.zeros(size), np.empty(size)
    for update in checked(updates, like=like):
        total += update.n_volumes
        if size:
            np.concatenate([update.state[name].ravel() for name in like], out=weighted)
        # The product of a float32 and a count below 2^24 is exact in float64: only the sum rounds.
        weighted *= update.n_volumes
        sums += weighted
    sums /= total
    result, start = {}, 0
    for name, reference in like.items():
        result[name] = sums[start : start + reference.size].reshape(reference.shape).astype(reference.dtype)
        start += reference.size
    return result
