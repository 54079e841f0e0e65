"""The aggregation rules, one record each; a new rule is a file with its function, and an entry of ``RULES`` here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sahfl.adapters import AdapterState, FactoredLayer
from sahfl.aggregation.lowrank import mean_of_factors, project
from sahfl.aggregation.robust import median, trimmed_mean
from sahfl.aggregation.update import SiteUpdate

TRIM = 0.2
"""Share that the trimmed mean leaves out at each end."""
USUAL = "mean"
"""The rule of a method that names none; ids of methods leave it out."""


class Combine(Protocol):
    """A rule's function."""

    def __call__(
        self, updates: Sequence[SiteUpdate], *, like: AdapterState, layers: Sequence[FactoredLayer]
    ) -> AdapterState:
        """The next global state, with the names, shapes and dtypes of ``like``."""


@dataclass(frozen=True)
class Rule:
    """An aggregation rule."""

    name: str
    """In study files, names of methods and results."""
    combine: Combine
    needs_layers: bool = False
    """Whether it works on adapted layers, so that only adapter methods can name it."""
    own_ranks: bool = False
    """Whether sites may have adapters of another rank than the global one."""
    remakes_factors: bool = False
    """Whether the next factors are made from the mean of the products, so that they can be far from those before."""
    turn: Callable[[Sequence[FactoredLayer], Sequence[str], int], tuple[str, ...]] | None = None
    """From the layers, all names and the round (from 1): names of the tensors that train in it. None: all train."""

    def names_of_turn(self, layers: Sequence[FactoredLayer], all_names: Sequence[str], round_: int) -> tuple[str, ...]:
        """Names of the tensors that train in a round (from 1), in the order of ``all_names``."""
        return tuple(all_names) if self.turn is None else self.turn(layers, all_names, round_)


def names_of_turn(layers: Sequence[FactoredLayer], all_names: Sequence[str], round_: int) -> tuple[str, ...]:
    """Names of the tensors that train in a round of ``alternate`` (from 1), in the order of ``all_names``.

    A kernel's update is linear in each factor. If the sites share all other factors, the mean of the factor gives the
    mean of the updates. With DoRA's magnitudes that holds in odd rounds only; in even ones the lengths differ too.

    Odd rounds train the out-side factors and magnitudes, which start at zero and until then leave the others without a
    gradient. Even rounds train the other factors, one after another. Tensors of no layer train in every round.

    Source: Chen et al. 2024, arXiv 2409.02346 (RoLoRA) for two factors; any number of them, here.
    """
    factored, turn = {name for layer in layers for name in layer.names}, set()
    for layer in layers:
        if round_ % 2:
            turn |= {layer.up} | ({layer.magnitude} if layer.magnitude else set())
        else:
            turn.add(layer.inner[(round_ // 2 - 1) % len(layer.inner)])
    return tuple(name for name in all_names if name in turn or name not in factored)


RULES = {
    rule.name: rule
    for rule in (
        Rule(USUAL, mean_of_factors),
        Rule("project", project, needs_layers=True, own_ranks=True, remakes_factors=True),
        Rule("alternate", mean_of_factors, needs_layers=True, turn=names_of_turn),
        Rule("median", lambda updates, like, layers: median(updates, like=like)),
        Rule("trimmed_mean", lambda updates, like, layers: trimmed_mean(updates, like=like, trim=TRIM)),
    )
}
"""By name."""
