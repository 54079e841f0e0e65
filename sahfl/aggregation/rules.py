"""The aggregation rules, one record each: how the sites' updates of a round become one state, and what a rule asks.

A new rule is a file with its function, and one entry of ``RULES`` here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sahfl.adapters import AdapterState, FactoredLayer
from sahfl.aggregation.alternate import names_of_turn
from sahfl.aggregation.lowrank import mean_of_factors, project
from sahfl.aggregation.robust import median, trimmed_mean
from sahfl.aggregation.update import SiteUpdate

TRIM = 0.2
"""Share that the trimmed mean leaves out at each end."""
USUAL = "mean"
"""The rule of a method that names none; names of methods leave it out."""


class Combine(Protocol):
    """A rule's function."""

    def __call__(
        self, updates: Sequence[SiteUpdate], *, like: AdapterState, layers: Sequence[FactoredLayer]
    ) -> AdapterState:
        """The next global state, with the names, shapes and dtypes of ``like``, whatever the order of the updates."""


@dataclass(frozen=True)
class Rule:
    """An aggregation rule."""

    name: str
    """In study files, names of methods and results."""
    combine: Combine
    needs_layers: bool = False
    """Whether it works on adapted layers, so that standard fine-tuning, which has none, cannot name it."""
    own_ranks: bool = False
    """Whether sites may have adapters of another rank than the global one."""
    turn: Callable[[Sequence[FactoredLayer], Sequence[str], int], tuple[str, ...]] | None = None
    """Which tensors train in a round; from the layers, the names of all tensors and the round, from 1. None: all do."""

    def names_of_turn(self, layers: Sequence[FactoredLayer], all_names: Sequence[str], round_: int) -> tuple[str, ...]:
        """Names of the tensors that train in a round, from 1, in the order of ``all_names``."""
        return tuple(all_names) if self.turn is None else self.turn(layers, all_names, round_)


def _median(updates: Sequence[SiteUpdate], *, like: AdapterState, layers: Sequence[FactoredLayer]) -> AdapterState:
    return median(updates, like=like)


def _trimmed_mean(
    updates: Sequence[SiteUpdate], *, like: AdapterState, layers: Sequence[FactoredLayer]
) -> AdapterState:
    return trimmed_mean(updates, like=like, trim=TRIM)


RULES = {
    rule.name: rule
    for rule in (
        Rule(USUAL, mean_of_factors),
        Rule("project", project, needs_layers=True, own_ranks=True),
        Rule("alternate", mean_of_factors, needs_layers=True, turn=names_of_turn),
        Rule("median", _median),
        Rule("trimmed_mean", _trimmed_mean),
    )
}
"""By name."""
