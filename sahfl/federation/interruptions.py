"""The sessions of a run: what its journal says of each start, and of how the one before ended."""

from __future__ import annotations

from datetime import UTC, datetime

from sahfl.federation.events import Event, emit
from sahfl.federation.run_folder import RunFolder

ENDS = ("interrupted", "failed", "finished")


def now() -> str:
    """The time of a journal line, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def note_start(folder: RunFolder) -> None:
    """Write the journal's line for a start, or for going on; say once that lines of the journal are lost.

    A line for going on says how the session before ended, as a killed one could not.
    """
    _say_unreadable_lines(folder)
    lines = folder.journal()
    if not lines:
        folder.note({"event": "started", "at": now()})
        return
    last = [line["event"] for line in lines if line["event"] in {"started", "resumed", *ENDS}]
    after = last[-1] if last and last[-1] in ENDS else "killed or crashed"
    folder.note({"event": "resumed", "at": now(), "after": after})


def note_end(folder: RunFolder, event: str, **details: str) -> None:
    """Write the journal's line for the end of a session: ``interrupted``, ``failed`` or ``finished``."""
    folder.note({"event": event, **details, "at": now()})


def _say_unreadable_lines(folder: RunFolder) -> None:
    """Say that lines of the journal are lost; again only if there are more of them."""
    n = folder.unreadable_lines()
    known = (line["lines"] for line in folder.journal() if line["event"] == "journal_damaged")
    if n > max(known, default=0):
        emit(Event("warning", f"{n} line(s) of the journal cannot be read and are left out (a crash, or damage)"))
        folder.note({"event": "journal_damaged", "lines": n})
