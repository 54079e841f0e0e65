"""Limits of a site's policy that apply to several kinds of messages; every problem is one line of text."""

from __future__ import annotations

from collections.abc import Iterator

from sahfl.config import SitePolicy
from sahfl.task import Task


def above(policy: SitePolicy, name: str, value: float) -> list[str]:
    """Report a value above the policy's setting ``name``; empty if the value is allowed."""
    most = getattr(policy, name)
    return [] if value <= most else [f"{name}: got {value:g}, expected at most {most:g}"]


def outside_stages(policy: SitePolicy, task: Task) -> Iterator[str]:
    """Report a task of a stage that the policy does not list; yields nothing for a listed one."""
    if task.stage not in policy.stages:
        yield f"stages: got {task.stage}, expected {' or '.join(policy.stages) or 'no stage'}"
