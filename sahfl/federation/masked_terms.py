"""The terms of a masked sum: what all its sites are told alike, and sign.

They are the same in all five steps, so that masks cancel only between sites that were told the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from sahfl.errors import PayloadError
from sahfl.federation.tensors import config_record
from sahfl.masking.context import Context
from sahfl.masking.graph import LEAST_SITES
from sahfl.masking.ring import FixedPoint
from sahfl.payload import FINGERPRINT, MOST_VOLUMES, Header
from sahfl.task import Task

RECORD = "masking"
BITS = 32
MOST_LOSS = 100.0
"""A larger mean loss counts as this one in the sum."""
MOST_ATTEMPTS = 1_000_000
MOST_SITES = 10_000
OWN = "own_round"
"""The one setting of a task that differs between the sites of a sum."""


@dataclass(frozen=True)
class Terms:
    """What all sites of a masked round are told alike."""

    attempt: int
    """From 1; each has keys of its own."""
    volumes: Mapping[str, int]
    """Volumes that each site of the training registered, whose sum is what a site's weight is a share of; in an
    evaluation, patients that each site holds out. A site signs only its own right number."""
    start: str
    """Hash of the tensors that the round starts from."""

    def context(self, task: Task, header: Header) -> Context:
        """The name of the round, of which everything that sites must agree on is a part: all settings of the task too.

        With a learning rate of almost nothing at all sites but one, or other held-out scans at one alone, the sum, or
        the difference of two, would be that site's.
        """
        asked = task.model_dump(mode="json", exclude={OWN})
        agreed = [header.base, self.attempt, sorted(self.volumes.items()), self.start, asked]
        digest = hashlib.sha256(json.dumps(agreed).encode()).hexdigest()
        return Context(header.study, header.training, header.round, purpose_of(task), digest)

    def lack_of_patients(self, sites: Iterable[str], least: int = LEAST_SITES) -> str | None:
        """Why a sum over some sites is refused: fewer than ``least`` of them have patients in it; None if it is not."""
        found = sum(self.volumes.get(site, 0) > 0 for site in sites)
        if found >= least:
            return None
        return f"{found} of the sites in the sum have patients in it, expected at least {least}"

    def lack_of_signers(self, survivors: Collection[str], signers: Collection[str], threshold: int) -> str | None:
        """Why a sum that some sites signed is not opened: too few of those with patients in it did; None if enough did.

        A site without patients has no reason to refuse a sum. Signatures of such sites alone could open one that each
        of the others refuses.
        """
        having = {site for site in survivors if self.volumes.get(site, 0) > 0}
        found, needed = len(having & set(signers)), min(threshold, len(having))
        if found >= needed:
            return None
        return f"{found} of the {len(having)} sites with patients in the sum confirmed it, expected at least {needed}"

    @property
    def total(self) -> int:
        """Registered volumes of all sites of the training."""
        return sum(self.volumes.values())

    def forms(self, clip: float) -> tuple[FixedPoint, FixedPoint]:
        """How numbers of a change, and a loss, are written."""
        return FixedPoint(BITS, clip, len(self.volumes)), FixedPoint(BITS, MOST_LOSS, len(self.volumes))

    def record(self, **more: Any) -> ConfigRecord:
        """The record of a request, with what its step adds."""
        names = sorted(self.volumes)
        volumes: list[int] = [self.volumes[name] for name in names]
        known: dict[str, Any] = {"attempt": self.attempt, "start": self.start, "sites": names, "volumes": volumes}
        return ConfigRecord({**known, **more})


def purpose_of(task: Task) -> str:
    """What is summed: a round of training, or the evaluation of a method or of a part of it."""
    if task.evaluation is None:
        return "training"
    return "evaluation" if task.part is None else f"evaluation-{task.part}"


def read_terms(content: RecordDict) -> Terms:
    """Read the terms of a request.

    Raises:
        PayloadError: they are missing or of a wrong form.
    """
    record = config_record(content, RECORD)
    attempt, start, names, volumes = (record.get(name) for name in ("attempt", "start", "sites", "volumes"))
    if type(attempt) is not int or not 1 <= attempt <= MOST_ATTEMPTS:
        raise PayloadError("masking: expected the number of an attempt")
    if not isinstance(start, str) or (start and not FINGERPRINT.fullmatch(start)):
        raise PayloadError("masking: expected the hash of the round's start")
    sites = read_names(names)
    right = isinstance(volumes, list) and len(volumes) == len(sites) and sites == sorted(set(sites))
    if not right or not all(type(n) is int and 0 <= n <= MOST_VOLUMES for n in volumes or ()):  # type: ignore[union-attr]
        raise PayloadError("masking: expected different sites in order, with the volumes of each")
    return Terms(attempt, dict(zip(sites, volumes, strict=True)), start)  # type: ignore[arg-type]


def read_names(value: object) -> list[str]:
    """Read a list of names; PayloadError if it is none."""
    if not isinstance(value, list) or len(value) > MOST_SITES or not all(isinstance(one, str) for one in value):
        raise PayloadError("masking: expected a list of names")
    return [str(one) for one in value]
