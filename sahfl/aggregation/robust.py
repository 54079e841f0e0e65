"""Bounds on the harm of one site: its share of the weight, the length of its change, and means without extremes.

``benchmarks/attacks.py`` measures what each costs when nobody attacks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from sahfl.adapters import AdapterState
from sahfl.aggregation.update import SiteUpdate, check_update, in_order


@dataclass(frozen=True)
class Bounded:
    """Updates within bounds, and how they were changed."""

    updates: tuple[SiteUpdate, ...]
    norms: dict[str, float]
    """Length of each site's change before; at another rank, scaled to as many numbers as ``like`` has."""
    shortened: dict[str, float]
    """Factor by which a site's change was shortened."""
    lightened: dict[str, float]
    """Share of the weight that a site lost."""


def bound(updates: Sequence[SiteUpdate], *, like: AdapterState, most_share: float, most_norm: float) -> Bounded:
    """Shorten changes that are far longer than the others', and cap the weight of a single site.

    A site's change is its state minus ``like`` (any shapes). A change longer than ``most_norm`` times the median of all
    sites is scaled down to that length. A site with more than ``most_share`` of all volumes counts as if it had that
    share; with fewer than 1 / most_share sites the cap rises to an equal share.

    Guarantees, for sites of one rank: no site moves the mean by more than most_share * most_norm * median length.
    Updates within the bounds stay as they are, bit for bit.

    For a site with a rank of its own, the change is its state minus ``SiteUpdate.start``, and its length is multiplied
    by the root of (numbers in ``like`` / numbers of its own). The factors count, not the kernels, in which small
    out-side factors could hide in-side ones of any size.

    Raises:
        PayloadError: as ``mean``; each update is compared with what its site was sent.

    Source: Sun et al. 2019, arXiv 1911.07963, section 4 (norm bounding).
    """
    ordered = in_order(updates)
    for update in ordered:
        check_update(update, like=_sent(update, like))
    norms = {update.site: _comparable_norm(update, like) for update in ordered}
    longest = most_norm * float(np.median(list(norms.values())))
    shortened = {site: longest / norm for site, norm in norms.items() if norm > longest}
    volumes, lightened = _cap(ordered, most_share)
    bounded = tuple(
        replace(
            update,
            n_volumes=volumes[update.site],
            state=_shortened(update, like, shortened[update.site]) if update.site in shortened else update.state,
        )
        for update in ordered
    )
    return Bounded(bounded, norms, shortened, lightened)


def change_norm(state: AdapterState, like: AdapterState) -> float:
    """Euclidean length of the change from ``like`` over all tensors (any shapes), in float64."""
    squares = sum(float(np.square(state[name].astype(np.float64) - like[name]).sum()) for name in like)
    return float(np.sqrt(squares))


def _sent(update: SiteUpdate, like: AdapterState) -> AdapterState:
    return like if update.start is None else update.start


def _comparable_norm(update: SiteUpdate, like: AdapterState) -> float:
    sent = _sent(update, like)
    n_numbers, n_own = (sum(value.size for value in state.values()) for state in (like, sent))
    return change_norm(update.state, sent) * float(np.sqrt(n_numbers / max(n_own, 1)))


def _shortened(update: SiteUpdate, like: AdapterState, factor: float) -> AdapterState:
    return {
        name: (reference + factor * (update.state[name].astype(np.float64) - reference)).astype(reference.dtype)
        for name, reference in _sent(update, like).items()
    }


def _cap(ordered: Sequence[SiteUpdate], most_share: float) -> tuple[dict[str, int], dict[str, float]]:
    """Volumes with which no site has more than ``most_share``, and the share that each cut site lost.

    In fractions: with floats, 49 equal sites have more than a 49th each, and 70 of 100 volumes more than 0.7.
    """
    share = max(Fraction(repr(float(most_share))), Fraction(1, len(ordered)))
    volumes = {update.site: update.n_volumes for update in ordered}
    counts = sorted(volumes.values(), reverse=True)
    total, cap, n_large = sum(counts), Fraction(counts[0]), 0
    # n_large sites at the cap c, the others as they are: c = share * (n_large * c + rest).
    while counts[n_large] > cap or (n_large == 0 and counts[0] > share * total):
        n_large += 1
        cap = share * sum(counts[n_large:]) / (1 - share * n_large)
    capped = {site: min(count, int(cap)) for site, count in volumes.items()}
    lost = {
        site: volumes[site] / total - capped[site] / sum(capped.values())
        for site in volumes
        if capped[site] < volumes[site]
    }
    return capped, lost


def median(updates: Sequence[SiteUpdate], *, like: AdapterState) -> AdapterState:
    """The median of every number over the sites, in the shapes of ``like``; every site counts once.

    Guarantees: if fewer than half of the sites are hostile, every number lies between two honest ones. Costs: volumes
    are ignored; with few unlike sites it is noisier than the mean; for adapters it mixes sites within a factor.

    Source: Yin et al. 2018, arXiv 1803.01498, option I.
    """
    return _over_sites(updates, like, lambda values: np.median(values, axis=0))


def trimmed_mean(updates: Sequence[SiteUpdate], *, like: AdapterState, trim: float) -> AdapterState:
    """The unweighted mean of every number over the sites, without the largest and smallest share ``trim`` of them.

    Shapes are those of ``like``. From three sites on, at least one value is left out at each end, and one remains.
    Guarantees: with at most that share of hostile sites every number lies between honest ones. Costs: volumes are
    ignored, and the sites that differ most are left out.

    Source: Yin et al. 2018, arXiv 1803.01498, option II.
    """

    def trimmed(values: NDArray[np.float64]) -> NDArray[np.float64]:
        off = max(int(trim * len(values)), 1) if len(values) >= 3 and trim > 0 else 0
        off = min(off, (len(values) - 1) // 2)
        ordered = np.sort(values, axis=0)
        result: NDArray[np.float64] = ordered[off : len(values) - off].mean(axis=0)
        return result

    return _over_sites(updates, like, trimmed)


def _over_sites(
    updates: Sequence[SiteUpdate], like: AdapterState, rule: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> AdapterState:
    ordered = in_order(updates)
    for update in ordered:
        check_update(update, like=like)
    return {
        name: rule(np.stack([update.state[name].astype(np.float64) for update in ordered])).astype(reference.dtype)
        for name, reference in like.items()
    }
