"""Log lines: an event with its fields, which a program writes as one line of logfmt or as one JSON object."""

from __future__ import annotations

import json
import logging
import math
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO, assert_never

from sahfl import events
from sahfl.environment import ignored_variables
from sahfl.events import Event

LONGEST = 4000
"""Longest value in characters; journald breaks a line of more than 48 KB in two."""
QUOTED = frozenset(" \"'=\\")
"""Characters of values that logfmt writes in quotation marks."""


class LogLine:
    """An event and its fields, as the message of a log record: ``log.info(LogLine("connected", site=site))``.

    Guarantees: its text is one line of logfmt, in which each value is one token, whatever the value holds; JSON is
    made from the fields, and no text is read again. Fields that are None are left out.
    """

    def __init__(self, event: str, /, **fields: str | float | None) -> None:
        given = {name: _cut(value) for name, value in fields.items() if value is not None}
        self.fields: dict[str, str | float] = {"event": event, **given}

    def __str__(self) -> str:
        return " ".join(f"{name}={_token(value)}" for name, value in self.fields.items())


def _cut(value: str | float) -> str | float:
    """A value that JSON has, of bounded length."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value[:LONGEST] if isinstance(value, str) else value


def _token(value: str | float) -> str:
    if isinstance(value, str) and value and value.isprintable() and not QUOTED & set(value):
        return value
    return json.dumps(value, ensure_ascii=isinstance(value, str) and not value.isprintable())


class _Lines(logging.Formatter):
    """Writes each record as a line; a record that cannot be formatted becomes a line that names its place."""

    def format(self, record: logging.LogRecord) -> str:
        try:
            return self.line(record, _event_of(record))
        except Exception as error:  # what a library logs may have wrong arguments, or a text that cannot be made
            where = f"{record.filename}:{record.lineno}"
            return self.line(record, LogLine("log_line_lost", where=where, error=type(error).__name__))

    def line(self, record: logging.LogRecord, event: LogLine) -> str:
        """The line of an event."""
        raise NotImplementedError


class JsonLines(_Lines):
    """A line as a JSON object: time, level, logger, and the event with its fields."""

    def line(self, record: logging.LogRecord, event: LogLine) -> str:
        """The line of an event; a bug's traceback is a field."""
        line = event.fields | {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, sort_keys=True)


class TextLines(_Lines):
    """A line as text: time in UTC, level, and the event with its fields in logfmt."""

    def line(self, record: logging.LogRecord, event: LogLine) -> str:
        """The line of an event; the lines of a bug's traceback follow it, indented."""
        at = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        line = f"{at} {record.levelname.lower()} {event}"
        if not record.exc_info:
            return line
        traceback = self.formatException(record.exc_info).splitlines()
        return "\n".join([line, *(f"    {_printable(text)}" for text in traceback)])


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _event_of(record: logging.LogRecord) -> LogLine:
    """The event of a record; the message of another program's record is a field of the event ``log``."""
    message: object = record.msg
    if isinstance(message, LogLine):
        return message
    return LogLine("log", logger=record.name, message=record.getMessage())


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
        handler.setFormatter(TextLines())
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def log_ignored_variables(logger: logging.Logger) -> None:
    """Warn of variables of the environment that this process does not use (``environment``)."""
    if names := ignored_variables():
        logger.warning(LogLine("environment_ignored", variables=",".join(names)))


def log_run_event(logger: logging.Logger, event: Event) -> None:
    """Log an event of a run; what somebody should look at is a warning."""
    bad_site = isinstance(event, events.SiteFailed | events.SiteLeftOut)
    odd = bad_site or isinstance(event, events.RoundFailed | events.Warned | events.Paused)
    logger.log(logging.WARNING if odd else logging.INFO, run_line(event))


def run_line(event: Event) -> LogLine:
    """The line of an event of a run."""
    match event:
        case events.StageBegun():
            return LogLine("stage", what=event.text)
        case events.CellStageBegun():
            return LogLine("stage", cell=event.cell, what=event.text)
        case events.RoundBegun():
            return LogLine("round", cell=event.cell, round=event.round, rounds=event.rounds)
        case events.RoundCommitted():
            loss = None if event.loss is None else round(event.loss, 4)
            return LogLine("committed", cell=event.cell, round=event.round, rounds=event.rounds, loss=loss)
        case events.CellResumed():
            return LogLine("resumed", cell=event.cell, round=event.round, rounds=event.rounds)
        case events.CellEvaluated():
            return LogLine("evaluated", cell=event.cell, asked=event.asked, sites=event.sites)
        case events.RoundEvaluated():
            return LogLine("round_evaluated", cell=event.cell, round=event.round, asked=event.asked, sites=event.sites)
        case events.CellReused():
            return LogLine("reused", cell=event.cell, rounds=event.rounds)
        case events.RoundFailed():
            return LogLine("failed_round", cell=event.cell, reason=event.reason)
        case events.Waiting():
            sites, working = (",".join(names) or None for names in (event.sites, event.working))
            times = {"waited_s": round(event.waited_s), "deadline_s": round(event.deadline_s)}
            return LogLine("awaiting_answers", cell=event.cell or None, sites=sites, working=working, **times)
        case events.Paused():
            return LogLine("paused", cell=event.cell, what=event.text, seconds=round(event.seconds))
        case events.UpdateBounded():
            return LogLine("bounded", site=event.site, what=event.text)
        case events.SiteStarted():
            return LogLine("started", site=event.site, what=event.work)
        case events.SiteStep():
            loss = None if event.loss is None else round(event.loss, 4)
            return LogLine("step", site=event.site, what=event.work, done=event.done, total=event.total, loss=loss)
        case events.SiteFinished():
            return LogLine("finished", site=event.site, what=event.work)
        case events.SiteFailed():
            return LogLine("failed", site=event.site, what=event.work, reason=event.reason)
        case events.SiteLeftOut():
            return LogLine("left_out", site=event.site, reason=event.reason)
        case events.Warned():
            return LogLine("warning", what=event.text)
        case _:
            assert_never(event)
