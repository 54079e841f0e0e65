"""What one site sends back, and whether it fits what was asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sahfl.adapters import AdapterState
from sahfl.errors import PayloadError
from sahfl.payload import MOST_VOLUMES


@dataclass(frozen=True)
class SiteUpdate:
    """What one site sends back after a round of local training."""

    site: str
    n_volumes: int
    """CT volumes that it trained on, the weight in averages."""
    state: AdapterState
    start: AdapterState | None = None
    """The state that the site was sent, if it has a rank of its own; None for the global state."""


def in_order(updates: Iterable[SiteUpdate]) -> list[SiteUpdate]:
    """The updates in the order of the sites' names; PayloadError if there are none, or a site occurs twice."""
    ordered = sorted(updates, key=lambda update: update.site)
    if not ordered:
        raise PayloadError("no site updates to average")
    for update, following in pairwise(ordered):
        if following.site == update.site:
            raise PayloadError(f"site {update.site!r}: occurs twice in one round")
    return ordered


def checked(updates: Iterable[SiteUpdate], *, like: AdapterState) -> Iterator[SiteUpdate]:
    """Check a stream of updates one by one.

    Raises:
        PayloadError: an update does not fit (``check_update``), or the sites are not in the order of their names.
    """
    before = None
    for update in updates:
        if before is not None and update.site <= before:
            raise PayloadError(f"site {update.site!r}: follows {before!r}, expected each once in the order of names")
        before = update.site
        check_update(update, like=like)
        yield update
    if before is None:
        raise PayloadError("no site updates to average")


def check_update(update: SiteUpdate, *, like: AdapterState, rank_axes: Mapping[str, int] | None = None) -> None:
    """Check an update against the global state ``like``; ``rank_axes`` has the axes along which shapes may differ.

    Raises:
        PayloadError: names, shapes, dtypes or the number of volumes do not fit, or a number is not finite.
    """
    if type(update.n_volumes) is not int or not 1 <= update.n_volumes <= MOST_VOLUMES:
        found = repr(update.n_volumes)[:40]
        raise PayloadError(f"site {update.site!r}: n_volumes={found}, expected 1 to {MOST_VOLUMES}")
    if odd := sorted(update.state.keys() ^ like.keys()):
        raise PayloadError(f"site {update.site!r}: missing or unexpected tensors {odd}")
    for name, reference in like.items():
        got, axis = update.state[name], (rank_axes or {}).get(name)
        if got.dtype != reference.dtype or not _fits(got.shape, reference.shape, axis):
            found, expected = f"{got.shape} {got.dtype}", f"{reference.shape} {reference.dtype}"
            raise PayloadError(f"site {update.site!r}, {name!r}: got {found}, expected {expected}")
    values = [update.state[name].ravel() for name in like]
    if values and not np.isfinite(np.concatenate(values)).all():  # one check of all is ten times faster
        first = next(name for name in like if not np.isfinite(update.state[name]).all())
        raise PayloadError(f"site {update.site!r}, {first!r}: contains NaN or inf")


def _fits(got: tuple[int, ...], wanted: tuple[int, ...], axis: int | None) -> bool:
    if axis is None or len(got) != len(wanted):
        return got == wanted
    return got[:axis] == wanted[:axis] and got[axis + 1 :] == wanted[axis + 1 :]
