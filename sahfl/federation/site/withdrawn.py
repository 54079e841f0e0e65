"""The patients who were withdrawn from a site: their scans take part in nothing any more, and their studies are closed.

The record names a patient by a salted hash, and scans by the hashes of their content and of their voxels: a scan under
another name, in another file format or with another annotation is still left out.

A study in which a withdrawn patient took part is closed, because its sums with and without this patient could be
subtracted from each other.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter

from sahfl.atomic import write_atomic, writing
from sahfl.data.checks import CheckedCase
from sahfl.data.manifest import pseudonym
from sahfl.errors import PatientWithdrawn
from sahfl.federation.site.state_file import read_state
from sahfl.payload import Header
from sahfl.section import Section

FILE = "withdrawn.json"


class Withdrawn(Section):
    """One withdrawn patient."""

    id: str
    """Random name of the withdrawal, which the audit log has too; the salt of ``patient``."""
    patient: str
    """Salted hash of the patient's id (``pseudonym``)."""
    scans: frozenset[str]
    """Hashes of the contents and of the voxels of the patient's scans."""
    studies: frozenset[str]
    """Fingerprints of the studies in which they took part."""

    def is_patient(self, patient: str) -> bool:
        """Whether a patient's id is that of this patient."""
        return pseudonym(patient, self.id) == self.patient

    def has(self, item: CheckedCase) -> bool:
        """Whether a scan is one of this patient, under whatever id."""
        return self.is_patient(item.case.patient) or not self.scans.isdisjoint({item.content, item.voxels})


_format = TypeAdapter(tuple[Withdrawn, ...])


def read_withdrawn(folder: Path) -> tuple[Withdrawn, ...]:
    """The withdrawn patients of a site, the earliest first; ``folder`` is the site's folder.

    Raises:
        SiteStateLost: the file is damaged.
    """
    return read_state(folder / FILE, _format, nothing=())


def write_withdrawn(folder: Path, patients: tuple[Withdrawn, ...]) -> None:
    """Store the withdrawn patients of a site.

    Raises:
        StorageError: the file cannot be written.
    """
    with writing(folder / FILE):
        write_atomic(folder / FILE, _format.dump_json(patients, indent=1))


def require_open(folder: Path, header: Header) -> None:
    """Refuse every request of a study in which a withdrawn patient took part.

    Raises:
        PatientWithdrawn: the study is closed at this site.
        SiteStateLost: the record is damaged.
    """
    if any(header.study in patient.studies for patient in read_withdrawn(folder)):
        text = f"study {header.study[:12]}: is closed at this site, because a patient who took part was withdrawn"
        raise PatientWithdrawn(f"{text}; a study of another name trains without (docs/withdrawal.md)")
