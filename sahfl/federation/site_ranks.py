"""Ranks of sites: a site may train an adapter of another rank than the global one.

In every round, the server converts the global state to the rank of such a site, and sends both. The site's change is
its result minus the state that it received. The aggregation (``project``) combines the ranks: checkpoints, the server's
step, the saved adapter and the evaluation have the global rank. A site of a lower rank starts from the nearest kernels
of its rank. The mean of the sites' kernels counts the rest as removed by this site, by its share of the volumes.

Source: Cho et al. 2024, arXiv 2401.06432 (HetLoRA), section 3; the aggregation, see ``aggregation.lowrank``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sahfl.adapters import AdapterState, FactoredLayer, exchanged
from sahfl.aggregation.lowrank import at_rank_of
from sahfl.config import AdapterTuning, Study, TrainedMethod
from sahfl.networks import fine_tuned_network


@dataclass(frozen=True)
class SiteRanks:
    """The sites whose adapter has another rank than the global one; none by default."""

    ranks: Mapping[str, int] = field(default_factory=dict)
    """Rank of each such site."""
    starts: Mapping[int, AdapterState] = field(default_factory=dict)
    """A new adapter of each of these ranks."""

    def states(
        self, found: AdapterState, sites: Iterable[str], layers: Sequence[FactoredLayer], *, first: bool = False
    ) -> dict[str, AdapterState]:
        """The state to send to each site: the global state ``found``, converted to the site's rank if it differs.

        In the ``first`` round such a site gets the new adapter of its rank, which it derives itself as well.
        """
        at = {
            rank: start if first else at_rank_of(found, like=start, layers=layers)
            for rank, start in self.starts.items()
        }
        return {site: at[self.ranks[site]] if site in self.ranks else found for site in sites}


def site_ranks(study: Study, base: AdapterState, method: TrainedMethod, sites: Iterable[str]) -> SiteRanks:
    """The ranks of some sites in a method, with new adapters of them from ``fine_tuned_network``."""
    if not isinstance(method, AdapterTuning):
        return SiteRanks()
    ranks = {site: rank for site in sites if (rank := own_rank(method, site)) is not None}
    return SiteRanks(ranks, {rank: _start(study, base, method.at_rank(rank)) for rank in sorted(set(ranks.values()))})


def _start(study: Study, base: AdapterState, method: AdapterTuning) -> AdapterState:
    """A new adapter."""
    return exchanged.read(fine_tuned_network(study.views, study.model, base, method, study.seed))


def own_rank(method: TrainedMethod, site: str) -> int | None:
    """The rank of a site's adapter if it differs from the global one, else None."""
    if not isinstance(method, AdapterTuning) or method.site_ranks.get(site) == method.rank:
        return None
    return method.site_ranks.get(site)
