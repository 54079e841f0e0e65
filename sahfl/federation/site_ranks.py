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
from sahfl.adapters.attach import staying
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
        self, found: AdapterState, sites: Iterable[str], layers: Sequence[FactoredLayer]
    ) -> dict[str, AdapterState]:
        """The state to send to each site: the global state ``found``, converted to the site's rank if it differs."""
        at = {rank: at_rank_of(found, like=start, layers=layers) for rank, start in self.starts.items()}
        return {site: at[self.ranks[site]] if site in self.ranks else found for site in sites}


def site_ranks(study: Study, base: AdapterState, method: TrainedMethod, sites: Iterable[str]) -> SiteRanks:
    """The ranks of some sites in a method, with what they share of new adapters from ``fine_tuned_network``."""
    if not isinstance(method, AdapterTuning):
        return SiteRanks()
    ranks = {site: rank for site in sites if (rank := own_rank(method, site)) is not None}
    return SiteRanks(ranks, {rank: _start(study, base, method.at_rank(rank)) for rank in sorted(set(ranks.values()))})


def _start(study: Study, base: AdapterState, method: AdapterTuning) -> AdapterState:
    """A new adapter, without what stays at the sites."""
    net = fine_tuned_network(study.views, study.model, base, method, study.seed)
    away = staying(net, method, net.parts)
    return {name: value for name, value in exchanged.read(net).items() if name not in away}


def own_rank(method: TrainedMethod, site: str) -> int | None:
    """The rank of a site's adapter if it differs from the global one, else None."""
    if not isinstance(method, AdapterTuning) or method.site_ranks.get(site) == method.rank:
        return None
    return method.site_ranks.get(site)
