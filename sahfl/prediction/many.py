"""Segmenting many scans: a folder for each, and one table of all, complete at any moment."""

from __future__ import annotations

import csv
import errno
import io
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sahfl.atomic import write_atomic
from sahfl.data.new_scan import read_new_scan
from sahfl.errors import RunError, SahflError, StorageError
from sahfl.prediction.scan_list import Wish
from sahfl.prediction.segment import Predictor, segment
from sahfl.prediction.written import FILES, NOTE, Wanted, identity, write_prediction
from sahfl.regular_files import LIST_BYTES, read_json

TABLE = "results.csv"
COLUMNS = (
    *("case", "status", "volume_ml", "low_ml", "high_ml", "interval", "threshold", "most_probable"),
    *("unlike", "warnings", "missing", "reason", "scan"),
)
_UNREADABLE = (
    *(SahflError, OSError, EOFError, MemoryError, ArithmeticError, LookupError, TypeError, ValueError),
    *(AttributeError, RuntimeError, struct.error, zlib.error),
)
"""What a damaged scan makes the libraries raise."""
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@dataclass(frozen=True)
class Outcome:
    """What became of one scan."""

    wish: Wish
    note: Mapping[str, Any] | None = None
    """Content of its ``prediction.json``; None if it was refused."""
    reason: str = ""
    """Why it was refused."""

    @property
    def is_whole(self) -> bool:
        """Whether the scan was segmented, and every file that was asked for is there."""
        return self.note is not None and not self.note["failed"]


def check_folder(out: Path, wishes: Sequence[Wish], predictor: Predictor, wanted: Wanted) -> dict[str, Outcome]:
    """What earlier calls finished in a folder, by case, before any work.

    Raises:
        RunError: the folder is a file, or has results of other networks or another threshold, and ``wanted`` does not
            replace them.
    """
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is no folder; name another (out)")
    if wanted.replace:
        return {}
    done = {}
    for wish in wishes:
        note = _read_note(out / wish.case)
        if note is None:
            continue
        if _made_with(note) != {**identity(predictor), "threshold": predictor.threshold}:
            found = f"{wish.case} was segmented with other networks or another threshold"
            raise RunError(f"{out}: {found}; name another folder (out), or replace its results (replace)")
        asked = note["wanted"]
        if asked["probability"] >= wanted.probability and asked["dicom_seg"] >= wanted.dicom_seg:
            done[wish.case] = _unless_changed(wish, note)
    return done


def _unless_changed(wish: Wish, note: Mapping[str, Any]) -> Outcome:
    try:
        if wish.stamp() == note["source"]:
            return Outcome(wish, note)
    except OSError as error:
        return Outcome(wish, reason=f"its results are here, but the scan cannot be read ({error.strerror})")
    return Outcome(wish, reason="the scan changed since it was segmented; replace its results (replace)")


def _made_with(note: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: note.get(name) for name in (*("study", "fingerprint", "method", "folds"), "sha256", "part", "threshold")
    }


def _read_note(folder: Path) -> dict[str, Any] | None:
    """The note of a finished folder; None if the folder is unfinished, of which the note is the last file."""
    try:
        note = read_json(folder / NOTE, most=LIST_BYTES)
    except (OSError, ValueError):
        return None
    needed = ("volume_ml", "interval", "findings", "unlike", "failed", "wanted", "source")
    return note if isinstance(note, dict) and all(name in note for name in needed) else None


def predict_case(out: Path, wish: Wish, predictor: Predictor, wanted: Wanted) -> Outcome:
    """Segment one scan of many into its own folder; whatever is wrong with the scan is its outcome.

    Raises:
        OSError: the disk is full or read-only, which the other scans would meet too.
    """
    if wish.problem:
        return refused(out, wish, wish.problem)
    try:
        stamp = wish.stamp()  # before reading, so that a change meanwhile is noticed later
        new = read_new_scan(wish.path)
        found = segment(new, predictor.trained, threshold=predictor.threshold)
        # What an interrupted call left in the folder has no note, and is written over.
        again = replace(wanted, replace=True)
        written = write_prediction(out / wish.case, new, predictor, found, again, source=stamp)
        return Outcome(wish, written.note)
    except _UNREADABLE as error:
        if isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno in _NO_ROOM):
            raise
        return refused(out, wish, str(error) if isinstance(error, SahflError) else _kind(error))


def refused(out: Path, wish: Wish, reason: str) -> Outcome:
    """The outcome of a scan without a result; what was begun of one is removed, finished results are not."""
    folder = out / wish.case
    if not (folder / NOTE).exists():
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # it was never made, or has files of somebody else
            folder.rmdir()
    return Outcome(wish, reason=reason.removeprefix(f"{wish.path}: "))


def _kind(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"the file system gave: {error.strerror}"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    return f"it cannot be read ({type(error).__name__}: {error})"


Run = Callable[[Sequence[Wish]], Iterator[Outcome]]


def predict_many(
    out: Path,
    wishes: Sequence[Wish],
    done: Mapping[str, Outcome],
    run: Run,
    on_case: Callable[[int, int, Outcome], None] = lambda n_done, n_all, outcome: None,
) -> list[Outcome]:
    """Segment the scans that are not done, and keep the table of all up to date.

    Guarantees: ``results.csv`` is written whole and atomically after every scan, in the order of the list; a kill at
    any moment loses the scans in work and no other.

    Args:
        out: folder of the results.
        wishes: all scans.
        done: outcomes of earlier calls; refused ones are tried again unless their results are there.
        run: segments scans and yields their outcomes in any order.
        on_case: called after each scan with (scans done, scans in all, its outcome).

    Returns:
        The outcomes in the order of ``wishes``.
    """
    outcomes = dict(done)
    write_table(out, wishes, outcomes)
    for outcome in run([wish for wish in wishes if wish.case not in done]):
        outcomes[outcome.wish.case] = outcome
        write_table(out, wishes, outcomes)
        on_case(len(outcomes), len(wishes), outcome)
    return [outcomes[wish.case] for wish in wishes]


def write_table(out: Path, wishes: Iterable[Wish], outcomes: Mapping[str, Outcome]) -> None:
    """Write ``results.csv``; scans that wait have the status ``waiting``."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for wish in wishes:
        row = _row(outcomes[wish.case]) if wish.case in outcomes else {"status": "waiting"}
        cells = {"case": wish.case, "scan": str(wish.path), **row}
        writer.writerow({name: _cell(value) for name, value in cells.items()})
    write_atomic(out / TABLE, stream.getvalue())


def _row(outcome: Outcome) -> dict[str, Any]:
    note = outcome.note
    if note is None:
        return {"status": "refused", "reason": " | ".join(line.strip() for line in outcome.reason.splitlines())}
    return {
        "status": "done" if outcome.is_whole else "incomplete",
        **{name: note[name] for name in ("volume_ml", "threshold", "most_probable")},
        **{name: note["interval"][name] for name in ("low_ml", "high_ml")},
        "interval": note["interval"]["text"],
        "unlike": "; ".join(item["id"] for item in note["unlike"]),
        "warnings": "; ".join(item["rule"] for item in note["findings"] if item["severity"] == "warning"),
        "missing": "; ".join(note["failed"]),
    }


def _cell(value: Any) -> Any:
    """A value for a spreadsheet, which would compute a text that begins like a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value
