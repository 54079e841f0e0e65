"""The record of a kind of message: what a site is asked, and everything that the site does about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from flwr.app import RecordDict

from sahfl.config import SiteConfig, SitePolicy
from sahfl.federation.requests import Requests
from sahfl.federation.site.site import Site
from sahfl.task import Task

Answer = Callable[[Site, RecordDict], RecordDict]
"""(site, request) -> the content of its answer."""


@dataclass(frozen=True)
class Planned:
    """A message that a site is to expect, for a dry run."""

    name: str
    """What is asked, where the policy refuses it."""
    tasks: tuple[Task, ...]
    """The tasks that the server sends, of the first fold and round."""
    lines: Iterable[str]
    """What leaves, in words; not worked out before it is read."""


@dataclass(frozen=True)
class Kind:
    """One kind of message. No field has a default: whoever adds a kind decides what may leave."""

    type: str
    """Flower's message type: ``train``, ``evaluate`` or ``query``, and after a point a name of its own."""
    records: frozenset[str]
    """Names of the records of an answer; one with others does not leave."""
    asked: str
    """What the server asks for, in the audit log: "the server asked for ..."."""
    doing: str
    """What a site does meanwhile, on a display."""
    answer: Answer
    """The work."""
    refuses: Callable[[SitePolicy, Task], Iterator[str]]
    """What the policy does not allow of a request: setting, value and what was expected, before any work is done."""
    leaks: Callable[[SitePolicy, Task, RecordDict], Iterator[str]]
    """What an answer holds that must not leave. The answer has the right records and the request's header."""
    audit: Callable[[Task, RecordDict], tuple[str, dict[str, Any]]]
    """What an answer holds, as a sentence and as numbers for the audit log. No value of the answer is among them."""
    plan: Callable[[SiteConfig, Requests | None], Iterator[Planned]]
    """What a dry run lists of a study; without a study, of whatever the site's policy allows."""
