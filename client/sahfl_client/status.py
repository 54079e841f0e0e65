"""What the daemon shows of itself: log lines on standard error, and ``status.json`` in the site's folder.

Both name the site, the server, each request and its outcome; never a patient, a case or a file. The log of the site's
app may name files; it stays in ``FOLDER/logs/<site>.log``.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

from sahfl import __version__
from sahfl.atomic import write_atomic
from sahfl.last_errors import after_answer, checked_errors, read_status
from sahfl.log_lines import LogLine
from sahfl.process import now_text

log = logging.getLogger(__name__)
SCHEMA = 1
NAME = "status.json"
PROGRESS_EVERY_S = 1.0


class Status:
    """The content of the file; every change writes it.

    Guarantees: a reader finds the whole old file or the whole new one; a full disk stops nothing, and is logged once.
    Changes may come from several threads.
    """

    def __init__(self, folder: Path, *, site: str, server: str) -> None:
        self._path, self._lock = folder / NAME, threading.Lock()
        self._written_s, self._failing = 0.0, False
        self._content: dict[str, Any] = {
            "schema": SCHEMA,
            "site": site,
            "server": server,
            "version": __version__,
            "pid": os.getpid(),
            "started": now_text(),
            "connected": False,
            "since": now_text(),
            "reason": "starting",
            "last_request": None,
            "last_answer": None,
            "doing": None,
            "errors": checked_errors(read_status(self._path).get("errors")),
            "certificate_days": None,
            "warnings": [],
        }
        self.set()

    def set(self, **fields: Any) -> None:
        """Change fields, and write the file."""
        with self._lock:
            self._content |= fields
            self._write()

    def answered(self, what: str, error: str | None) -> None:
        """Note whether the answer to a request was an error: the errors of an earlier process stay until one is not."""
        with self._lock:
            self._content |= {"doing": None, "errors": after_answer(self._content["errors"], what, error)}
            self._write()

    def progress(self, doing: dict[str, Any]) -> None:
        """Set how far the work is; the file is written if its last change is at least a second old."""
        with self._lock:
            self._content["doing"] = (self._content["doing"] or {}) | doing
            if time.monotonic() - self._written_s >= PROGRESS_EVERY_S:
                self._write()

    def _write(self) -> None:
        self._written_s = time.monotonic()
        try:
            write_atomic(self._path, json.dumps(self._content, indent=1) + "\n")
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.warning(LogLine("status_not_written", reason=error.strerror))
            self._failing = True
