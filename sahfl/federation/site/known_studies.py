"""The studies that a site took part in, and the settings of each study's first request, which must never change.

A study has one base network, so that a server cannot ask for two views of the patients from two bases. Only in a
simulation may it have further ones (``base_of``).

Sums over the same patients in two splits (another seed, number of folds or strata) would reveal single patients by
subtraction, however large the groups are. A study's fingerprint covers all of these settings, so this check never
refuses a server that follows its study.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from sahfl.atomic import write_atomic, writing
from sahfl.config import Section
from sahfl.errors import PolicyRefused
from sahfl.federation.site.state_file import read_state
from sahfl.payload import Header
from sahfl.process import now_text
from sahfl.task import Task

FILE = "studies.json"


class KnownStudy(Section):
    """The record that a site keeps of a study."""

    since: str
    """Time of the study's first request."""
    settings: str
    """Hash of seed, folds, views and network."""
    evaluation: str | None = None
    """Hash of all settings of the evaluation; None before the first evaluation."""
    base: str | None = None
    """Hash of the base network; None before the first request that names one."""


_format = TypeAdapter(dict[str, KnownStudy])


def recognise_study(
    folder: Path, task: Task, header: Header, *, simulated: bool = False
) -> tuple[KnownStudy | None, KnownStudy]:
    """The stored record of the study of a request (None for a new study), and the record to store after the request.

    ``simulated`` is whether the site is one of a simulation, which may have several bases.

    Raises:
        PolicyRefused: the settings differ from those of the study's first request.
        SiteStateLost: the records cannot be read.
    """
    stored = read_studies(folder).get(header.study)
    settings = _hash(task.model_dump(mode="json", include={"seed", "folds", "views", "model"}))
    evaluation = None if task.evaluation is None else _hash(task.evaluation.model_dump(mode="json"))
    base = None if simulated or not header.base else _hash({"base": header.base})
    if stored is None:
        return None, KnownStudy(since=now_text(), settings=settings, evaluation=evaluation, base=base)
    pairs = {"seed, folds, views or model": (stored.settings, settings), "evaluation": (stored.evaluation, evaluation)}
    pairs["base network"] = stored.base, base
    for name, (before, now) in pairs.items():
        if before is not None and now is not None and before != now:
            found = f"study {header.study[:12]}: got another {name} than it began with on {stored.since}"
            raise PolicyRefused(f"{found}, expected the same for all of a study")
    return stored, stored.model_copy(
        update={"evaluation": stored.evaluation or evaluation, "base": stored.base or base}
    )


def remember_study(folder: Path, study: str, record: KnownStudy) -> None:
    """Store the record of a study in the site's folder, and keep those of other studies.

    Raises:
        StorageError: the file cannot be written.
    """
    with writing(folder / FILE):
        write_atomic(folder / FILE, _format.dump_json(read_studies(folder) | {study: record}, indent=1))


def read_studies(folder: Path) -> dict[str, KnownStudy]:
    """The records of all studies, by fingerprint; ``folder`` is the site's folder.

    Raises:
        SiteStateLost: the file is damaged.
    """
    return read_state(folder / FILE, _format, nothing={})


def _hash(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
