"""What is going on right now, for whoever shows it: the simulation's display, a daemon's status, a log.

Each thing that can happen is a small class. Who shows events handles every class, or names those that it leaves out:
``assert_never`` behind the last case lets the type checker find a new class that is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Stage = Literal["preparing and checking the sites' data", "pretraining", "writing the report"]
CellStage = Literal["fine-tuning", "evaluating"]

# ------------------------------------------------------------------------------------------------------- the study


@dataclass(frozen=True)
class StageBegun:
    """A stage of the whole study begins."""

    stage: Stage

    @property
    def text(self) -> str:
        """The stage, as it is shown."""
        return self.stage


@dataclass(frozen=True)
class Waiting:
    """Some sites' replies are awaited."""

    sites: tuple[str, ...]
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


# -------------------------------------------------------------------------------------------------------- a cell


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
        """The stage, as it is shown; folds count from 1 there."""
        return f"{self.stage}, {self.method}, fold {self.fold + 1} of {self.folds}"


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
    """Sites that evaluated it now; none where an earlier session did so, or where nothing could be trained."""
    sites: int = 0
    """Sites that were to evaluate it, where some were asked."""


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
    loss: float
    """The sites' mean training loss, weighted by volumes."""


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


# -------------------------------------------------------------------------------------------------------- a site


@dataclass(frozen=True)
class SiteStarted:
    """A site begins to work on a message."""

    site: str
    work: str
    """The message's type, as ``train`` or ``query.describe``."""


@dataclass(frozen=True)
class SiteStep:
    """A site has done a step of its work: a case prepared or evaluated, or a training step."""

    site: str
    work: str
    """The message's type."""
    done: int
    total: int
    loss: float | None = None
    """Of a training step."""


@dataclass(frozen=True)
class SiteFinished:
    """A site has answered a message."""

    site: str
    work: str
    """The message's type."""


@dataclass(frozen=True)
class SiteFailed:
    """A site gave no answer that can be used."""

    site: str
    reason: str


CellEvent = RoundBegun | RoundCommitted | CellResumed | CellReused | CellEvaluated
"""How far a cell is."""
SiteEvent = SiteStarted | SiteStep | SiteFinished | SiteFailed
Event = StageBegun | Waiting | Warned | CellStageBegun | CellEvent | RoundFailed | Paused | UpdateBounded | SiteEvent

# ----------------------------------------------------------------------------------------------------- listeners

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
