"""The sessions of a run in its journal: how the last one ended, and the start of a new one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sahfl import __version__
from sahfl.errors import SahflError, StorageError
from sahfl.events import Warned, emit
from sahfl.process import now_text
from sahfl.run.folder import RunFolder
from sahfl.run.software import software_hash

ENDS = {"interrupted", "failed", "finished"}


def open_session(folder: RunFolder) -> None:
    """Write the journal's line for starting or resuming, with the end of the previous session.

    Raises:
        VersionsDiffer: another version of sahfl worked on the run.
    """
    folder.require_own_version()
    _report_unreadable_lines(folder)
    known = [line["event"] for line in folder.journal()]
    last = [event for event in known if event in {"started", "resumed", *ENDS}][-1:]
    after = last[0] if last and last[0] in ENDS else "killed or crashed"
    begins = {"event": "resumed", "after": after} if known else {"event": "started"}
    folder.note(begins | {"at": now_text(), "sahfl": __version__, "software": software_hash()})


@contextmanager
def session(folder: RunFolder) -> Iterator[None]:
    """Work on a run: lock it, and record an interruption or failure in the journal.

    Raises:
        RunError: another process works on this run.
    """
    with folder.lock():
        try:
            yield
        except SahflError as error:
            with suppress(StorageError):  # a full disk may be the reason of the failure
                folder.note({"event": "failed", "reason": str(error), "at": now_text()})
            raise
        except Exception:
            raise
        except BaseException:  # Ctrl-C, SIGTERM, and Flower's exceptions in a stopped run
            folder.note({"event": "interrupted", "at": now_text()})
            raise


def _report_unreadable_lines(folder: RunFolder) -> None:
    """Warn once about lost lines of the journal; again only if there are more."""
    n = folder.unreadable_lines()
    known = (line["lines"] for line in folder.journal() if line["event"] == "journal_damaged")
    if n > max(known, default=0):
        emit(Warned(f"{n} line(s) of the journal cannot be read and are left out (a crash, or damage)"))
        folder.note({"event": "journal_damaged", "lines": n})
