"""The daemon's own log: one line per event on standard error, as text or as JSON.

It names the site, the server, what is asked and what became of it; never a patient, a case or a file. What goes on
inside the site's app, which may name files, stays in ``FOLDER/logs/<site>.log``.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

logger = logging.getLogger("sahfl_client")


def say(event: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log one event with its fields."""
    logger.log(level, event, extra={"fields": {key: value for key, value in fields.items() if value is not None}})


def warn(event: str, **fields: Any) -> None:
    """Log an event that somebody should look at."""
    say(event, level=logging.WARNING, **fields)


def start_log(*, json_lines: bool) -> None:
    """Send the daemon's events, and the warnings of libraries, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if json_lines else _Text())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logger.setLevel(logging.INFO)


class _Text(logging.Formatter):
    """``TIME LEVEL event=NAME key=value ...``; values with spaces in quotes."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={_quoted(value)}" for key, value in _fields(record).items())
        return f"{_time(record)} {record.levelname} {fields}" + _trace(self, record)


class _Json(logging.Formatter):
    """The same as one JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        content = {"time": _time(record), "level": record.levelname} | _fields(record)
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return json.dumps(content, default=str)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", None)
    if fields is None:
        return {"event": "message", "logger": record.name, "text": record.getMessage()}
    return {"event": record.getMessage()} | fields


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return "\n" + formatter.formatException(record.exc_info) if record.exc_info else ""


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(c in text for c in ' "=\n') else text
