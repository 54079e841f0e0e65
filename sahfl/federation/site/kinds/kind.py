"""The record of one kind of message: its type, the work of the site, and the checks of request and answer."""

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
"""(site, content of the request) -> content of the answer."""


@dataclass(frozen=True)
class Planned:
    """A message that the site will receive, as a dry run lists it."""

    name: str
    """Name of the request, shown if the policy refuses it."""
    tasks: tuple[Task, ...]
    """The tasks that the server sends, of the first fold and round."""
    lines: Iterable[str]
    """Lines that describe what leaves; they are computed when they are read."""


@dataclass(frozen=True)
class Kind:
    """One kind of message. No field has a default, so that every new kind states what may leave."""

    type: str
    """Flower's message type: ``train``, ``evaluate`` or ``query``, then a point and a name if needed."""
    records: frozenset[str]
    """Names of the records of an answer; an answer with other records does not leave."""
    asked: str
    """The object of the sentence "the server asked for ..." in the audit log."""
    doing: str
    """The site's activity during the work, for displays."""
    answer: Answer
    """Does the work, and returns the content of the answer."""
    refuses: Callable[[SitePolicy, Task], Iterator[str]]
    """Yields each setting of a request that the policy forbids, with its value and the expected one; runs first."""
    leaks: Callable[[SitePolicy, Task, RecordDict], Iterator[str]]
    """Yields each part of an answer that must not leave. Records and header of the answer are checked elsewhere."""
    audit: Callable[[Task, RecordDict], tuple[str, dict[str, Any]]]
    """Describes an answer in a sentence and in numbers for the audit log, without any value of the answer."""
    needs_base: bool
    """Whether the site works with the base network that the header names, which must be accepted (``known_bases``)."""
    once: bool
    """Whether the site answers each round once (``site.answered``)."""
    plan: Callable[[SiteConfig, Requests | None], Iterator[Planned]]
    """Yields the messages of a study for a dry run; without a study, all messages that the site's policy allows."""
