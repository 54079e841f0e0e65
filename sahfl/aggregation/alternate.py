"""Alternating rounds: one factor of every adapter trains per round, so that the plain mean of the sites is exact.

A kernel's update is linear in each factor on its own. Where the sites hold all others in common, the mean of the
factor is the mean of the updates, and it is a plain sum that secure aggregation could carry. With DoRA's magnitudes
that holds in odd rounds; in even ones the sites' kernels differ in length too, which no factor in common can undo.

Source: Chen et al. 2024, arXiv 2409.02346 (RoLoRA) for two factors; any number of them, here.
"""

from __future__ import annotations

from collections.abc import Sequence

from sahfl.adapters import FactoredLayer


def names_of_turn(layers: Sequence[FactoredLayer], all_names: Sequence[str], round_: int) -> tuple[str, ...]:
    """Names of the tensors that train in a round, from 1, in the order of ``all_names``.

    Out-side factors and magnitudes in odd rounds: they start at zero, and no other factor has a gradient before they
    moved. In even rounds the others, one after another. Tensors that belong to no layer train in every round.
    """
    factored, turn = {name for layer in layers for name in layer.names}, set()
    for layer in layers:
        if round_ % 2:
            turn |= {layer.up} | ({layer.magnitude} if layer.magnitude else set())
        else:
            turn.add(layer.inner[(round_ // 2 - 1) % len(layer.inner)])
    return tuple(name for name in all_names if name in turn or name not in factored)
