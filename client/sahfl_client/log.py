"""The daemon's log: one line per event on standard error.

It names the site, the server, each request and its outcome; never a patient, a case or a file. The log of the site's
app may name files; it stays in ``FOLDER/logs/<site>.log``.
"""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger("sahfl_client")


def log_event(event: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log one event with its fields; those that are None are left out."""
    parts = [f"{key}={_quoted(value)}" for key, value in fields.items() if value is not None]
    logger.log(level, "%s", " ".join([f"event={event}", *parts]))


def warn(event: str, **fields: Any) -> None:
    """Log an event that somebody should look at."""
    log_event(event, level=logging.WARNING, **fields)


def _quoted(value: Any) -> str:
    text = str(value)
    return repr(text) if not text.isprintable() or set(text) & set(" '\"=\\") or not text else text
