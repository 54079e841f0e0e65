"""What a log line has of each event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from sahfl import events
from sahfl.events import Event


@dataclass(frozen=True)
class EventLine:
    """The parts of a line; those that an event lacks are empty."""

    name: str
    what: str
    site: str = ""
    cell: str = ""
    """The cell, where ``what`` is something else."""
    numbers: str = ""
    """How far it is, and the loss: `` done=2 total=5 loss=0.4312``."""


def event_line(event: Event) -> EventLine:
    """The line of an event."""
    match event:
        case events.StageBegun():
            return EventLine("stage", event.text)
        case events.CellStageBegun():
            return EventLine("stage", event.text, cell=event.cell)
        case events.RoundBegun():
            return EventLine("round", event.cell, numbers=_numbers(event.round, event.rounds))
        case events.RoundCommitted():
            return EventLine("committed", event.cell, numbers=_numbers(event.round, event.rounds, event.loss))
        case events.CellResumed():
            return EventLine("resumed", event.cell, numbers=_numbers(event.round, event.rounds))
        case events.CellEvaluated():
            return EventLine("evaluated", event.cell, numbers=_numbers(event.asked, event.sites))
        case events.CellReused():
            return EventLine("reused", event.cell, numbers=_numbers(0, event.rounds))
        case events.RoundFailed():
            return EventLine("failed_round", event.reason, cell=event.cell)
        case events.Waiting():
            numbers = _numbers(event.waited_s, event.deadline_s)
            return EventLine("waiting", ", ".join(event.sites), cell=event.cell, numbers=numbers)
        case events.Paused():
            return EventLine("paused", event.text, cell=event.cell, numbers=_numbers(0, event.seconds))
        case events.UpdateBounded():
            return EventLine("bounded", event.text, event.site)
        case events.SiteStarted():
            return EventLine("started", event.work, event.site)
        case events.SiteStep():
            return EventLine("step", event.work, event.site, numbers=_numbers(event.done, event.total, event.loss))
        case events.SiteFinished():
            return EventLine("finished", event.work, event.site)
        case events.SiteFailed():
            return EventLine("failed", event.reason, event.site)
        case events.Warned():
            return EventLine("warning", event.text)
        case _:
            assert_never(event)


def _numbers(done: float, total: float, loss: float | None = None) -> str:
    progress = f" done={done:g} total={total:g}" if total else ""
    return progress if loss is None else f"{progress} loss={loss:.4f}"
