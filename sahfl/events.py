"""Events of a run, for what shows it: the simulation's display, a daemon's status, a log.

Each kind of event is a small class. Code that shows events handles every class, or names the classes that it leaves
out: with ``assert_never`` behind the last case, the type checker finds a new class that is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Stage = Literal[
    "preparing and checking the sites' data",
    "pretraining",
    "waiting until the sites accept the base network",
    "writing the report",
]
CellStage = Literal["fine-tuning", "evaluating"]


@dataclass(frozen=True)
class StageBegun:
    """A stage of the whole study begins."""

    text: Stage


@dataclass(frozen=True)
class Waiting:
    """The replies of some sites are still to come."""

    sites: tuple[str, ...]
    """Sites that were asked and do not work on the request yet: not connected, or without a free worker."""
    working: tuple[str, ...]
    """Sites that work on the request."""
    waited_s: float
    """Seconds since the last of them was asked."""
    deadline_s: float
    """Seconds from the asking to the deadline."""
    cell: str = ""
    """The cell that needs the replies; empty where the whole study does."""


@dataclass(frozen=True)
class Warned:
    """Something is not as it should be, and the run goes on."""

    text: str


@dataclass(frozen=True)
class CellStageBegun:
    """The fine-tuning or the evaluation of a cell begins."""

    stage: CellStage
    cell: str
    method: str
    """The method's id."""
    fold: int
    """The held-out fold, counted from 0."""
    folds: int

    @property
    def text(self) -> str:
        """The stage, as it is shown; folds count from 0, as in the names of files."""
        return f"{self.stage}, {self.method}, fold {self.fold} of 0-{self.folds - 1}"


@dataclass(frozen=True)
class CellResumed:
    """An earlier session committed this many rounds of a cell."""

    cell: str
    round: int
    rounds: int


@dataclass(frozen=True)
class CellReused:
    """An earlier run had finished a cell with the same settings."""

    cell: str
    rounds: int


@dataclass(frozen=True)
class CellEvaluated:
    """A cell is done."""

    cell: str
    asked: int = 0
    """Sites that were asked to evaluate it now; 0 if an earlier session did so, or if nothing could be trained."""
    sites: int = 0
    """All sites that evaluate it, if some were asked."""


@dataclass(frozen=True)
class RoundBegun:
    """The sites of a cell are asked to train."""

    cell: str
    round: int
    rounds: int


@dataclass(frozen=True)
class RoundCommitted:
    """A round of a cell is on disk."""

    cell: str
    round: int
    rounds: int
    loss: float | None
    """The sites' mean training loss, weighted by volumes; None if every site held back its update."""


@dataclass(frozen=True)
class RoundEvaluated:
    """A cell is evaluated after a round, as ``finetune.evaluated_rounds`` asks, and goes on."""

    cell: str
    round: int
    asked: int = 0
    """Sites that were asked to evaluate it now; 0 if an earlier session did so."""
    sites: int = 0
    """All sites that evaluate it, if some were asked."""


@dataclass(frozen=True)
class RoundFailed:
    """An attempt at a round got too few usable replies."""

    cell: str
    reason: str


@dataclass(frozen=True)
class Paused:
    """A cell rests before the next attempt at a round."""

    cell: str
    round: int
    without: tuple[str, ...]
    """Sites without a usable reply."""
    seconds: float

    @property
    def text(self) -> str:
        """Which round, and who was missing."""
        return f"{self.cell}, round {self.round}: without {', '.join(self.without)}"


@dataclass(frozen=True)
class UpdateBounded:
    """A site's update was too long and was shortened."""

    cell: str
    round: int
    site: str
    factor: float
    """Length after / length before."""

    @property
    def text(self) -> str:
        """Which round, and by how much."""
        return f"{self.cell}, round {self.round}: a change shortened to {self.factor:.2g} of its length"


@dataclass(frozen=True)
class SiteStarted:
    """A site begins to work on a message."""

    site: str
    work: str
    """The message's type, as ``train`` or ``query.describe``."""


@dataclass(frozen=True)
class SiteStep:
    """A site has prepared or evaluated a case, or done a training step."""

    site: str
    work: str
    done: int
    total: int
    loss: float | None = None


@dataclass(frozen=True)
class SiteFinished:
    """A site has answered a message."""

    site: str
    work: str


@dataclass(frozen=True)
class SiteFailed:
    """A site answered a message with an error, or cannot answer it."""

    site: str
    work: str
    """The message's type."""
    reason: str
    error: str | None = None
    """Class of the error that the site answered with; None if it gave no answer."""


@dataclass(frozen=True)
class SiteLeftOut:
    """The server goes on without the answer of a site, for now or for the whole study."""

    site: str
    reason: str


CellEvent = RoundBegun | RoundCommitted | RoundEvaluated | CellResumed | CellReused | CellEvaluated
SiteEvent = SiteStarted | SiteStep | SiteFinished | SiteFailed | SiteLeftOut
Event = StageBegun | Waiting | Warned | CellStageBegun | CellEvent | RoundFailed | Paused | UpdateBounded | SiteEvent

_listeners: list[Callable[[Event], None]] = []


def emit(event: Event) -> None:
    """Call every listener of this process with an event."""
    for listener in _listeners:
        listener(event)


@contextmanager
def listening(listener: Callable[[Event], None]) -> Iterator[None]:
    """Call the listener with all events of this process while the block runs."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
