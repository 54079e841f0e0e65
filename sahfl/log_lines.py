"""Log lines: their form, text with ``key=value`` or one JSON object a line, and the parts of the line of an event."""

from __future__ import annotations

import json
import logging
import re
import sys
from ast import literal_eval
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TextIO, assert_never

from sahfl import events
from sahfl.events import Event

PAIR = re.compile(r"(\w+)=('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\S*)")
"""A value with spaces is written as Python writes a string (``%r``)."""


class JsonLines(logging.Formatter):
    """A line as a JSON object: time, level, logger, message, and every ``key=value`` of the message as a field."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, whatever the message holds."""
        message = record.getMessage()
        fields = {key: _plain(value) for key, value in PAIR.findall(message)}
        line = fields | {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, sort_keys=True)


class TextLines(logging.Formatter):
    """A line as text: time in UTC, level, message; what could steer a terminal is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a bug's traceback follows it."""
        at = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in record.getMessage())
        line = f"{at} {record.levelname.lower()} {message}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _StandardError(logging.StreamHandler[TextIO]):
    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr  # of now: the stream of the start may have been replaced and closed
        super().emit(record)


def write_log_lines(form: Literal["text", "json"]) -> None:
    """Send everything that this process logs to standard error, in one form."""
    handler = _StandardError()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in ("alembic", "httpx", "httpcore", "matplotlib", "py.warnings", "sahfl.adapters"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # broken connections; the gate logs what matters


def log_on_stderr() -> None:
    """Print sahfl's log in a process of stock Flower, which shows the log of its own packages only."""
    logger = logging.getLogger("sahfl")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def _plain(value: str) -> str:
    return str(literal_eval(value)) if value[:1] in ("'", '"') else value


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
