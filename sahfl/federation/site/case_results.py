"""Results per case, which stay at the site: one JSON line for each evaluated case, in ``cases.jsonl`` of its folder.

A line names the study by its fingerprint, the training by its method, its place and its number, and the scan by its id
and the hash of its content. Lines without a fingerprint are of versions that mixed the studies, and are not read.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from sahfl.atomic import write_atomic, writing
from sahfl.config import ZeroShot
from sahfl.payload import Header
from sahfl.regular_files import LINE_BYTES, LOG_BYTES, append_whole, open_regular, open_to_append, read_bytes
from sahfl.statistics.cases import CaseResult
from sahfl.task import Part, Task

FILE = "cases.jsonl"
Scored = tuple[str, str, CaseResult]
"""The id of a case, the hash of its content, and its result."""


@dataclass(frozen=True)
class Kept:
    """A line of the file: one case, as one training segmented it."""

    study: str
    """Fingerprint of the study."""
    method: str
    """Id of the training."""
    federated: str
    """Id of the same method, trained by the whole federation; that of the first of its repeats."""
    plain: str
    """The same for the method without a part at each site."""
    part: Part | None
    """What was evaluated, of a method with a part at each site."""
    trained_at: str | None
    took_part: bool
    """Whether this site answered a round of the training."""
    repeat: int
    fold: int
    case: str
    """The case's id in the site's data at that time."""
    scan: str
    """Hash of the case's content, which stays the same when the site's data change around it; empty in older lines."""
    result: CaseResult


def keep_results(folder: Path, task: Task, header: Header, results: Iterable[Scored], *, took_part: bool) -> None:
    """Append the results of an evaluation.

    ``took_part`` is whether this site answered a round of the training.

    Raises:
        StorageError: the file cannot be written.
    """
    method = task.method
    place: dict[str, Any] = {"federated": header.method, "plain": header.method, "trained_at": None, "repeat": 1}
    if method is not None and not isinstance(method, ZeroShot):
        first = method.model_copy(update={"trained_at": None, "repeat": 1})
        place = {"federated": first.id, "plain": first.shared_alone().id}
        place |= {"trained_at": method.trained_at, "repeat": method.repeat}
    about = {
        "study": header.study,
        "method": header.method,
        "part": task.part,
        "took_part": took_part,
        **place,
        "fold": task.fold,
    }
    path = folder / FILE
    with writing(path), open_to_append(path) as stream:
        lines = (json.dumps(about | {"case": case, "scan": scan} | result.row()) for case, scan, result in results)
        append_whole(stream, "".join(f"{line}\n" for line in lines).encode(), safely=False)


def read_results(folder: Path) -> Iterator[Kept]:
    """All results of a site's folder, in the order in which they were written; torn and older lines are left out."""
    path = folder / FILE
    if not path.exists():
        return
    with open_regular(path, most=LOG_BYTES) as stream:
        for line in iter(lambda: stream.readline(LINE_BYTES), b""):
            if (kept := _read_line(line)) is not None:
                yield kept


def delete_results(folder: Path, scans: Collection[str]) -> int:
    """Delete the results of some scans, by the hashes of their contents, and those that name no scan.

    Returns the number of deleted lines.

    Raises:
        StorageError: the file cannot be written; it is unchanged.
    """
    path = folder / FILE
    if not path.exists():
        return 0
    with writing(path):
        lines = read_bytes(path, most=LOG_BYTES).splitlines(keepends=True)
        left = [line for line in lines if (kept := _read_line(line)) and kept.scan not in {"", *scans}]
        write_atomic(path, b"".join(left))
    return len(lines) - len(left)


_format = TypeAdapter(Kept)


def _read_line(line: bytes) -> Kept | None:
    """The result in a line; None if a value is missing or of another type."""
    try:
        row: dict[str, Any] = {"scan": ""} | json.loads(line)
        return _format.validate_python(row | {"result": {field.name: row[field.name] for field in fields(CaseResult)}})
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
