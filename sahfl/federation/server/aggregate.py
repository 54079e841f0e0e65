"""Makes the next global state from a round's updates: bounds, then the method's rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sahfl.adapters import AdapterState, FactoredLayer
from sahfl.aggregation.lowrank import aggregation_error
from sahfl.aggregation.robust import bound
from sahfl.aggregation.rules import RULES
from sahfl.aggregation.update import SiteUpdate
from sahfl.config import RoundsConfig
from sahfl.errors import PayloadError

NO_UPDATES: dict[str, Any] = {"norms": {}, "shortened": {}, "lightened": {}, "aggregation_error": None}
"""Notes where no site's update is known."""


@dataclass(frozen=True)
class Aggregate:
    """The next global state, and notes for the journal."""

    state: AdapterState
    notes: dict[str, Any]


@np.errstate(over="ignore", invalid="ignore")  # ``_finite`` refuses what overflows
def aggregate(
    updates: Sequence[SiteUpdate],
    *,
    like: AdapterState,
    rule: str,
    layers: Sequence[FactoredLayer],
    config: RoundsConfig,
) -> Aggregate:
    """Bound the updates, and aggregate them by the rule.

    Guarantees: a pure function; the result does not depend on the order of the updates, to the last bit.

    Args:
        updates: one per site, each with all tensors: factors that did not train are those of ``like``.
        like: the global state that was sent out.
        rule: name of the aggregation rule.
        layers: the adapted layers; empty where whole weights train.
        config: bounds.

    Raises:
        PayloadError: an update does not fit, or the next state would hold a number that is not finite.
    """
    bounded = bound(updates, like=like, most_share=config.most_share, most_norm=config.most_norm)
    try:
        result = _finite(RULES[rule].combine(bounded.updates, like=like, layers=layers))
    except np.linalg.LinAlgError as error:
        raise PayloadError(f"the {rule} of the updates cannot be computed; the sites' numbers are too large") from error
    notes: dict[str, Any] = {
        "norms": {site: float(f"{norm:.6g}") for site, norm in bounded.norms.items()},
        "shortened": {site: float(f"{factor:.6g}") for site, factor in bounded.shortened.items()},
        "lightened": {site: float(f"{share:.6g}") for site, share in bounded.lightened.items()},
        "aggregation_error": aggregation_error(bounded.updates, result, like=like, layers=layers),
    }
    return Aggregate(result, notes)


def add_change(state: AdapterState, change: Mapping[str, NDArray[np.float64]]) -> Aggregate:
    """Add a mean change (of some of the tensors of ``state``, any shapes), of which no site's part is known.

    Raises:
        PayloadError: the next state would hold a number that is not finite.
    """
    moved = {name: (state[name] + value).astype(state[name].dtype) for name, value in change.items()}
    return Aggregate(_finite(state | moved), dict(NO_UPDATES))


def _finite(state: AdapterState) -> AdapterState:
    for name, value in state.items():
        if not np.isfinite(value).all():
            raise PayloadError(f"the aggregate of {name!r} contains NaN or inf; the sites' numbers are too large")
    return state
