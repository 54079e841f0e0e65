"""A round's updates become the next global state: bounds, the method's rule, the server's own step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sahfl.adapters import AdapterState, FactoredLayer
from sahfl.aggregation import (
    Adam,
    Memory,
    Momentum,
    SiteUpdate,
    aggregation_error,
    bound,
    mean_of_factors,
    median,
    project,
    trimmed_mean,
)
from sahfl.config import RoundsConfig, ServerAdam
from sahfl.config.methods import Rule

TRIM = 0.2
"""Share that the trimmed mean leaves out at each end."""


@dataclass(frozen=True)
class Aggregate:
    """The next global state, what the server's step keeps, and what the journal says of it."""

    state: AdapterState
    memory: Memory
    notes: dict[str, Any]


def aggregate(
    updates: Sequence[SiteUpdate],
    *,
    like: AdapterState,
    memory: Memory,
    rule: Rule,
    layers: Sequence[FactoredLayer],
    config: RoundsConfig,
) -> Aggregate:
    """Bound the updates, aggregate them by the rule, and take the server's step.

    Guarantees: a pure function; the result does not depend on the order of the updates, to the last bit.

    Args:
        updates: one per site, each whole: where one factor trains, the others are those of ``like``.
        like: the global state that was sent out.
        memory: what the step before kept.
        rule: how updates become one.
        layers: the adapted layers; none where whole weights train.
        config: bounds and the server's step.
    """
    bounded = bound(updates, like=like, most_share=config.most_share, most_norm=config.most_norm)
    match rule:
        case "mean" | "alternate":
            result = mean_of_factors(bounded.updates, like=like, layers=layers)
        case "project":
            result = project(bounded.updates, like=like, layers=layers)
        case "median":
            result = median(bounded.updates, like=like)
        case "trimmed_mean":
            result = trimmed_mean(bounded.updates, like=like, trim=TRIM)
    notes: dict[str, Any] = {
        "norms": {site: float(f"{norm:.6g}") for site, norm in bounded.norms.items()},
        "shortened": {site: float(f"{factor:.6g}") for site, factor in bounded.shortened.items()},
        "lightened": {site: float(f"{share:.6g}") for site, share in bounded.lightened.items()},
        "aggregation_error": aggregation_error(bounded.updates, result, like=like, layers=layers),
    }
    if config.server is None:
        return Aggregate(result, {}, notes)
    state, memory = _optimiser(config).step(like, result, memory)
    return Aggregate(state, memory, notes)


def _optimiser(config: RoundsConfig) -> Momentum | Adam:
    assert config.server is not None
    settings = config.server.model_dump(exclude={"optimiser"})
    return Adam(**settings) if isinstance(config.server, ServerAdam) else Momentum(**settings)
