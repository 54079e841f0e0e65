"""Results per case, which stay at the site: one JSON line for each evaluated case, in ``cases.jsonl`` of its folder.

A line names the study by its fingerprint, and the training: its method, its place and its number. Lines without a
fingerprint are of versions that mixed the studies, and are not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sahfl.atomic import writing
from sahfl.config import ZeroShot
from sahfl.payload import Header
from sahfl.statistics.cases import CaseResult
from sahfl.task import Part, Task

FILE = "cases.jsonl"


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
    result: CaseResult


def keep_results(
    folder: Path, task: Task, header: Header, results: Iterable[tuple[str, CaseResult]], *, took_part: bool
) -> None:
    """Append the results of an evaluation, each with the id of its case.

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
    with writing(path), path.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(about | {"case": case} | result.row()) + "\n" for case, result in results)


def read_results(folder: Path) -> Iterator[Kept]:
    """All results of a site's folder, in the order in which they were written; torn and older lines are left out."""
    path = folder / FILE
    if not path.exists():
        return
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            if (kept := _read_line(line)) is not None:
                yield kept


def _read_line(line: str) -> Kept | None:
    try:
        row: dict[str, Any] = json.loads(line)
        result = CaseResult(**{field.name: row[field.name] for field in fields(CaseResult)})
        return Kept(**{field.name: row[field.name] for field in fields(Kept) if field.name != "result"}, result=result)
    except (ValueError, KeyError, TypeError):
        return None
