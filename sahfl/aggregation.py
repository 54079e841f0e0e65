"""Aggregation: from the sites' updates of a round to the next global state. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sahfl.adapters import AdapterState
from sahfl.errors import PayloadError


@dataclass(frozen=True)
class SiteUpdate:
    """What one site sends back after a round of local training."""

    site: str
    n_volumes: int
    """CT volumes trained on; the averaging weight (volumes, not batches or slices)."""
    state: AdapterState


def mean(updates: Sequence[SiteUpdate], *, like: AdapterState) -> AdapterState:
    """Average the sites' tensors, weighted by their numbers of volumes.

    Guarantees: names, shapes and dtypes of the result are those of ``like``; the result is finite; sums run in
    float64 in the order of the sites' names, so it does not depend on who replied first, to the last bit. For
    adapters this is the mean of the factors, which is not the mean of the updates: mean(up) @ mean(down) differs from
    mean(up @ down).

    Args:
        updates: one per site.
        like: the global state that was sent out; every update must match it.

    Raises:
        PayloadError: there are no updates, a site occurs twice, or one cannot be used (``check_update``).

    Source: McMahan et al. 2017, arXiv 1602.05629, algorithm 1.
    """
    if not updates:
        raise PayloadError("no site updates to average")
    ordered = sorted(updates, key=lambda update: update.site)
    for update, following in zip(ordered, [*ordered[1:], None], strict=True):
        check_update(update, like=like)
        if following is not None and following.site == update.site:
            raise PayloadError(f"site {update.site!r}: occurs twice in one round")
    total = sum(update.n_volumes for update in ordered)
    result = {}
    for name, reference in like.items():
        accumulated = np.zeros(reference.shape, np.float64)
        for update in ordered:
            accumulated += update.state[name].astype(np.float64) * (update.n_volumes / total)
        result[name] = accumulated.astype(reference.dtype)
    return result


def check_update(update: SiteUpdate, *, like: AdapterState) -> None:
    """Raise PayloadError, naming site and tensor, if ``update`` does not fit ``like``."""
    if update.n_volumes < 1:
        raise PayloadError(f"site {update.site!r}: n_volumes={update.n_volumes}, expected >= 1")
    if odd := sorted(update.state.keys() ^ like.keys()):
        raise PayloadError(f"site {update.site!r}: missing or unexpected tensors {odd}")
    for name, reference in like.items():
        got = update.state[name]
        if (got.shape, got.dtype) != (reference.shape, reference.dtype):
            found, expected = f"{got.shape} {got.dtype}", f"{reference.shape} {reference.dtype}"
            raise PayloadError(f"site {update.site!r}, {name!r}: got {found}, expected {expected}")
        if not np.isfinite(got).all():
            raise PayloadError(f"site {update.site!r}, {name!r}: contains NaN or inf")
