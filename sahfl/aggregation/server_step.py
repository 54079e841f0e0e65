"""The server's own optimisers, which take the change of a round as a direction; tensors of any shapes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sahfl.adapters import AdapterState

Memory = dict[str, AdapterState]
"""What a step keeps for the next round: by the moment's name, tensors in the shapes of the state."""


@dataclass(frozen=True)
class Momentum:
    """FedAvgM: the change of a round is added to a decaying sum of the earlier ones.

    Source: Hsu et al. 2019, arXiv 1909.06335, section 4.
    """

    beta: float
    learning_rate: float

    def step(self, like: AdapterState, aggregate: AdapterState, memory: Memory) -> tuple[AdapterState, Memory]:
        """The next global state and the memory for the next step, in the shapes of ``like``."""
        change = _change(like, aggregate)
        before = memory.get("momentum") or _zeros(like)
        momentum = {name: (self.beta * before[name] + change[name]).astype(np.float32) for name in like}
        return _moved(like, momentum, self.learning_rate), {"momentum": momentum}


@dataclass(frozen=True)
class Adam:
    """FedAdam: Adam with the change of a round as the gradient.

    Source: Reddi et al. 2021, arXiv 2003.00295, algorithm 2 (without bias correction, as there).
    """

    beta_1: float
    beta_2: float
    learning_rate: float
    floor: float
    """tau of the paper: the larger, the less adaptive."""

    def step(self, like: AdapterState, aggregate: AdapterState, memory: Memory) -> tuple[AdapterState, Memory]:
        """The next global state and the memory for the next step, in the shapes of ``like``."""
        change = _change(like, aggregate)
        first, second = memory.get("first") or _zeros(like), memory.get("second") or _zeros(like)
        first = {n: (self.beta_1 * first[n] + (1 - self.beta_1) * change[n]).astype(np.float32) for n in like}
        second = {n: (self.beta_2 * second[n] + (1 - self.beta_2) * change[n] ** 2).astype(np.float32) for n in like}
        direction = {n: (first[n] / (np.sqrt(second[n]) + self.floor)).astype(np.float32) for n in like}
        return _moved(like, direction, self.learning_rate), {"first": first, "second": second}


def _change(like: AdapterState, aggregate: AdapterState) -> AdapterState:
    return {name: aggregate[name].astype(np.float64) - like[name] for name in like}  # type: ignore[misc]


def _zeros(like: AdapterState) -> AdapterState:
    return {name: np.zeros_like(value) for name, value in like.items()}


def _moved(like: AdapterState, direction: AdapterState, rate: float) -> AdapterState:
    return {
        name: (value + rate * direction[name].astype(np.float64)).astype(value.dtype) for name, value in like.items()
    }
