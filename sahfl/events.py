"""What is going on right now, for whoever shows it: the simulation's display, a daemon's status."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "stage",
    "round",
    "committed",
    "resumed",
    "evaluated",
    "reused",
    "failed_round",
    "waiting",
    "paused",
    "bounded",
    "started",
    "step",
    "finished",
    "failed",
    "warning",
]


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    ``started``, ``step``, ``finished`` and ``failed`` are about one site; all others come from the server's app.
    ``waiting`` and ``paused`` say for whom; ``total`` is then the time in seconds, ``done`` what has passed of it.
    ``cell`` names the cell where the text is another one: of a stage, a failed round, or whom one waits for.
    """

    kind: Kind
    text: str = ""
    site: str = ""
    done: float = 0
    total: float = 0
    loss: float | None = None
    cell: str = ""


_listeners: list[Callable[[Event], None]] = []


def emit(event: Event) -> None:
    """Tell every listener of this process."""
    for listener in _listeners:
        listener(event)


@contextmanager
def listening(listener: Callable[[Event], None]) -> Iterator[None]:
    """Hear all events of this process while the block runs."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def log_on_stderr() -> None:
    """Print what sahfl logs, in a process of stock Flower, which shows the log of its own packages only."""
    logger = logging.getLogger("sahfl")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
