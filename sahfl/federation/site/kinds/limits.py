"""Limits of a site's policy that more than one kind of message is held to: each problem as a line."""

from __future__ import annotations

from collections.abc import Iterator

from sahfl.config import SitePolicy
from sahfl.task import Task


def above(policy: SitePolicy, name: str, value: float) -> list[str]:
    """That a value is above the policy's setting of this name; nothing if it is not."""
    most = getattr(policy, name)
    return [] if value <= most else [f"{name}: got {value:g}, expected at most {most:g}"]


def outside_stages(policy: SitePolicy, task: Task) -> Iterator[str]:
    """That a task belongs to a stage in which the site does not train; nothing if it does."""
    if task.stage not in policy.stages:
        yield f"stages: got {task.stage}, expected {' or '.join(policy.stages) or 'no stage'}"
