"""The sessions of a run in its journal: how the last one ended, and that one begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from sahfl.errors import SahflError, StorageError
from sahfl.events import Event, emit
from sahfl.run.folder import RunFolder
from sahfl.run.software import software_hash

ENDS = {"interrupted", "failed", "finished"}


def now() -> str:
    """The time, as the journal writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def open_session(folder: RunFolder) -> None:
    """Write the journal's line for starting, or for going on: it says how the session before ended."""
    _say_unreadable_lines(folder)
    known = [line["event"] for line in folder.journal()]
    last = [event for event in known if event in {"started", "resumed", *ENDS}][-1:]
    after = last[0] if last and last[0] in ENDS else "killed or crashed"
    begins = {"event": "resumed", "after": after} if known else {"event": "started"}
    folder.note(begins | {"at": now(), "software": software_hash()})


@contextmanager
def session(folder: RunFolder) -> Iterator[None]:
    """Work on a run: nobody else may meanwhile, and the journal says if it is interrupted or fails.

    Raises:
        RunError: another process works on this run.
    """
    with folder.lock():
        try:
            yield
        except SahflError as error:
            with suppress(StorageError):  # a full disk may be why it failed
                folder.note({"event": "failed", "reason": str(error), "at": now()})
            raise
        except Exception:
            raise
        except BaseException:  # Ctrl-C, SIGTERM, and what Flower raises in a run that was stopped
            folder.note({"event": "interrupted", "at": now()})
            raise


def _say_unreadable_lines(folder: RunFolder) -> None:
    """Say once that lines of the journal are lost; again only if there are more of them."""
    n = folder.unreadable_lines()
    known = (line["lines"] for line in folder.journal() if line["event"] == "journal_damaged")
    if n > max(known, default=0):
        emit(Event("warning", f"{n} line(s) of the journal cannot be read and are left out (a crash, or damage)"))
        folder.note({"event": "journal_damaged", "lines": n})
