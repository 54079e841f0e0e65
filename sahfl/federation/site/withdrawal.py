"""Withdrawing a patient from a site: the scans are never used again, and what the site holds of them is deleted.

What has left the site stays where it is: averages, networks and sums cannot be taken apart. So the result names every
training and evaluation in which the patient took part.

Guarantees: a crash or a full disk at any moment leaves the patient out of all further work, and the same call finishes
the rest. The ledger keeps its counts. The audit log has a line without the patient's identity.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sahfl.adapters.files import load_tensors
from sahfl.config import SiteConfig
from sahfl.data.checks import CheckedCase, check_cases
from sahfl.data.dicom.patients import keys_of
from sahfl.data.manifest import pseudonym
from sahfl.errors import AdapterError, ConfigError
from sahfl.federation.site import answered, feedback, private, starts
from sahfl.federation.site.audit import AuditLog
from sahfl.federation.site.case_results import delete_results
from sahfl.federation.site.ledger import Ledger, Use
from sahfl.federation.site.site import Site
from sahfl.federation.site.withdrawn import Withdrawn, read_withdrawn, write_withdrawn

KEPT = (answered.FOLDER, private.FOLDER, feedback.FOLDER, starts.FOLDER)
"""Folders with files of single trainings: their names begin with that of the training."""


@dataclass(frozen=True)
class Withdrawal:
    """What withdrawing a patient found and did."""

    n_scans: int
    uses: tuple[Use, ...]
    """Every round of training and evaluation in which the patient took part, in their order."""
    n_deleted: int
    """Number of deleted files with something of the patient."""
    files: tuple[Path, ...]
    """Files of the patient's scans, which belong to the hospital and are still there; of DICOM series the folder, where
    reports and pictures may lie too."""

    @property
    def studies(self) -> tuple[str, ...]:
        """Fingerprints of the studies that are closed at this site now."""
        return tuple(dict.fromkeys(use.study for use in self.uses))

    def used_in(self, study: str) -> Iterator[str]:
        """One line for each training of a study, with its rounds, and for each of its evaluations."""
        rounds: dict[tuple[str, int, str], set[int]] = {}
        for use in self.uses:
            if use.study == study:
                rounds.setdefault((use.method, use.fold, use.kind), set()).add(use.round)
        for (method, fold, kind), found in rounds.items():
            place = method if fold < 0 else f"{method}, fold {fold}"
            yield f"{place}: trained in rounds {sorted(found)}" if kind == "round" else f"{place}: evaluated"


def withdraw(config: SiteConfig, name: str) -> Withdrawal:
    """Withdraw a patient, by the patient's id in the site's data or by the id of one of the patient's cases.

    Of DICOM series the id is the PatientID, or the name of the patient's folder where its files have none.

    Raises:
        ConfigError: neither the site's data nor its last check has such a patient.
        DataError: the site's data cannot be listed.
        LedgerBroken, SiteStateLost: a file of the site's folder was lost or changed; nothing was done.
        StorageError: a file cannot be written; the same call finishes the rest.
    """
    site = Site(config)
    items = _find(site, name)
    contents = {item.content for item in items if item.content}
    uses = tuple(Ledger(config).uses_of(contents))
    before = read_withdrawn(config.folder)
    patient = next((one for one in before if one.is_patient(items[0].case.patient)), _new(items[0].case.patient))
    found = contents | {item.voxels for item in items if item.voxels}
    studies = frozenset(use.study for use in uses)
    now = patient.model_copy(update={"scans": patient.scans | found, "studies": patient.studies | studies})
    write_withdrawn(config.folder, (*(one for one in before if one.id != now.id), now))
    n_scans = len({item.case for item in items})
    words = f"Withdrawn: one patient. Scans: {n_scans}. Studies in which they took part: {len(studies)}."
    trainings = sorted({use.training for use in uses if use.kind == "round"})
    details = {"withdrawal": now.id, "studies": sorted(studies), "trainings": trainings}
    AuditLog(config.folder).append("withdrawn", words, **details)
    n_deleted = _delete(site, trainings) + delete_results(config.folder, contents)
    given = {path for item in items for path in (item.case.image, item.case.label)}
    files = tuple(sorted(path for path in given if path.exists()))
    n_deleted += site.remove_withdrawn()
    return Withdrawal(n_scans, uses, n_deleted, files)


def _find(site: Site, name: str) -> tuple[CheckedCase, ...]:
    """The scans of a patient: those of the last check, and those that the site's data has now."""
    known, config = site.known_cases(), site.config
    cases = config.data.list_cases(config.name, config.folder, lambda done, total: None)
    both = (*cases, *(item.case for item in known))
    patients = {case.patient for case in both}
    named = patients & {name} or {case.patient for case in both if case.id == name} or patients & {*keys_of(name)}
    if not named:
        text = f"site {config.name}: its data and its last check have no patient or case of this name"
        raise ConfigError(f"{text}; sahfl check lists the cases. A patient whose scans are deleted must be put back")
    if len(named) > 1:
        raise ConfigError(f"site {config.name}: this case was of another patient at the last check; name the patient")
    now = check_cases([case for case in cases if case.patient in named])
    return (*now, *(item for item in known if item.case.patient in named))


def _new(patient: str) -> Withdrawn:
    name = uuid.uuid4().hex
    return Withdrawn(id=name, patient=pseudonym(patient, name), scans=frozenset(), studies=frozenset())


def _delete(site: Site, trainings: list[str]) -> int:
    """Delete what the site keeps of some trainings, and the networks that it adapted to itself; returns the number."""
    folder = site.config.folder
    paths = [path for name in trainings for kept in KEPT for path in (folder / kept).glob(f"{name}-*")]
    paths += _adapted(folder / private.FOLDER)
    for path in set(paths):
        path.unlink(missing_ok=True)
    return len(set(paths))


def _adapted(folder: Path) -> Iterator[Path]:
    """Networks of ``sahfl adapt``, which the ledger does not have; damaged ones too."""
    for path in folder.glob("*-final.safetensors"):
        try:
            if load_tensors(path)[1].get("adapted"):
                yield path
        except AdapterError:
            yield path
