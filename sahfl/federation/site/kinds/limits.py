"""Limits of a site's policy that apply to several kinds of messages; every problem is one line of text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sahfl.config import AdapterTuning, SitePolicy
from sahfl.task import Task


def above(policy: SitePolicy, name: str, value: float) -> list[str]:
    """Report a value above the policy's setting ``name``; empty if the value is allowed."""
    return over((name, getattr(policy, name)), value)


def over(setting: tuple[str, float], value: float) -> list[str]:
    """Report a value above a largest one, given as the setting's name and value; empty if the value is allowed."""
    name, most = setting
    return [] if value <= most else [f"{name}: got {value:g}, expected at most {most:g}"]


@dataclass(frozen=True)
class Bounds:
    """What a policy asks of a training, by what leaves of it; a name is that of the setting."""

    steps: tuple[str, int]
    batch_size: tuple[str, int]
    patients: tuple[str, int]
    learning_rate: tuple[str, float]
    effective_steps: tuple[str, float]


def bounds_of(policy: SitePolicy, task: Task) -> Bounds:
    """The bounds of a training: those of adapters, of weights, or the stricter where adapters train weights as well."""
    method = task.training
    adapters = isinstance(method, AdapterTuning)
    weights = not isinstance(method, AdapterTuning) or bool(method.also_train)
    sections = [name for name, counts in (("adapters", adapters), ("weights", weights)) if counts]

    def least(name: str) -> tuple[str, int]:
        found = {f"{section}.{name}": getattr(getattr(policy, section), name) for section in sections}
        return max(found.items(), key=lambda item: item[1])

    rate = f"{sections[0]}.most_learning_rate", getattr(policy, sections[0]).most_learning_rate
    found = least("least_steps"), least("least_batch"), least("least_patients")
    return Bounds(*found, rate, least("least_effective_steps"))


def steps_of_each_network(task: Task, steps: int) -> float:
    """How many of a round's steps each network can expect; fewer than all if each view has a network of its own."""
    if task.model.planes != "per_view":
        return steps
    weights = task.views.weights.values()
    return steps * min(weights) / sum(weights)


def below(setting: tuple[str, int], value: float) -> list[str]:
    """Report a value below a least one, given as the setting's name and value; empty if the value is allowed."""
    name, least = setting
    return [] if value >= least else [f"{name}: got {value:g}, expected at least {least:g}"]


def outside_stages(policy: SitePolicy, task: Task) -> Iterator[str]:
    """Report a task of a stage that the policy does not list; yields nothing for a listed one."""
    if task.stage not in policy.stages:
        yield f"stages: got {task.stage}, expected {' or '.join(policy.stages) or 'no stage'}"
